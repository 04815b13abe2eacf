// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What reaches the server of the guest's accesses to tracked pages.

use ioreq_core::abi::{IOREQ_TYPE_COPY, IOREQ_TYPE_PIO, Ioreq};
use ioreq_core::{VcpuId, Width};

use crate::rig::{Domain, GuestOp, OpResult, Options, Rig, Run};
use crate::support::layout::{MMIO, PLAIN, PORT, TRACKED, addr, mmio, ports};
use crate::support::{Answer, Server, drive, run, run_with};

const WIDTH: Width = Width::B4;

/// An owner with one tracked page, the page after it plain, and some I/O of its own.
fn tracked<R: Rig>(rig: &R) -> (R::Domain, Server<R::Domain>) {
    let domain = rig.domain(Options::vcpus(2));
    let server = Server::up_claimed(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    server.mark(TRACKED);
    (domain, server)
}

fn at(offset: u64) -> u64 {
    addr(TRACKED, offset)
}

/// Address, size, count and data of a write.
type Write = (u64, u32, u32, u64);

/// Every request is a COPY write with inline data; address, size, count, data cut to the size.
#[track_caller]
fn writes(seen: &[Ioreq]) -> Vec<Write> {
    let write = |raw: &Ioreq| {
        assert_eq!(raw.kind, IOREQ_TYPE_COPY);
        assert!(!raw.is_read() && !raw.data_is_ptr(), "{raw:x?}");
        let width = Width::from_bytes(raw.size).expect("1, 2, 4 or 8 bytes");
        (raw.addr, raw.size, raw.count, raw.data & width.all_ones())
    };
    seen.iter().map(write).collect()
}

pub(crate) fn reach_tracked_read<R: Rig>(rig: &R) {
    let (domain, server) = tracked(rig);
    for (offset, width) in [
        (0, Width::B1),
        (2, Width::B2),
        (4, Width::B4),
        (9, Width::B4),
    ] {
        server.poke(at(offset), width, 0x1234_5678);
        let op = GuestOp::load(at(offset), width);
        let value = run(&domain, &[op], &mut []).value();
        assert_eq!(value, 0x1234_5678 & width.all_ones());
    }
    // Read by a string operation.
    let op = GuestOp::rep_movs(at(0), PLAIN, WIDTH, 4);
    run(&domain, &[op], &mut []).back();
    assert_eq!(server.load(PLAIN, WIDTH), server.load(at(0), WIDTH));
    assert!(server.is_idle());
}

pub(crate) fn reach_tracked_write<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let value: u64 = 0x8877_6655_4433_2211;
    for (offset, width) in [
        (0x10, Width::B1),
        (0x22, Width::B2),
        (0x30, Width::B4),
        (0x40, Width::B8),
        (0x51, Width::B4),
        (0xfff, Width::B1),
    ] {
        server.poke(at(offset), width, 0);
        let op = GuestOp::store(at(offset), width, value);
        let guest = domain.start(VcpuId(0), &[op]);
        let raw = server.wait_ready(0);
        let cut = value & width.all_ones();
        assert_eq!(writes(&[raw]), [(at(offset), width as u32, 1, cut)]);
        assert_eq!(server.load(at(offset), width), 0, "not yet stored");
        server.serve(0, Answer::Drop);
        guest.join().back();
        assert_eq!(server.load(at(offset), width), 0, "Xen does not store it");
        run(&domain, &[op], &mut [&mut server]).back();
        assert_eq!(server.load(at(offset), width), cut);
    }
}

pub(crate) fn reach_sse_tracked<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let value = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
    let op = GuestOp::store16(at(0x500), value);
    run(&domain, &[op], &mut [&mut server]).back();
    assert_eq!(
        writes(&server.take_seen()),
        [(at(0x500), 8, 1, value[0]), (at(0x508), 8, 1, value[1])]
    );
}

/// A read-modify-write of a word that is `old`: what is sent, what the guest gets, what RAM is afterwards.
fn modify<R: Rig>(rig: &R, old: u64, op: GuestOp) -> (Vec<Write>, OpResult, u64) {
    let (domain, mut server) = tracked(rig);
    server.poke(at(0), Width::B8, old);
    let results = run(&domain, &[op], &mut [&mut server]).back();
    let sent = writes(&server.take_seen());
    (sent, results[0], server.load(at(0), Width::B8))
}

pub(crate) fn reach_tracked_lock_add<R: Rig>(rig: &R) {
    let (sent, _, ram) = modify(rig, 0x2000, GuestOp::lock_add(at(0), WIDTH, 5));
    assert_eq!(sent, [(at(0), 4, 1, 0x2005)]);
    assert_eq!(ram, 0x2005);
}

pub(crate) fn reach_tracked_or<R: Rig>(rig: &R) {
    let (sent, _, ram) = modify(rig, 0x0f, GuestOp::or(at(0), Width::B1, 0xf0));
    assert_eq!(sent, [(at(0), 1, 1, 0xff)]);
    assert_eq!(ram, 0xff);
}

pub(crate) fn reach_tracked_xchg<R: Rig>(rig: &R) {
    let (sent, result, ram) = modify(rig, 0x1111, GuestOp::xchg(at(0), WIDTH, 0x7777_7777));
    assert_eq!(sent, [(at(0), 4, 1, 0x7777_7777)]);
    assert_eq!(result, OpResult::Value(0x1111));
    assert_eq!(ram, 0x7777_7777);
}

pub(crate) fn reach_tracked_cmpxchg<R: Rig>(rig: &R) {
    let (sent, result, ram) = modify(
        rig,
        0x1111,
        GuestOp::cmpxchg(at(0), WIDTH, 0x1111, 0x8888_8888),
    );
    assert_eq!(sent, [(at(0), 4, 1, 0x8888_8888)]);
    assert_eq!(result, OpResult::Value(0x1111));
    assert_eq!(ram, 0x8888_8888);
}

pub(crate) fn reach_tracked_cmpxchg8b<R: Rig>(rig: &R) {
    let (old, new) = (0x0000_0002_0000_0001, 0x2222_2222_1111_1111);
    let (sent, result, ram) = modify(rig, old, GuestOp::cmpxchg(at(0), Width::B8, old, new));
    assert_eq!(sent, [(at(0), 8, 1, new)]);
    assert_eq!(result, OpResult::Value(old));
    assert_eq!(ram, new);
}

pub(crate) fn reach_tracked_cmpxchg_fail<R: Rig>(rig: &R) {
    for width in [Width::B4, Width::B8] {
        let (sent, result, ram) =
            modify(rig, 0x1111, GuestOp::cmpxchg(at(0), width, 1, 0x9999_9999));
        assert_eq!(sent, []);
        assert_eq!(result, OpResult::Value(0x1111));
        assert_eq!(ram, 0x1111);
    }
}

pub(crate) fn reach_tracked_rep_stos<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let up = GuestOp::rep_stos(at(0x40), WIDTH, 0x33, 8);
    run(&domain, &[up], &mut [&mut server]).back();
    let expected: Vec<_> = (0..8).map(|i| (at(0x40 + 4 * i), 4, 1, 0x33)).collect();
    assert_eq!(writes(&server.take_seen()), expected);
    let down = GuestOp::rep_stos_down(at(0x8c), WIDTH, 0x44, 4);
    run(&domain, &[down], &mut [&mut server]).back();
    let seen = writes(&server.take_seen());
    let expected: Vec<_> = (0..4).map(|i| (at(0x8c - 4 * i), 4, 1, 0x44)).collect();
    assert_eq!(seen, expected);
    // Across its end: the elements in the plain page are Xen's.
    let across = GuestOp::rep_stos(at(0xff8), WIDTH, 0x66, 4);
    run(&domain, &[across], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 2);
    assert_eq!(server.load(at(0x1004), WIDTH), 0x66);
}

pub(crate) fn reach_tracked_rep_movs<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    for i in 0..8 {
        server.poke(PLAIN + 4 * i, WIDTH, 0x200 + i);
    }
    let op = GuestOp::rep_movs(PLAIN, at(0xc0), WIDTH, 8);
    run(&domain, &[op], &mut [&mut server]).back();
    let element = |i: u64| (at(0xc0 + 4 * i), 4, 1, 0x200 + i);
    let expected: Vec<_> = (0..8).map(element).collect();
    assert_eq!(writes(&server.take_seen()), expected);
}

/// `memmove` upward over the lower end of a tracked page: Xen copies what it can at once, from the lowest address up, and the
/// tracked page stops it when the elements below are done. What they overwrote is copied then.
pub(crate) fn reach_tracked_movs_overlap<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let below = |words: u64| at(0) - 4 * words;
    for word in 1..=6 {
        server.poke(below(word), WIDTH, 0x600 - word);
    }
    let op = GuestOp::rep_movs_down(below(1), at(4), WIDTH, 6);
    run(&domain, &[op], &mut [&mut server]).back();
    assert_eq!(
        writes(&server.take_seen()),
        [(at(4), 4, 1, 0x600 - 3), (at(0), 4, 1, 0x600 - 6)]
    );
    let words: Vec<_> = (1..=4)
        .map(|word| server.load(below(word), WIDTH))
        .collect();
    assert_eq!(words, [0x600 - 5, 0x600 - 6, 0x600 - 5, 0x600 - 6]);
}

/// The source of data for a tracked page: one read, its data going there; no write.
#[track_caller]
fn only_source(seen: &[Ioreq], kind: u8, source: u64, to: u64) {
    assert_eq!(seen.len(), 1, "{seen:x?}");
    assert!(seen[0].is_read() && seen[0].data_is_ptr(), "{seen:x?}");
    assert_eq!((seen[0].kind, seen[0].addr), (kind, source));
    assert_eq!((seen[0].data, seen[0].count), (to, 4));
}

pub(crate) fn reach_movs_into_tracked<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let op = GuestOp::rep_movs(MMIO + 0x80, at(0x200), WIDTH, 4);
    run(&domain, &[op], &mut [&mut server]).back();
    only_source(&server.take_seen(), IOREQ_TYPE_COPY, MMIO + 0x80, at(0x200));
    // The server's own stores went through: it is the only one who knows.
    assert_eq!(server.load(at(0x20c), WIDTH), 0xa5a5_0003);
}

pub(crate) fn reach_ins_into_tracked<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let op = GuestOp::rep_ins(PORT, at(0x300), WIDTH, 4);
    run(&domain, &[op], &mut [&mut server]).back();
    only_source(&server.take_seen(), IOREQ_TYPE_PIO, PORT.into(), at(0x300));
    assert_eq!(server.load(at(0x30c), WIDTH), 0xa5a5_0003);
}

pub(crate) fn reach_ins_one_into_tracked<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let op = GuestOp::rep_ins(PORT, at(0x300), WIDTH, 1);
    let guest = domain.start(VcpuId(0), &[op]);
    let read = server.serve_next(0, Answer::Apply);
    assert!(read.is_read() && !read.data_is_ptr(), "{read:x?}");
    assert_eq!((read.kind, read.addr), (IOREQ_TYPE_PIO, PORT.into()));
    let write = server.serve_next(0, Answer::Apply);
    assert_eq!((write.addr, write.is_read()), (at(0x300), false));
    guest.join().crashed();
}

pub(crate) fn reach_movs_from_tracked<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let op = GuestOp::rep_movs(at(0xc0), MMIO + 0x200, WIDTH, 4);
    run(&domain, &[op], &mut [&mut server]).back();
    let seen = server.take_seen();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].is_read() && seen[0].data_is_ptr());
    assert_eq!(
        (seen[0].addr, seen[0].data, seen[0].count),
        (MMIO + 0x200, at(0xc0), 4)
    );
}

pub(crate) fn reach_tracked_straddle<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    let store = |addr| GuestOp::store(addr, WIDTH, 0xaabb_ccdd);
    run(&domain, &[store(at(0xffe))], &mut [&mut server]).back();
    assert_eq!(writes(&server.take_seen()), [(at(0xffe), 2, 1, 0xccdd)]);
    assert_eq!(server.load(at(0x1000), Width::B2), 0xaabb, "Xen's part");
    run(&domain, &[store(at(0) - 2)], &mut [&mut server]).back();
    assert_eq!(writes(&server.take_seen()), [(at(0), 2, 1, 0xaabb)]);
    assert_eq!(server.load(at(0) - 2, Width::B2), 0xccdd, "Xen's part");
}

pub(crate) fn reach_range_over_tracked<R: Rig>(rig: &R) {
    let (domain, mut owner) = tracked(rig);
    let other = Server::up(&domain);
    other.map(mmio(at(0), 0x1000));
    let op = GuestOp::store(at(0), WIDTH, 9);
    run(&domain, &[op], &mut [&mut owner]).back();
    assert_eq!(owner.take_seen().len(), 1);
    assert!(other.is_idle());
}

pub(crate) fn reach_fetch_tracked<R: Rig>(rig: &R) {
    let (domain, server) = tracked(rig);
    // A `ret`, for a guest that executes it.
    server.poke(at(0x400), Width::B1, 0xc3);
    let guest = domain.start(VcpuId(0), &[GuestOp::fetch(at(0x400))]);
    assert!(guest.stays_away());
    assert!(server.is_idle(), "no request");
    server.unmark(TRACKED);
    guest.join().back();
}

pub(crate) fn reach_foreign_write<R: Rig>(rig: &R) {
    let (domain, server) = tracked(rig);
    server.poke(at(0), WIDTH, 0x4242);
    assert!(server.is_idle());
    let op = GuestOp::load(at(0), WIDTH);
    assert_eq!(run(&domain, &[op], &mut []).value(), 0x4242);
}

pub(crate) fn reach_lost_update<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    server.poke(at(0), WIDTH, 10);
    let add = |value| GuestOp::lock_add(at(0), WIDTH, value);
    let guests = [
        domain.start(VcpuId(0), &[add(1)]),
        domain.start(VcpuId(1), &[add(2)]),
    ];
    // Both are in flight before either is stored.
    let final_values = [0, 1].map(|vcpu| server.wait_ready(vcpu).data & 0xffff_ffff);
    assert_eq!(final_values, [11, 12], "both from the old 10");
    for (vcpu, guest) in (0..).zip(guests) {
        server.serve(vcpu, Answer::Apply);
        drive(&guest, &mut [&mut server], |_| Answer::Apply);
        guest.join().back();
    }
    assert_eq!(server.take_seen().len(), 2);
    assert_eq!(server.load(at(0), WIDTH), 12, "one update is lost");
}

pub(crate) fn reach_rmw_old_value<R: Rig>(rig: &R) {
    let (domain, mut server) = tracked(rig);
    server.poke(at(0), WIDTH, 5);
    let xchg = GuestOp::xchg(at(0), WIDTH, 7);
    let outcomes = [(Answer::Drop, 5), (Answer::Data(9), 9)];
    for (answer, after) in outcomes {
        let outcome = run_with(&domain, &[xchg], &mut [&mut server], |_| answer);
        assert_eq!(outcome.value(), 5, "RAM's old value");
        assert_eq!(server.load(at(0), WIDTH), after);
    }
}
