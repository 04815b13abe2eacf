// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Event channels and the buffered ring.

mod common;

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use common::{Peer, domain};
use ioreq_core::abi::BufIoreqEntry;
use ioreq_core::{
    BufIoreq, ErrorKind, EventChannels, GfnRange, LocalPort, MmioRange, PortRange, Transport,
    VcpuId,
};
use ioreq_sim::{DomainConfig, HostileRing, Machine, SimEvents, XenVersion};

fn readable(events: &SimEvents) -> bool {
    let mut fd = libc::pollfd {
        fd: events.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives through the call.
    let n = unsafe { libc::poll(&raw mut fd, 1, 0) };
    n == 1 && fd.revents & libc::POLLIN != 0
}

fn fired(events: &SimEvents) -> Vec<LocalPort> {
    let mut ports = [LocalPort(0); 8];
    let n = events.pending(&mut ports).unwrap();
    ports[..n].to_vec()
}

/// A peer with a port range whose bindings have been looked at once.
fn quiet_peer() -> Peer {
    let peer = Peer::new(&domain(XenVersion::V4_20));
    peer.range(PortRange::new(0x500, 0x5ff).unwrap());
    assert_eq!(
        fired(&peer.events),
        peer.ports,
        "binding makes ports pending"
    );
    peer.events.unmask(&peer.ports).unwrap();
    assert!(!readable(&peer.events));
    peer
}

#[test]
fn the_descriptor_is_readable_while_a_port_is_pending() {
    let peer = Peer::new(&domain(XenVersion::V4_20));
    assert!(readable(&peer.events));
    let mut one = [LocalPort(0)];
    assert_eq!(peer.events.pending(&mut one).unwrap(), 1);
    assert!(readable(&peer.events), "the other port");
    assert_eq!(peer.events.pending(&mut one).unwrap(), 1);
    assert!(!readable(&peer.events));
    assert_eq!(peer.events.pending(&mut one).unwrap(), 0);
}

#[test]
fn what_comes_while_masked_fires_after_the_unmask() {
    let mut peer = quiet_peer();
    peer.run(|c| c.outb(0x500, 1)).0.unwrap();
    assert_eq!(fired(&peer.events), [peer.ports[0]]);
    peer.run(|c| c.outb(0x500, 2)).0.unwrap();
    assert!(!readable(&peer.events), "masked");
    peer.events.unmask(&[peer.ports[0]]).unwrap();
    assert!(readable(&peer.events));
    assert_eq!(fired(&peer.events), [peer.ports[0]]);
    peer.events.unmask(&[peer.ports[0]]).unwrap();
    assert!(!readable(&peer.events), "nothing came since");
}

#[test]
fn lost_doubled_delayed_and_spurious_events() {
    let mut peer = quiet_peer();
    let domain = peer.domain.clone();
    domain.faults().lose_events(1);
    peer.run(|c| c.outb(0x500, 1)).0.unwrap();
    assert!(!readable(&peer.events), "lost");

    domain.faults().double_events(1);
    peer.run(|c| c.outb(0x500, 1)).0.unwrap();
    assert_eq!(fired(&peer.events), [peer.ports[0]]);
    peer.events.unmask(&[peer.ports[0]]).unwrap();
    assert_eq!(fired(&peer.events), [peer.ports[0]], "twice");
    peer.events.unmask(&[peer.ports[0]]).unwrap();

    domain.faults().delay_events();
    peer.run(|c| c.outb(0x500, 1)).0.unwrap();
    assert!(!readable(&peer.events), "late");
    domain.faults().release_events();
    assert_eq!(fired(&peer.events), [peer.ports[0]]);
    peer.events.unmask(&[peer.ports[0]]).unwrap();

    peer.events.fire_spurious();
    assert_eq!(fired(&peer.events), peer.ports);
}

#[test]
fn an_overflow_is_efbig_until_recovered_and_ports_fire_again_after() {
    let mut peer = quiet_peer();
    peer.events.overflow_next();
    peer.run(|c| c.outb(0x500, 1)).0.unwrap();
    assert!(readable(&peer.events));
    let error = peer.events.pending(&mut [LocalPort(0)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EventOverflow);
    peer.events.recover().unwrap();
    assert!(!readable(&peer.events));
    peer.run(|c| c.outb(0x500, 1)).0.unwrap();
    assert_eq!(fired(&peer.events), [peer.ports[0]]);
}

#[test]
fn ports_that_are_not_ours_are_refused() {
    let peer = quiet_peer();
    let stranger = LocalPort(9999);
    for error in [
        peer.events.notify(stranger).unwrap_err(),
        peer.events.unbind(stranger).unwrap_err(),
        peer.events.unmask(&[stranger]).unwrap_err(),
        peer.events.bind(ioreq_core::EvtchnPort(9999)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

// The buffered ring.

fn vga_domain(version: XenVersion) -> ioreq_sim::Domain {
    let machine = Machine::builder().version(version).build();
    let config = DomainConfig::new(2)
        .vga(true)
        .memory(GfnRange::new(0, 0x9f).unwrap())
        .memory(GfnRange::new(0x100, 0x200).unwrap());
    machine.create_domain(config).unwrap()
}

fn ring_peer(version: XenVersion) -> (Peer, HostileRing) {
    let domain = vga_domain(version);
    let peer = Peer::with_ring(&domain, BufIoreq::Atomic);
    peer.range(MmioRange::new(0xa_0000, 0xb_ffff).unwrap());
    let ring = domain.hostile().ring(peer.id).unwrap();
    (peer, ring)
}

fn entry(ring: &HostileRing, at: u32) -> BufIoreqEntry {
    BufIoreqEntry::from_bits(ring.entry(at).unwrap().load(Ordering::Relaxed))
}

#[test]
fn single_writes_to_the_vga_window_are_buffered_and_nothing_else_is() {
    for version in XenVersion::ALL {
        let (mut peer, ring) = ring_peer(version);
        let (_, reqs) = peer.run(|c| {
            c.store8(0xa_0001, 0x41)?;
            c.store32(0xb_8000, 0x0741_0742)?;
            c.store64(0xb_8008, 0x1122_3344_5566_7788)?;
            c.load8(0xa_0000)?; // a read: synchronous
            c.rep_stos(0xa_1000, ioreq_core::Width::B4, 0, 4) // repeated: synchronous
        });
        assert_eq!(reqs.len(), 2);
        assert_eq!(ring.write_pointer().load(Ordering::Acquire), 4);
        let parts = |e: BufIoreqEntry| (e.kind(), e.is_read(), e.width_log2(), e.addr(), e.data());
        assert_eq!(parts(entry(&ring, 0)), (1, false, 0, 0xa_0001, 0x41));
        assert_eq!(parts(entry(&ring, 1)), (1, false, 2, 0xb_8000, 0x0741_0742));
        assert_eq!(parts(entry(&ring, 2)), (1, false, 3, 0xb_8008, 0x5566_7788));
        assert_eq!(parts(entry(&ring, 3)), (1, false, 3, 0xb_8008, 0x1122_3344));
        assert_eq!(peer.domain.counts().buffered, 3);
    }
}

#[test]
fn a_full_ring_makes_the_write_synchronous() {
    for version in XenVersion::ALL {
        let (mut peer, ring) = ring_peer(version);
        let (_, reqs) = peer.run(|c| (0..512).try_for_each(|n| c.store8(0xa_0000 + n, 1)));
        assert_eq!(reqs.len(), 1);
        assert_eq!(reqs[0].addr, 0xa_0000 + 511);
        // Drained, it takes again, and both pointers are rewound by a whole turn.
        ring.read_pointer().store(511, Ordering::Release);
        let (_, reqs) = peer.run(|c| c.store8(0xa_0000, 1));
        assert!(reqs.is_empty());
        let pointers = (
            ring.read_pointer().load(Ordering::Relaxed),
            ring.write_pointer().load(Ordering::Relaxed),
        );
        assert_eq!(pointers, (0, 1));
    }
}

#[test]
fn without_vga_the_window_is_mmio_like_any_other() {
    let machine = Machine::new();
    let config = DomainConfig::new(1).memory(GfnRange::new(0, 0x9f).unwrap());
    let domain = machine.create_domain(config).unwrap();
    let mut peer = Peer::with_ring(&domain, BufIoreq::Atomic);
    peer.range(MmioRange::new(0xa_0000, 0xb_ffff).unwrap());
    let (_, reqs) = peer.run(|c| c.store8(0xa_0000, 1));
    assert_eq!(reqs.len(), 1);
}

#[test]
fn a_clock_offset_goes_to_every_enabled_ring_and_is_lost_without_one() {
    let domain = vga_domain(XenVersion::V4_20);
    let plain = Peer::new(&domain);
    let ringed: Vec<_> = (0..2)
        .map(|_| Peer::with_ring(&domain, BufIoreq::Atomic))
        .collect();
    let disabled = Peer::with_ring(&domain, BufIoreq::Atomic);
    disabled.hv.set_server_state(disabled.id, false).unwrap();
    let mut cpu = domain.cpu(VcpuId(0)).unwrap();
    cpu.rtc_set(0).unwrap();
    cpu.rtc_set(-3600).unwrap();
    assert_eq!(plain.slot(0).flags.load(Ordering::Relaxed) & 0xf, 0);
    for peer in &ringed {
        let ring = domain.hostile().ring(peer.id).unwrap();
        assert_eq!(ring.write_pointer().load(Ordering::Acquire), 2);
        let (low, high) = (entry(&ring, 0), entry(&ring, 1));
        assert_eq!((low.kind(), low.width_log2()), (7, 3));
        let value = u64::from(low.data()) | u64::from(high.data()) << 32;
        assert_eq!(value.cast_signed(), -3600);
    }
    let ring = domain.hostile().ring(disabled.id).unwrap();
    assert_eq!(ring.write_pointer().load(Ordering::Acquire), 0);
    assert_eq!(domain.counts().time_offset, 2);
}

#[test]
fn a_layout_change_is_told_to_every_enabled_server_at_once() {
    let domain = vga_domain(XenVersion::V4_20);
    let mut peers: Vec<_> = (0..3).map(|_| Peer::new(&domain)).collect();
    let guest = domain
        .spawn(VcpuId(1), |c| {
            c.change_memory_layout()?;
            c.load8(0)
        })
        .unwrap();
    // All have it before any has answered.
    let reqs: Vec<_> = peers.iter_mut().map(|p| p.wait(1)).collect();
    for req in reqs {
        assert_eq!(
            (req.kind, req.size, req.data, req.count),
            (8, 4, u64::MAX, 0)
        );
    }
    for peer in peers.iter().rev() {
        assert!(!guest.is_finished());
        peer.answer(1, 0);
    }
    assert_eq!(guest.join(), Ok(0));
}
