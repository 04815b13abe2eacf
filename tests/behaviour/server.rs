// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Servers and their frames.

use ioreq_core::{BufIoreq, ServerId, Transport, VcpuId, Width};

use crate::rig::{DmOp, Domain, GuestOp, NO_GFNS, Options, Rig, Run, Version};
use crate::support::layout::{PORT, ports};
use crate::support::{Answer, Page, Server, refused, refused_raw};

const UNKNOWN: ServerId = ServerId(55);

pub(crate) fn server_bufioreq_3<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    for mode in [3, 4, 255] {
        let result = domain.dm_op(&mut DmOp::create(mode), &mut []);
        refused_raw(result, libc::EINVAL);
    }
    for mode in 0..3 {
        assert_eq!(domain.dm_op(&mut DmOp::create(mode), &mut []), Ok(()));
    }
}

pub(crate) fn server_create_pad<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    for at in 1..4 {
        let result = domain.dm_op(&mut DmOp::create(0).u8(at, 1), &mut []);
        refused_raw(result, libc::EINVAL);
    }
}

pub(crate) fn server_limit<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let hv = domain.process();
    let ids: Vec<_> = (0..8)
        .map(|_| hv.create_server(BufIoreq::Off).expect("one of eight"))
        .collect();
    refused(hv.create_server(BufIoreq::Off), libc::ENOSPC);
    hv.destroy_server(ids[3]).expect("destroy");
    assert_eq!(hv.create_server(BufIoreq::Off), Ok(ids[3]));
    refused(hv.create_server(BufIoreq::Off), libc::ENOSPC);
    // Another domain has its own eight.
    let other = rig.domain(Options::default());
    assert!(other.process().create_server(BufIoreq::Off).is_ok());
}

pub(crate) fn server_info_unknown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    refused(domain.process().server_info(UNKNOWN), libc::ENOENT);
    let result = domain.dm_op(&mut DmOp::info(0, NO_GFNS), &mut []);
    refused_raw(result, libc::ENOENT);
}

pub(crate) fn server_state_unknown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let hv = domain.process();
    refused(hv.set_server_state(UNKNOWN, true), libc::ENOENT);
    refused(hv.set_server_state(UNKNOWN, false), libc::ENOENT);
}

pub(crate) fn server_destroy_unknown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let hv = domain.process();
    refused(hv.destroy_server(UNKNOWN), libc::ENOENT);
    let id = hv.create_server(BufIoreq::Off).expect("create");
    hv.destroy_server(id).expect("destroy");
    refused(hv.destroy_server(id), libc::ENOENT);
}

pub(crate) fn server_info_no_gfns<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let hv = domain.process();
    let id = hv.create_server(BufIoreq::Atomic).expect("create");
    let before = hv.server_info(id).expect("before acquire");
    assert!(before.bufioreq_port.is_some(), "valid once created");
    let _pages = (hv.ioreq_page(id), hv.buffered_page(id));
    assert_eq!(hv.server_info(id), Ok(before));
    let without = hv.create_server(BufIoreq::Off).expect("create");
    let info = hv.server_info(without).expect("info");
    assert_eq!(info.bufioreq_port, None);
}

pub(crate) fn server_frame_0<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::create(&domain, BufIoreq::Atomic);
    let frame = domain.acquire(server.id, 0).expect("frame 0");
    let typed = server.hv.buffered_page(server.id).expect("the ring");
    let (frame, typed) = (Page::new(frame), Page::new(typed));
    frame.set_u64(4088, 0x1234);
    assert_eq!(typed.u64(4088), 0x1234, "the same page");
    frame.set_u64(4088, 0);
    let other = Page::new(server.hv.ioreq_page(server.id).expect("the ioreq page"));
    assert_eq!(other.u64(4088), 0, "another page");
}

pub(crate) fn server_frame_1<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    server.map(ports(0x500, 0x5ff));
    let frame = Page::new(domain.acquire(server.id, 1).expect("frame 1"));
    let op = GuestOp::write_port(PORT, Width::B4, 1);
    let guest = domain.start(VcpuId(0), &[op]);
    server.wait_ready(0);
    assert_eq!((frame.state(0), frame.u64(0)), (1, u64::from(PORT)));
    server.serve(0, Answer::Apply);
    guest.join().back();
}

pub(crate) fn server_frame_2<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::create(&domain, BufIoreq::Atomic);
    for frame in [2, 3, u64::from(u32::MAX)] {
        let result = domain.acquire(server.id, frame);
        refused_raw(result.map(drop), libc::EINVAL);
    }
}

pub(crate) fn server_frame_again<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::up(&domain);
    let eport = server.page().vp_eport(0);
    server.acquire();
    assert_eq!(server.page().vp_eport(0), eport, "the same page");
    let again = Page::new(domain.acquire(server.id, 1).expect("again"));
    server.page().set_u64(32 * 90, 0x77);
    assert_eq!(again.u64(32 * 90), 0x77);
}

pub(crate) fn server_acquire_unknown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    for frame in [0, 1] {
        let result = domain.acquire(UNKNOWN, frame);
        refused_raw(result.map(drop), libc::ENOENT);
    }
    refused(domain.process().ioreq_page(UNKNOWN).map(drop), libc::ENOENT);
}

pub(crate) fn server_acquire_no_ring<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::create(&domain, BufIoreq::Off);
    let result = server.hv.buffered_page(server.id);
    refused(result.map(drop), libc::ENOENT);
    assert!(server.hv.ioreq_page(server.id).is_ok());
}

pub(crate) fn server_gfns_after_acquire<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::create(&domain, BufIoreq::Atomic);
    server.acquire();
    server.acquire_ring();
    let result = domain.dm_op(&mut DmOp::info(server.id.0, 0), &mut []);
    refused_raw(result, libc::EPERM);
}

pub(crate) fn server_gfns_params_unset<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = Server::create(&domain, BufIoreq::Atomic);
    let mut op = DmOp::info(server.id.0, 0);
    let info = domain.dm_op(&mut op, &mut []);
    let acquired = domain.acquire(server.id, 1).map(drop);
    match rig.version() {
        Version::V4_17 => {
            assert_eq!(info, Ok(()));
            assert_eq!((op.get_u64(8), op.get_u64(16)), (0, 0));
            refused_raw(acquired, libc::EPERM);
        }
        Version::V4_20 => {
            refused_raw(info, libc::ENOMEM);
            assert_eq!(acquired, Ok(()));
        }
    }
}
