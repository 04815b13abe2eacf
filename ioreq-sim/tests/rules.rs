// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The hypercalls, errno by errno.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{GFN, Peer, domain};
use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{
    BufIoreq, DomId, ErrorKind, EvtchnPort, GfnRange, GuestMap, Interrupts, MemTypes, P2mType,
    PortRange, Sbdf, ServerId, Transport, VcpuId,
};
use ioreq_sim::{Domain, DomainConfig, Injected, Machine, RawDmop, XenVersion};
use libc::{E2BIG, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM, ESRCH};

const SERVER: u32 = 4; // HVMMEM_ioreq_server

fn both(test: impl Fn(&Domain, RawDmop, XenVersion)) {
    for version in XenVersion::ALL {
        let domain = domain(version);
        test(&domain, domain.hypervisor().raw(), version);
    }
}

#[test]
fn domains_that_do_not_exist_or_are_ones_own() {
    let machine = Machine::new();
    assert_eq!(machine.raw(DomId(777)).create(0, 0), Err(ESRCH));
    assert_eq!(machine.raw(DomId(0)).create(0, 0), Err(EPERM));
    let domain = machine.create_domain(DomainConfig::new(1)).unwrap();
    let raw = machine.raw(domain.domid());
    assert_eq!(raw.create(0, 0), Ok(0));
    domain.destroy();
    assert_eq!(raw.create(0, 0), Err(ESRCH));
}

#[test]
fn bad_configurations_are_refused_with_a_reason() {
    let machine = Machine::new();
    let range = |first, pages| GfnRange::sized(first, pages).unwrap();
    let cases = [
        (DomainConfig::new(0), "0 vCPUs"),
        (DomainConfig::new(129), "129 vCPUs"),
        (
            DomainConfig::new(1)
                .memory(range(0, 16))
                .memory(range(15, 2)),
            "overlaps",
        ),
        (DomainConfig::new(1).memory(range(1 << 36, 1)), "beyond"),
    ];
    for (config, reason) in cases {
        let error = machine.create_domain(config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn creation_modes_pads_and_limit() {
    both(|_, raw, _| {
        assert_eq!(raw.create(3, 0), Err(EINVAL));
        assert_eq!(raw.create(0, 1), Err(EINVAL));
        assert_eq!(raw.padded(1, 1), Err(EINVAL));
        assert_eq!(raw.unknown(99), Err(EOPNOTSUPP));
        for n in 0..8 {
            assert_eq!(raw.create(0, 0), Ok(n));
        }
        assert_eq!(raw.create(0, 0), Err(ENOSPC));
        raw.destroy(3, 0).unwrap();
        assert_eq!(raw.create(0, 0), Ok(3), "the lowest free id");
    });
}

#[test]
fn unknown_ids_are_enoent_everywhere() {
    both(|_, raw, _| {
        for id in [0, 7, 8, 55, u16::MAX] {
            assert_eq!(raw.get_info(id, 1), Err(ENOENT));
            assert_eq!(raw.set_state(id, 1, 0), Err(ENOENT));
            assert_eq!(raw.destroy(id, 0), Err(ENOENT));
            assert_eq!(raw.acquire(id, 1).err(), Some(ENOENT));
            assert_eq!(raw.map_range(id, 0, 1, 2, 0), Err(ENOENT));
            assert_eq!(raw.unmap_range(id, 0, 1, 2, 0), Err(ENOENT));
            assert_eq!(raw.map_mem_type(id, 4, 2, 0), Err(ENOENT));
            assert_eq!(raw.map_mem_type(id, 4, 0, 0), Err(ENOENT));
        }
    });
}

#[test]
fn frames_and_ports() {
    both(|domain, raw, version| {
        let plain = raw.create(0, 0).unwrap();
        let ring = raw.create(2, 0).unwrap();
        assert_eq!(raw.acquire(plain, 0).err(), Some(ENOENT));
        assert_eq!(raw.acquire(plain, 2).err(), Some(EINVAL));
        let first = raw.acquire(plain, 1).unwrap();
        assert_eq!(raw.acquire(plain, 1).unwrap().as_ptr(), first.as_ptr());
        assert!(raw.acquire(ring, 0).is_ok());
        assert_eq!(raw.get_info(plain, 1), Ok((0, 0, 0)));
        assert_ne!(raw.get_info(ring, 1).unwrap().2, 0);
        assert_eq!(raw.get_info(plain, 2), Err(EINVAL));
        assert_eq!(raw.get_info(plain, 0), Err(EPERM), "after acquire");
        let fresh = raw.create(0, 0).unwrap();
        if version == XenVersion::V4_17 {
            assert_eq!(raw.get_info(fresh, 0), Ok((0, 0, 0)));
            assert_eq!(raw.acquire(fresh, 1).err(), Some(EPERM));
        } else {
            assert_eq!(raw.get_info(fresh, 0), Err(ENOMEM));
            assert!(raw.acquire(fresh, 1).is_ok());
        }
        let hv = domain.hypervisor();
        let info = hv.server_info(ServerId(ring)).unwrap();
        assert!(info.bufioreq_port.is_some_and(|EvtchnPort(p)| p != 0));
        assert_eq!(hv.vcpus().unwrap(), 2);
    });
}

#[test]
fn vp_eport_is_zero_before_enable() {
    both(|domain, raw, _| {
        let id = raw.create(0, 0).unwrap();
        raw.acquire(id, 1).unwrap();
        let slots = domain.hostile().slots(ServerId(id)).unwrap();
        let eport = |v| {
            let slot = slots.slot(VcpuId(v)).unwrap();
            slot.vp_eport.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert_eq!(eport(0), 0);
        raw.set_state(id, 1, 0).unwrap();
        assert!(eport(0) != 0 && eport(1) != 0 && eport(0) != eport(1));
        assert_eq!(eport(2), 0, "no such vCPU");
    });
}

#[test]
fn ranges_and_their_limit() {
    both(|domain, raw, _| {
        let id = raw.create(0, 0).unwrap();
        raw.map_range(id, 0, 0x500, 0x5ff, 0).unwrap();
        assert_eq!(raw.map_range(id, 0, 0x500, 0x5ff, 0), Err(EEXIST));
        assert_eq!(raw.map_range(id, 0, 0x5f0, 0x60f, 0), Err(EEXIST));
        assert_eq!(raw.map_range(id, 0, 0x700, 0x6ff, 0), Err(EINVAL));
        assert_eq!(raw.map_range(id, 3, 0, 1, 0), Err(EINVAL));
        assert_eq!(raw.map_range(id, 0, 0x700, 0x7ff, 1), Err(EINVAL));
        assert_eq!(raw.unmap_range(id, 0, 0x900, 0x90f, 0), Err(ENOENT));
        assert_eq!(raw.unmap_range(id, 0, 0x5f0, 0x60f, 0), Err(ENOENT));
        for n in 0..256_u64 {
            let start = 0xd000_0000 + n * 0x2000;
            raw.map_range(id, 1, start, start + 0xfff, 0).unwrap();
        }
        let mmio = |start, end| raw.map_range(id, 1, start, end, 0);
        assert_eq!(mmio(0xc000_0000, 0xc000_0fff), Err(ENOMEM));
        mmio(0xd000_1000, 0xd000_1fff).unwrap();
        mmio(0xc000_0000, 0xc000_0fff).unwrap();
        assert_eq!(
            raw.unmap_range(id, 1, 0xd000_4400, 0xd000_47ff, 0),
            Err(ENOMEM)
        );
        raw.map_range(id, 0, 0x3000, 0x30ff, 0).unwrap(); // a limit of its own
        // The same range on another server is allowed.
        let other = raw.create(0, 0).unwrap();
        raw.map_range(other, 0, 0x500, 0x5ff, 0).unwrap();
        let error = domain
            .hypervisor()
            .map_range(ServerId(id), PortRange::new(0x5f0, 0x60f).unwrap().into())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RangeExists);
        assert_eq!(error.server_id(), Some(ServerId(id)));
        assert!(error.to_string().contains("0x5f0"), "{error}");
    });
}

#[test]
fn claims() {
    both(|_, raw, _| {
        let (a, b) = (raw.create(0, 0).unwrap(), raw.create(0, 0).unwrap());
        assert_eq!(
            raw.set_mem_type(SERVER, 0, GFN, 1),
            Err(EINVAL),
            "nobody claimed"
        );
        for flags in [1, 3, 0x8000_0000] {
            assert_eq!(raw.map_mem_type(a, 4, flags, 0), Err(EINVAL));
            assert_eq!(
                raw.map_mem_type(55, 4, flags, 0),
                Err(EINVAL),
                "before the id"
            );
        }
        assert_eq!(raw.map_mem_type(a, 0, 2, 0), Err(EINVAL));
        assert_eq!(
            raw.map_mem_type(a, 4, 0, 0),
            Err(EINVAL),
            "disclaim by a non-owner"
        );
        assert_eq!(
            raw.map_mem_type(a, 4, 2, 1),
            Ok(()),
            "opaque: nothing is claimed"
        );
        assert_eq!(raw.set_mem_type(SERVER, 0, GFN, 1), Err(EINVAL));
        assert_eq!(raw.map_mem_type(a, 4, 2, 0), Ok(()));
        assert_eq!(raw.map_mem_type(a, 4, 2, 0), Err(EBUSY));
        assert_eq!(raw.map_mem_type(b, 4, 2, 0), Err(EBUSY));
        assert_eq!(raw.map_mem_type(b, 4, 0, 0), Err(EINVAL));
        assert_eq!(raw.map_mem_type(a, 4, 0, 0), Ok(()));
        assert_eq!(raw.map_mem_type(a, 4, 0, 0), Err(EINVAL), "twice");
        assert_eq!(
            raw.map_mem_type(b, 4, 2, 0),
            Ok(()),
            "disabled servers may claim"
        );
    });
}

#[test]
fn page_types() {
    both(|domain, raw, _| {
        let id = raw.create(0, 0).unwrap();
        raw.map_mem_type(id, 4, 2, 0).unwrap();
        let set = |ty, gfn, nr| raw.set_mem_type(ty, 0, gfn, nr);
        set(SERVER, GFN, 1).unwrap();
        for ty in [SERVER, 1, 2] {
            assert_eq!(set(ty, GFN, 1), Err(EINVAL), "from ioreq_server to {ty}");
        }
        assert_eq!(set(SERVER, GFN, 0), Err(EINVAL));
        assert_eq!(set(SERVER, 0x10_0000, 1), Err(EINVAL), "unpopulated");
        assert_eq!(set(SERVER, 1 << 50, 1), Err(EINVAL));
        assert_eq!(set(SERVER, u64::MAX, 2), Err(EINVAL));
        assert_eq!(set(3, GFN + 1, 1), Err(EINVAL));
        assert_eq!(set(9, GFN + 1, 1), Err(EINVAL));
        assert_eq!(raw.set_mem_type(0, 1, GFN + 1, 1), Err(EINVAL), "pad");
        set(1, GFN + 1, 1).unwrap();
        assert_eq!(set(SERVER, GFN + 1, 1), Err(EINVAL), "from ram_ro");
        set(0, GFN + 1, 1).unwrap();
        set(1, 0x301, 1).unwrap();
        assert_eq!(set(SERVER, 0x300, 3), Err(EINVAL));
        let types: Vec<_> = (0x300..0x303)
            .map(|g| domain.mem_type(g).unwrap())
            .collect();
        assert_eq!(
            types,
            [P2mType::IoreqServer, P2mType::RamRo, P2mType::RamRw]
        );
        set(SERVER, 0x800, 1024).unwrap();
        assert_eq!(domain.mem_type(0xbff), Some(P2mType::IoreqServer));
        assert_eq!(domain.mem_type(0xc00), Some(P2mType::RamRw));
        assert_eq!(domain.leaks().marked_pages, 1024 + 2);
        set(0, 0x800, 1024).unwrap();
        // Anybody with the privilege may mark for whoever owns the type.
        let stranger = domain.hypervisor().raw();
        stranger.set_mem_type(SERVER, 0, 0x400, 1).unwrap();
    });
}

#[test]
fn log_dirty_and_tracking_exclude_each_other() {
    both(|domain, raw, _| {
        let hv = domain.hypervisor();
        let id = raw.create(0, 0).unwrap();
        raw.map_mem_type(id, 4, 2, 0).unwrap();
        raw.set_mem_type(SERVER, 0, GFN, 1).unwrap();
        let error = domain.set_log_dirty(true).unwrap_err();
        assert_eq!(
            (error.kind(), error.errno()),
            (ErrorKind::Busy, Some(EBUSY))
        );
        assert_eq!(raw.track_dirty_vram(0x400, 1, 0, &mut [0]), Ok(()));
        let mut large = [0; 4097];
        assert_eq!(raw.track_dirty_vram(0, 32769, 0, &mut large), Err(E2BIG));
        let mut small = [0; 4096];
        assert_eq!(
            raw.track_dirty_vram(0, 32769, 0, &mut small),
            Err(libc::EINVAL)
        );
        let pages = GfnRange::sized(0x10, 2).unwrap();
        hv.modified(&[pages]).unwrap();
        assert!(domain.take_modified().is_empty(), "not in log-dirty mode");
        raw.map_mem_type(id, 4, 0, 0).unwrap();
        domain.set_log_dirty(true).unwrap();
        raw.map_mem_type(id, 4, 2, 0).unwrap();
        assert_eq!(raw.set_mem_type(SERVER, 0, GFN, 1), Err(EINVAL));
        hv.modified(&[pages]).unwrap();
        assert_eq!(domain.take_modified().len(), 2);
        domain.set_log_dirty(false).unwrap();
        raw.set_mem_type(SERVER, 0, GFN, 1).unwrap();
    });
}

#[test]
fn without_hap_there_are_no_claims() {
    let machine = Machine::new();
    let domain = machine
        .create_domain(DomainConfig::new(1).hap(false))
        .unwrap();
    let hv = domain.hypervisor();
    let raw = hv.raw();
    let id = raw.create(0, 0).unwrap();
    for (id, ty, flags) in [(id, 4, 2), (id, 4, 0), (99, 0, 99)] {
        assert_eq!(raw.map_mem_type(id, ty, flags, 0), Err(EOPNOTSUPP));
    }
    assert_eq!(raw.set_mem_type(SERVER, 0, 1, 1), Err(EOPNOTSUPP));
    assert_eq!(raw.set_mem_type(1, 0, 1, 1), Ok(()));
    let error = hv.claim_mem_type(ServerId(id)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoHap);
}

#[test]
fn an_injected_enomem_leaves_the_pages_before_it_changed() {
    both(|domain, raw, _| {
        let id = raw.create(0, 0).unwrap();
        raw.map_mem_type(id, 4, 2, 0).unwrap();
        domain.faults().fail_set_mem_type_after(300);
        assert_eq!(raw.set_mem_type(SERVER, 0, 0x100, 1000), Err(ENOMEM));
        assert_eq!(domain.leaks().marked_pages, 300);
        raw.set_mem_type(0, 0, 0x100, 1000).unwrap();
        raw.set_mem_type(SERVER, 0, 0x100, 1000).unwrap(); // only once
    });
}

#[test]
fn interrupts_are_logged_and_reach_the_guest() {
    both(|domain, _, _| {
        let hv = domain.hypervisor();
        let function = Sbdf::new(0, 0, 4, 0).unwrap();
        let guest = domain
            .spawn(VcpuId(1), |c| {
                Ok([c.wait_interrupt()?, c.wait_interrupt()?])
            })
            .unwrap();
        hv.set_pci_intx(function, Intx::A, true).unwrap(); // vCPU 0's
        hv.inject_msi(0xfee0_2000, 0x55).unwrap(); // APIC id 2: vCPU 1
        let event = InjectedEvent {
            vector: 14,
            kind: 3,
            error_code: Some(2),
            insn_len: 0,
            cr2: 0x1000,
        };
        hv.inject_event(VcpuId(1), event).unwrap();
        let msi = Injected::Msi {
            addr: 0xfee0_2000,
            data: 0x55,
        };
        let event = Injected::Event {
            vcpu: VcpuId(1),
            event,
        };
        assert_eq!(guest.join(), Ok([msi, event]));
        let intx = Injected::Intx {
            function,
            pin: Intx::A,
            asserted: true,
        };
        assert_eq!(domain.injected(), [intx, msi, event]);
        let mut cpu = domain.cpu(VcpuId(0)).unwrap();
        assert_eq!(cpu.poll_interrupt(), Some(intx));
        assert_eq!(cpu.poll_interrupt(), None);

        let segment_1 = Sbdf::new(1, 0, 4, 0).unwrap();
        assert_eq!(
            hv.set_pci_intx(segment_1, Intx::A, true)
                .unwrap_err()
                .errno(),
            Some(EINVAL)
        );
        assert_eq!(hv.set_isa_irq(16, true).unwrap_err().errno(), Some(EINVAL));
        assert_eq!(
            hv.set_pci_link_route(4, 5).unwrap_err().errno(),
            Some(EINVAL)
        );
        assert_eq!(
            hv.set_pci_link_route(3, 16).unwrap_err().errno(),
            Some(EINVAL)
        );
    });
}

#[test]
fn several_servers_and_domains_live_side_by_side() {
    let machine = Machine::new();
    let domains: Vec<_> = (0..3)
        .map(|_| machine.create_domain(DomainConfig::new(1)).unwrap())
        .collect();
    let peers: Vec<_> = domains.iter().map(Peer::new).collect();
    for peer in &peers {
        peer.range(PortRange::new(0x500, 0x5ff).unwrap());
    }
    for (n, mut peer) in peers.into_iter().enumerate() {
        peer.next_read = n as u64;
        let (value, _) = peer.run(|c| c.inl(0x500));
        assert_eq!(value, Ok(u32::try_from(n).unwrap()));
    }
}

#[test]
fn the_newest_server_wins_and_disabling_it_falls_back() {
    both(|domain, _, _| {
        let mut old = Peer::new(domain);
        let mut new = Peer::new(domain);
        for peer in [&old, &new] {
            peer.range(PortRange::new(0x510, 0x513).unwrap());
        }
        let (_, reqs) = new.run(|c| c.outl(0x510, 1));
        assert_eq!(reqs.len(), 1);
        new.hv.set_server_state(new.id, false).unwrap();
        let (_, reqs) = old.run(|c| c.outl(0x510, 2));
        assert_eq!(reqs.len(), 1);
    });
}

#[test]
fn counts_tell_what_happened() {
    both(|domain, _, _| {
        let mut peer = Peer::new(domain);
        peer.range(PortRange::new(0x510, 0x513).unwrap());
        peer.track(1);
        let before = domain.counts();
        peer.run(|c| {
            c.outl(0x510, 1)?;
            c.store32(common::PAGE, 1)?;
            c.inl(0x900)
        })
        .0
        .unwrap();
        let counts = domain.counts();
        assert_eq!(
            (counts.port - before.port, counts.mmio - before.mmio),
            (1, 1)
        );
        assert_eq!(counts.exits - before.exits, 3);
        assert_eq!(
            counts.reexecutions - before.reexecutions,
            1,
            "a port write needs none"
        );
        assert_eq!(counts.notifies - before.notifies, 2);
        assert_eq!(counts.dmop(ioreq_core::Op::SetMemType), 1);
        assert_eq!(counts.dmop(ioreq_core::Op::ClaimMemType), 1);
    });
}

#[test]
fn a_ring_takes_only_its_sources() {
    both(|domain, _, _| {
        let mut plain = Peer::with_ring(domain, BufIoreq::Atomic);
        plain.range(ioreq_core::MmioRange::sized(0xf000_0000, 0x1000).unwrap());
        plain.run(|c| c.store32(0xf000_0000, 1)).0.unwrap();
        assert_eq!(domain.counts().buffered, 0);
    });
}

/// Two servers take the type from one another as fast as they can: what one has marked stays marked until it says otherwise.
#[test]
fn an_owner_that_leaves_takes_nothing_of_the_next_one() {
    const ROUNDS: u32 = 50_000;
    let domain = domain(XenVersion::V4_20);
    let lost = AtomicBool::new(false);
    let fight = |page: u64| {
        let raw = domain.hypervisor().raw();
        let id = raw.create(0, 0).unwrap();
        let mut won = 0;
        while won < ROUNDS && !lost.load(Ordering::SeqCst) {
            match raw.map_mem_type(id, 4, 2, 0) {
                Ok(()) => won += 1,
                Err(errno) => {
                    assert_eq!(errno, EBUSY);
                    continue;
                }
            }
            raw.set_mem_type(SERVER, 0, page, 1).unwrap();
            for _ in 0..8 {
                let is_marked = domain.mem_type(page) == Some(P2mType::IoreqServer);
                lost.fetch_or(!is_marked, Ordering::SeqCst);
            }
            raw.set_mem_type(0, 0, page, 1).unwrap();
            raw.map_mem_type(id, 4, 0, 0).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| fight(GFN));
        scope.spawn(|| fight(GFN + 1));
    });
    assert!(!lost.into_inner(), "a page of the next owner's was reset");
    assert_eq!(domain.leaks().marked_pages, 0);
}
