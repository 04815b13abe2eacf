// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device models that are replaced under a guest that goes on: they come to rest, save, and leave the server to the next; or they are
//! killed in the middle of a request, and the next takes over what there is.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use ioreq::handler::Handler;
use ioreq::routes::Routes;
use ioreq::server::{IoreqServer, SavedServer};
use ioreq::{Gfn, GuestMap};

use super::devices::{Devices, builder};
use super::drive::{drive, writer};
use super::tracking::{BOUND, Tracking};
use super::{Round, clean, joined, nap};
use crate::Failure;
use crate::death::{Death, Mortal, Way};
use crate::device::Watch;
use crate::layout::PAGES;
use crate::platform::{Guest, Platform};
use crate::tally::{Check, Fault};
use crate::writer::{Style, Writer};

const WRITERS: u32 = 2;

pub(super) fn round<P: Platform>(round: &Round<'_, P>) -> Result<(), Failure> {
    let guest = round.platform.guest(WRITERS)?;
    let devices = Devices::new(&round.tally, Style::Twice)?;
    let name = format!("ioreq-soak-{}-{}", std::process::id(), round.number);
    let record = std::env::temp_dir().join(name);
    let (ready, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut lives = Lives {
        round,
        guest: &guest,
        devices: &devices,
        record,
        random: round.random(1),
        saved: None,
        born: 0,
        ready: &ready,
        graves: Vec::new(),
    };
    let (lived, writers) = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|vcpu| {
                let writer = writer(round, vcpu, Style::Twice);
                let (guest, ready, stop) = (&guest, &ready, &stop);
                scope.spawn(move || {
                    while !ready.load(Ordering::SeqCst) && !stop.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_micros(100));
                    }
                    drive(round, guest, writer, vcpu, stop)
                })
            })
            .collect();
        let lived = lives.all(&writers, &stop);
        stop.store(true, Ordering::Relaxed);
        if lived.is_err() {
            guest.destroy();
        }
        let writers = writers.into_iter().map(joined);
        (lived, writers.collect::<Result<Vec<Writer>, Failure>>())
    });
    lived?;
    let ram = guest.process()?.memory();
    for writer in &writers? {
        round
            .tally
            .checked(Check::Words, writer.compare_memory(&*ram)?);
        let registers = writer.compare_registers(&devices.bank, &devices.ports)?;
        round.tally.checked(Check::Registers, registers);
    }
    drop(ram);
    clean(round, &guest)?;
    // What the dead had is let go when it can do no harm: no destructor of a dead process runs while its domain lives.
    guest.destroy();
    lives.graves.clear();
    Ok(())
}

/// A server, and what it tracks.
type Begun<P> = (
    IoreqServer<<P as Platform>::Hv>,
    Tracking<<P as Platform>::Hv>,
);

/// One device model after another.
struct Lives<'a, P: Platform> {
    round: &'a Round<'a, P>,
    guest: &'a P::Guest,
    devices: &'a Devices,
    record: PathBuf,
    random: Rng,
    /// What the last one saved.
    saved: Option<SavedServer>,
    born: u64,
    /// The guest's programs may begin: there are devices.
    ready: &'a AtomicBool,
    graves: Vec<Box<dyn Send>>,
}

impl<P: Platform> Lives<'_, P> {
    fn all<T>(
        &mut self,
        writers: &[ScopedJoinHandle<'_, T>],
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        while !self.round.is_over() && !writers.iter().any(ScopedJoinHandle::is_finished) {
            match P::Guest::KILL.filter(|_| self.random.bool()) {
                Some(kill) => self.be_killed(kill)?,
                None => self.leave()?,
            }
        }
        self.last(writers, stop)
    }

    /// The next one: its server, new or taken over, with routes to all devices; all pages tracked that are marked, and some others.
    fn begin(&mut self, hv: Arc<P::Hv>, death: Option<&Arc<Death>>) -> Result<Begun<P>, Failure> {
        let builder = builder(hv, &mut self.random).identity("the soak's domain");
        let server = match self.born {
            0 => builder.record(&self.record),
            _ => builder.take_over(&self.record),
        };
        let server = server.build()?;
        self.born += 1;
        let mortal = |device| match death {
            Some(death) => {
                let death = Arc::clone(death);
                Arc::new(Mortal { device, death }) as Arc<dyn Handler>
            }
            None => device,
        };
        match self.saved.take() {
            Some(saved) => {
                let of = |name: &str| self.devices.of(name).map(mortal);
                saved.restore_routes(&server, |name, _| of(name))?;
            }
            None => {
                let control = server.control();
                for (name, range, device) in self.devices.all() {
                    control.add(name, range, mortal(device))?;
                }
            }
        }
        let watch = Watch::new(&self.round.tally, &self.devices.later, death);
        let tracking = Tracking::over(server.claim_mem_type()?, watch);
        for gfn in PAGES {
            if self.guest.is_marked(gfn)? {
                tracking
                    .tracker
                    .adopt(Gfn(gfn).into(), tracking.handler())?;
            }
        }
        for _ in 0..3 {
            tracking.change(&mut self.random, false)?;
        }
        self.ready.store(true, Ordering::SeqCst);
        Ok((server, tracking))
    }

    fn count(&self, server: &IoreqServer<P::Hv>) {
        let stats = server.stats();
        self.round.tally.requests(stats.requests() + stats.buffered);
    }

    /// One that serves for a while, comes to rest, saves, and leaves.
    fn leave(&mut self) -> Result<(), Failure> {
        let hv = Arc::new(self.guest.process()?);
        let (server, tracking) = self.begin(hv, None)?;
        let running = server.start()?;
        for _ in 0..self.random.u8(1..6) {
            tracking.change(&mut self.random, false)?;
            nap(&mut self.random, 10_000);
        }
        running.stop()?;
        let quiesced = server.quiesce(BOUND)?;
        if tracking.claim.marked_pages() > 0 {
            return Err("pages are marked at rest".into());
        }
        tracking.judge()?;
        self.saved = Some(quiesced.save());
        quiesced.leave()?;
        self.count(&server);
        self.round.tally.fault(Fault::Replaced, 1);
        Ok(())
    }

    /// One that dies in a request.
    fn be_killed(&mut self, kill: fn(&P::Hv)) -> Result<(), Failure> {
        let hv = Arc::new(self.guest.process()?);
        let way = [Way::Before, Way::Done, Way::Answered][self.random.usize(0..3)];
        let victim = Arc::clone(&hv);
        let death = Death::new(self.random.u64(0..300), way, move || kill(&victim));
        let (server, tracking) = self.begin(hv, Some(&death))?;
        let end = Instant::now() + BOUND;
        while !death.is_dead() {
            server.poll()?;
            if !death.is_dead() && self.random.u8(0..16) == 0 {
                tracking.change(&mut self.random, false)?;
            }
            if Instant::now() > end {
                return Err("nothing was asked of a device model that was to die".into());
            }
        }
        self.count(&server);
        self.graves.push(Box::new((tracking, server, death)));
        self.round.tally.fault(Fault::Killed, 1);
        Ok(())
    }

    /// The last one serves until the writers are through, and goes in peace.
    fn last<T>(
        &mut self,
        writers: &[ScopedJoinHandle<'_, T>],
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        let hv = Arc::new(self.guest.process()?);
        let (server, tracking) = self.begin(hv, None)?;
        let running = server.start()?;
        stop.store(true, Ordering::Relaxed);
        let end = Instant::now() + BOUND;
        while !writers.iter().all(ScopedJoinHandle::is_finished) {
            if Instant::now() > end {
                return Err("the guest's programs do not come to an end".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        tracking.leave_all()?;
        tracking.judge()?;
        running.stop()?;
        self.count(&server);
        drop(tracking);
        server.destroy().map_err(|err| err.error)?;
        match self.record.exists() {
            true => Err("the record outlives its server".into()),
            false => Ok(()),
        }
    }
}
