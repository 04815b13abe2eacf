// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who owns the memory type.

use ioreq_core::{BufIoreq, ErrorKind, MemTypes, ServerId, Transport};

use crate::rig::{DmOp, Domain, IOREQ_SERVER, Options, RAM_RO, RAM_RW, Rig};
use crate::support::layout::TRACKED;
use crate::support::{Server, refused, refused_raw};

const UNKNOWN: u16 = 55;
const READ: u32 = 1;
const WRITE: u32 = 2;

fn by_number<D: Domain>(domain: &D, id: u16, ty: u16, flags: u32) -> Result<(), i32> {
    domain.dm_op(&mut DmOp::map_mem_type(id, ty, flags), &mut [])
}

/// Claims with these flags are EINVAL, and claim nothing.
fn bad_flags<R: Rig>(rig: &R, all: &[u32]) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    for &flags in all {
        let result = by_number(&domain, server.id.0, IOREQ_SERVER, flags);
        refused_raw(result, libc::EINVAL);
    }
    server.claim();
}

pub(crate) fn claim_read<R: Rig>(rig: &R) {
    bad_flags(rig, &[READ]);
}

pub(crate) fn claim_read_write<R: Rig>(rig: &R) {
    bad_flags(rig, &[READ | WRITE]);
}

pub(crate) fn claim_unknown_flags<R: Rig>(rig: &R) {
    bad_flags(rig, &[4, 0x80, 0x8000_0000, WRITE | 4]);
}

pub(crate) fn claim_other_type<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    for ty in [RAM_RW, RAM_RO, 2, 3, 5] {
        let result = by_number(&domain, server.id.0, ty, WRITE);
        refused_raw(result, libc::EINVAL);
    }
    server.claim();
}

pub(crate) fn claim_flags_before_id<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    for (ty, flags) in [(IOREQ_SERVER, 0x80), (IOREQ_SERVER, READ), (RAM_RW, WRITE)] {
        let result = by_number(&domain, UNKNOWN, ty, flags);
        refused_raw(result, libc::EINVAL);
    }
}

pub(crate) fn claim_unknown_id<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let result = domain.process().claim_mem_type(ServerId(UNKNOWN));
    refused(result, libc::ENOENT);
}

pub(crate) fn claim_disclaim_unknown_id<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let result = domain.process().disclaim_mem_type(ServerId(UNKNOWN));
    refused(result, libc::ENOENT);
}

pub(crate) fn claim_second_server<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let owner = Server::up_claimed(&domain);
    let second = Server::up(&domain);
    let result = second.hv.claim_mem_type(second.id);
    let kind = result.as_ref().map_err(|e| e.kind());
    assert_eq!(kind, Err(ErrorKind::AlreadyClaimed));
    refused(result, libc::EBUSY);
    owner.disclaim();
    second.claim();
}

pub(crate) fn claim_again<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let owner = Server::up_claimed(&domain);
    refused(owner.hv.claim_mem_type(owner.id), libc::EBUSY);
    owner.disclaim();
    owner.claim();
}

pub(crate) fn claim_disclaim_non_owner<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let other = Server::up(&domain);
    refused(other.hv.disclaim_mem_type(other.id), libc::EINVAL);
    let owner = Server::up_claimed(&domain);
    owner.mark(TRACKED);
    refused(other.hv.disclaim_mem_type(other.id), libc::EINVAL);
    assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER);
    owner.disclaim();
}

pub(crate) fn claim_disclaim_twice<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let owner = Server::up_claimed(&domain);
    owner.disclaim();
    refused(owner.hv.disclaim_mem_type(owner.id), libc::EINVAL);
}

pub(crate) fn claim_opaque<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    let mut op = DmOp::map_mem_type(server.id.0, IOREQ_SERVER, WRITE).u64(8, 1);
    assert_eq!(domain.dm_op(&mut op, &mut []), Ok(()));
    let mut mark = DmOp::mem_type(IOREQ_SERVER, TRACKED.0, 1);
    refused_raw(domain.dm_op(&mut mark, &mut []), libc::EINVAL);
    // Nobody owns the type: a real claim works.
    server.claim();
}

pub(crate) fn claim_disabled<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::create(&domain, BufIoreq::Off);
    server.claim();
    server.disclaim();
    let up = Server::up(&domain);
    up.disable();
    up.claim();
    up.mark(TRACKED);
}

pub(crate) fn claim_log_dirty<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up(&domain);
    domain.log_dirty(true).expect("log-dirty mode");
    server.claim();
    let result = server.set_type(ioreq_core::P2mType::IoreqServer, TRACKED.into());
    refused(result, libc::EINVAL);
    // Ordinary RAM that nobody has written yet is told as read-only in this mode.
    assert_eq!(domain.mem_type(TRACKED), RAM_RO);
    domain.log_dirty(false).expect("log-dirty mode off");
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    server.mark(TRACKED);
}

pub(crate) fn claim_no_hap<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::no_hap());
    let hv = domain.process();
    let id = hv.create_server(BufIoreq::Off).expect("create");
    let result = hv.claim_mem_type(id);
    let kind = result.as_ref().map_err(|e| e.kind());
    assert_eq!(kind, Err(ErrorKind::NoHap));
    refused(result, libc::EOPNOTSUPP);
    for (id, ty, flags) in [
        (UNKNOWN, IOREQ_SERVER, WRITE),
        (id.0, RAM_RW, WRITE),
        (id.0, IOREQ_SERVER, 0x80),
    ] {
        let result = by_number(&domain, id, ty, flags);
        refused_raw(result, libc::EOPNOTSUPP);
    }
}

pub(crate) fn claim_disclaim_no_hap<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::no_hap());
    let hv = domain.process();
    let id = hv.create_server(BufIoreq::Off).expect("create");
    refused(hv.disclaim_mem_type(id), libc::EOPNOTSUPP);
    let unknown = ServerId(UNKNOWN);
    refused(hv.disclaim_mem_type(unknown), libc::EOPNOTSUPP);
}
