// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dirty bits of video memory.

use ioreq_core::{Gfn, GuestMap, VcpuId, Width};

use crate::rig::{DmOp, Domain, GuestOp, IOREQ_SERVER, Options, Rig, Run, TRACK_DIRTY_VRAM};
use crate::support::layout::{TRACKED, addr, pages};
use crate::support::{Server, refused_raw};

/// Two ranges of so many pages each.
const PAGES: u32 = 64;
const FIRST: Gfn = Gfn(0x400);
const SECOND: Gfn = Gfn(0x500);

/// The pages that the call says are dirty, counted from the range's first.
#[track_caller]
fn dirty<D: Domain>(domain: &D, first: Gfn) -> Vec<u32> {
    let mut bitmap = [0x5a; 8];
    let mut op = DmOp::track_dirty_vram(first.0, PAGES);
    assert_eq!(domain.dm_op(&mut op, &mut bitmap), Ok(()));
    let bits = u64::from_le_bytes(bitmap);
    (0..PAGES).filter(|bit| bits >> bit & 1 == 1).collect()
}

fn all() -> Vec<u32> {
    (0..PAGES).collect()
}

fn none() -> Vec<u32> {
    Vec::new()
}

fn page(first: Gfn, n: u64) -> u64 {
    addr(Gfn(first.0 + n), 0x10)
}

#[track_caller]
fn guest<D: Domain>(domain: &D, ops: &[GuestOp]) {
    domain.start(VcpuId(0), ops).join().back();
}

pub(crate) fn op_07_track_dirty_vram<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(TRACK_DIRTY_VRAM, 7);
    let server = Server::up(&domain);
    assert_eq!(dirty(&domain, FIRST), all(), "the first call of a range");
    assert_eq!(dirty(&domain, FIRST), none(), "nothing was written since");
    let store = |n| GuestOp::store(page(FIRST, n), Width::B4, 1);
    let writes = [
        store(3),
        store(3),
        GuestOp::rep_stos(page(FIRST, 10), Width::B4, 2, 16),
        GuestOp::lock_add(page(FIRST, 63), Width::B4, 1),
        // No write, and beside the range.
        GuestOp::load(page(FIRST, 20), Width::B4),
        store(64),
    ];
    guest(&domain, &writes);
    // By a foreign mapping, even if Xen is told.
    server.poke(page(FIRST, 5), Width::B4, 1);
    server.poke(page(FIRST, 6), Width::B4, 1);
    let told = pages(Gfn(FIRST.0 + 6), 1);
    server.hv.modified(&[told]).expect("modified_memory");
    assert_eq!(dirty(&domain, FIRST), [3, 10, 63]);
    assert_eq!(dirty(&domain, FIRST), none());
    // Once more: a page that was dirty is looked at again.
    guest(&domain, &[store(3)]);
    assert_eq!(dirty(&domain, FIRST), [3]);
    assert_eq!(server.load(page(FIRST, 3), Width::B4), 1, "stores are done");
    // None: tracking ends. The next call is a first one.
    let mut op = DmOp::track_dirty_vram(FIRST.0, 0);
    assert_eq!(domain.dm_op(&mut op, &mut [0; 8]), Ok(()));
    assert_eq!(dirty(&domain, FIRST), all());
    // A bitmap that is too small.
    let mut op = DmOp::track_dirty_vram(FIRST.0, PAGES);
    refused_raw(domain.dm_op(&mut op, &mut [0; 7]), libc::EINVAL);
}

pub(crate) fn op_track_vram_one_range<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(dirty(&domain, FIRST), all());
    assert_eq!(dirty(&domain, FIRST), none());
    assert_eq!(dirty(&domain, SECOND), all());
    assert_eq!(dirty(&domain, SECOND), none());
    // The first range is forgotten, so that a loop over parts sees every page as dirty each time.
    assert_eq!(dirty(&domain, FIRST), all());
    assert_eq!(dirty(&domain, SECOND), all());
    // And so is what was written to it.
    guest(&domain, &[GuestOp::store(page(SECOND, 1), Width::B4, 1)]);
    assert_eq!(dirty(&domain, SECOND), [1]);
}

pub(crate) fn type_track_vram<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::up_claimed(&domain);
    server.mark(TRACKED);
    assert_eq!(dirty(&domain, FIRST), all());
    assert_eq!(domain.mem_type(TRACKED), IOREQ_SERVER);
    // And the other way round: marking elsewhere goes on.
    server.mark(Gfn(TRACKED.0 + 1));
    assert_eq!(dirty(&domain, FIRST), none());
}
