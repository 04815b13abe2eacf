// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The buffered ring: its layout, what goes into it, what happens when it is full.

use std::collections::BTreeSet;

use ioreq_core::abi::{BufIoreqEntry, HVM_IOREQSRV_BUFIOREQ_LEGACY, IOREQ_TYPE_COPY};
use ioreq_core::hypervisor::EventChannels;
use ioreq_core::{BufIoreq, LocalPort, ServerId, Transport, VcpuId, Width};
use std::sync::Arc;

use crate::rig::{DmOp, Domain, GuestOp, Options, Rig, Run};
use crate::support::layout::{MMIO, PLAIN, PORT, VGA, mmio, ports};
use crate::support::{Answer, Server, run, until};

/// A full domain and a server with a ring and the whole VGA range.
fn vga<R: Rig>(rig: &R, options: Options) -> (R::Domain, Server<R::Domain>) {
    let domain = rig.domain(options);
    let server = Server::up_with_ring(&domain);
    server.map(mmio(VGA, 0x2_0000));
    (domain, server)
}

fn store(addr: u64, width: Width, value: u64) -> GuestOp {
    GuestOp::store(addr, width, value)
}

fn store32(i: u32) -> GuestOp {
    store(VGA + 4 * u64::from(i % 0x1000), Width::B4, u64::from(i))
}

/// Entry number `i` of a series of [`store32`].
fn is_store32(entry: BufIoreqEntry, i: u32) -> bool {
    entry == BufIoreqEntry::new(IOREQ_TYPE_COPY, false, 2, 0xa_0000 + 4 * (i % 0x1000), i)
}

pub(crate) fn ring_layout<R: Rig>(rig: &R) {
    let (domain, server) = vga(rig, Options::full());
    let op = store(VGA + 0x1_2344, Width::B4, 0xdead_beef);
    run(&domain, &[op], &mut []).back();
    let page = server.ring();
    assert_eq!(
        (page.u32(0), page.u32(4)),
        (0, 1),
        "read_pointer, write_pointer"
    );
    let bits = page.u64(8);
    assert_eq!(bits & 0xff, 1, "type");
    assert_eq!(bits >> 8 & 1, 0, "pad");
    assert_eq!(bits >> 9 & 1, 0, "a write");
    assert_eq!(bits >> 10 & 3, 2, "size");
    assert_eq!(bits >> 12 & 0xf_ffff, VGA + 0x1_2344, "addr");
    assert_eq!(bits >> 32, 0xdead_beef, "data");
    // The second entry follows it.
    let op = store(VGA + 1, Width::B1, 0x11);
    run(&domain, &[op], &mut []).back();
    assert_eq!(page.u64(16), 0x11 << 32 | 0xa_0001 << 12 | 1);
}

pub(crate) fn ring_size_codes<R: Rig>(rig: &R) {
    let (domain, server) = vga(rig, Options::full());
    let widths = [Width::B1, Width::B2, Width::B4, Width::B8];
    let ops = widths.map(|width| store(VGA, width, 0x77));
    run(&domain, &ops, &mut []).back();
    let codes: Vec<_> = server
        .ring()
        .drain()
        .iter()
        .map(|e| e.width_log2())
        .collect();
    assert_eq!(codes, [0, 1, 2, 3, 3]);
}

pub(crate) fn ring_eight_bytes<R: Rig>(rig: &R) {
    let (domain, server) = vga(rig, Options::full());
    let op = store(VGA + 8, Width::B8, 0x1122_3344_5566_7788);
    run(&domain, &[op], &mut []).back();
    assert_eq!(server.ring().pointers(), (0, 2));
    let data: Vec<_> = server.ring().drain().iter().map(|e| e.data()).collect();
    assert_eq!(data, [0x5566_7788, 0x1122_3344]);
}

/// What a consumer sees of a series of [`store32`]s.
#[derive(Default)]
struct Series {
    /// The number that comes next.
    next: u32,
    /// How often numbers came again.
    again: u32,
}

impl Series {
    /// Xen can lose advances of `read_pointer` when it rewinds: what they stood for comes again then, in order.
    fn see(&mut self, entry: BufIoreqEntry) {
        if !is_store32(entry, self.next) {
            let number = entry.data();
            assert!(
                is_store32(entry, number) && number < self.next && self.next < number + 511,
                "entry {} is lost: {entry:x?}",
                self.next
            );
            self.next = number;
            self.again += 1;
        }
        self.next += 1;
    }
}

/// The guest posts 2000 writes while the server takes them: all come, in order.
fn taken_beside_the_guest<R: Rig>(rig: &R) -> Series {
    let (domain, mut server) = vga(rig, Options::full());
    let ops: Vec<_> = (0..2000).map(store32).collect();
    let guest = domain.start(VcpuId(0), &ops);
    let mut series = Series::default();
    let mut take = |server: &mut Server<R::Domain>| {
        server
            .ring()
            .drain()
            .into_iter()
            .for_each(|e| series.see(e));
        // A full ring makes Xen use the slot. READY says that the ring had all before it.
        if server.is_ready(0) {
            server
                .ring()
                .drain()
                .into_iter()
                .for_each(|e| series.see(e));
            let raw = server.serve(0, Answer::Apply).expect("READY");
            assert_eq!(raw.data & 0xffff_ffff, u64::from(series.next));
            series.next += 1;
        }
    };
    until("2000 entries", || {
        take(&mut server);
        guest.is_back()
    });
    take(&mut server);
    guest.join().back();
    assert_eq!(series.next, 2000);
    series
}

pub(crate) fn ring_contents_before_pointer<R: Rig>(rig: &R) {
    taken_beside_the_guest(rig);
}

pub(crate) fn ring_lost_advance<R: Rig>(rig: &R) {
    // Where Xen may lose one, it is luck whether it does: the series takes it either way.
    let again: u32 = (0..3).map(|_| taken_beside_the_guest(rig).again).sum();
    println!("{}: entries came again {again} times of 6000", rig.name());
}

/// Uses the ring for 1200 entries, 100 at a time; the pointers after each time.
fn use_ring<D: Domain>(domain: &D, server: &Server<D>) -> Vec<(u32, u32)> {
    let mut pointers = Vec::new();
    for batch in 0..12 {
        let numbers = 100 * batch..100 * (batch + 1);
        let ops: Vec<_> = numbers.clone().map(store32).collect();
        run(domain, &ops, &mut []).back();
        let entries = server.ring().drain();
        assert_eq!(entries.len(), 100);
        for (entry, i) in entries.into_iter().zip(numbers) {
            assert!(is_store32(entry, i), "entry {i}: {entry:x?}");
        }
        pointers.push(server.ring().pointers());
    }
    pointers
}

pub(crate) fn ring_atomic_rewinds<R: Rig>(rig: &R) {
    let (domain, server) = vga(rig, Options::full());
    for (read, write) in use_ring(&domain, &server) {
        assert_eq!(read, write, "all taken");
        assert!(read < 2 * 511, "{read:#x} was not rewound");
    }
    // 1200 entries, rewound by 511 twice.
    assert_eq!(server.ring().pointers(), (1200 - 2 * 511, 1200 - 2 * 511));
}

pub(crate) fn ring_legacy_runs_on<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut op = DmOp::create(HVM_IOREQSRV_BUFIOREQ_LEGACY);
    domain.dm_op(&mut op, &mut []).expect("create");
    let id = ServerId(op.get_u16(4));
    let mut server = Server::over(Arc::new(domain.process()), id);
    server.acquire();
    server.acquire_ring();
    server.enable();
    server.bind();
    server.map(mmio(VGA, 0x2_0000));
    let pointers = use_ring(&domain, &server);
    let expected: Vec<_> = (1..=12).map(|n| (100 * n, 100 * n)).collect();
    assert_eq!(pointers, expected);
}

pub(crate) fn ring_vga_write<R: Rig>(rig: &R) {
    let (domain, server) = vga(rig, Options::full());
    // Both ends of the range. Nobody serves anything, and the guest comes back.
    let ops = [
        store(VGA, Width::B4, 1),
        store(VGA + 0x1_fffc, Width::B4, 2),
        store(VGA + 0x1_ffff, Width::B1, 3),
    ];
    run(&domain, &ops, &mut []).back();
    assert!(server.is_idle());
    let data: Vec<_> = server.ring().drain().iter().map(|e| e.data()).collect();
    assert_eq!(data, [1, 2, 3]);
}

/// The operation must come by the slot, and the ring stay empty.
fn synchronous<R: Rig>(rig: &R, options: Options, op: GuestOp) -> ioreq_core::abi::Ioreq {
    let (domain, mut server) = vga(rig, options);
    server.map(mmio(MMIO, 0x1000));
    let guest = domain.start(VcpuId(0), &[op]);
    let raw = server.serve_next(0, Answer::Apply);
    guest.join().back();
    assert_eq!(server.ring().waiting(), 0);
    raw
}

pub(crate) fn ring_vga_read<R: Rig>(rig: &R) {
    let op = GuestOp::load(VGA + 4, Width::B4);
    let raw = synchronous(rig, Options::full(), op);
    assert_eq!((raw.addr, raw.is_read()), (VGA + 4, true));
}

pub(crate) fn ring_vga_rep<R: Rig>(rig: &R) {
    let op = GuestOp::rep_stos(VGA, Width::B4, 5, 8);
    let raw = synchronous(rig, Options::full(), op);
    assert_eq!((raw.addr, raw.count, raw.data_is_ptr()), (VGA, 8, false));
    let op = GuestOp::rep_movs(PLAIN, VGA, Width::B4, 8);
    let raw = synchronous(rig, Options::full(), op);
    assert_eq!((raw.addr, raw.count, raw.data_is_ptr()), (VGA, 8, true));
}

pub(crate) fn ring_vga_not_emulated<R: Rig>(rig: &R) {
    let raw = synchronous(rig, Options::default(), store(VGA, Width::B4, 1));
    assert_eq!((raw.addr, raw.is_read()), (VGA, false));
}

pub(crate) fn ring_vga_not_in_range<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let server = Server::up_with_ring(&domain);
    server.map(mmio(VGA, 0x1000));
    let ops = [
        store(VGA + 0x1000, Width::B4, 1),
        store(VGA + 0xffe, Width::B4, 2), // not wholly inside
    ];
    // The second is split at the page's end: its first half is inside.
    run(&domain, &ops, &mut []).back();
    assert!(server.is_idle());
    let entries = server.ring().drain();
    let seen: Vec<_> = entries.iter().map(|e| (e.addr(), e.width_log2())).collect();
    assert_eq!(seen, [(VGA + 0xffe, 1)]);
}

pub(crate) fn ring_not_elsewhere<R: Rig>(rig: &R) {
    let raw = synchronous(rig, Options::full(), store(MMIO, Width::B4, 1));
    assert_eq!((raw.addr, raw.is_read()), (MMIO, false));
}

pub(crate) fn ring_timeoffset<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let server = Server::up_with_ring(&domain);
    run(&domain, &[GuestOp::RtcSet], &mut []).back();
    assert!(server.is_idle());
    let entries = server.ring().drain();
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.kind(), e.width_log2(), e.is_read()))
        .collect();
    // A real RTC tells of every register that is written: pairs, at least one.
    assert!(!seen.is_empty() && seen.len() % 2 == 0, "{seen:?}");
    assert!(seen.iter().all(|s| *s == (7, 3, false)), "{seen:?}");
}

pub(crate) fn ring_timeoffset_broadcast<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let first = Server::up_with_ring(&domain);
    let without = Server::up(&domain);
    let second = Server::up_with_ring(&domain);
    let disabled = Server::up_with_ring(&domain);
    disabled.disable();
    run(&domain, &[GuestOp::RtcSet], &mut []).back();
    let entries = first.ring().drain();
    assert!(!entries.is_empty());
    assert_eq!(entries, second.ring().drain());
    assert_eq!(disabled.ring().waiting(), 0);
    assert!(without.is_idle());
}

pub(crate) fn ring_full<R: Rig>(rig: &R) {
    let (domain, mut server) = vga(rig, Options::full());
    let ops: Vec<_> = (0..511).map(store32).collect();
    run(&domain, &ops, &mut []).back();
    assert!(server.is_idle());
    assert_eq!(server.ring().waiting(), 511);
    let guest = domain.start(VcpuId(0), &[store32(511)]);
    let raw = server.wait_ready(0);
    assert_eq!((raw.kind, raw.data & 0xffff_ffff, raw.count), (1, 511, 1));
    assert_eq!(server.ring().waiting(), 511);
    let entries = server.ring().drain();
    assert!((0..).zip(entries).all(|(i, e)| is_store32(e, i)));
    server.serve(0, Answer::Apply);
    guest.join().back();
    // There is room again.
    run(&domain, &[store32(512)], &mut []).back();
    assert_eq!(server.ring().waiting(), 1);
}

pub(crate) fn ring_full_eight_bytes<R: Rig>(rig: &R) {
    let (domain, mut server) = vga(rig, Options::full());
    let ops: Vec<_> = (0..510).map(store32).collect();
    run(&domain, &ops, &mut []).back();
    let guest = domain.start(VcpuId(0), &[store(VGA, Width::B8, 9), store32(510)]);
    let raw = server.serve_next(0, Answer::Apply);
    assert_eq!((raw.addr, raw.size), (VGA, 8));
    guest.join().back();
    assert_eq!(server.ring().waiting(), 511, "four bytes did fit");
}

pub(crate) fn ring_before_slot<R: Rig>(rig: &R) {
    let (domain, mut server) = vga(rig, Options::full());
    server.map(ports(0x500, 0x5ff));
    let pair = |i| {
        let out = GuestOp::write_port(PORT, Width::B4, i);
        [store32(i), out]
    };
    let ops: Vec<_> = (0..200).flat_map(pair).collect();
    let guest = domain.start(VcpuId(0), &ops);
    for i in 0..200 {
        let raw = server.wait_ready(0);
        assert_eq!(raw.data & 0xffff_ffff, u64::from(i));
        let entries = server.ring().drain();
        assert_eq!(entries.len(), 1, "the write before it is in the ring");
        assert!(is_store32(entries[0], i));
        server.serve(0, Answer::Apply);
    }
    guest.join().back();
}

pub(crate) fn ring_one_port<R: Rig>(rig: &R) {
    let options = Options {
        vcpus: 2,
        ..Options::full()
    };
    let domain = rig.domain(options);
    let mut server = Server::create(&domain, BufIoreq::Atomic);
    server.acquire();
    server.acquire_ring();
    server.enable();
    server.map(mmio(VGA, 0x2_0000));
    let info = server.hv.server_info(server.id).expect("info");
    let remote = info.bufioreq_port.expect("a ring has a port");
    assert!((0..2).all(|vcpu| server.page().vp_eport(vcpu) != remote.0));
    // Only the ring's port is bound.
    let port = server.events.bind(remote).expect("bind");
    let mut fired = [LocalPort(0); 4];
    let mut take = || {
        let count = server.events.pending(&mut fired).expect("pending");
        fired[..count].iter().map(|p| p.0).collect::<BTreeSet<_>>()
    };
    take();
    for vcpu in 0..2 {
        server.events.unmask(&[port]).expect("unmask");
        let guest = domain.start(VcpuId(vcpu), &[store32(vcpu)]);
        guest.join().back();
        until("the ring's event", || take().contains(&port.0));
        let entries = server.ring().drain();
        assert!(entries.len() == 1 && is_store32(entries[0], vcpu));
    }
}
