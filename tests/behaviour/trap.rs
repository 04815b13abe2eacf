// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Disclaim, destroy, disable and kill: what a server leaves behind.

use std::sync::Arc;

use ioreq_core::{
    BufIoreq, EventChannels, EvtchnPort, Gfn, MemTypes, ServerId, Transport, VcpuId, Width,
};

use crate::rig::{DmOp, Domain, End, GuestOp, IOREQ_SERVER, Options, RAM_RW, Rig, Run, Version};
use crate::support::layout::{MMIO, PORT, TRACKED, addr, mmio, pages, ports};
use crate::support::{Answer, Server, drive, refused, run, shown};

const IN: GuestOp = GuestOp::read_port(PORT, Width::B4);

/// A write of the first word of a page.
fn write(gfn: Gfn, value: u64) -> GuestOp {
    GuestOp::store(addr(gfn, 0), Width::B4, value)
}

fn next(gfn: Gfn) -> Gfn {
    Gfn(gfn.0 + 1)
}

fn claimed<R: Rig>(rig: &R) -> (R::Domain, Server<R::Domain>) {
    let domain = rig.domain(Options::default());
    let server = Server::up_claimed(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    (domain, server)
}

pub(crate) fn trap_disclaim_outstanding<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    let some = pages(TRACKED, 64);
    server.mark(some);
    server.disclaim();
    for gfn in some.iter() {
        assert_eq!(domain.mem_type(gfn), RAM_RW, "{gfn}");
    }
    run(&domain, &[write(TRACKED, 0x3000)], &mut []).back();
    assert_eq!(server.load(addr(TRACKED, 0), Width::B4), 0x3000);
    assert!(server.is_idle());
}

/// A domain with two pages that the destroyed owner left.
fn orphaned<R: Rig>(rig: &R) -> (R::Domain, Server<R::Domain>) {
    let (domain, owner) = claimed(rig);
    owner.mark(pages(TRACKED, 2));
    owner.destroy();
    let other = Server::up(&domain);
    (domain, other)
}

pub(crate) fn trap_destroy_pages_stay<R: Rig>(rig: &R) {
    let (domain, other) = orphaned(rig);
    assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER);
    assert_eq!(domain.mem_type(next(TRACKED)), IOREQ_SERVER);
    // A disclaim by somebody else does not sweep them.
    refused(other.hv.disclaim_mem_type(other.id), libc::EINVAL);
    assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER);
}

pub(crate) fn trap_destroy_claim_busy<R: Rig>(rig: &R) {
    let (_domain, other) = orphaned(rig);
    refused(other.hv.claim_mem_type(other.id), libc::EBUSY);
    other.unmark(TRACKED);
    refused(other.hv.claim_mem_type(other.id), libc::EBUSY);
    other.unmark(next(TRACKED));
    other.claim();
}

pub(crate) fn trap_destroy_write_stuck<R: Rig>(rig: &R) {
    let (domain, other) = orphaned(rig);
    let guest = domain.start(VcpuId(0), &[write(TRACKED, 0x3003)]);
    assert!(guest.stays_away());
    assert!(other.is_idle());
    assert_eq!(other.load(addr(TRACKED, 0), Width::B4), 0);
    other.unmark(TRACKED);
    guest.join().back();
    assert_eq!(other.load(addr(TRACKED, 0), Width::B4), 0x3003);
}

pub(crate) fn trap_disable_writes<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    server.mark(TRACKED);
    server.disable();
    run(&domain, &[write(TRACKED, 5)], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 1);
    assert_eq!(server.load(addr(TRACKED, 0), Width::B4), 5);
}

pub(crate) fn trap_disable_ranges<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    let load = GuestOp::load(MMIO, Width::B4);
    server.disable();
    for op in [IN, load] {
        assert_eq!(run(&domain, &[op], &mut []).value(), 0xffff_ffff);
    }
    assert!(server.is_idle());
    server.enable();
    run(&domain, &[IN, load], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 2);
}

/// `op` is in flight on tracked pages, then `change`, then the answer, then another I/O.
fn changed_in_flight<R: Rig>(
    rig: &R,
    op: GuestOp,
    change: impl Fn(&Server<R::Domain>),
) -> (End, u64) {
    let (domain, mut server) = claimed(rig);
    server.mark(pages(TRACKED, 2));
    let guest = domain.start(VcpuId(0), &[op, IN]);
    server.wait_ready(0);
    change(&server);
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    server.serve(0, Answer::Apply);
    drive(&guest, &mut [&mut server], |_| Answer::Apply);
    let end = guest.join().end;
    (end, server.load(addr(TRACKED, 0), Width::B4))
}

/// The same until the domain crashes: Xen must not schedule between the answer and the next I/O.
fn crashes_in_flight<R: Rig>(rig: &R, op: GuestOp, change: impl Fn(&Server<R::Domain>)) {
    shown(rig, "a domain crash", || {
        match changed_in_flight(rig, op, &change) {
            (End::Crashed(_), _) => Ok(()),
            (end, _) => Err(end),
        }
    });
}

fn single<R: Rig>(rig: &R, change: impl Fn(&Server<R::Domain>)) {
    let op = write(TRACKED, 0x7001);
    match rig.version() {
        Version::V4_17 => {
            let result = changed_in_flight(rig, op, change);
            assert_eq!(result, (End::Back, 0x7001));
        }
        Version::V4_20 => crashes_in_flight(rig, op, change),
    }
}

fn repeated<R: Rig>(rig: &R, change: impl Fn(&Server<R::Domain>)) {
    let op = GuestOp::rep_stos(addr(TRACKED, 0), Width::B4, 0x7002, 8);
    crashes_in_flight(rig, op, change);
}

pub(crate) fn trap_disclaim_in_flight<R: Rig>(rig: &R) {
    single(rig, Server::disclaim);
}

pub(crate) fn trap_retype_in_flight<R: Rig>(rig: &R) {
    single(rig, |server| server.unmark(TRACKED));
}

pub(crate) fn trap_disclaim_in_flight_rep<R: Rig>(rig: &R) {
    repeated(rig, Server::disclaim);
}

pub(crate) fn trap_retype_in_flight_rep<R: Rig>(rig: &R) {
    repeated(rig, |server| server.unmark(TRACKED));
}

pub(crate) fn trap_disable_in_flight<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    let guest = domain.start(VcpuId(0), &[IN]);
    server.wait_ready(0);
    server.disable();
    server.serve(0, Answer::Data(0x99));
    assert_eq!(guest.join().value(), 0x99);
    assert_eq!(run(&domain, &[IN], &mut []).value(), 0xffff_ffff);
    // Enabled again, it works again.
    server.enable();
    run(&domain, &[IN], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 2);
}

pub(crate) fn trap_destroy_in_flight_port<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    let guest = domain.start(VcpuId(0), &[IN]);
    server.wait_ready(0);
    server.destroy();
    assert!(guest.stays_away());
    // An answer does not reach it any more.
    server.page().set_state(0, 3);
    let _ = server.events.notify(server.port(0));
    assert!(guest.stays_away());
    assert_eq!(domain.end(), None, "only this vCPU is lost");
}

pub(crate) fn trap_destroy_in_flight_tracked<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    server.mark(TRACKED);
    let guest = domain.start(VcpuId(0), &[write(TRACKED, 1)]);
    server.wait_ready(0);
    server.destroy();
    assert!(guest.stays_away());
    server.unmark(TRACKED);
    assert!(guest.stays_away());
}

pub(crate) fn trap_owner_never_acquired<R: Rig>(rig: &R) {
    for enabled in [false, true] {
        let domain = rig.domain(Options::default());
        let server = Server::create(&domain, BufIoreq::Off);
        server.claim();
        server.mark(TRACKED);
        if enabled {
            server.enable();
        }
        run(&domain, &[write(TRACKED, 1)], &mut []).panicked();
        if !rig.survives_panic() {
            return;
        }
    }
}

pub(crate) fn trap_mark_by_anyone<R: Rig>(rig: &R) {
    let (domain, mut owner) = claimed(rig);
    // By a process without a server, by number.
    let mut op = DmOp::mem_type(IOREQ_SERVER, TRACKED.0, 1);
    assert_eq!(domain.dm_op(&mut op, &mut []), Ok(()));
    // And by one that has another server.
    let other = Server::up(&domain);
    other.mark(next(TRACKED));
    let ops = [write(TRACKED, 1), write(next(TRACKED), 2)];
    run(&domain, &ops, &mut [&mut owner]).back();
    assert_eq!(owner.take_seen().len(), 2);
    assert!(other.is_idle());
}

pub(crate) fn trap_kill_keeps<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    server.mark(TRACKED);
    let id = server.id;
    domain.kill(&server.hv);
    drop(server);
    let hv = Arc::new(domain.process());
    assert!(hv.server_info(id).is_ok(), "the server");
    refused(hv.map_range(id, ports(0x500, 0x5ff)), libc::EEXIST);
    let other = Server::<R::Domain>::create_in(Arc::clone(&hv), BufIoreq::Off);
    refused(hv.claim_mem_type(other.id), libc::EBUSY);
    assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER, "the pages");
    // Writes are still sent, and nobody answers.
    let guest = domain.start(VcpuId(0), &[write(TRACKED, 1)]);
    let mut new = Server::<R::Domain>::over(hv, id);
    new.acquire();
    new.wait_ready(0);
    assert!(guest.stays_away());
}

pub(crate) fn trap_kill_takeover<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    server.mark(TRACKED);
    let id = server.id;
    server.page().set_u64(32 * 90, 0x0123_4567);
    // In flight when the process dies: one that it did not take.
    let guest = domain.start(VcpuId(0), &[write(TRACKED, 0x55), IN]);
    server.wait_ready(0);
    // What it had open is closed by that, not by what the test drops.
    domain.kill(&server.hv);
    let mut new = Server::<R::Domain>::over(Arc::new(domain.process()), id);
    new.hv.server_info(id).expect("get_info");
    new.acquire();
    assert_eq!(new.page().u64(32 * 90), 0x0123_4567, "the same page");
    new.bind();
    drop(server);
    drive(&guest, &mut [&mut new], |_| Answer::Apply);
    guest.join().back();
    assert_eq!(new.take_seen().len(), 2);
    assert_eq!(new.load(addr(TRACKED, 0), Width::B4), 0x55);
    new.disclaim();
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    new.destroy();
}

pub(crate) fn trap_other_emulator<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    server.mark(TRACKED);
    let other = domain.process_elsewhere();
    let id = server.id;
    refused(other.server_info(id), libc::EPERM);
    refused(other.ioreq_page(id).map(drop), libc::EPERM);
    refused(other.set_server_state(id, false), libc::EPERM);
    refused(other.map_range(id, ports(0x700, 0x7ff)), libc::EPERM);
    refused(other.unmap_range(id, ports(0x500, 0x5ff)), libc::EPERM);
    refused(other.disclaim_mem_type(id), libc::EPERM);
    refused(other.claim_mem_type(id), libc::EPERM);
    refused(other.destroy_server(id), libc::EPERM);
    let port = EvtchnPort(server.page().vp_eport(0));
    let events = other.open_events().expect("open event channels");
    refused(events.bind(port).map(drop), libc::EINVAL);
    // What does not exist is told as to anybody.
    refused(other.server_info(ServerId(7)), libc::ENOENT);
    // Nothing of it was done.
    run(&domain, &[write(TRACKED, 5), IN], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 2);
    // It may have a server of its own; the type is taken all the same, and marking asks nobody.
    let mut theirs = Server::<R::Domain>::create_in(Arc::new(other), BufIoreq::Off);
    refused(theirs.hv.claim_mem_type(theirs.id), libc::EBUSY);
    theirs.mark(next(TRACKED));
    run(&domain, &[write(next(TRACKED), 6)], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 1, "the owner gets it");
    theirs.acquire();
    theirs.enable();
    theirs.bind();
    theirs.map(ports(0x700, 0x7ff));
    let theirs_only = GuestOp::read_port(0x700, Width::B4);
    run(&domain, &[theirs_only], &mut [&mut theirs]).back();
    assert_eq!(theirs.take_seen().len(), 1);
    refused(server.hv.destroy_server(theirs.id), libc::EPERM);
}
