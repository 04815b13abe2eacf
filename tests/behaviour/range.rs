// SPDX-License-Identifier: Apache-2.0 OR MIT

//! I/O ranges: what is refused, the limits, who gets an access.

use ioreq_core::{ServerId, Transport, Width};

use crate::rig::{DmOp, Domain, GuestOp, MAP_RANGE, OpResult, Options, Rig, UNMAP_RANGE};
use crate::support::layout::{FREE_PORT, MMIO, PORT, mmio, ports};
use crate::support::{Server, refused, refused_raw, run};

const IN: GuestOp = GuestOp::read_port(PORT, Width::B4);

fn by_number<D: Domain>(
    domain: &D,
    op: u32,
    id: ServerId,
    ty: u32,
    ends: (u64, u64),
) -> Result<(), i32> {
    domain.dm_op(&mut DmOp::range(op, id.0, ty, ends.0, ends.1), &mut [])
}

pub(crate) fn range_duplicate<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    for range in [ports(0x500, 0x5ff), mmio(MMIO, 0x1000)] {
        server.map(range);
        refused(server.hv.map_range(server.id, range), libc::EEXIST);
    }
}

pub(crate) fn range_overlap<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    for range in [
        ports(0x5f0, 0x60f),
        ports(0x4f0, 0x500),
        ports(0x520, 0x521),
        ports(0x400, 0x6ff),
    ] {
        refused(server.hv.map_range(server.id, range), libc::EEXIST);
    }
    // Another type is another space.
    server.map(mmio(0x500, 0x100));
}

pub(crate) fn range_backward<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    for op in [MAP_RANGE, UNMAP_RANGE] {
        for ty in 0..3 {
            let result = by_number(&domain, op, server.id, ty, (0x700, 0x6ff));
            refused_raw(result, libc::EINVAL);
        }
    }
}

pub(crate) fn range_type_3<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    for op in [MAP_RANGE, UNMAP_RANGE] {
        for ty in [3, u32::MAX] {
            let result = by_number(&domain, op, server.id, ty, (0, 0));
            refused_raw(result, libc::EINVAL);
        }
    }
}

pub(crate) fn range_unmap_never<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    for range in [ports(0x900, 0x90f), mmio(0x500, 0x100)] {
        refused(server.hv.unmap_range(server.id, range), libc::ENOENT);
    }
}

pub(crate) fn range_unmap_partly<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    for range in [ports(0x5f0, 0x60f), ports(0x400, 0x6ff)] {
        refused(server.hv.unmap_range(server.id, range), libc::ENOENT);
    }
    let op = GuestOp::read_port(0x5fc, Width::B4);
    run(&domain, &[op], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 1, "nothing was unmapped");
}

/// A server at its limit of MMIO ranges: 256 of a page, with a page between.
fn full<D: Domain>(domain: &D) -> Server<D> {
    let server = Server::up(domain);
    for i in 0..256 {
        server.map(mmio(MMIO + 0x2000 * i, 0x1000));
    }
    server
}

pub(crate) fn range_limit<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = full(&domain);
    let one_more = mmio(MMIO + 0x2000 * 256, 0x1000);
    refused(server.hv.map_range(server.id, one_more), libc::ENOMEM);
    // Another server has its own.
    Server::up(&domain).map(one_more);
    // And so has this one once it gave one up.
    let result = server.hv.unmap_range(server.id, mmio(MMIO, 0x1000));
    result.expect("unmap");
    server.map(one_more);
}

pub(crate) fn range_limit_per_type<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = full(&domain);
    server.map(ports(0x500, 0x5ff));
    let function = ioreq_core::Sbdf::new(0, 0, 3, 0).expect("a PCI function");
    server.map(function.into());
}

pub(crate) fn range_limit_merge<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = full(&domain);
    let last = MMIO + 0x2000 * 255;
    server.map(mmio(last + 0x1000, 0x1000));
    server.map(mmio(last + 0x2000, 0x1000));
    let one_more = mmio(last + 0x10_0000, 0x1000);
    refused(server.hv.map_range(server.id, one_more), libc::ENOMEM);
}

pub(crate) fn range_limit_merge_below<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = full(&domain);
    let below = mmio(MMIO - 0x1000, 0x1000);
    refused(server.hv.map_range(server.id, below), libc::ENOMEM);
    let last = mmio(MMIO + 0x2000 * 255, 0x1000);
    server.hv.unmap_range(server.id, last).expect("unmap");
    server.map(below);
    // It did merge: there is room for one more again.
    server.map(last);
}

pub(crate) fn range_limit_gap<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = full(&domain);
    server.map(mmio(MMIO + 0x1000, 0x1000));
    let one_more = mmio(MMIO + 0x2000 * 300, 0x1000);
    server.map(one_more);
    let another = mmio(MMIO + 0x2000 * 301, 0x1000);
    refused(server.hv.map_range(server.id, another), libc::ENOMEM);
}

pub(crate) fn range_limit_split<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = full(&domain);
    let middle = mmio(MMIO + 0x400, 0x400);
    refused(server.hv.unmap_range(server.id, middle), libc::ENOMEM);
    // An end can go: that needs no range more.
    let end = mmio(MMIO + 0xc00, 0x400);
    server.hv.unmap_range(server.id, end).expect("unmap an end");
}

pub(crate) fn range_map_enabled<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    assert_eq!(run(&domain, &[IN], &mut []).value(), 0xffff_ffff);
    server.map(ports(0x500, 0x5ff));
    let value = run(&domain, &[IN], &mut [&mut server]).value();
    assert_eq!(value, 0xa5a5_0000);
    let result = server.hv.unmap_range(server.id, ports(0x500, 0x5ff));
    result.expect("unmap while enabled");
    assert_eq!(run(&domain, &[IN], &mut []).value(), 0xffff_ffff);
}

/// Two servers that both have [`PORT`]; the older has more ports.
fn two<D: Domain>(domain: &D) -> [Server<D>; 2] {
    let older = Server::up(domain);
    let newer = Server::up(domain);
    assert!(newer.id > older.id);
    older.map(ports(0x500, 0x5ff));
    newer.map(ports(PORT, PORT + 3));
    [older, newer]
}

/// How many requests each of the two gets.
fn shares<D: Domain>(domain: &D, ops: &[GuestOp], servers: &mut [Server<D>; 2]) -> [usize; 2] {
    let [older, newer] = servers;
    run(domain, ops, &mut [older, newer]).back();
    [older.take_seen().len(), newer.take_seen().len()]
}

pub(crate) fn range_two_servers<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut servers = two(&domain);
    assert_eq!(shares(&domain, &[IN], &mut servers), [0, 1]);
    let elsewhere = GuestOp::read_port(PORT + 4, Width::B4);
    assert_eq!(shares(&domain, &[elsewhere], &mut servers), [1, 0]);
    // Across the newer one's end: only the older has it whole.
    let across = GuestOp::read_port(PORT + 2, Width::B4);
    assert_eq!(shares(&domain, &[across], &mut servers), [1, 0]);
}

pub(crate) fn range_two_servers_fallback<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut servers = two(&domain);
    servers[1].disable();
    assert_eq!(shares(&domain, &[IN], &mut servers), [1, 0]);
    servers[1].enable();
    assert_eq!(shares(&domain, &[IN], &mut servers), [0, 1]);
    servers[1].destroy();
    let [older, _] = &mut servers;
    run(&domain, &[IN], &mut [older]).back();
    assert_eq!(older.take_seen().len(), 1);
}

pub(crate) fn range_not_inside_port<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let inside = |port, width| GuestOp::read_port(port, width);
    let ops = [
        inside(0x5fe, Width::B4),
        inside(0x4ff, Width::B2),
        GuestOp::write_port(0x5fe, Width::B4, 1),
        inside(FREE_PORT, Width::B1),
    ];
    let results = run(&domain, &ops, &mut []).back();
    assert_eq!(
        results,
        [
            OpResult::Value(0xffff_ffff),
            OpResult::Value(0xffff),
            OpResult::Done,
            OpResult::Value(0xff)
        ]
    );
    assert!(server.is_idle());
}

pub(crate) fn range_not_inside_mmio<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(mmio(MMIO + 0x100, 0x100));
    let load = |addr, width| GuestOp::load(addr, width);
    let ops = [
        load(MMIO + 0x1fe, Width::B4),
        load(MMIO + 0xff, Width::B2),
        GuestOp::store(MMIO + 0x1fe, Width::B4, 1),
    ];
    let results = run(&domain, &ops, &mut []).back();
    assert_eq!(
        results,
        [
            OpResult::Value(0xffff_ffff),
            OpResult::Value(0xffff),
            OpResult::Done
        ]
    );
    assert!(server.is_idle());
}

pub(crate) fn range_unclaimed<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    let ops = [
        GuestOp::read_port(FREE_PORT, Width::B4),
        GuestOp::write_port(FREE_PORT, Width::B4, 1),
        GuestOp::load(MMIO + 0x10_0000, Width::B4),
        GuestOp::store(MMIO + 0x10_0000, Width::B4, 1),
    ];
    let results = run(&domain, &ops, &mut []).back();
    let ones = OpResult::Value(0xffff_ffff);
    assert_eq!(results, [ones, OpResult::Done, ones, OpResult::Done]);
    assert!(server.is_idle());
}
