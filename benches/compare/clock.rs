// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Timing on a machine that others use, too: in slices so short that most are not disturbed. A slice in which one of its threads had to
//! share its CPU is thrown away (see [`calm`](crate::calm)); waiting of one's own accord (for a lock) counts.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::calm::{self, Watch};
use crate::support::contender::{Contender, serve_checked};
use crate::support::device::taken;
use crate::support::walk::{Ends, Walk};

/// How long a slice should take.
const SLICE: Duration = Duration::from_micros(125);
/// Undisturbed slices that make a figure.
const WANTED: usize = 15;
/// Slices after which those that were disturbed count as well.
const PATIENCE: usize = 10 * WANTED;

/// What a figure rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Nanoseconds of wall time per write, the threads' writes taken together.
    pub(crate) ns: f64,
    /// Too few slices were undisturbed, so that the figure is of disturbed ones.
    pub(crate) disturbed: bool,
}

/// Keeps this thread on one CPU, if the machine has it.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a set of CPUs is bits, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU numbers here are below the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the call reads the set, whose size is told.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Takes slices until enough are undisturbed. A slice says how long it took per write, and whether it was disturbed.
pub(crate) fn figure(mut slice: impl FnMut() -> (f64, bool)) -> Figure {
    let (mut good, mut all) = (Vec::new(), Vec::new());
    while good.len() < WANTED && all.len() < PATIENCE {
        let (ns, disturbed) = slice();
        all.push(ns);
        if !disturbed {
            good.push(ns);
        }
    }
    of_slices(good, all, WANTED)
}

/// Of undisturbed slices, or of all if too few of those that were wanted are.
fn of_slices(good: Vec<f64>, all: Vec<f64>, wanted: usize) -> Figure {
    let disturbed = good.len() < wanted / 3;
    Figure {
        ns: median(if disturbed { all } else { good }),
        disturbed,
    }
}

/// Nanoseconds for each of `count`.
pub(crate) fn each(elapsed: Duration, count: u32) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(count)
}

/// Writes that take about a slice. Serves `warm_up` writes on the way, and checks the answers to all of them.
pub(crate) fn writes_per_slice(contender: &dyn Contender, walk: &mut Walk, warm_up: u32) -> u32 {
    let started = Instant::now();
    serve_checked(contender, walk, warm_up);
    // The check's replay is in it, so that slices turn out shorter rather than longer.
    let write = started.elapsed() / warm_up;
    let writes = SLICE.as_nanos() / write.as_nanos().max(1);
    u32::try_from(writes).unwrap_or(u32::MAX).clamp(64, 1 << 20)
}

/// One slice: nanoseconds per write, and whether others had a part of the CPU meanwhile.
pub(crate) fn checked_slice(
    contender: &dyn Contender,
    walk: &mut Walk,
    writes: u32,
) -> (f64, bool) {
    let mut replay = walk.clone();
    let sum = taken();
    let watch = Watch::begin();
    let started = Instant::now();
    contender.serve(walk, writes);
    let elapsed = started.elapsed();
    let disturbed = watch.disturbed();
    // After the clock: the right devices ran.
    let made = walk.made();
    assert_eq!(taken().wrapping_sub(sum), replay.expected(made));
    (each(elapsed, made), disturbed)
}

/// One thread, on CPU 0.
pub(crate) fn one_thread(contender: &dyn Contender, mut walk: Walk, warm_up: u32) -> Figure {
    pin(0);
    let writes = writes_per_slice(contender, &mut walk, warm_up);
    figure(|| {
        calm::wait();
        checked_slice(contender, &mut walk, writes)
    })
}

/// Bytes that are walked over to empty a CPU's own caches: some times as many as they hold.
const OTHERS: usize = 4 << 20;
/// Writes between two such walks. The look at the clock is a part of it: some nanoseconds a write.
const COLD_WRITES: u32 = 16;
/// Slices of that many that make a figure.
const COLD_SLICES: usize = 151;

/// One thread, on CPU 0, whose L1 and L2 caches hold other things before every few writes, as after a real trap.
pub(crate) fn cold_thread(contender: &dyn Contender, mut walk: Walk, warm_up: u32) -> Figure {
    pin(0);
    serve_checked(contender, &mut walk, warm_up);
    let mut others = vec![1_u8; OTHERS];
    let (mut good, mut all) = (Vec::new(), Vec::new());
    for _ in 0..COLD_SLICES {
        calm::wait();
        for line in others.chunks_mut(64) {
            line[0] = line[0].wrapping_add(1);
        }
        black_box(&mut others);
        let (ns, disturbed) = checked_slice(contender, &mut walk, COLD_WRITES);
        all.push(ns);
        if !disturbed {
            good.push(ns);
        }
    }
    of_slices(good, all, COLD_SLICES)
}

/// Times that two threads look whether both CPUs are calm, in all slices of a figure: some tenths of a second.
const LOOKS: u32 = 1 << 16;

/// Threads that begin at the same time.
#[derive(Default)]
struct Line {
    arrived: CachePadded<AtomicUsize>,
    /// Looks that found a CPU that was not calm.
    restless: CachePadded<AtomicUsize>,
    /// Writes of a slice, the fewest that anybody thinks right.
    writes: AtomicU32,
    ends: Ends,
}

/// A thread's place in it.
struct Place<'a> {
    line: &'a Line,
    waited: usize,
    restless: usize,
    looks: u32,
}

impl<'a> Place<'a> {
    fn new(line: &'a Line) -> Self {
        Place {
            line,
            waited: 0,
            restless: 0,
            looks: LOOKS,
        }
    }

    /// Waits, spinning, until both have come.
    fn wait(&mut self) {
        self.waited += 2;
        // AcqRel: what was written before is seen after.
        self.line.arrived.fetch_add(1, Ordering::AcqRel);
        while self.line.arrived.load(Ordering::Acquire) < self.waited {
            spin_loop();
        }
    }

    /// Waits until both CPUs do as much as they can at the same time, which two threads of one core cannot, or no longer.
    fn wait_calm(&mut self) {
        while self.looks > 0 {
            self.looks -= 1;
            self.wait();
            if !calm::is_calm() {
                // Relaxed, and below: the line orders it. So both see the same number, and go on together.
                self.line.restless.fetch_add(1, Ordering::Relaxed);
            }
            self.wait();
            let before = self.restless;
            self.restless = self.line.restless.load(Ordering::Relaxed);
            if self.restless == before {
                return;
            }
        }
        self.wait();
    }
}

/// Two threads, on CPUs 0 and 1, that serve the same ranges, each from its own walk, until one has made all writes of the slice.
/// Nanoseconds per write of both together: half as many as one thread's if they do not hinder each other.
pub(crate) fn two_threads(contender: &dyn Contender, walks: [Walk; 2], warm_up: u32) -> Figure {
    let line = Line {
        writes: AtomicU32::new(u32::MAX),
        ..Line::default()
    };
    let [first, second] = walks;
    std::thread::scope(|scope| {
        let line = &line;
        let other = scope.spawn(move || slices(contender, second, warm_up, 1, line));
        let mine = slices(contender, first, warm_up, 0, line);
        let other = other.join().expect("the answers are right");
        let mut both = mine.into_iter().zip(other);
        figure(|| {
            both.next()
                .map_or((f64::NAN, true), |((a, a_disturbed), (b, b_disturbed))| {
                    (1.0 / (1.0 / a + 1.0 / b), a_disturbed || b_disturbed)
                })
        })
    })
}

/// As many slices as might be needed, each begun and ended together.
fn slices(
    contender: &dyn Contender,
    mut walk: Walk,
    warm_up: u32,
    cpu: usize,
    line: &Line,
) -> Vec<(f64, bool)> {
    pin(cpu);
    let mut place = Place::new(line);
    place.wait();
    let writes = writes_per_slice(contender, &mut walk, warm_up);
    // Relaxed: the line orders it.
    line.writes.fetch_min(writes, Ordering::Relaxed);
    place.wait();
    let slice = |number| {
        place.wait_calm();
        walk.together(&line.ends, number);
        checked_slice(contender, &mut walk, line.writes.load(Ordering::Relaxed))
    };
    (1..=PATIENCE).map(slice).collect()
}
