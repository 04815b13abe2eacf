// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What reaches the server of the guest's port and MMIO accesses.

use ioreq_core::abi::Ioreq;
use ioreq_core::{Sbdf, VcpuId, Width};

use crate::rig::{Domain, GuestOp, OpResult, Options, Rig, Run, Version};
use crate::support::layout::{FREE_PORT, MMIO, PLAIN, PORT, TRACKED, addr, mmio, ports};
use crate::support::{Answer, Server, drive, run, run_with};

const WIDTH: Width = Width::B4;

/// A server with a page of MMIO and some ports.
fn device<R: Rig>(rig: &R) -> (R::Domain, Server<R::Domain>) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    (domain, server)
}

/// What comes of one operation.
fn requests<R: Rig>(rig: &R, op: GuestOp) -> Vec<Ioreq> {
    let (domain, mut server) = device(rig);
    run(&domain, &[op], &mut [&mut server]).back();
    server.take_seen()
}

/// Address, size, count and direction (true: read).
fn shape(raw: &Ioreq) -> (u64, u32, u32, bool) {
    (raw.addr, raw.size, raw.count, raw.is_read())
}

fn data32(raw: &Ioreq) -> u64 {
    raw.data & 0xffff_ffff
}

pub(crate) fn reach_mmio_sizes<R: Rig>(rig: &R) {
    for width in [Width::B1, Width::B2, Width::B4] {
        let (domain, mut server) = device(rig);
        let value = 0x8765_4321 & width.all_ones();
        let ops = [
            GuestOp::store(MMIO + 0x10, width, value),
            GuestOp::load(MMIO + 0x20, width),
        ];
        let read = 0xfedc_ba98 & width.all_ones();
        let results = run_with(&domain, &ops, &mut [&mut server], |_| Answer::Data(read)).back();
        assert_eq!(results[1], OpResult::Value(read));
        let seen = server.take_seen();
        let shapes: Vec<_> = seen.iter().map(shape).collect();
        let size = width as u32;
        assert_eq!(
            shapes,
            [(MMIO + 0x10, size, 1, false), (MMIO + 0x20, size, 1, true)]
        );
        assert!(seen.iter().all(|r| r.kind == 1 && !r.data_is_ptr()));
        assert_eq!(seen[0].data & width.all_ones(), value);
    }
}

pub(crate) fn reach_mmio_unaligned<R: Rig>(rig: &R) {
    let op = GuestOp::store(MMIO + 0x11, WIDTH, 0xabcd_1234);
    let seen = requests(rig, op);
    assert_eq!(seen.len(), 1);
    assert_eq!(shape(&seen[0]), (MMIO + 0x11, 4, 1, false));
    assert_eq!(data32(&seen[0]), 0xabcd_1234);
}

pub(crate) fn reach_mmio_page_end<R: Rig>(rig: &R) {
    let op = GuestOp::store(MMIO + 0xffe, WIDTH, 0xabcd_1234);
    let seen = requests(rig, op);
    assert_eq!(seen.len(), 1, "{seen:x?}");
    assert_eq!(shape(&seen[0]), (MMIO + 0xffe, 2, 1, false));
    assert_eq!(seen[0].data & 0xffff, 0x1234);
}

pub(crate) fn reach_sse_mmio<R: Rig>(rig: &R) {
    let value = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
    let op = GuestOp::store16(MMIO + 0x300, value);
    let seen = requests(rig, op);
    let shapes: Vec<_> = seen.iter().map(shape).collect();
    assert_eq!(
        shapes,
        [(MMIO + 0x300, 8, 1, false), (MMIO + 0x308, 8, 1, false)]
    );
    assert_eq!([seen[0].data, seen[1].data], value);
}

pub(crate) fn reach_lock_add_mmio<R: Rig>(rig: &R) {
    let (domain, mut server) = device(rig);
    let op = GuestOp::lock_add(MMIO + 0x30, WIDTH, 5);
    run_with(&domain, &[op], &mut [&mut server], |_| Answer::Data(0x100)).back();
    let seen = server.take_seen();
    let shapes: Vec<_> = seen.iter().map(shape).collect();
    assert_eq!(
        shapes,
        [(MMIO + 0x30, 4, 1, true), (MMIO + 0x30, 4, 1, false)]
    );
    assert_eq!(data32(&seen[1]), 0x105);
}

pub(crate) fn reach_rep_stos_mmio<R: Rig>(rig: &R) {
    for count in [8, 1024] {
        let op = GuestOp::rep_stos(MMIO, WIDTH, 0x11, count);
        let seen = requests(rig, op);
        assert_eq!(seen.len(), 1);
        assert_eq!(shape(&seen[0]), (MMIO, 4, count, false));
        assert!(!seen[0].data_is_ptr() && !seen[0].df());
        assert_eq!(data32(&seen[0]), 0x11);
    }
}

pub(crate) fn reach_rep_stos_down<R: Rig>(rig: &R) {
    let op = GuestOp::rep_stos_down(MMIO + 0x60, WIDTH, 0x11, 4);
    let seen = requests(rig, op);
    assert_eq!(seen.len(), 1);
    assert_eq!(shape(&seen[0]), (MMIO + 0x60, 4, 4, false));
    assert!(seen[0].df());
}

pub(crate) fn reach_rep_movs_to_mmio<R: Rig>(rig: &R) {
    let op = GuestOp::rep_movs(PLAIN, MMIO + 0x80, WIDTH, 8);
    let seen = requests(rig, op);
    assert_eq!(seen.len(), 1);
    assert_eq!(shape(&seen[0]), (MMIO + 0x80, 4, 8, false));
    assert!(seen[0].data_is_ptr());
    assert_eq!(seen[0].data, PLAIN);
}

pub(crate) fn reach_rep_movs_from_mmio<R: Rig>(rig: &R) {
    let (domain, mut server) = device(rig);
    let op = GuestOp::rep_movs(MMIO + 0x80, PLAIN, WIDTH, 8);
    run(&domain, &[op], &mut [&mut server]).back();
    let seen = server.take_seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(shape(&seen[0]), (MMIO + 0x80, 4, 8, true));
    assert_eq!((seen[0].data_is_ptr(), seen[0].data), (true, PLAIN));
    for i in 0..8 {
        // The server stored them; what it stored stays.
        assert_eq!(server.load(PLAIN + 4 * i, WIDTH), 0xa5a5_0000 + i);
    }
}

pub(crate) fn reach_rep_ins<R: Rig>(rig: &R) {
    let (domain, mut server) = device(rig);
    let op = GuestOp::rep_ins(PORT, PLAIN, WIDTH, 8);
    run(&domain, &[op], &mut [&mut server]).back();
    let seen = server.take_seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(shape(&seen[0]), (PORT.into(), 4, 8, true));
    assert_eq!((seen[0].kind, seen[0].data), (0, PLAIN));
    assert!(seen[0].data_is_ptr());
    for i in 0..8 {
        assert_eq!(server.load(PLAIN + 4 * i, WIDTH), 0xa5a5_0000 + i);
    }
}

pub(crate) fn reach_rep_outs<R: Rig>(rig: &R) {
    let op = GuestOp::rep_outs(PORT, PLAIN, WIDTH, 8);
    let seen = requests(rig, op);
    assert_eq!(seen.len(), 1);
    assert_eq!(shape(&seen[0]), (PORT.into(), 4, 8, false));
    assert_eq!((seen[0].kind, seen[0].data), (0, PLAIN));
    assert!(seen[0].data_is_ptr());
}

pub(crate) fn reach_rep_page_split<R: Rig>(rig: &R) {
    let end = PLAIN + 0xff0;
    let next = PLAIN + 0x1000;
    let cases = [
        (
            GuestOp::rep_movs(end, MMIO + 0x80, WIDTH, 8),
            [MMIO + 0x80, MMIO + 0x90],
        ),
        (
            GuestOp::rep_movs(MMIO + 0x80, end, WIDTH, 8),
            [MMIO + 0x80, MMIO + 0x90],
        ),
        (GuestOp::rep_outs(PORT, end, WIDTH, 8), [u64::from(PORT); 2]),
        (GuestOp::rep_ins(PORT, end, WIDTH, 8), [u64::from(PORT); 2]),
    ];
    for (op, addrs) in cases {
        let seen = requests(rig, op);
        let parts: Vec<_> = seen.iter().map(|r| (r.addr, r.count, r.data)).collect();
        assert_eq!(parts, [(addrs[0], 4, end), (addrs[1], 4, next)], "{op:x?}");
    }
}

pub(crate) fn reach_mmio_to_mmio<R: Rig>(rig: &R) {
    let op = GuestOp::rep_movs(MMIO + 0x80, MMIO + 0x100, WIDTH, 4);
    let seen = requests(rig, op);
    let shapes: Vec<_> = seen.iter().map(shape).collect();
    let pair = |i: u64| {
        [
            (MMIO + 0x80 + 4 * i, 4, 1, true),
            (MMIO + 0x100 + 4 * i, 4, 1, false),
        ]
    };
    let expected: Vec<_> = (0..4).flat_map(pair).collect();
    assert_eq!(shapes, expected);
    for i in 0..4 {
        let written = &seen[2 * i + 1];
        assert!(!written.data_is_ptr());
        assert_eq!(data32(written), 0xa5a5_0000 + i as u64);
    }
}

pub(crate) fn reach_rep_not_inside<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    // The range ends inside the page, and inside what is written.
    server.map(mmio(MMIO, 0x800));
    let ops = [
        GuestOp::rep_stos(MMIO + 0x7f0, WIDTH, 1, 8),
        GuestOp::rep_movs(PLAIN, MMIO + 0x7f0, WIDTH, 8),
    ];
    run(&domain, &ops, &mut []).back();
    assert!(server.is_idle());
}

/// `rep ins` from a port that nobody has, to `to`: one write is sent, and its answer kills the domain.
fn ins_unclaimed<R: Rig>(rig: &R, to: u64, count: u32) {
    let (domain, mut server) = device(rig);
    server.claim();
    server.mark(TRACKED);
    let op = GuestOp::rep_ins(FREE_PORT, to, WIDTH, count);
    let guest = domain.start(VcpuId(0), &[op]);
    let raw = server.wait_ready(0);
    assert_eq!((raw.kind, raw.addr, raw.is_read()), (1, to, false));
    assert_eq!((raw.count, data32(&raw)), (1, 0xffff_ffff));
    assert!(!guest.is_back() && domain.end().is_none());
    server.serve(0, Answer::Apply);
    guest.join().crashed();
}

pub(crate) fn reach_ins_unclaimed_mmio<R: Rig>(rig: &R) {
    for count in [1, 4] {
        ins_unclaimed(rig, MMIO + 0x40, count);
    }
}

pub(crate) fn reach_ins_unclaimed_tracked<R: Rig>(rig: &R) {
    ins_unclaimed(rig, addr(TRACKED, 0x40), 1);
}

pub(crate) fn reach_ins_unclaimed_tracked_many<R: Rig>(rig: &R) {
    let (domain, server) = device(rig);
    server.claim();
    server.mark(TRACKED);
    let to = addr(TRACKED, 0x40);
    let op = GuestOp::rep_ins(FREE_PORT, to, WIDTH, 4);
    run(&domain, &[op], &mut []).back();
    assert!(server.is_idle());
    assert_eq!(server.load(to, WIDTH), 0);
    // Into a plain page they are all-ones.
    let op = GuestOp::rep_ins(FREE_PORT, PLAIN, WIDTH, 4);
    run(&domain, &[op], &mut []).back();
    assert_eq!(server.load(PLAIN + 12, WIDTH), 0xffff_ffff);
}

/// Four pages of MMIO: an access that straddles is done part by part on 4.20. 4.17 fails at the last part, after the requests for
/// the others, and begins anew, for ever.
fn straddle<R: Rig>(rig: &R, op: GuestOp, parts: &[(u64, u32, u32, bool)]) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(mmio(MMIO, 0x4000));
    let guest = domain.start(VcpuId(0), &[op]);
    match rig.version() {
        Version::V4_17 => {
            for round in 0..5 {
                for part in &parts[..parts.len() - 1] {
                    let raw = server.serve_next(0, Answer::Apply);
                    assert_eq!(shape(&raw), *part, "round {round}");
                }
            }
            assert!(!guest.is_back());
        }
        Version::V4_20 => {
            drive(&guest, &mut [&mut server], |_| Answer::Apply);
            assert_eq!(guest.join().back(), [OpResult::Done]);
            let shapes: Vec<_> = server.take_seen().iter().map(shape).collect();
            assert_eq!(shapes, parts);
            assert!(server.is_idle());
        }
    }
}

pub(crate) fn reach_atomic_straddle<R: Rig>(rig: &R) {
    let op = GuestOp::lock_add(MMIO + 0xffe, WIDTH, 1);
    let part = |addr, read| (addr, 2, 1, read);
    let parts = [
        part(MMIO + 0xffe, true),
        part(MMIO + 0x1000, true),
        part(MMIO + 0xffe, false),
        part(MMIO + 0x1000, false),
    ];
    straddle(rig, op, &parts);
}

pub(crate) fn reach_movs_straddle<R: Rig>(rig: &R) {
    let op = GuestOp::rep_movs(MMIO + 0xffe, MMIO + 0x2ffe, WIDTH, 1);
    let part = |addr, read| (addr, 2, 1, read);
    let parts = [
        part(MMIO + 0xffe, true),
        part(MMIO + 0x1000, true),
        part(MMIO + 0x2ffe, false),
        part(MMIO + 0x3000, false),
    ];
    straddle(rig, op, &parts);
}

pub(crate) fn reach_neighbour_ranges<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(mmio(MMIO, 0x800));
    server.map(mmio(MMIO + 0x800, 0x800));
    server.map(ports(0x500, 0x50f));
    server.map(ports(0x510, 0x51f));
    let ops = [
        GuestOp::store(MMIO + 0x7fe, WIDTH, 1),
        GuestOp::write_port(0x50e, WIDTH, 1),
    ];
    run(&domain, &ops, &mut [&mut server]).back();
    let shapes: Vec<_> = server.take_seen().iter().map(shape).collect();
    assert_eq!(shapes, [(MMIO + 0x7fe, 4, 1, false), (0x50e, 4, 1, false)]);
}

pub(crate) fn reach_ecam<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut server = Server::up(&domain);
    let function = Sbdf::new(0, 0, 3, 0).expect("a PCI function");
    server.map(function.into());
    server.map(mmio(MMIO, 0x10_0000));
    let ecam = MMIO + (3 << 15) + 0x10;
    let ops = [
        GuestOp::load(ecam, WIDTH),
        GuestOp::pci_read(function, 0x10, WIDTH),
    ];
    run(&domain, &ops, &mut [&mut server]).back();
    let kinds: Vec<_> = server
        .take_seen()
        .iter()
        .map(|r| (r.kind, r.addr))
        .collect();
    assert_eq!(kinds, [(1, ecam), (2, 3 << 35 | 0x10)]);
}
