// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the kernel's drivers add: limits of a call, and what a mapping of guest memory is.

use ioreq_core::{P2mType, Width};

use crate::rig::{DmOp, Domain, GuestOp, MODIFIED_MEMORY, Options, Rig};
use crate::support::layout::{GIVEN_BACK, addr};
use crate::support::{Server, refused, refused_raw, run};

pub(crate) fn kernel_dmop_buffer_size<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    // 256 extents of 16 bytes, 32768 pages of a bit.
    let extents = |nr| DmOp::new(MODIFIED_MEMORY).u32(0, nr);
    let vram = |nr| DmOp::track_dirty_vram(0x400, nr);
    for (mut op, bytes) in [(extents(256), 4096), (vram(32_768), 4096)] {
        assert_eq!(domain.dm_op(&mut op, &mut vec![0; bytes]), Ok(()));
    }
    for (mut op, bytes) in [(extents(257), 4112), (vram(32_769), 4097)] {
        let result = domain.dm_op(&mut op, &mut vec![0; bytes]);
        refused_raw(result, libc::E2BIG);
    }
}

pub(crate) fn kernel_balloon_old_frame<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up_claimed(&domain);
    let at = addr(GIVEN_BACK, 0x20);
    let load = GuestOp::load(at, Width::B4);
    server.poke(at, Width::B4, 0x11);
    assert_eq!(run(&domain, &[load], &mut [&mut server]).value(), 0x11);
    let give_back = GuestOp::ChangeMemoryMap;
    run(&domain, &[give_back], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 1, "INVALIDATE");
    // No SIGBUS, and what is stored is there, but the guest does not see it.
    server.poke(at, Width::B4, 0x22);
    assert_eq!(server.load(at, Width::B4), 0x22);
    assert_eq!(run(&domain, &[load], &mut []).value(), 0xffff_ffff);
    assert!(server.is_idle());
    let result = server.set_type(P2mType::IoreqServer, GIVEN_BACK.into());
    refused(result, libc::EINVAL);
}
