// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Deterministic schedules, and free-running stress.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{GFN, PAGE, Peer, domain};
use ioreq_core::memory::Width;
use ioreq_core::{EventChannels, PortRange, Transport, VcpuId};
use ioreq_sim::{DomainConfig, Machine, Schedule, ScheduleReport, VcpuExit, VcpuWait, XenVersion};

/// Two vCPUs write one tracked page; gives the report and the order of the requests.
fn two_writers(seed: u64) -> (ScheduleReport, Vec<u64>) {
    let domain = domain(XenVersion::V4_20);
    let mut peer = Peer::new(&domain);
    peer.track(1);
    let mut schedule = Schedule::new(seed);
    for vcpu in 0..2_u32 {
        schedule = schedule.vcpu(&domain, VcpuId(vcpu), move |c| {
            (0..5).try_for_each(|n| c.store64(PAGE, u64::from(vcpu) << 32 | n))
        });
    }
    let report = schedule.run(|| peer.step()).unwrap();
    (report, peer.seen.iter().map(|r| r.data).collect())
}

#[test]
fn the_same_seed_gives_the_same_run_and_others_give_others() {
    let mut orders = BTreeSet::new();
    for seed in 0..20 {
        let (first, order) = two_writers(seed);
        let (second, again) = two_writers(seed);
        assert_eq!((&first, &order), (&second, &again), "seed {seed}");
        assert!(first.exits.iter().all(Result::is_ok) && !first.abandoned);
        assert_eq!(order.len(), 10);
        orders.insert(order);
    }
    assert!(orders.len() > 5, "{} different orders of 20", orders.len());
}

#[test]
fn some_seed_finds_the_lost_update_of_two_locked_adds() {
    let lost = (0..50).any(|seed| {
        let domain = domain(XenVersion::V4_20);
        let mut peer = Peer::new(&domain);
        peer.track(1);
        let mut schedule = Schedule::new(seed);
        for vcpu in 0..2 {
            schedule = schedule.vcpu(&domain, VcpuId(vcpu), |c| {
                c.lock_add(PAGE, Width::B4, 1).map(drop)
            });
        }
        schedule.run(|| peer.step()).unwrap();
        peer.load(PAGE, Width::B4) == 1
    });
    assert!(lost, "Xen reads, computes and sends: an update can be lost");
}

#[test]
fn some_seed_catches_a_naive_unmark_and_none_the_grace_period() {
    // The type changes after the answer: before or after the vCPU has executed the instruction again.
    let run = |seed, grace: bool| {
        let domain = domain(XenVersion::V4_20);
        let mut peer = Peer::new(&domain);
        peer.range(PortRange::new(0x500, 0x503).unwrap());
        peer.track(1);
        let report = Schedule::new(seed)
            .vcpu(&domain, VcpuId(0), |c| {
                c.store32(PAGE, 1)?;
                c.outl(0x500, 1)
            })
            .run(|| {
                let served = peer.step();
                if served && peer.seen.len() == 1 {
                    if grace {
                        while peer.slot(0).flags.load(Ordering::Acquire) & 0xf == 3 {
                            peer.hv.domain_state().unwrap();
                            peer.hv.server_info(peer.id).unwrap();
                        }
                        peer.hv.set_server_state(peer.id, true).unwrap();
                    }
                    peer.unmark(GFN, 1);
                }
                served
            })
            .unwrap();
        !matches!(report.exits[0], Err(VcpuExit::DomainCrashed { .. }))
    };
    assert!(
        (0..50).any(|seed| !run(seed, false)),
        "no seed crashed the naive way"
    );
    for seed in 0..50 {
        assert!(run(seed, true), "seed {seed}");
    }
}

#[test]
fn a_schedule_in_which_nobody_can_go_on_gives_up() {
    let domain = domain(XenVersion::V4_20);
    let mut peer = Peer::new(&domain);
    peer.range(PortRange::new(0x500, 0x503).unwrap());
    let report = Schedule::new(1)
        .vcpu(&domain, VcpuId(0), |c| c.outl(0x500, 1))
        .run(|| {
            // Answers, and forgets to notify.
            let taken = peer.take(0).is_some();
            if taken {
                common::set_state(peer.slot(0), 3);
            }
            taken
        })
        .unwrap();
    assert!(report.abandoned);
    assert_eq!(report.exits, [Err(VcpuExit::Abandoned)]);
}

#[test]
fn a_panic_in_a_guest_program_is_reported() {
    let domain = domain(XenVersion::V4_20);
    let guest = domain.spawn::<()>(VcpuId(0), |_| panic!("a bug")).unwrap();
    assert_eq!(guest.join(), Err(VcpuExit::Panicked("a bug".into())));
    assert!(domain.cpu(VcpuId(0)).is_ok(), "the vCPU is free again");
}

#[test]
fn every_way_of_waiting_works() {
    for wait in [
        VcpuWait::Spin,
        VcpuWait::Sleep,
        VcpuWait::Adaptive { spins: 3 },
    ] {
        let machine = Machine::new();
        let domain = machine
            .create_domain(DomainConfig::new(1).wait(wait))
            .unwrap();
        let mut peer = Peer::new(&domain);
        peer.range(PortRange::new(0x500, 0x503).unwrap());
        let (sum, reqs) =
            peer.run(|c| (0..200).try_fold(0_u64, |sum, _| Ok(sum + u64::from(c.inl(0x500)?))));
        assert_eq!(reqs.len(), 200);
        let expected: u64 = (0..200).map(|n| 0xa5a5_0000 + n).sum();
        assert_eq!(sum, Ok(expected), "{wait:?}");
    }
}

#[test]
fn a_full_house_of_vcpus_is_served() {
    let machine = Machine::new();
    let domain = machine.create_domain(DomainConfig::new(128)).unwrap();
    let mut peer = Peer::new(&domain);
    peer.range(PortRange::new(0x500, 0x503).unwrap());
    let guests: Vec<_> = (0..128)
        .map(|v| {
            domain
                .spawn(VcpuId(v), |c| (0..10).try_for_each(|n| c.outl(0x500, n)))
                .unwrap()
        })
        .collect();
    while !guests.iter().all(|g| g.is_finished()) {
        if !peer.step() {
            std::thread::yield_now();
        }
    }
    assert_eq!(peer.seen.len(), 1280);
    assert!(guests.into_iter().all(|g| g.join() == Ok(())));
}

#[test]
fn a_hostile_thread_that_rewrites_slots_costs_the_guest_its_domain_at_most() {
    for round in 0..20_u8 {
        let domain = domain(XenVersion::V4_20);
        let mut peer = Peer::new(&domain);
        peer.range(PortRange::new(0x500, 0x503).unwrap());
        let guest = domain
            .spawn(VcpuId(0), |c| (0..500).try_for_each(|n| c.outl(0x500, n)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let vandal = {
            let (stop, slots) = (Arc::clone(&stop), peer.slots.clone());
            std::thread::spawn(move || {
                let slot = slots.slot(VcpuId(0)).unwrap();
                let mut n = round;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_mul(17).wrapping_add(31);
                    slot.flags.store(n, Ordering::Relaxed);
                    slot.count.store(u32::MAX, Ordering::Relaxed);
                    slot.size.store(u32::from(n), Ordering::Relaxed);
                    std::thread::yield_now();
                }
            })
        };
        // Serve blindly; the guest ends one way or the other, since every answer is followed by a notification.
        while !guest.is_finished() {
            if peer.take(0).is_some() {
                peer.answer(0, 0);
            }
            peer.events.notify(peer.ports[0]).unwrap();
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        vandal.join().unwrap();
        let _ = guest.join();
        assert_eq!(domain.hypervisor().raw().create(0, 0), Ok(1), "Xen lives");
    }
}

#[test]
fn a_guest_of_a_million_pages_is_cheap_to_make_and_to_track() {
    let machine = Machine::new();
    let config = DomainConfig::new(1).memory(ioreq_core::GfnRange::sized(0, 1 << 20).unwrap());
    let domain = machine.create_domain(config).unwrap();
    let peer = Peer::new(&domain);
    peer.track(1 << 19);
    assert_eq!(domain.leaks().marked_pages, 1 << 19);
    peer.hv.raw().map_mem_type(peer.id.0, 4, 0, 0).unwrap();
    assert_eq!(domain.leaks().marked_pages, 0);
}
