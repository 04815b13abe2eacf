// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control side's background work: unmarking, the domain's life, overdue completions. Done by a thread of its own beside
//! workers, or in between by whoever serves the groups itself.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::core::{Core, unserved};
use super::exit::Exit;
use super::watchdog::Watchdog;
use crate::claim::Step;
use crate::hypervisor::{DomainState, Hypervisor};
use crate::sync::atomic::{AtomicBool, Ordering};

/// Between two looks at the domain's state, at overdue completions and at pages that would not come to rest.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Between two steps while slots drain.
const DRAIN: Duration = Duration::from_micros(50);

/// From one batch of pages to unmark to the next, unless that is full or somebody is in a hurry: a batch costs the same however many
/// pages are in it. Nobody waits longer for it who cannot go on: he makes the steps himself.
const GATHER: Duration = Duration::from_micros(500);

/// Between two looks at handlers that a stop waits for.
const STOPPING: Duration = Duration::from_millis(1);

/// What the control thread was told since it last looked.
#[derive(Debug, Default)]
struct Told {
    /// There is work.
    work: bool,
    /// Not to wait for more of it.
    enough: bool,
}

/// Wakes the control thread.
#[derive(Debug, Default)]
pub(super) struct ControlSignal {
    told: std::sync::Mutex<Told>,
    changed: Condvar,
    /// There is no control thread: whoever serves does its work.
    inline: AtomicBool,
}

impl ControlSignal {
    pub(super) fn wake(&self) {
        self.tell(true);
    }

    /// There is work, and with `enough` it does not wait for more.
    pub(super) fn tell(&self, enough: bool) {
        let mut told = self.told();
        let news = !told.work || enough && !told.enough;
        told.work = true;
        told.enough |= enough;
        drop(told);
        // Nobody makes a system call for a page that is gathered.
        if news {
            self.changed.notify_one();
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was told so far is looked at now.
    fn begin(&self) {
        *self.told() = Told::default();
    }

    /// Until there is work.
    fn wait(&self, longest: Duration) {
        let told = self.told();
        let waited = self
            .changed
            .wait_timeout_while(told, longest, |told| !told.work);
        drop(waited);
    }

    /// Until there is enough of it.
    fn gather(&self, longest: Duration) {
        let mut told = self.told();
        told.work = true;
        let waited = self
            .changed
            .wait_timeout_while(told, longest, |told| !told.enough);
        drop(waited);
    }

    pub(super) fn set_inline(&self, inline: bool) {
        // Relaxed: a hint; a waker written for nothing does no harm.
        self.inline.store(inline, Ordering::Relaxed);
    }

    pub(super) fn is_inline(&self) -> bool {
        // Relaxed: see `set_inline`.
        self.inline.load(Ordering::Relaxed)
    }
}

impl<H: Hypervisor> Core<H> {
    /// The control thread: runs until `stop` is set, or the domain ends.
    pub(super) fn control_loop(&self, stop: &AtomicBool) -> Option<Exit> {
        let mut ticked = Instant::now();
        let beat = self.watchdog.as_ref().map_or(TICK, Watchdog::beat);
        let mut beaten = ticked;
        let mut unmarked: Option<Instant> = None;
        // Acquire: pairs with the Release store of whoever stops the workers.
        while !stop.load(Ordering::Acquire) {
            let since = unmarked.map_or(GATHER, |last| last.elapsed());
            if since < GATHER && self.ledger().unmarker.may_gather() {
                self.control.gather(GATHER.saturating_sub(since));
            }
            self.control.begin();
            match self.step_unmark() {
                Step::Idle => self.control.wait(beat.saturating_sub(beaten.elapsed())),
                Step::Progress => unmarked = Some(Instant::now()),
                Step::Waiting => std::thread::sleep(DRAIN),
            }
            if beaten.elapsed() >= beat {
                beaten = Instant::now();
                self.watch_handlers();
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                if let Some(exit) = self.tick() {
                    return Some(exit);
                }
            }
        }
        // Whoever stops the workers waits for their handlers, too.
        while self.watchdog.is_some() && self.groups.iter().any(|group| unserved(group).is_none()) {
            self.watch_handlers();
            std::thread::sleep(STOPPING);
        }
        None
    }

    /// What is done every [`TICK`]: the domain's end is told, workers that sleep let go of memory that has been replaced, and look for
    /// requests of which no event told them.
    pub(super) fn tick(&self) -> Option<Exit> {
        self.ledger().unmarker.retry_stubborn();
        self.wake_for_overlooked();
        let state = self.domain_state();
        let epoch = self.memory_epoch();
        // Relaxed: a waker written twice does no harm.
        if self.memory_told.swap(epoch, Ordering::Relaxed) != epoch {
            self.wake_all();
        }
        match state {
            Ok(DomainState::Running) => None,
            Ok(DomainState::Shutdown(reason)) => Some(Exit::Shutdown(reason)),
            Ok(DomainState::Gone) => Some(Exit::DomainGone),
            Err(err) => {
                tracing::warn!(%err, "the domain's state cannot be told");
                None
            }
        }
    }

    /// A few steps of background work by a thread that serves.
    pub(super) fn inline_work(&self, ticked: &mut Instant) -> (Step, Option<Exit>) {
        let step = self.step_unmark();
        let mut exit = None;
        if ticked.elapsed() >= TICK {
            *ticked = Instant::now();
            self.watch_handlers();
            exit = self.tick();
        }
        (step, exit)
    }
}
