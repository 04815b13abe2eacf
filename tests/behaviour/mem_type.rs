// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Changing the type of pages.

use ioreq_core::{Gfn, P2mType, Width};

use crate::rig::{DmOp, Domain, IOREQ_SERVER, Options, RAM_RO, RAM_RW, Rig};
use crate::support::layout::{RAM_FRAMES, TRACKED, addr, pages};
use crate::support::{Server, refused, refused_raw};

fn by_number<D: Domain>(domain: &D, ty: u16, first: u64, nr: u32) -> Result<(), i32> {
    domain.dm_op(&mut DmOp::mem_type(ty, first, nr), &mut [])
}

/// A domain whose type is claimed.
fn claimed<R: Rig>(rig: &R) -> (R::Domain, Server<R::Domain>) {
    let domain = rig.domain(Options::default());
    let server = Server::up_claimed(&domain);
    (domain, server)
}

pub(crate) fn type_before_claim<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    let result = server.set_type(P2mType::IoreqServer, TRACKED.into());
    refused(result, libc::EINVAL);
    server.claim();
    server.mark(TRACKED);
    server.disclaim();
    let result = server.set_type(P2mType::IoreqServer, TRACKED.into());
    refused(result, libc::EINVAL);
}

/// A tracked page cannot become `ty`.
fn owned_to<R: Rig>(rig: &R, ty: P2mType) {
    let (domain, server) = claimed(rig);
    server.mark(TRACKED);
    refused(server.set_type(ty, TRACKED.into()), libc::EINVAL);
    assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER);
}

pub(crate) fn type_owned_again<R: Rig>(rig: &R) {
    owned_to(rig, P2mType::IoreqServer);
}

pub(crate) fn type_owned_to_ro<R: Rig>(rig: &R) {
    owned_to(rig, P2mType::RamRo);
}

pub(crate) fn type_owned_to_mmio_dm<R: Rig>(rig: &R) {
    owned_to(rig, P2mType::MmioDm);
}

pub(crate) fn type_owned_to_rw<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    for _ in 0..3 {
        server.mark(TRACKED);
        assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER);
        server.unmark(TRACKED);
        assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    }
}

pub(crate) fn type_ro_to_owned<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    let set = |ty| server.set_type(ty, TRACKED.into());
    set(P2mType::RamRo).expect("ram_rw to ram_ro");
    refused(set(P2mType::IoreqServer), libc::EINVAL);
    assert_eq!(domain.mem_type(TRACKED), RAM_RO);
    set(P2mType::RamRw).expect("ram_ro to ram_rw");
    set(P2mType::IoreqServer).expect("ram_rw to ioreq_server");
}

pub(crate) fn type_unpopulated<R: Rig>(rig: &R) {
    let (_domain, server) = claimed(rig);
    // The VGA hole.
    let result = server.set_type(P2mType::IoreqServer, Gfn(0xa0).into());
    refused(result, libc::EINVAL);
}

pub(crate) fn type_nr_0<R: Rig>(rig: &R) {
    let (domain, _server) = claimed(rig);
    let result = by_number(&domain, IOREQ_SERVER, TRACKED.0, 0);
    refused_raw(result, libc::EINVAL);
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
}

pub(crate) fn type_wrap<R: Rig>(rig: &R) {
    let (domain, _server) = claimed(rig);
    for (first, nr) in [
        (u64::MAX, 2),
        (u64::MAX - 1, 3),
        (TRACKED.0.wrapping_neg(), u32::MAX),
    ] {
        let result = by_number(&domain, IOREQ_SERVER, first, nr);
        refused_raw(result, libc::EINVAL);
    }
}

fn bad_type<R: Rig>(rig: &R, ty: u16) {
    let (domain, _server) = claimed(rig);
    let result = by_number(&domain, ty, TRACKED.0, 1);
    refused_raw(result, libc::EINVAL);
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
}

pub(crate) fn type_3<R: Rig>(rig: &R) {
    bad_type(rig, 3);
}

pub(crate) fn type_9<R: Rig>(rig: &R) {
    bad_type(rig, 9);
    bad_type(rig, 5);
}

pub(crate) fn type_beyond_max<R: Rig>(rig: &R) {
    let (domain, _server) = claimed(rig);
    for first in [RAM_FRAMES, 0x10_0000, 1 << 36, 1 << 50] {
        let result = by_number(&domain, IOREQ_SERVER, first, 1);
        refused_raw(result, libc::EINVAL);
    }
    // The last page of RAM and the one after it: refused as a whole.
    let result = by_number(&domain, IOREQ_SERVER, RAM_FRAMES - 1, 2);
    refused_raw(result, libc::EINVAL);
    assert_eq!(domain.mem_type(Gfn(RAM_FRAMES - 1)), RAM_RW);
}

pub(crate) fn type_partial<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    let [first, bad, third] = [TRACKED, Gfn(TRACKED.0 + 1), Gfn(TRACKED.0 + 2)];
    let result = server.set_type(P2mType::RamRo, bad.into());
    result.expect("ram_ro");
    let result = server.set_type(P2mType::IoreqServer, pages(first, 3));
    refused(result, libc::EINVAL);
    assert_eq!(domain.mem_type(first), IOREQ_SERVER, "stays changed");
    assert_eq!(domain.mem_type(bad), RAM_RO);
    assert_eq!(domain.mem_type(third), RAM_RW, "untouched");
}

pub(crate) fn type_1024<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    let many = pages(Gfn(0x800), 1024);
    server.mark(many);
    for gfn in many.iter() {
        assert_eq!(domain.mem_type(gfn), IOREQ_SERVER, "{gfn}");
    }
    assert_eq!(domain.mem_type(Gfn(0x7ff)), RAM_RW);
    assert_eq!(domain.mem_type(Gfn(0xc00)), RAM_RW);
    server.unmark(many);
    for gfn in many.iter() {
        assert_eq!(domain.mem_type(gfn), RAM_RW, "{gfn}");
    }
}

pub(crate) fn type_log_dirty_busy<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    server.mark(pages(TRACKED, 2));
    refused_raw(domain.log_dirty(true), libc::EBUSY);
    server.unmark(TRACKED);
    refused_raw(domain.log_dirty(true), libc::EBUSY);
    server.unmark(Gfn(TRACKED.0 + 1));
    assert_eq!(domain.log_dirty(true), Ok(()));
    assert_eq!(domain.log_dirty(false), Ok(()));
}

pub(crate) fn type_foreign_map<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    server.mark(TRACKED);
    // A process that maps it only now.
    let late = Server::up(&domain);
    late.poke(addr(TRACKED, 0), Width::B4, 0x4242);
    assert_eq!(late.load(addr(TRACKED, 0), Width::B4), 0x4242);
    assert_eq!(server.load(addr(TRACKED, 0), Width::B4), 0x4242);
    assert!(server.is_idle() && late.is_idle());
}

pub(crate) fn type_no_hap<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::no_hap());
    let result = by_number(&domain, IOREQ_SERVER, TRACKED.0, 1);
    refused_raw(result, libc::EOPNOTSUPP);
    // What is wrong with the arguments themselves goes first.
    for (ty, first, nr) in [
        (IOREQ_SERVER, TRACKED.0, 0),
        (IOREQ_SERVER, RAM_FRAMES, 1),
        (3, TRACKED.0, 1),
        (9, TRACKED.0, 1),
    ] {
        refused_raw(by_number(&domain, ty, first, nr), libc::EINVAL);
    }
    assert_eq!(by_number(&domain, RAM_RO, TRACKED.0, 1), Ok(()));
    assert_eq!(domain.mem_type(TRACKED), RAM_RO);
}

pub(crate) fn unseen_migration<R: Rig>(rig: &R) {
    let (domain, server) = claimed(rig);
    server.mark(TRACKED);
    refused_raw(domain.log_dirty(true), libc::EBUSY);
    server.unmark(TRACKED);
    assert_eq!(domain.log_dirty(true), Ok(()));
    let result = server.set_type(P2mType::IoreqServer, TRACKED.into());
    refused(result, libc::EINVAL);
    assert_eq!(domain.log_dirty(false), Ok(()));
    server.mark(TRACKED);
}
