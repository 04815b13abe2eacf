// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ways to serve: worker threads, a user's event loop, by hand and on a schedule; and the ways that service ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use ioreq::claim::PageTracker;
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq::server::{Budget, Exit, IoreqServer, Polling, Workers};
use ioreq::sim::{Domain, DomainConfig, Machine, Schedule, XenVersion};
use ioreq::{BufIoreq, GfnRange, MmioRange, PortRange, ShutdownReason, VcpuId};

const MMIO: u64 = 0xe000_0000;

/// Counts; reads give the count.
#[derive(Default)]
struct Count(AtomicU64);

impl Handler for Count {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.load(Ordering::Relaxed).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.fetch_add(value, Ordering::Relaxed);
        WriteOutcome::Done
    }
}

impl PageHandler for Count {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::Relaxed);
        PageOutcome::Apply
    }
}

fn domain(vcpus: u32) -> Domain {
    Machine::new()
        .create_domain(DomainConfig::new(vcpus))
        .unwrap()
}

fn mmio() -> MmioRange {
    MmioRange::sized(MMIO, 0x1000).unwrap()
}

#[test]
fn a_users_event_manager_serves_and_lets_others_have_their_turn() {
    struct Other(vmm_sys_util::eventfd::EventFd, Arc<AtomicU64>);
    impl event_manager::MutEventSubscriber for Other {
        fn process(&mut self, _: event_manager::Events, _: &mut event_manager::EventOps<'_>) {
            self.0.read().unwrap();
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.write(1).unwrap();
        }
        fn init(&mut self, ops: &mut event_manager::EventOps<'_>) {
            ops.add(event_manager::Events::new(
                &self.0,
                event_manager::EventSet::IN,
            ))
            .unwrap();
            self.0.write(1).unwrap();
        }
    }
    let domain = domain(2);
    let server = IoreqServer::builder(domain.hypervisor())
        .workers(Workers::Count(1))
        .build()
        .unwrap();
    let count = Arc::new(Count::default());
    server.route("count", mmio(), Arc::clone(&count)).unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    tracker
        .track(
            GfnRange::sized(0x10, 1).unwrap(),
            Arc::<Count>::clone(&count),
        )
        .unwrap();

    let subscriber = server.subscriber(Budget::default()).unwrap();
    let exit = subscriber.exit();
    let turns = Arc::new(AtomicU64::new(0));
    let fd = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let mut manager: EventManager<Box<dyn event_manager::MutEventSubscriber>> =
        EventManager::new().unwrap();
    manager.add_subscriber(Box::new(subscriber));
    manager.add_subscriber(Box::new(Other(fd, Arc::clone(&turns))));

    let guests = [0, 1].map(|vcpu| {
        let program = |cpu: &mut ioreq::sim::Cpu| {
            for round in 0..500_u64 {
                cpu.store32(MMIO, 1)?;
                cpu.store64(0x1_0000, round)?;
            }
            Ok(())
        };
        domain.spawn(VcpuId(vcpu), program).unwrap()
    });
    while !guests.iter().all(ioreq::sim::VcpuThread::is_finished) {
        manager.run_with_timeout(100).unwrap();
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 2000);
    assert!(
        turns.load(Ordering::Relaxed) > 0,
        "the other subscriber starved"
    );
    assert_eq!(exit.get(), None);
    domain.shutdown(ShutdownReason::PowerOff);
    while exit.get().is_none() {
        manager.run_with_timeout(100).unwrap();
    }
    assert_eq!(exit.get(), Some(Exit::Shutdown(ShutdownReason::PowerOff)));
}

#[test]
fn service_ends_with_the_reason() {
    type Case = (fn(&Domain), Exit);
    let cases: [Case; 3] = [
        (
            |domain| domain.shutdown(ShutdownReason::Suspend),
            Exit::Shutdown(ShutdownReason::Suspend),
        ),
        (Domain::crash, Exit::Shutdown(ShutdownReason::Crash)),
        (Domain::destroy, Exit::DomainGone),
    ];
    for (end, expected) in cases {
        let domain = domain(1);
        let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
        let running = server.start().unwrap();
        end(&domain);
        assert_eq!(running.wait().unwrap(), expected);
    }
}

#[test]
fn a_stopped_server_serves_again() {
    let domain = domain(1);
    let server = IoreqServer::builder(domain.hypervisor())
        .polling(Polling::off())
        .build()
        .unwrap();
    server.route("count", mmio(), Count::default()).unwrap();
    for round in 1..=3 {
        let running = server.start().unwrap();
        let guest = domain.spawn(VcpuId(0), |cpu| {
            cpu.store32(MMIO, 1)?;
            cpu.load32(MMIO)
        });
        assert_eq!(guest.unwrap().join().unwrap(), round);
        assert_eq!(running.stop().unwrap(), Exit::Stopped);
    }
}

#[test]
fn a_request_made_while_nobody_serves_is_served_later() {
    let domain = domain(1);
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    server.route("count", mmio(), Count::default()).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.load32(MMIO)).unwrap();
    while guest.waiting_on().is_none() {
        std::thread::yield_now();
    }
    let running = server.start().unwrap();
    assert_eq!(guest.join().unwrap(), 0);
    running.stop().unwrap();
}

/// Two vCPUs, one page that comes and goes, one thread: every interleaving is one of the seed's.
fn scheduled(seed: u64, version: XenVersion) -> (u64, u64) {
    let machine = Machine::builder().version(version).build();
    let domain = machine.create_domain(DomainConfig::new(2)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor())
        .workers(Workers::Count(1))
        .build()
        .unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    let count = Arc::new(Count::default());
    let pages = GfnRange::sized(0x10, 2).unwrap();
    tracker.track(pages, Arc::<Count>::clone(&count)).unwrap();
    let program = |vcpu: u64| {
        move |cpu: &mut ioreq::sim::Cpu| {
            for round in 0..20 {
                cpu.store64(0x1_0000 + vcpu * 8, round)?;
                cpu.store32(0x1_1000 + vcpu * 8, 7)?;
                if cpu.load64(0x1_0000 + vcpu * 8)? != round {
                    panic!("a store was lost");
                }
            }
            Ok(())
        }
    };
    let mut steps = 0;
    let report = Schedule::new(seed)
        .vcpu(&domain, VcpuId(0), program(0))
        .vcpu(&domain, VcpuId(1), program(1))
        .run(|| {
            steps += 1;
            if steps == 30 {
                tracker.untrack(pages).unwrap();
            }
            server.poll().unwrap() > 0
        })
        .unwrap();
    for exit in &report.exits {
        assert_eq!(*exit, Ok(()), "seed {seed}");
    }
    claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!(claim.marked_pages(), 0, "seed {seed}");
    (report.trace, count.0.load(Ordering::Relaxed))
}

#[test]
fn schedules_of_many_seeds_end_well_and_repeat() {
    for version in XenVersion::ALL {
        for seed in 0..40 {
            scheduled(seed, version);
        }
        assert_eq!(
            scheduled(7, version),
            scheduled(7, version),
            "the same seed, the same run"
        );
    }
}

#[test]
fn posted_writes_come_in_order_and_before_what_follows_them() {
    struct Log(Arc<Mutex<Vec<u64>>>);
    impl Handler for Log {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            let log = self.0.lock().unwrap();
            ReadOutcome::Value(log.len() as u64)
        }
        fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
            self.0.lock().unwrap().push(value);
            WriteOutcome::Done
        }
    }
    let config = DomainConfig::new(2)
        .vga(true)
        .memory(GfnRange::sized(0, 0xa0).unwrap())
        .memory(GfnRange::sized(0x100, 0x100).unwrap());
    let domain = Machine::new().create_domain(config).unwrap();
    let server = IoreqServer::builder(domain.hypervisor())
        .buffered(BufIoreq::Atomic)
        .build()
        .unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    server
        .route(
            "vga",
            MmioRange::new(0xa_0000, 0xb_ffff).unwrap(),
            Log(Arc::clone(&log)),
        )
        .unwrap();
    server
        .route(
            "port",
            PortRange::sized(0x80, 4).unwrap(),
            Log(Arc::clone(&log)),
        )
        .unwrap();
    let clock = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&clock);
    server.on_time_offset(move |seconds| told.store(seconds.unsigned_abs(), Ordering::Relaxed));
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(1), |cpu| {
        let mut value = 0;
        for round in 0..2000_u64 {
            cpu.store8(
                0xa_0000 + round % 0x1000,
                u8::try_from(value & 0xff).unwrap(),
            )?;
            value += 1;
            if round % 97 == 0 {
                cpu.store64(0xa_0008, 0x1122_3344_5566_7788)?;
                cpu.outb(0x80, 0xee)?;
                assert_eq!(u64::from(cpu.inl(0x80)?), value + 2 * (round / 97 + 1));
            }
        }
        cpu.rtc_set(-3600)?;
        cpu.outb(0x80, 0xff)
    });
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    let mut expected = Vec::new();
    for round in 0..2000_u64 {
        expected.push(round & 0xff);
        if round % 97 == 0 {
            expected.extend([0x1122_3344_5566_7788, 0xee]);
        }
    }
    expected.push(0xff);
    assert_eq!(*log.lock().unwrap(), expected);
    assert_eq!(clock.load(Ordering::Relaxed), 3600);
    let stats = server.stats();
    assert!(
        stats.buffered > 1000 && stats.ring_anomalies == 0,
        "{stats:?}"
    );
}

#[test]
fn a_hostile_slot_costs_its_own_vcpu_only() {
    let domain = domain(2);
    let server = IoreqServer::builder(domain.hypervisor());
    // One worker, which looks at both slots as long as one of them is busy, however slow this machine is.
    let server = server.workers(Workers::Count(1));
    let server = server.polling(Polling::up_to(Duration::from_millis(100)));
    let server = server.build().unwrap();
    let count = Arc::new(Count::default());
    server.route("count", mmio(), Arc::clone(&count)).unwrap();
    let running = server.start().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let hostile = {
        let (stop, slots) = (
            Arc::clone(&stop),
            domain.hostile().slots(server.id()).unwrap(),
        );
        std::thread::spawn(move || {
            let slot = slots.slot(VcpuId(1)).unwrap();
            let mut random = 1_u64;
            while !stop.load(Ordering::Relaxed) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                slot.addr.store(random, Ordering::Relaxed);
                slot.data.store(random.rotate_left(17), Ordering::Relaxed);
                #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
                {
                    slot.count.store((random >> 40) as u32, Ordering::Relaxed);
                    slot.size
                        .store((random >> 50) as u32 & 15, Ordering::Relaxed);
                    slot.kind.store((random >> 59) as u8, Ordering::Relaxed);
                    slot.flags.store((random >> 33) as u8, Ordering::Relaxed);
                }
            }
        })
    };
    let done = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&done);
    let guest = domain.spawn(VcpuId(0), move |cpu| {
        let mut written = 0;
        while !flag.load(Ordering::Relaxed) {
            cpu.store32(MMIO, 1)?;
            written += 1;
        }
        Ok((written, cpu.load32(MMIO + 4)?))
    });
    let started = std::time::Instant::now();
    while server.stats().malformed < 100 {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "the slot was never absurd"
        );
        std::thread::yield_now();
    }
    done.store(true, Ordering::Relaxed);
    let (written, counted) = guest.unwrap().join().unwrap();
    assert!(counted >= written && written > 0);
    stop.store(true, Ordering::Relaxed);
    hostile.join().unwrap();
    running.stop().unwrap();
}
