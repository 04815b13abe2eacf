// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The slot of a vCPU: layout, states, order, and what a device model must not do to it.

use std::thread;
use std::time::Duration;

use ioreq_core::abi::{
    IOREQ_DATA_IS_PTR, IOREQ_DF, IOREQ_DIR_READ, IOREQ_TYPE_COPY, IOREQ_TYPE_INVALIDATE,
    IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_PIO, IOREQ_TYPE_TIMEOFFSET,
};
use ioreq_core::{EventChannels, Gfn, Sbdf, VcpuId, Width};

use crate::rig::{Domain, GuestOp, OpResult, Options, Rig, Run};
use crate::support::layout::{MMIO, PLAIN, PORT, RAM_FRAMES, TRACKED, addr, mmio, ports};
use crate::support::{Answer, Page, Server, run, run_with, until};

pub(crate) fn slot_layout<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(2));
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let op = GuestOp::write_port(PORT, Width::B4, 0x1234_5678);
    let guest = domain.start(VcpuId(1), &[op]);
    until("READY in byte 30 of slot 1", || {
        server.page().u8(32 + 30) & 0xf == 1
    });
    let page = server.page();
    assert_eq!(page.u64(32), u64::from(PORT), "addr @0");
    assert_eq!(page.u64(32 + 8) & 0xffff_ffff, 0x1234_5678, "data @8");
    assert_eq!(page.u32(32 + 16), 1, "count @16");
    assert_eq!(page.u32(32 + 20), 4, "size @20");
    assert_ne!(page.u32(32 + 24), 0, "vp_eport @24");
    assert_ne!(page.u32(32 + 24), page.u32(24), "a port for each vCPU");
    assert_eq!(page.u8(32 + 30), 1, "flags @30: READY, a write");
    assert_eq!(page.u8(32 + 31), 0, "type @31: PIO");
    assert_eq!(page.u8(30), 0, "slot 0 is free");
    server.serve_next(1, Answer::Apply);
    guest.join().back();
}

pub(crate) fn slot_flags<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    let ops = [
        GuestOp::read_port(PORT, Width::B1),
        GuestOp::rep_outs(PORT, PLAIN, Width::B4, 2),
        GuestOp::rep_ins(PORT, PLAIN, Width::B4, 2),
        GuestOp::rep_stos_down(MMIO + 0x40, Width::B4, 1, 2),
    ];
    let expected = [
        1 | IOREQ_DIR_READ,
        1 | IOREQ_DATA_IS_PTR,
        1 | IOREQ_DATA_IS_PTR | IOREQ_DIR_READ,
        1 | IOREQ_DF,
    ];
    assert_eq!(
        (1 << 4, 1 << 5, 1 << 6),
        (IOREQ_DATA_IS_PTR, IOREQ_DIR_READ, IOREQ_DF)
    );
    run(&domain, &ops, &mut [&mut server]).back();
    let flags: Vec<u8> = server.take_seen().iter().map(|r| r.flags).collect();
    assert_eq!(flags, expected);
}

pub(crate) fn slot_states<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    assert_eq!(server.page().state(0), 0, "NONE before");
    let op = GuestOp::read_port(PORT, Width::B4);
    let guest = domain.start(VcpuId(0), &[op]);
    until("READY", || server.page().state(0) == 1);
    // By number, not through the framework's accessors.
    server.page().set_state(0, 2);
    server.notify(0);
    assert_eq!(
        server.page().state(0),
        2,
        "INPROCESS is the server's to keep"
    );
    server.page().set_data(0, 0x77);
    server.page().set_state(0, 3);
    server.notify(0);
    assert_eq!(guest.join().value(), 0x77);
    assert_eq!(server.page().state(0), 0, "NONE once the vCPU went on");
}

pub(crate) fn slot_type_pio<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    for width in [Width::B1, Width::B2, Width::B4] {
        let value = u32::try_from(0x8765_4321 & width.all_ones()).expect("32 bits");
        let ops = [
            GuestOp::write_port(PORT, width, value),
            GuestOp::read_port(PORT, width),
        ];
        let read = 0xdead_beef & width.all_ones();
        let results = run_with(&domain, &ops, &mut [&mut server], |_| Answer::Data(read)).back();
        assert_eq!(results, [OpResult::Done, OpResult::Value(read)]);
        let seen = server.take_seen();
        assert_eq!(seen.len(), 2);
        for raw in &seen {
            assert_eq!((raw.kind, raw.addr), (IOREQ_TYPE_PIO, u64::from(PORT)));
            assert_eq!((raw.size, raw.count), (width as u32, 1));
            assert!(!raw.data_is_ptr());
        }
        assert_eq!(seen[0].data & width.all_ones(), u64::from(value));
        assert!(!seen[0].is_read() && seen[1].is_read());
    }
    assert_eq!(IOREQ_TYPE_PIO, 0);
}

pub(crate) fn slot_type_copy<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(mmio(MMIO, 0x1000));
    let ops = [
        GuestOp::store(MMIO + 0x10, Width::B4, 0xcafe),
        GuestOp::load(MMIO + 0x14, Width::B4),
    ];
    let results = run(&domain, &ops, &mut [&mut server]).back();
    assert_eq!(results, [OpResult::Done, OpResult::Value(0xa5a5_0000)]);
    let seen = server.take_seen();
    let what: Vec<_> = seen.iter().map(|r| (r.kind, r.addr, r.is_read())).collect();
    assert_eq!(what, [(1, MMIO + 0x10, false), (1, MMIO + 0x14, true)]);
    assert_eq!(seen[0].data & 0xffff_ffff, 0xcafe);
    assert_eq!(IOREQ_TYPE_COPY, 1);
}

fn function(bus: u8, device: u8, function: u8) -> Sbdf {
    Sbdf::new(0, bus, device, function).expect("a PCI function")
}

pub(crate) fn slot_type_pci_config<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut server = Server::up(&domain);
    let function = function(0, 3, 0);
    server.map(function.into());
    let ops = [
        GuestOp::pci_read(function, 0x10, Width::B4),
        GuestOp::pci_write(function, 0x10, Width::B4, 0xffff_ffff),
    ];
    let results = run(&domain, &ops, &mut [&mut server]).back();
    assert_eq!(results, [OpResult::Value(0xa5a5_0000), OpResult::Done]);
    let seen = server.take_seen();
    let what: Vec<_> = seen.iter().map(|r| (r.kind, r.is_read(), r.size)).collect();
    assert_eq!(what, [(2, true, 4), (2, false, 4)]);
    assert_eq!(IOREQ_TYPE_PCI_CONFIG, 2);
}

pub(crate) fn slot_pci_config_address<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut server = Server::up(&domain);
    let function = function(0x12, 0x1f, 7);
    server.map(function.into());
    let op = GuestOp::pci_read(function, 0x46, Width::B2);
    run(&domain, &[op], &mut [&mut server]).back();
    let seen = server.take_seen();
    assert_eq!(seen.len(), 1);
    let addr = 0x12 << 40 | 0x1f << 35 | 7 << 32 | 0x46;
    assert_eq!(
        (seen[0].addr, seen[0].size),
        (addr, 2),
        "{:#x}",
        seen[0].addr
    );
}

pub(crate) fn slot_type_timeoffset<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut server = Server::up_with_ring(&domain);
    run(&domain, &[GuestOp::RtcSet], &mut [&mut server]).back();
    let entries = server.ring().drain();
    assert!(!entries.is_empty());
    assert!(entries.iter().all(|e| e.kind() == 7), "{entries:x?}");
    assert_eq!(IOREQ_TYPE_TIMEOFFSET, 7);
}

pub(crate) fn slot_type_invalidate<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut first = Server::up(&domain);
    let mut second = Server::up(&domain);
    let off = Server::up(&domain);
    off.disable();
    let guest = domain.start(VcpuId(0), &[GuestOp::ChangeMemoryMap]);
    // The two are asked at once, before either answers; the vCPU goes on when both have.
    for server in [&first, &second] {
        server.wait_ready(0);
    }
    first.serve_next(0, Answer::Apply);
    assert!(!guest.is_back());
    second.serve_next(0, Answer::Apply);
    guest.join().back();
    for server in [&mut first, &mut second] {
        let seen = server.take_seen();
        assert_eq!(seen.len(), 1);
        let what = (seen[0].kind, seen[0].is_read(), seen[0].size, seen[0].count);
        assert_eq!(what, (8, false, 4, 0));
        assert_eq!(seen[0].data, u64::MAX);
    }
    assert!(off.is_idle(), "a disabled server is not asked");
    assert_eq!(IOREQ_TYPE_INVALIDATE, 8);
}

pub(crate) fn slot_page_128<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(128));
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let op = GuestOp::read_port(PORT, Width::B4);
    let guest = domain.start(VcpuId(127), &[op]);
    until("READY in the page's last slot", || {
        server.page().u8(4096 - 2) & 0xf == 1
    });
    assert_eq!(server.page().u64(4096 - 32), u64::from(PORT));
    server.serve_next(127, Answer::Data(0x127));
    assert_eq!(guest.join().value(), 0x127);
}

pub(crate) fn slot_vcpus_129<R: Rig>(rig: &R) {
    assert!(rig.create(Options::vcpus(129)).is_err());
    assert!(rig.create(Options::vcpus(128)).is_ok());
}

pub(crate) fn slot_page_hidden<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up_with_ring(&domain);
    // In a slot that no vCPU uses, and in the ring's last entry.
    let magic = 0x6d61_6769_632d_3031;
    let at = 32 * 100;
    server.page().set_u64(at, magic);
    server.ring().set_u64(4096 - 8, magic);
    let bytes = magic.to_le_bytes();
    for gfn in 0..RAM_FRAMES {
        if let Some(frame) = server.frame(Gfn(gfn)) {
            assert_ne!(frame[at..at + 8], bytes, "the ioreq page is gfn {gfn:#x}");
            assert_ne!(frame[4096 - 8..], bytes, "the ring is gfn {gfn:#x}");
        }
    }
    assert_eq!(server.page().u64(at), magic);
}

pub(crate) fn slot_contents_before_ready<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let count = 1000_u32;
    let port = |i: u32| PORT + 4 * u16::try_from(i % 32).expect("small");
    let value = |i: u32| i.wrapping_mul(0x9e37_79b9);
    let ops: Vec<_> = (0..count)
        .map(|i| GuestOp::write_port(port(i), Width::B4, value(i)))
        .collect();
    let guest = domain.start(VcpuId(0), &ops);
    for i in 0..count {
        let raw = server.serve_next(0, Answer::Apply);
        assert_eq!(raw.addr, u64::from(port(i)), "request {i}");
        assert_eq!(raw.data & 0xffff_ffff, u64::from(value(i)), "request {i}");
    }
    guest.join().back();
}

pub(crate) fn slot_data_after_state<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let op = GuestOp::read_port(PORT, Width::B4);
    let guest = domain.start(VcpuId(0), &[op; 1000]);
    let value = |i: u64| i.wrapping_mul(0x9e37_79b9) & 0xffff_ffff;
    for i in 0..1000 {
        server.serve_next(0, Answer::Data(value(i)));
    }
    let expected: Vec<_> = (0..1000).map(|i| OpResult::Value(value(i))).collect();
    assert_eq!(guest.join().back(), expected);
}

pub(crate) fn slot_state_backward<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let op = GuestOp::read_port(PORT, Width::B4);
    let guest = domain.start(VcpuId(0), &[op]);
    server.wait_ready(0);
    // Until the vCPU has looked at INPROCESS, READY is nothing new to it.
    until("the crash", || {
        for state in [2, 1] {
            server.page().set_state(0, state);
            let _ = server.events.notify(server.port(0));
            thread::sleep(Duration::from_micros(200));
        }
        guest.is_back()
    });
    guest.join().crashed();
    assert!(domain.end().is_some());
}

pub(crate) fn slot_state_unknown<R: Rig>(rig: &R) {
    for state in [4, 9, 15] {
        let domain = rig.domain(Options::default());
        let server = Server::up(&domain);
        server.map(ports(0x500, 0x5ff));
        let op = GuestOp::read_port(PORT, Width::B4);
        let guest = domain.start(VcpuId(0), &[op]);
        server.wait_ready(0);
        server.page().set_state(0, state);
        server.notify(0);
        guest.join().crashed();
    }
}

/// A memory access that finds its slot spoilt, and another once it is mended.
fn spoilt_memory<R: Rig>(rig: &R, spoil: impl Fn(&Page), mend: impl Fn(&Page)) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up_claimed(&domain);
    server.map(mmio(MMIO, 0x1000));
    server.mark(TRACKED);
    let ops = [
        GuestOp::load(MMIO, Width::B4),
        GuestOp::store(MMIO, Width::B4, 1),
        GuestOp::store(addr(TRACKED, 0), Width::B4, 1),
    ];
    spoil(server.page());
    run(&domain, &ops, &mut []).faulted();
    assert_eq!(server.load(addr(TRACKED, 0), Width::B4), 0);
    mend(server.page());
    run(&domain, &ops, &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 3);
}

/// A port access that finds its slot spoilt.
fn spoilt_port<R: Rig>(rig: &R, spoil: impl Fn(&Page)) {
    for op in [
        GuestOp::read_port(PORT, Width::B4),
        GuestOp::write_port(PORT, Width::B4, 1),
    ] {
        let domain = rig.domain(Options::default());
        let server = Server::up(&domain);
        server.map(ports(0x500, 0x5ff));
        spoil(server.page());
        run(&domain, &[op], &mut []).crashed();
    }
}

/// As a device model that took a request which is not there.
fn set_in_process(page: &Page) {
    page.set_state(0, 2);
}

pub(crate) fn slot_busy_memory<R: Rig>(rig: &R) {
    spoilt_memory(rig, set_in_process, |page| page.set_state(0, 0));
}

pub(crate) fn slot_busy_port<R: Rig>(rig: &R) {
    spoilt_port(rig, set_in_process);
}

/// Changes vCPU 0's port; the second time, back.
fn foreign_eport(page: &Page) {
    page.set_u32(24, page.vp_eport(0) ^ 0x40);
}

pub(crate) fn slot_eport_memory<R: Rig>(rig: &R) {
    spoilt_memory(rig, foreign_eport, foreign_eport);
}

pub(crate) fn slot_eport_port<R: Rig>(rig: &R) {
    spoilt_port(rig, foreign_eport);
}

/// The server gives the slot back unanswered; what the guest gets.
fn set_none<R: Rig>(rig: &R, op: GuestOp) -> (R::Domain, Server<R::Domain>, OpResult) {
    let domain = rig.domain(Options::default());
    let server = Server::up_claimed(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    server.mark(TRACKED);
    let guest = domain.start(VcpuId(0), &[op]);
    server.wait_ready(0);
    server.page().set_state(0, 0);
    server.notify(0);
    let results = guest.join().back();
    (domain, server, results[0])
}

pub(crate) fn slot_none_port_read<R: Rig>(rig: &R) {
    for width in [Width::B1, Width::B2, Width::B4] {
        let (_, _, result) = set_none(rig, GuestOp::read_port(PORT, width));
        assert_eq!(result, OpResult::Value(width.all_ones()));
    }
}

pub(crate) fn slot_none_mmio_read<R: Rig>(rig: &R) {
    for width in [Width::B1, Width::B4] {
        let (_, _, result) = set_none(rig, GuestOp::load(MMIO, width));
        assert_eq!(result, OpResult::Value(width.all_ones()));
    }
}

pub(crate) fn slot_none_write<R: Rig>(rig: &R) {
    let width = Width::B4;
    let value = 0x55;
    let (_, _, result) = set_none(rig, GuestOp::write_port(PORT, width, value));
    assert_eq!(result, OpResult::Done);
    let value = u64::from(value);
    let (_, _, result) = set_none(rig, GuestOp::store(MMIO, width, value));
    assert_eq!(result, OpResult::Done);
    let page = addr(TRACKED, 0x10);
    let (_domain, server, result) = set_none(rig, GuestOp::store(page, width, value));
    assert_eq!(result, OpResult::Done);
    assert_eq!(server.load(page, width), 0, "nobody stored it");
}
