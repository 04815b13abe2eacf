// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The traps: in-flight requests, re-execution, disclaim, destroy, disable, illegal states.

mod common;

use std::sync::atomic::Ordering;

use common::{GFN, MMIO, PAGE, Peer, brief, domain, set_state};
use ioreq_core::abi::{
    HVMMEM_IOREQ_SERVER, STATE_IOREQ_INPROCESS, STATE_IOREQ_NONE, STATE_IOREQ_READY,
    STATE_IORESP_READY,
};
use ioreq_core::memory::Width;
use ioreq_core::{
    BufIoreq, DomainState, ErrorKind, EventChannels, Gfn, MemTypes, MmioRange, P2mType, PortRange,
    ShutdownReason, Transport, VcpuId,
};
use ioreq_sim::{CpuFault, CrashReason, StuckReason, VcpuExit, VcpuThread, XenVersion};

const V0: VcpuId = VcpuId(0);

fn peer(version: XenVersion) -> Peer {
    let peer = Peer::new(&domain(version));
    peer.range(PortRange::new(0x500, 0x5ff).unwrap());
    peer.track(2);
    peer
}

fn both(test: impl Fn(Peer, XenVersion)) {
    for version in XenVersion::ALL {
        test(peer(version), version);
    }
}

/// Stores to the tracked page, then does another I/O, which finds an answer that was left behind.
fn store_then_port(p: &Peer) -> VcpuThread<u32> {
    p.domain
        .spawn(V0, |c| {
            c.store32(PAGE, 0x7002)?;
            c.inl(0x510)
        })
        .unwrap()
}

fn answer_not_consumed<T: std::fmt::Debug>(result: Result<T, VcpuExit>) {
    assert!(
        matches!(
            result,
            Err(VcpuExit::DomainCrashed {
                reason: CrashReason::AnswerNotConsumed { .. }
            })
        ),
        "{result:?}"
    );
}

// Re-execution.

#[test]
fn unmarking_a_page_while_its_store_is_in_flight_is_fine_on_4_17_and_fatal_on_4_20() {
    both(|mut p, version| {
        let guest = store_then_port(&p);
        p.wait(0);
        p.unmark(GFN, 1);
        p.answer(0, 0); // dropped: nothing was stored
        let result = p.serve(guest);
        if version == XenVersion::V4_17 {
            assert_eq!(result, Ok(0xa5a5_0000));
            assert_eq!(
                p.load(PAGE, Width::B4),
                0,
                "the answer was consumed, the drop held"
            );
        } else {
            answer_not_consumed(result);
            assert_eq!(
                p.load(PAGE, Width::B4),
                0x7002,
                "Xen stored the guest's value itself"
            );
            assert_eq!(
                p.domain.state(),
                DomainState::Shutdown(ShutdownReason::Crash)
            );
        }
    });
}

#[test]
fn disclaiming_while_a_store_is_in_flight_is_the_same() {
    both(|mut p, version| {
        let guest = store_then_port(&p);
        p.wait(0);
        p.hv.disclaim_mem_type(p.id).unwrap();
        p.answer(0, 0);
        let result = p.serve(guest);
        assert_eq!(result.is_ok(), version == XenVersion::V4_17);
    });
}

#[test]
fn an_identical_access_swallows_the_answer_that_was_left_behind() {
    let mut p = peer(XenVersion::V4_20);
    let guest = p
        .domain
        .spawn(V0, |c| {
            c.store32(PAGE, 1)?;
            while c.load32(0x3000)? == 0 {
                c.relax()?; // until the page is tracked again
            }
            c.store32(PAGE, 2)?; // same address, size, direction: takes the old answer
            c.inl(0x510)
        })
        .unwrap();
    p.wait(0);
    p.unmark(GFN, 1);
    p.answer(0, 0);
    // RAM holds the guest's own store once it has been executed again.
    while p.load(PAGE, Width::B4) != 1 {
        std::thread::yield_now();
    }
    p.mark(GFN, 1);
    p.poke(0x3000, Width::B4, 1);
    let before = p.seen.len();
    assert!(p.serve(guest).is_ok());
    let after: Vec<_> = p.seen[before..].iter().map(|r| r.addr).collect();
    assert_eq!(after, [0x510], "the second store never reached the server");
    assert_eq!(p.load(PAGE, Width::B4), 1);
}

#[test]
fn unmarking_in_a_burst_of_element_writes_crashes_on_every_version() {
    both(|mut p, _| {
        let guest = p
            .domain
            .spawn(V0, |c| {
                c.rep_stos(PAGE, Width::B4, 0x33, 64)?;
                c.inl(0x510)
            })
            .unwrap();
        for _ in 0..10 {
            let req = p.wait(0);
            let data = p.carry_out(&req);
            p.answer(0, data);
        }
        p.wait(0);
        p.unmark(GFN, 1);
        p.answer(0, 0);
        answer_not_consumed(p.serve(guest));
        assert_eq!(
            p.load(PAGE + 63 * 4, Width::B4),
            0x33,
            "the rest went in one bulk store"
        );
    });
}

#[test]
fn a_store_across_two_pages_leaves_its_answer_on_4_17_too() {
    both(|mut p, _| {
        p.unmark(GFN + 1, 1);
        let guest = p
            .domain
            .spawn(V0, |c| {
                c.store32(PAGE + 0xffe, 0x1122_3344)?;
                c.inl(0x510)
            })
            .unwrap();
        p.wait(0);
        p.unmark(GFN, 1);
        p.answer(0, 0);
        answer_not_consumed(p.serve(guest));
    });
}

#[test]
fn a_page_that_is_marked_again_before_the_answer_is_consumed_is_fine() {
    both(|mut p, _| {
        let guest = store_then_port(&p);
        let req = p.wait(0);
        p.unmark(GFN, 1);
        p.mark(GFN, 1);
        let data = p.carry_out(&req);
        p.answer(0, data);
        assert!(p.serve(guest).is_ok());
        assert_eq!(p.load(PAGE, Width::B4), 0x7002);
    });
}

#[test]
fn a_locked_instruction_returns_what_it_read_first_though_ram_changed_since() {
    both(|mut p, _| {
        p.poke(PAGE, Width::B4, 10);
        let guest = p.domain.spawn(V0, |c| c.xchg(PAGE, Width::B4, 99)).unwrap();
        p.wait(0);
        p.poke(PAGE, Width::B4, 55); // the server's own store, of whatever it likes
        p.answer(0, 0);
        assert_eq!(guest.join(), Ok(10));
    });
}

#[test]
fn the_second_half_of_an_sse_store_is_lost_when_the_page_changes_between() {
    // 4.17 has noted the first half as MMIO and asks for the second as such: nobody has it.
    let mut p = peer(XenVersion::V4_17);
    let guest = p.domain.spawn(V0, |c| c.store128(PAGE, u128::MAX)).unwrap();
    let req = p.wait(0);
    p.unmark(GFN, 1);
    let data = p.carry_out(&req);
    p.answer(0, data);
    assert_eq!(p.serve(guest), Ok(()));
    assert_eq!(p.seen.len(), 1);
    assert_eq!(p.load(PAGE, Width::B8), u64::MAX);
    assert_eq!(p.load(PAGE + 8, Width::B8), 0);
}

#[test]
fn when_set_mem_type_returns_every_earlier_trap_is_ready() {
    for round in 0..200 {
        let mut p = peer(XenVersion::V4_20);
        let guest = p.domain.spawn(V0, |c| c.store32(PAGE, 1)).unwrap();
        for _ in 0..round {
            std::hint::spin_loop();
        }
        p.unmark(GFN, 1);
        // Either the store trapped under the old type and is visible, or it went to RAM.
        if p.take(0).is_some() {
            p.answer(0, 0);
        }
        assert_eq!(guest.join(), Ok(()));
        assert_eq!(p.load(PAGE, Width::B4), 1);
    }
}

#[test]
fn the_safe_protocol_unmarks_under_a_burst_without_a_crash() {
    both(|mut p, _| {
        let guest = p
            .domain
            .spawn(V0, |c| {
                for round in 1..=20_u64 {
                    c.rep_stos(PAGE, Width::B4, round, 64)?;
                    c.inl(0x510)?;
                }
                Ok(())
            })
            .unwrap();
        let mut unmarked = 0;
        while !guest.is_finished() {
            for _ in 0..7 {
                p.step();
            }
            if p.domain.mem_type(GFN) == Some(P2mType::IoreqServer) {
                // Grace: no answer waits to be taken, and what was taken has been executed again.
                while p.slot(0).flags.load(Ordering::Acquire) & 0xf == STATE_IORESP_READY {
                    std::thread::yield_now();
                }
                p.hv.set_server_state(p.id, true).unwrap();
                if p.take(0).is_some_and(|r| {
                    let data = p.carry_out(&r);
                    p.answer(0, data);
                    true
                }) {
                    continue;
                }
                p.unmark(GFN, 1);
                match p.take(0) {
                    Some(req) if req.addr >> 12 == GFN => {
                        p.mark(GFN, 1); // trapped under the old type: back, answer, again
                        let data = p.carry_out(&req);
                        p.answer(0, data);
                    }
                    Some(req) => {
                        let data = p.carry_out(&req);
                        p.answer(0, data);
                        unmarked += 1;
                    }
                    None => unmarked += 1,
                }
            } else {
                p.mark(GFN, 1);
            }
        }
        assert_eq!(guest.join(), Ok(()), "after {unmarked} unmarkings");
        for n in 0..64 {
            assert_eq!(p.load(PAGE + 4 * n, Width::B4), 20);
        }
    });
}

// Disclaim, destroy, disable.

#[test]
fn disclaim_resets_outstanding_pages_and_writes_go_to_ram() {
    both(|mut p, _| {
        p.mark(GFN + 2, 100);
        p.hv.disclaim_mem_type(p.id).unwrap();
        assert_eq!(p.domain.leaks().marked_pages, 0);
        assert_eq!(p.domain.mem_type(GFN + 50), Some(P2mType::RamRw));
        let (result, reqs) = p.run(|c| c.store32(PAGE, 5));
        assert_eq!((result, reqs.len()), (Ok(()), 0));
        assert_eq!(p.load(PAGE, Width::B4), 5);
    });
}

#[test]
fn destroying_the_owner_leaves_pages_on_which_writes_never_return_until_reset() {
    both(|p, _| {
        p.hv.destroy_server(p.id).unwrap();
        assert_eq!(p.domain.mem_type(GFN), Some(P2mType::IoreqServer));
        let guest = p.domain.spawn(V0, |c| c.store32(PAGE, 0x3003)).unwrap();
        assert_eq!(
            guest.wait_stuck(),
            Some(StuckReason::NoOwner { gfn: Gfn(GFN) })
        );

        let new = Peer::new(&p.domain);
        let error = new.hv.claim_mem_type(new.id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyClaimed);
        p.unmark(GFN, 1);
        assert_eq!(guest.join(), Ok(()));
        assert_eq!(p.load(PAGE, Width::B4), 0x3003);
        assert!(new.hv.claim_mem_type(new.id).is_err(), "one page is left");
        p.unmark(GFN + 1, 1);
        new.hv.claim_mem_type(new.id).unwrap();
    });
}

#[test]
fn a_stuck_vcpu_is_reported_to_its_joiner_and_ends_with_the_domain() {
    both(|p, _| {
        p.hv.destroy_server(p.id).unwrap();
        let guest = p.domain.spawn(V0, |c| c.store32(PAGE, 1)).unwrap();
        let reason = StuckReason::NoOwner { gfn: Gfn(GFN) };
        assert_eq!(guest.join(), Err(VcpuExit::Stuck(reason)));
        p.domain.destroy();
    });
}

#[test]
fn disabling_the_owner_stops_its_ranges_but_not_its_pages() {
    both(|mut p, _| {
        p.hv.set_server_state(p.id, false).unwrap();
        let (value, reqs) = p.run(|c| {
            c.store32(PAGE, 0x3002)?;
            c.inl(0x510)
        });
        assert_eq!(value, Ok(u32::MAX));
        assert_eq!(reqs.len(), 1);
        assert_eq!(brief(&reqs[0]), (1, false, PAGE, 0x3002, 4, 1));
    });
}

#[test]
fn disabling_with_a_port_access_in_flight_lets_the_guest_go_on() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        p.hv.set_server_state(p.id, false).unwrap();
        p.answer(0, 77);
        assert_eq!(guest.join(), Ok(77));
    });
}

#[test]
fn destroying_with_a_request_in_flight_leaves_the_vcpu_stuck_for_good() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        p.hv.destroy_server(p.id).unwrap();
        let stuck = StuckReason::ServerDestroyed { server: p.id };
        assert_eq!(guest.wait_stuck(), Some(stuck));
        p.answer(0, 77); // nobody is there to hear it
        assert_eq!(guest.join(), Err(VcpuExit::Stuck(stuck)));
        assert_eq!(p.domain.state(), DomainState::Running);
    });
}

#[test]
fn fetching_from_a_tracked_page_never_returns_until_it_is_ram() {
    both(|p, _| {
        let guest = p.domain.spawn(V0, |c| c.fetch(PAGE + 0x400)).unwrap();
        assert_eq!(
            guest.wait_stuck(),
            Some(StuckReason::Fetch { gfn: Gfn(GFN) })
        );
        assert_eq!(p.domain.counts().sent(), 0);
        p.unmark(GFN, 1);
        assert_eq!(guest.join(), Ok(()));
    });
}

// The order of set-up.

#[test]
fn a_request_to_a_server_whose_page_was_never_acquired_panics_the_hypervisor() {
    both(|p, _| {
        let machine_wide = p.domain.clone();
        let id = p.hv.create_server(BufIoreq::Off).unwrap();
        p.hv.map_range(id, PortRange::new(0x900, 0x903).unwrap().into())
            .unwrap();
        p.hv.set_server_state(id, true).unwrap();
        let guest = p.domain.spawn(V0, |c| c.outb(0x900, 1)).unwrap();
        let exit = guest.join().unwrap_err();
        assert!(
            matches!(&exit, VcpuExit::HypervisorPanic { reason } if reason.contains("never acquired"))
        );
        let error = p.hv.create_server(BufIoreq::Off).unwrap_err();
        assert!(error.to_string().contains("hypervisor panic"), "{error}");
        assert!(p.events.notify(p.ports[0]).is_err());
        let mut other = machine_wide.cpu(VcpuId(1)).unwrap();
        assert!(matches!(other.load8(0), Err(CpuFault::Stopped(_))));
    });
}

#[test]
fn an_owner_that_never_acquired_panics_the_hypervisor_on_a_tracked_write() {
    let domain = domain(XenVersion::V4_17);
    let hv = domain.hypervisor();
    let id = hv.create_server(BufIoreq::Off).unwrap();
    hv.claim_mem_type(id).unwrap();
    hv.raw()
        .set_mem_type(HVMMEM_IOREQ_SERVER, 0, GFN, 1)
        .unwrap();
    let guest = domain.spawn(V0, |c| c.store32(PAGE, 1)).unwrap();
    assert!(matches!(
        guest.join(),
        Err(VcpuExit::HypervisorPanic { .. })
    ));
}

#[test]
fn acquired_after_enable_the_port_is_missing_until_disabled_and_enabled() {
    both(|p, _| {
        let id = p.hv.create_server(BufIoreq::Off).unwrap();
        p.hv.map_range(id, MmioRange::sized(MMIO, 0x1000).unwrap().into())
            .unwrap();
        p.hv.set_server_state(id, true).unwrap();
        p.hv.ioreq_page(id).unwrap();
        let slots = p.domain.hostile().slots(id).unwrap();
        let eport = || slots.slot(V0).unwrap().vp_eport.load(Ordering::Relaxed);
        assert_eq!(eport(), 0);
        let guest = p.domain.spawn(V0, |c| c.store32(MMIO, 1)).unwrap();
        let fault = CpuFault::GeneralProtection { addr: MMIO };
        assert_eq!(guest.join(), Err(VcpuExit::Fault(fault)));
        p.hv.set_server_state(id, true).unwrap(); // changes nothing
        assert_eq!(eport(), 0);
        p.hv.set_server_state(id, false).unwrap();
        p.hv.set_server_state(id, true).unwrap();
        assert_ne!(eport(), 0);
        // A port access before that would have been the domain's end.
        let late = p.hv.create_server(BufIoreq::Off).unwrap();
        p.hv.map_range(late, PortRange::new(0x900, 0x903).unwrap().into())
            .unwrap();
        p.hv.set_server_state(late, true).unwrap();
        p.hv.ioreq_page(late).unwrap();
        let guest = p.domain.spawn(V0, |c| c.outb(0x900, 1)).unwrap();
        let reason = CrashReason::UnhandledPort {
            vcpu: V0,
            port: 0x900,
        };
        assert_eq!(guest.join(), Err(VcpuExit::DomainCrashed { reason }));
    });
}

#[test]
fn acquired_and_claimed_but_never_enabled_gives_gp() {
    both(|p, _| {
        p.hv.disclaim_mem_type(p.id).unwrap();
        let id = p.hv.create_server(BufIoreq::Off).unwrap();
        p.hv.ioreq_page(id).unwrap();
        p.hv.claim_mem_type(id).unwrap();
        p.mark(GFN, 1);
        let guest = p.domain.spawn(V0, |c| c.store32(PAGE, 1)).unwrap();
        let fault = CpuFault::GeneralProtection { addr: PAGE };
        assert_eq!(guest.join(), Err(VcpuExit::Fault(fault)));
        assert_eq!(p.domain.state(), DomainState::Running);
    });
}

// Slot states.

#[test]
fn none_by_the_server_gives_all_ones() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        set_state(p.slot(0), STATE_IOREQ_NONE);
        p.events.notify(p.ports[0]).unwrap();
        assert_eq!(guest.join(), Ok(u32::MAX));
    });
}

#[test]
fn a_backward_state_crashes_the_domain() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        // Xen must see INPROCESS, then READY; it looks when notified, once for notifications that come close together.
        let mut state = STATE_IOREQ_INPROCESS;
        while !guest.is_finished() {
            set_state(p.slot(0), state);
            p.events.notify(p.ports[0]).unwrap();
            std::thread::yield_now();
            state = STATE_IOREQ_READY + STATE_IOREQ_INPROCESS - state;
        }
        let result = guest.join();
        if let Err(VcpuExit::DomainCrashed { reason }) = result {
            let (from, to) = (STATE_IOREQ_INPROCESS, STATE_IOREQ_READY);
            let server = p.id;
            assert_eq!(
                reason,
                CrashReason::BackwardState {
                    server,
                    vcpu: V0,
                    from,
                    to
                }
            );
        } else {
            panic!("{result:?}");
        }
    });
}

#[test]
fn an_unknown_state_crashes_the_domain() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        set_state(p.slot(0), 9);
        p.events.notify(p.ports[0]).unwrap();
        let reason = CrashReason::UnknownState {
            server: p.id,
            vcpu: V0,
            state: 9,
        };
        assert_eq!(
            guest.join(),
            Err(VcpuExit::DomainCrashed {
                reason: reason.clone()
            })
        );
        assert_eq!(p.domain.crash_reason(), Some(reason));
    });
}

#[test]
fn a_slot_that_is_not_free_refuses_the_next_request() {
    both(|mut p, _| {
        p.range(MmioRange::sized(MMIO, 0x1000).unwrap());
        set_state(p.slot(0), STATE_IOREQ_INPROCESS);
        let (result, _) = p.run(|c| c.store32(MMIO, 1));
        let fault = CpuFault::GeneralProtection { addr: MMIO };
        assert_eq!(result, Err(VcpuExit::Fault(fault)));
        let (result, _) = p.run(|c| c.outb(0x510, 1));
        assert!(matches!(result, Err(VcpuExit::DomainCrashed { .. })));
    });
}

#[test]
fn an_answer_without_a_notification_is_not_seen() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        p.slot(0).data.store(5, Ordering::Relaxed);
        set_state(p.slot(0), STATE_IORESP_READY);
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        assert!(!guest.is_finished());
        assert_eq!(guest.waiting_on(), Some(p.id));
        p.events.notify(p.ports[0]).unwrap();
        assert_eq!(guest.join(), Ok(5));
    });
}

// Processes.

#[test]
fn after_kill_another_process_takes_over_in_mid_request() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| {
            c.store32(PAGE, 0xbeef)?;
            c.inl(0x510)
        });
        let guest = guest.unwrap();
        p.wait(0);
        let (domain, id) = (p.domain.clone(), p.id);
        p.hv.kill();
        assert!(p.hv.ioreq_page(id).is_err());
        assert!(p.events.notify(p.ports[0]).is_err());
        let leaks = domain.leaks();
        assert_eq!((leaks.servers, leaks.claim), (vec![id], Some(id)));
        assert_eq!((leaks.marked_pages, leaks.bound_ports), (2, 0));

        let mut heir = Peer::adopt(&domain, domain.hypervisor(), id);
        // Its predecessor left the request INPROCESS: it finds it there.
        let slot = heir.slot(0);
        assert_eq!(
            slot.flags.load(Ordering::Acquire) & 0xf,
            STATE_IOREQ_INPROCESS
        );
        heir.poke(PAGE, Width::B4, 0xbeef);
        heir.answer(0, 0);
        assert!(heir.serve(guest).is_ok());
        assert_eq!(heir.load(PAGE, Width::B4), 0xbeef);
        heir.hv.disclaim_mem_type(id).unwrap();
        heir.hv.destroy_server(id).unwrap();
        drop(heir);
        assert!(domain.leaks().is_clean());
    });
}

#[test]
fn a_port_that_is_bound_is_nobody_elses() {
    both(|p, _| {
        let port = ioreq_core::EvtchnPort(p.slot(0).vp_eport.load(Ordering::Relaxed));
        let thief = p.domain.hypervisor().open_events().unwrap();
        assert_eq!(thief.bind(port).unwrap_err().errno(), Some(libc::EINVAL));
        p.events.unbind(p.ports[0]).unwrap();
        thief.bind(port).unwrap();
    });
}

#[test]
fn a_reboot_gives_a_new_domid_and_the_old_one_is_gone() {
    both(|mut p, _| {
        let guest = p.domain.spawn(V0, |c| c.inl(0x510)).unwrap();
        p.wait(0);
        let new = p.domain.reboot().unwrap();
        assert_ne!(new.domid(), p.domain.domid());
        let ends = [
            VcpuExit::DomainShutdown(ShutdownReason::Reboot),
            VcpuExit::DomainDestroyed,
        ];
        assert!(ends.contains(&guest.join().unwrap_err()));
        assert_eq!(p.hv.domain_state().unwrap(), DomainState::Gone);
        assert_eq!(
            p.hv.create_server(BufIoreq::Off).unwrap_err().kind(),
            ErrorKind::DomainGone
        );
        assert!(new.leaks().is_clean());
    });
}
