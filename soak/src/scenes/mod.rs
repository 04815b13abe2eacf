// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What goes on: each scene is an affair of one domain, round after round.

mod busy;
mod devices;
mod drive;
mod ends;
mod lives;
mod rivals;
mod tracking;
mod vgpu;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use fastrand::Rng;

use crate::Failure;
use crate::options::Options;
use crate::platform::{Guest, Platform};
use crate::tally::{Check, Tally};

/// A scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scene {
    /// One device model, everything that a guest can do, and every fault that a server outlives.
    Busy,
    /// Device models that are replaced, or killed in a request, under a guest that goes on.
    Lives,
    /// Two servers fight for the memory type.
    Rivals,
    /// Domains that are destroyed, shut down or crashed under load.
    Ends,
    /// GPU contexts with their shadow page tables.
    Vgpu,
}

impl Scene {
    /// Those that there are on a hypervisor.
    pub(crate) fn on<P: Platform>(platform: &P) -> Vec<Scene> {
        let all = Self::value_variants().iter().copied();
        all.filter(|scene| *scene != Scene::Vgpu || platform.model().is_some())
            .collect()
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scene::Busy => "busy",
            Scene::Lives => "lives",
            Scene::Rivals => "rivals",
            Scene::Ends => "ends",
            Scene::Vgpu => "vgpu",
        }
    }

    pub(crate) fn run<P: Platform>(self, round: &Round<'_, P>) -> Result<(), Failure> {
        match self {
            Scene::Busy => busy::round(round),
            Scene::Lives => lives::round(round),
            Scene::Rivals => rivals::round(round),
            Scene::Ends => ends::round(round),
            Scene::Vgpu => vgpu::round(round),
        }
    }
}

/// One round of a scene.
pub(crate) struct Round<'a, P> {
    pub(crate) platform: &'a P,
    pub(crate) tally: Arc<Tally>,
    pub(crate) pulse: &'a Pulse,
    /// Which one: scenes do not do the same in each.
    pub(crate) number: u64,
    seed: u64,
    /// When it is to come to its end.
    pub(crate) until: Instant,
}

impl<'a, P: Platform> Round<'a, P> {
    pub(crate) fn new(
        platform: &'a P,
        scene: Scene,
        number: u64,
        options: &Options,
        tally: &Arc<Tally>,
        pulse: &'a Pulse,
        epoch_ends: Instant,
    ) -> Self {
        let length = platform.round_length();
        Round {
            platform,
            tally: Arc::clone(tally),
            pulse,
            number,
            seed: mixed(mixed(options.seed()) ^ mixed(scene as u64) ^ number),
            until: epoch_ends.min(Instant::now() + length),
        }
    }

    /// A source of numbers of this round; each `purpose` has its own, so that one does not disturb the others.
    pub(crate) fn random(&self, purpose: u64) -> Rng {
        Rng::with_seed(mixed(self.seed ^ mixed(purpose)))
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// Spreads the bits of a number (the finaliser of splitmix64).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Shows that a scene goes on.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    beats: AtomicU64,
    rests: AtomicBool,
}

// Relaxed: they are compared with themselves.
impl Pulse {
    pub(crate) fn beat(&self) {
        self.rests.store(false, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing goes on until the next beat.
    pub(crate) fn rest(&self) {
        self.rests.store(true, Ordering::Relaxed);
    }

    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    pub(crate) fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }
}

/// Sleeps for up to `most` microseconds.
fn nap(random: &mut Rng, most: u64) {
    std::thread::sleep(Duration::from_micros(random.u64(0..=most)));
}

/// What a thread came to.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().map_err(|_| "a thread panicked")?
}

/// Nothing of the domain's servers is left.
fn clean<P: Platform>(round: &Round<'_, P>, guest: &impl Guest) -> Result<(), Failure> {
    match guest.leaks()? {
        Some(leaks) => Err(leaks.into()),
        None => {
            round.tally.checked(Check::Clean, 1);
            Ok(())
        }
    }
}
