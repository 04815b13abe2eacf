// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Timing on a machine that others use, too: in slices so short that most are not disturbed. A slice in which one of its threads had to
//! share its CPU is thrown away (see [`calm`](crate::calm)); waiting of one's own accord (for a lock) counts.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::calm::{Patience, Watch};
use crate::line::{Line, Place};
use crate::slices::{Figure, TURNS, Unrest, figure, figures, of_slices};
use crate::support::contender::{Contender, serve_checked};
use crate::support::device::taken;
use crate::support::walk::{Ends, Walk};

/// How long a slice should take.
const SLICE: Duration = Duration::from_micros(125);

/// Keeps this thread on one CPU, if the machine has it.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a set of CPUs is bits, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU numbers here are below the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the call reads the set, whose size is told.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
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
    u32::try_from(writes).unwrap_or(u32::MAX).clamp(8, 1 << 20)
}

/// One slice: nanoseconds per write, and how much others disturbed it.
pub(crate) fn checked_slice(
    contender: &dyn Contender,
    walk: &mut Walk,
    writes: u32,
) -> (f64, Unrest) {
    let mut replay = walk.clone();
    let sum = taken();
    let watch = Watch::begin();
    let started = Instant::now();
    contender.serve(walk, writes);
    let elapsed = started.elapsed();
    let unrest = watch.end();
    // After the clock: the right devices ran.
    let made = walk.made();
    assert_eq!(taken().wrapping_sub(sum), replay.expected(made));
    (each(elapsed, made), unrest)
}

/// One thread, on CPU 0.
pub(crate) fn one_thread(contender: &dyn Contender, mut walk: Walk, warm_up: u32) -> Figure {
    pin(0);
    let writes = writes_per_slice(contender, &mut walk, warm_up);
    let mut patience = Patience::little();
    figure(|| {
        patience.wait();
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
    let (mut all, mut patience) = (Vec::new(), Patience::little());
    for _ in 0..COLD_SLICES {
        patience.wait();
        for line in others.chunks_mut(64) {
            line[0] = line[0].wrapping_add(1);
        }
        black_box(&mut others);
        let (ns, unrest) = checked_slice(contender, &mut walk, COLD_WRITES);
        all.push(([ns], unrest));
    }
    let [figure] = of_slices(all, COLD_SLICES);
    figure
}

/// Two threads, on CPUs 0 and 1, that serve the same ranges, each from its own walk, until one has made all writes of the slice.
/// Nanoseconds per write of both together: half as many as one thread's if they do not hinder each other. In between, each makes a
/// slice by itself, so that what both do is compared with what one does at the same time on the same CPUs.
pub(crate) fn two_threads(contender: &dyn Contender, walks: [Walk; 2], warm_up: u32) -> Together {
    let shared = Shared {
        line: Line::default(),
        writes: AtomicU32::new(u32::MAX),
        ends: Ends::default(),
    };
    let [first, second] = walks;
    let (mine, other) = std::thread::scope(|scope| {
        let shared = &shared;
        let other = scope.spawn(move || turns(contender, second, warm_up, 1, shared));
        let mine = turns(contender, first, warm_up, 0, shared);
        (mine, other.join().expect("the answers are right"))
    });
    // What the two do in the same time, and an average one of them.
    let both = |a: f64, b: f64| 1.0 / (1.0 / a + 1.0 / b);
    let turns = mine.into_iter().zip(other).map(|(a, b)| {
        let together = both(a.together, b.together);
        let to_one = together / (2.0 * both(a.alone, b.alone));
        ([together, to_one], a.unrest.max(b.unrest))
    });
    let [figure, to_one] = figures(turns);
    let to_one = to_one.ns;
    Together { figure, to_one }
}

/// What two threads do.
pub(crate) struct Together {
    pub(crate) figure: Figure,
    /// Time of a write by both, to that of one thread by itself.
    pub(crate) to_one: f64,
}

/// What they share.
struct Shared {
    line: Line,
    /// Writes of a slice, the fewest that anybody thinks right.
    writes: AtomicU32,
    ends: Ends,
}

/// A thread's slices of a turn: nanoseconds per write.
struct Turn {
    together: f64,
    alone: f64,
    unrest: Unrest,
}

/// As many turns as might be needed, each slice begun and ended together.
fn turns(
    contender: &dyn Contender,
    mut walk: Walk,
    warm_up: u32,
    cpu: usize,
    shared: &Shared,
) -> Vec<Turn> {
    pin(cpu);
    let mut place = Place::new(&shared.line);
    place.wait();
    let writes = writes_per_slice(contender, &mut walk, warm_up);
    // Relaxed: the line orders it.
    shared.writes.fetch_min(writes, Ordering::Relaxed);
    place.wait();
    let writes = shared.writes.load(Ordering::Relaxed);
    let mut turn = |number| {
        place.wait_calm();
        walk.together(&shared.ends, number);
        let (together, mut unrest) = checked_slice(contender, &mut walk, writes);
        walk.by_itself();
        let mut alone = f64::NAN;
        for whose in 0..2 {
            place.wait_calm();
            if whose == cpu {
                let (ns, too) = checked_slice(contender, &mut walk, writes);
                alone = ns;
                unrest = unrest.max(too);
            }
        }
        Turn {
            together,
            alone,
            unrest,
        }
    };
    (1..=TURNS).map(&mut turn).collect()
}
