// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The order of set-up, and what comes of others.

use ioreq_core::{BufIoreq, Transport, VcpuId, Width};

use crate::rig::{Domain, GuestOp, OpResult, Options, Rig, Run};
use crate::support::layout::{MMIO, PORT, TRACKED, VGA, addr, mmio, ports};
use crate::support::{Answer, Server, run};

const IN: GuestOp = GuestOp::read_port(PORT, Width::B4);
const LOAD: GuestOp = GuestOp::load(MMIO, Width::B4);

pub(crate) fn setup_safe_order<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut server = Server::create(&domain, BufIoreq::Atomic);
    server.acquire();
    server.acquire_ring();
    server.enable();
    server.bind();
    assert!(server.is_idle());
    assert_eq!(server.ring().waiting(), 0);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    server.map(mmio(VGA, 0x2_0000));
    server.claim();
    server.mark(TRACKED);
    let write = |addr| GuestOp::store(addr, Width::B4, 7);
    let ops = [IN, LOAD, write(addr(TRACKED, 8)), write(VGA)];
    let results = run(&domain, &ops, &mut [&mut server]).back();
    assert_eq!(
        results[..2],
        [OpResult::Value(0xa5a5_0000), OpResult::Value(0xa5a5_0001)]
    );
    let seen: Vec<_> = server.take_seen().iter().map(|r| r.addr).collect();
    assert_eq!(seen, [u64::from(PORT), MMIO, addr(TRACKED, 8)]);
    assert_eq!(server.ring().drain().len(), 1);
    assert_eq!(server.load(addr(TRACKED, 8), Width::B4), 7);
}

pub(crate) fn setup_eport_before_enable<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(3));
    let mut server = Server::create(&domain, BufIoreq::Off);
    server.acquire();
    for vcpu in 0..3 {
        assert_eq!(server.page().vp_eport(vcpu), 0);
    }
    server.enable();
    for vcpu in 0..3 {
        assert_ne!(server.page().vp_eport(vcpu), 0);
    }
    assert_eq!(server.page().vp_eport(3), 0, "no vCPU, no port");
}

pub(crate) fn setup_scan_after_bind<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::create(&domain, BufIoreq::Off);
    server.acquire();
    server.enable();
    server.map(ports(0x500, 0x5ff));
    let guest = domain.start(VcpuId(0), &[IN]);
    server.wait_ready(0);
    server.bind();
    assert!(server.is_ready(0), "one scan finds it");
    server.serve(0, Answer::Data(0x44));
    assert_eq!(guest.join().value(), 0x44);
}

pub(crate) fn setup_ring_scan_after_bind<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    let mut server = Server::create(&domain, BufIoreq::Atomic);
    server.acquire();
    server.acquire_ring();
    server.enable();
    server.map(mmio(VGA, 0x2_0000));
    let op = GuestOp::store(VGA, Width::B2, 0x1234);
    run(&domain, &[op], &mut []).back();
    server.bind();
    let entries = server.ring().drain();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].data(), 0x1234);
}

/// Enabled with a range, never acquired.
fn never_acquired<D: Domain>(domain: &D) -> Server<D> {
    let server = Server::create(domain, BufIoreq::Off);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    server.enable();
    server
}

pub(crate) fn setup_no_acquire_port<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let _server = never_acquired(&domain);
    run(&domain, &[IN], &mut []).panicked();
}

pub(crate) fn setup_no_acquire_mmio<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let _server = never_acquired(&domain);
    run(&domain, &[LOAD], &mut []).panicked();
}

pub(crate) fn setup_acquire_late_eport<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = never_acquired(&domain);
    server.acquire();
    assert_eq!(server.page().vp_eport(0), 0);
    server.enable(); // it is enabled already: nothing changes
    assert_eq!(server.page().vp_eport(0), 0);
}

pub(crate) fn setup_acquire_late_port<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = never_acquired(&domain);
    server.acquire();
    run(&domain, &[IN], &mut []).crashed();
}

pub(crate) fn setup_acquire_late_memory<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = never_acquired(&domain);
    server.acquire();
    run(&domain, &[LOAD], &mut []).faulted();
    assert!(server.is_idle());
}

pub(crate) fn setup_acquire_late_mended<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = never_acquired(&domain);
    server.acquire();
    server.disable();
    server.enable();
    assert_ne!(server.page().vp_eport(0), 0);
    server.bind();
    run(&domain, &[IN, LOAD], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 2);
}

pub(crate) fn setup_claimed_never_enabled<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = Server::create(&domain, BufIoreq::Off);
    server.acquire();
    server.claim();
    server.mark(TRACKED);
    let op = GuestOp::store(addr(TRACKED, 0), Width::B4, 1);
    run(&domain, &[op], &mut []).faulted();
    assert_eq!(server.load(addr(TRACKED, 0), Width::B4), 0);
    // Only the order was wrong.
    assert!(server.hv.set_server_state(server.id, true).is_ok());
}
