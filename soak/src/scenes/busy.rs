// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One device model, everything that a guest can do, and every fault that a server outlives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use ioreq::handler::Handler;
use ioreq::routes::{RouteId, Routes};
use ioreq::server::{IoreqServer, Running};
use ioreq::sim::Faults;
use ioreq::{GuestMap, IoRange, MmioRange, Transport, VcpuId};

use super::devices::{Devices, builder};
use super::drive::{drive, drive_oddly, writer};
use super::tracking::Tracking;
use super::{Round, joined, nap};
use crate::Failure;
use crate::device::Bank;
use crate::layout::VCPUS;
use crate::oddities;
use crate::platform::{Guest, Platform};
use crate::tally::{Check, Fault};
use crate::writer::{Style, Writer};

/// Reads of events that fail in a row.
const FAILING_READS: u64 = 5;

pub(super) fn round<P: Platform>(round: &Round<'_, P>) -> Result<(), Failure> {
    let mut random = round.random(0);
    // The last vCPU is the odd one: in one round of four it is an ordinary one, and requests can be counted.
    let odd = VcpuId(VCPUS - 1);
    let is_odd = !round.number.is_multiple_of(4);
    let guest = round.platform.guest(VCPUS)?;
    let devices = Devices::new(&round.tally, Style::All)?;
    let server = builder(guest.process()?, &mut random).build()?;
    server.route("odd memory", oddities::mmio(), Bank::new(512))?;
    server.route("odd ports", oddities::ports(), Bank::new(16))?;
    let routes = devices.route(&server)?;
    let claim = server.claim_mem_type()?;
    let tracking = Tracking::new(claim, &round.tally, &devices.later);
    // A second server, of which the ring and all slots are rewritten.
    let victim = match (is_odd, guest.hostile()) {
        (true, Some(_)) => Some(builder(guest.process()?, &mut random).build()?),
        _ => None,
    };
    let running = server.start()?;
    let victim_running = victim.as_ref().map(IoreqServer::start).transpose()?;

    let mut director = Director {
        round,
        guest: &guest,
        server: &server,
        tracking: &tracking,
        routes,
        running: Some(running),
        random: round.random(1),
        short: false,
    };
    let stop = AtomicBool::new(false);
    let (directed, writers) = thread::scope(|scope| {
        let writers: Vec<_> = (0..VCPUS - u32::from(is_odd))
            .map(|vcpu| {
                let writer = writer(round, vcpu, Style::All).under_stops();
                let (guest, stop) = (&guest, &stop);
                scope.spawn(move || drive(round, guest, writer, vcpu, stop))
            })
            .collect();
        let mut odds = Vec::new();
        match guest.hostile() {
            Some(hostile) if is_odd => {
                let seed = random.u64(..);
                let slots = hostile.slots(server.id());
                if let Some(slots) = slots {
                    let stop = &stop;
                    odds.push(scope.spawn(move || {
                        oddities::rewrite_slot(&slots, odd, seed, stop);
                        Ok(())
                    }));
                }
                if let Some(victim) = &victim {
                    let (slots, ring) = (hostile.slots(victim.id()), hostile.ring(victim.id()));
                    let stop = &stop;
                    odds.extend(slots.map(|slots| {
                        scope.spawn(move || {
                            oddities::rewrite_slot(&slots, VcpuId(0), seed + 1, stop);
                            Ok(())
                        })
                    }));
                    odds.extend(ring.map(|ring| {
                        scope.spawn(move || {
                            oddities::rewrite_ring(&ring, seed + 2, stop);
                            Ok(())
                        })
                    }));
                }
            }
            None if is_odd => {
                let (guest, stop) = (&guest, &stop);
                odds.push(scope.spawn(move || drive_oddly(round, guest, odd.0, stop)));
            }
            _ => {}
        }
        let mut directed = director.direct(&writers);
        stop.store(true, Ordering::Relaxed);
        while directed.is_ok() && !writers.iter().all(ScopedJoinHandle::is_finished) {
            directed = director.is_served();
            thread::sleep(Duration::from_millis(1));
        }
        if directed.is_err() {
            // Nobody may be there to answer.
            guest.destroy();
        }
        let writers = writers
            .into_iter()
            .map(joined)
            .collect::<Result<Vec<Writer>, Failure>>();
        let odds = odds.into_iter().try_for_each(joined);
        (directed.and(odds), writers)
    });
    directed?;
    let writers = writers?;

    tracking.leave_all()?;
    tracking.judge()?;
    let ram = server.hypervisor().memory();
    for writer in &writers {
        round
            .tally
            .checked(Check::Words, writer.compare_memory(&*ram)?);
        let registers = writer.compare_registers(&devices.bank, &devices.ports)?;
        round.tally.checked(Check::Registers, registers);
    }
    if let Some(running) = director.running.take() {
        running.stop()?;
    }
    victim_running.map(Running::stop).transpose()?;
    drop(director);
    let stats = server.stats();
    round.tally.requests(stats.requests() + stats.buffered);
    round.tally.fault(Fault::Slots, stats.malformed);
    if let Some(sent) = guest.sent().filter(|_| !is_odd) {
        if sent != stats.requests() {
            let what = format!("{sent} requests were sent, {} served", stats.requests());
            return Err(format!("{what}: {stats:?}").into());
        }
        round.tally.checked(Check::Counts, 1);
    }
    drop((ram, tracking));
    server.destroy().map_err(|err| err.error)?;
    if let Some(victim) = victim {
        let stats = victim.stats();
        round.tally.requests(stats.requests() + stats.buffered);
        round.tally.fault(Fault::Slots, stats.malformed);
        round.tally.fault(Fault::Rings, stats.ring_anomalies);
        victim.destroy().map_err(|err| err.error)?;
    }
    super::clean(round, &guest)
}

/// Who does something to the server, again and again.
struct Director<'a, P: Platform> {
    round: &'a Round<'a, P>,
    guest: &'a P::Guest,
    server: &'a IoreqServer<P::Hv>,
    tracking: &'a Tracking<P::Hv>,
    routes: Vec<(RouteId, Arc<dyn Handler>)>,
    running: Option<Running<P::Hv>>,
    random: Rng,
    /// Whether there may be no memory for marking.
    short: bool,
}

impl<P: Platform> Director<'_, P> {
    fn direct<T>(&mut self, writers: &[ScopedJoinHandle<'_, T>]) -> Result<(), Failure> {
        while !self.round.is_over() {
            self.act()?;
            self.is_served()?;
            nap(&mut self.random, 3000);
            // A writer that ends early has something to say.
            if writers.iter().any(ScopedJoinHandle::is_finished) {
                break;
            }
        }
        Ok(())
    }

    /// Nothing that was done to the server ended its service.
    fn is_served(&mut self) -> Result<(), Failure> {
        match self.running.take_if(|running| running.is_finished()) {
            Some(ended) => Err(format!("the service ended: {:?}", ended.wait()?).into()),
            None => Ok(()),
        }
    }

    fn act(&mut self) -> Result<(), Failure> {
        match self.random.u8(0..40) {
            0..=19 => self.tracking.change(&mut self.random, self.short),
            20..=22 => self.reroute(),
            23 | 24 => self.pause(false),
            25 => self.pause(true),
            26 => self.suspend(),
            27 => self.restart(),
            28..=31 => self.disturb_events(),
            32 | 33 => self.run_short(),
            _ => {
                let stats = self.server.stats();
                let _all = (
                    stats,
                    self.server.route_stats(),
                    self.tracking.tracker.stats(),
                );
                Ok(())
            }
        }
    }

    /// Adds a route where nobody is, and takes it away; gives a device's route its handler again.
    fn reroute(&mut self) -> Result<(), Failure> {
        let control = self.server.control();
        let place = 0xe100_0000 + 0x1000 * self.random.u64(0..16);
        let range: IoRange = MmioRange::sized(place, 0x1000)?.into();
        let route = control.add("passing", range, Arc::new(Bank::new(8)))?;
        if let Some((route, handler)) = self.random.choice(&self.routes) {
            control.replace(*route, Arc::clone(handler))?;
        }
        control.retract(route)?;
        if self.random.bool() {
            self.server.synchronize()?;
        }
        Ok(())
    }

    /// Pauses the domain in the middle of what it does; meanwhile the server may be disabled, and enabled again.
    fn pause(&mut self, disable: bool) -> Result<(), Failure> {
        self.guest.pause()?;
        self.round.tally.fault(Fault::Paused, 1);
        if disable {
            let (hv, id) = (self.server.hypervisor(), self.server.id());
            hv.set_server_state(id, false)?;
            nap(&mut self.random, 1000);
            hv.set_server_state(id, true)?;
            self.round.tally.fault(Fault::Disabled, 1);
        }
        nap(&mut self.random, 3000);
        self.guest.unpause()
    }

    /// Suspends tracking, as a migration does, with log-dirty mode in between.
    fn suspend(&mut self) -> Result<(), Failure> {
        self.tracking.claim.suspend(Duration::from_millis(200))?;
        let marked = self.tracking.claim.marked_pages();
        if marked == 0 {
            self.guest.log_dirty(true)?;
            self.server.set_dirty_logging(true)?;
            nap(&mut self.random, 3000);
            self.server.set_dirty_logging(false)?;
            self.guest.log_dirty(false)?;
        }
        self.tracking.resume(self.short)?;
        self.round.tally.fault(Fault::Suspended, 1);
        Ok(())
    }

    /// Stops the workers; for a moment this thread serves.
    fn restart(&mut self) -> Result<(), Failure> {
        if let Some(running) = self.running.take() {
            running.stop()?;
        }
        let end = Instant::now() + Duration::from_micros(self.random.u64(0..3000));
        while Instant::now() < end {
            self.server.poll()?;
        }
        self.running = Some(self.server.start()?);
        self.round.tally.fault(Fault::Restarted, 1);
        Ok(())
    }

    fn disturb_events(&mut self) -> Result<(), Failure> {
        let Some(faults) = self.guest.faults() else {
            return Ok(());
        };
        let tally = &self.round.tally;
        let few = self.random.u64(1..=3);
        match self.random.u8(0..6) {
            0 => {
                faults.lose_events(few);
                tally.fault(Fault::Lost, few);
            }
            1 => {
                faults.double_events(few);
                tally.fault(Fault::Doubled, few);
            }
            2 => {
                faults.overflow_events(few);
                tally.fault(Fault::Overflow, few);
            }
            3 => self.hold_events(faults),
            4 => {
                faults.fail_event_reads(FAILING_READS, libc::EINTR);
                tally.fault(Fault::Eintr, FAILING_READS);
            }
            _ => {
                faults.fail_event_reads(FAILING_READS, libc::EAGAIN);
                tally.fault(Fault::Eagain, FAILING_READS);
            }
        }
        Ok(())
    }

    /// What is held back comes when its request was found otherwise, or late.
    fn hold_events(&self, faults: &Faults) {
        faults.delay_events();
        std::thread::sleep(Duration::from_millis(2));
        faults.release_events();
        self.round.tally.fault(Fault::Late, 1);
    }

    /// The next change of types fails in the middle.
    fn run_short(&mut self) -> Result<(), Failure> {
        let Some(faults) = self.guest.faults() else {
            return Ok(());
        };
        self.short = true;
        faults.fail_set_mem_type_after(self.random.u64(0..6));
        self.round.tally.fault(Fault::Enomem, 1);
        self.tracking.change(&mut self.random, true)
    }
}
