// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Event channels, as a device model uses them.

use std::collections::BTreeSet;

use ioreq_core::hypervisor::EventChannels;
use ioreq_core::{BufIoreq, EvtchnPort, LocalPort, Transport, VcpuId, Width};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::rig::{Domain, GuestOp, Options, Rig, Run};
use crate::support::layout::{PORT, ports};
use crate::support::{Answer, Server, refused, until};

const OUT: GuestOp = GuestOp::write_port(PORT, Width::B4, 1);

/// Takes all pending ports.
#[track_caller]
fn take(events: &impl EventChannels) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    let mut ports = [LocalPort(0); 16];
    loop {
        let count = events.pending(&mut ports).expect("pending");
        if count == 0 {
            return all;
        }
        for port in &ports[..count] {
            assert!(all.insert(port.0), "{port} twice without an unmask");
        }
    }
}

/// Waits until `port` is pending.
#[track_caller]
fn wait_for(events: &impl EventChannels, port: LocalPort) {
    until("the event", || take(events).contains(&port.0));
}

fn readable(events: &impl EventChannels) -> bool {
    let epoll = Epoll::new().expect("epoll");
    let what = EpollEvent::new(EventSet::IN, 0);
    let fd = events.as_raw_fd();
    epoll
        .ctl(ControlOperation::Add, fd, what)
        .expect("a file that can be polled");
    let mut ready = [EpollEvent::default()];
    epoll.wait(0, &mut ready).expect("epoll_wait") == 1
}

/// A server on a domain, its ports bound, taken and unmasked.
fn quiet<D: Domain>(domain: &D) -> Server<D> {
    let server = Server::up(domain);
    server.map(ports(0x500, 0x5ff));
    for port in take(&server.events) {
        server.events.unmask(&[LocalPort(port)]).expect("unmask");
    }
    assert!(take(&server.events).is_empty());
    server
}

/// One request of a vCPU, served by looking at the slot alone.
fn request<D: Domain>(domain: &D, server: &mut Server<D>, vcpu: u32) {
    let guest = domain.start(VcpuId(vcpu), &[OUT]);
    server.serve_next(vcpu, Answer::Apply);
    guest.join().back();
}

pub(crate) fn event_bind_pending<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(2));
    let mut server = Server::create(&domain, BufIoreq::Atomic);
    server.acquire();
    server.enable();
    assert!(take(&server.events).is_empty());
    server.bind();
    assert!(readable(&server.events));
    let ports = BTreeSet::from([server.port(0).0, server.port(1).0]);
    assert_eq!(take(&server.events), ports);
    // The ring's port too.
    let info = server.hv.server_info(server.id).expect("info");
    let remote = info.bufioreq_port.expect("a ring");
    let local = server.events.bind(remote).expect("bind");
    assert_eq!(take(&server.events), BTreeSet::from([local.0]));
}

pub(crate) fn event_port_a_vcpu<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(3));
    let mut server = quiet(&domain);
    let eports: BTreeSet<_> = (0..3).map(|v| server.page().vp_eport(v)).collect();
    assert_eq!(eports.len(), 3, "a port each");
    for vcpu in [1, 0, 2] {
        let guest = domain.start(VcpuId(vcpu), &[OUT]);
        until("the event", || readable(&server.events));
        assert_eq!(take(&server.events), BTreeSet::from([server.port(vcpu).0]));
        assert!(
            server.is_ready(vcpu),
            "the request is there before the event"
        );
        server.serve_next(vcpu, Answer::Apply);
        guest.join().back();
        server.events.unmask(&[server.port(vcpu)]).expect("unmask");
    }
}

pub(crate) fn event_read_masks<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = quiet(&domain);
    request(&domain, &mut server, 0);
    wait_for(&server.events, server.port(0));
    for _ in 0..3 {
        // By the time the guest is back it has sent its event.
        request(&domain, &mut server, 0);
        assert!(take(&server.events).is_empty(), "masked since it was taken");
    }
}

pub(crate) fn event_unmask_refires<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = quiet(&domain);
    request(&domain, &mut server, 0);
    wait_for(&server.events, server.port(0));
    request(&domain, &mut server, 0);
    server.events.unmask(&[server.port(0)]).expect("unmask");
    wait_for(&server.events, server.port(0));
    // And only once: nothing came since.
    server.events.unmask(&[server.port(0)]).expect("unmask");
    assert!(take(&server.events).is_empty());
}

pub(crate) fn event_notify_masked<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = quiet(&domain);
    let guest = domain.start(VcpuId(0), &[OUT; 3]);
    wait_for(&server.events, server.port(0));
    for _ in 0..3 {
        server.serve_next(0, Answer::Apply);
    }
    guest.join().back();
}

pub(crate) fn event_several_ports<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(2));
    let mut server = quiet(&domain);
    let both = [server.port(0), server.port(1)];
    for vcpu in [0, 1] {
        request(&domain, &mut server, vcpu);
    }
    assert_eq!(take(&server.events), BTreeSet::from(both.map(|p| p.0)));
    // Both have another request while they are masked; both fire after the unmask.
    for vcpu in [0, 1] {
        request(&domain, &mut server, vcpu);
    }
    assert!(take(&server.events).is_empty());
    server.events.unmask(&both).expect("unmask");
    assert_eq!(take(&server.events), BTreeSet::from(both.map(|p| p.0)));
    // A port left masked wakes nobody; the other does.
    server.events.unmask(&both[..1]).expect("unmask");
    request(&domain, &mut server, 1);
    assert!(!readable(&server.events));
    request(&domain, &mut server, 0);
    until("the event", || readable(&server.events));
    assert_eq!(take(&server.events), BTreeSet::from([both[0].0]));
}

pub(crate) fn event_overflow<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let mut server = quiet(&domain);
    domain.overflow(&server.events);
    request(&domain, &mut server, 0);
    assert!(readable(&server.events), "the error wakes the reader");
    let mut ports = [LocalPort(0); 4];
    refused(server.events.pending(&mut ports), libc::EFBIG);
    // It stays so until somebody mends it.
    refused(server.events.pending(&mut ports), libc::EFBIG);
}

pub(crate) fn event_reset<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(2));
    let mut server = quiet(&domain);
    // Port 0 is masked when the ring overflows.
    request(&domain, &mut server, 0);
    wait_for(&server.events, server.port(0));
    domain.overflow(&server.events);
    let guests = [0, 1].map(|vcpu| domain.start(VcpuId(vcpu), &[OUT]));
    let _ = [0, 1].map(|vcpu| server.wait_ready(vcpu));
    let mut ports = [LocalPort(0); 4];
    until("EFBIG", || server.events.pending(&mut ports).is_err());
    server.events.recover().expect("recover");
    // The event of port 1 is gone; the requests are not, and what came to the masked port fires.
    assert_eq!(take(&server.events), BTreeSet::from([server.port(0).0]));
    for (vcpu, guest) in (0..).zip(guests) {
        server.serve_next(vcpu, Answer::Apply);
        guest.join().back();
    }
    // Port 1 was written: it fires again, without anything more.
    request(&domain, &mut server, 1);
    wait_for(&server.events, server.port(1));
    // And both go on as ever.
    for vcpu in [0, 1] {
        let port = server.port(vcpu);
        server.events.unmask(&[port]).expect("unmask");
        take(&server.events);
        server.events.unmask(&[port]).expect("unmask");
        request(&domain, &mut server, vcpu);
        wait_for(&server.events, port);
    }
}

pub(crate) fn event_bind_unknown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let server = quiet(&domain);
    refused(server.events.bind(EvtchnPort(0x7fff)), libc::EINVAL);
    refused(server.events.bind(EvtchnPort(0)), libc::EINVAL);
}
