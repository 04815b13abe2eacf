// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a dispatcher keeps of its rate while another thread changes what it looks up, all the time.

use std::hint::spin_loop;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use crate::calm::{self, preemptions};
use crate::changes::{CHANGES, Changing, ChangingPages};
use crate::clock::{Figure, checked_slice, figure, median, one_thread, pin, writes_per_slice};
use crate::row::Row;
use crate::support::contender::check;
use crate::support::layout::Layout;
use crate::support::ours::Ranges;
use crate::support::peers::{Papaya, RwHash, RwTree, RwVmDevice, io_manager};
use crate::support::walk::{Pattern, Walk};

type Named = (&'static str, Box<dyn Changing>);

/// What the updater tells. In cache lines of its own: nothing that the dispatcher uses lies beside it.
#[derive(Default)]
#[repr(align(128))]
struct Told {
    stop: AtomicBool,
    /// Turns that it has made.
    turns: AtomicU64,
    /// Times that the kernel took its CPU away.
    preempted: AtomicI64,
}

/// Changes without a pause, on CPU 1, until told to stop.
fn update(contender: &dyn Changing, layout: Layout, told: &Told) {
    pin(1);
    let mut random = fastrand::Rng::with_seed(7);
    for turn in 1.. {
        // Relaxed, as all here: what is told orders nothing.
        if told.stop.load(Ordering::Relaxed) {
            return;
        }
        contender.turn(layout, random.u64(..layout.count), turn);
        told.turns.store(turn, Ordering::Relaxed);
        if turn.is_multiple_of(16) {
            told.preempted.store(preemptions(), Ordering::Relaxed);
        }
    }
}

/// Ends the updater, also if an answer was wrong.
struct Ending<'a>(&'a Told);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The dispatcher's time for a write on CPU 0, and the updater's for a change of `changed` meanwhile.
fn beside_updater(
    contender: &dyn Changing,
    changed: &dyn Changing,
    layout: Layout,
    mut walk: Walk,
    warm_up: u32,
) -> [Figure; 2] {
    let told = Told::default();
    std::thread::scope(|scope| {
        scope.spawn(|| update(changed, layout, &told));
        let _ending = Ending(&told);
        pin(0);
        while told.turns.load(Ordering::Relaxed) == 0 {
            spin_loop();
        }
        let writes = writes_per_slice(contender, &mut walk, warm_up);
        let started = Instant::now();
        let mut changes = Vec::new();
        let serving = figure(|| {
            let look = || {
                let turns = told.turns.load(Ordering::Relaxed);
                (turns, told.preempted.load(Ordering::Relaxed))
            };
            calm::wait();
            let (turns, preempted) = look();
            let looked = Instant::now();
            let (ns, disturbed) = checked_slice(contender, &mut walk, writes);
            let between = looked.elapsed();
            let (turns_after, preempted_after) = look();
            // No turn at all: the updater did not run.
            let disturbed = disturbed || preempted != preempted_after || turns == turns_after;
            if !disturbed {
                changes.push(between.as_secs_f64() * 1e9 / made(turns_after - turns));
            }
            (ns, disturbed)
        });
        if changes.is_empty() {
            let turns = told.turns.load(Ordering::Relaxed);
            changes.push(started.elapsed().as_secs_f64() * 1e9 / made(turns));
        }
        let disturbed = serving.disturbed;
        let ns = median(changes);
        [serving, Figure { ns, disturbed }]
    })
}

/// Changes that so many turns make; at least one.
#[allow(clippy::cast_precision_loss, reason = "some millions")]
fn made(turns: u64) -> f64 {
    turns.max(1) as f64 * f64::from(CHANGES)
}

fn ranges(layout: Layout) -> Vec<Named> {
    vec![
        ("ours", Box::new(Ranges::new(layout))),
        (
            "vm-device + RwLock",
            Box::new(RwVmDevice(RwLock::new(io_manager(layout)))),
        ),
        ("RwLock<BTreeMap>", Box::new(RwTree::new(layout))),
        ("RwLock<HashMap>", Box::new(RwHash::new(layout))),
        ("papaya", Box::new(Papaya::new(layout))),
    ]
}

fn pages(layout: Layout) -> Vec<Named> {
    vec![
        ("ours", Box::new(ChangingPages::new(layout))),
        ("RwLock<BTreeMap>", Box::new(RwTree::new(layout))),
        ("RwLock<HashMap>", Box::new(RwHash::new(layout))),
        ("papaya", Box::new(Papaya::new(layout))),
    ]
}

/// The patterns: without an updater, beside one, beside one that changes a map that nobody looks into (what two busy CPUs cost each
/// other), and what a change takes meanwhile.
const PATTERNS: [&str; 4] = ["no updater", "updater", "updater elsewhere", "a change"];

fn measure(
    name: &'static str,
    layout: Layout,
    make: fn(Layout) -> Vec<Named>,
    rounds: u32,
) -> Vec<Row> {
    let warm_up = crate::warm_up(layout.count, Pattern::Random);
    let contenders = make(layout);
    for (name, contender) in &contenders {
        check(name, &**contender, layout);
    }
    let elsewhere = make(layout).swap_remove(0).1;
    let mut all: Vec<[Vec<Figure>; 4]> = contenders.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for ((name, contender), series) in contenders.iter().zip(&mut all) {
            let walk = || Walk::new(layout, Pattern::Random, u64::from(round) * 7919);
            let [alone, beside, control, changing] = series;
            alone.push(one_thread(&**contender, walk(), warm_up));
            let [serving, change] =
                beside_updater(&**contender, &**contender, layout, walk(), warm_up);
            beside.push(serving);
            changing.push(change);
            if *name == "ours" {
                let [serving, _] =
                    beside_updater(&**contender, &*elsewhere, layout, walk(), warm_up);
                control.push(serving);
            }
        }
    }
    let mut rows = Vec::new();
    for ((contender, _), series) in contenders.iter().zip(&all) {
        for (pattern, figures) in PATTERNS.into_iter().zip(series) {
            if !figures.is_empty() {
                rows.push(Row::new(name, layout.count, pattern, contender, figures));
            }
        }
    }
    rows
}

/// All of it.
pub(crate) fn rows(rounds: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    for count in [256, 8192] {
        let layout = Layout::aligned(count);
        let name = "ranges beside an updater";
        rows.extend(measure(name, layout, ranges, rounds));
    }
    let mut layout = Layout::aligned(1_000_000);
    layout.devices = 8;
    let name = "tracked pages beside an updater";
    rows.extend(measure(name, layout, pages, rounds));
    rows
}
