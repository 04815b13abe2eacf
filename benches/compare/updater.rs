// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a dispatcher keeps of its rate while another thread changes what it looks up, all the time.

use std::sync::RwLock;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::calm::preemptions;
use crate::changes::{Changing, ChangingPages, Turn};
use crate::clock::{checked_slice, pin, writes_per_slice};
use crate::line::{Line, Place};
use crate::row::Row;
use crate::slices::{Figure, TURNS, Unrest, figures};
use crate::support::contender::{check, serve_checked};
use crate::support::layout::Layout;
use crate::support::ours::Ranges;
use crate::support::peers::{Papaya, RwHash, RwTree, RwVmDevice, io_manager};
use crate::support::walk::{Pattern, Walk};

type Named = (&'static str, Box<dyn Changing>);

/// What dispatcher and updater tell each other. In cache lines of its own: nothing that the dispatcher uses lies beside it.
#[derive(Default)]
#[repr(align(128))]
struct Told {
    line: Line,
    /// Slices beside the updater that are over; all are, if an answer was wrong.
    over: AtomicUsize,
    /// Turns that the updater has made.
    turns: AtomicU64,
    /// Times that the kernel took its CPU away.
    preempted: AtomicI64,
}

impl Told {
    /// The updater's turns, and the times that it was interrupted.
    fn look(&self) -> (u64, i64) {
        (
            self.turns.load(Ordering::Relaxed),
            self.preempted.load(Ordering::Relaxed),
        )
    }
}

/// Writes by which is told how many make a slice.
const WARM_UP: u32 = 500;
/// The most ranges that are all looked for again between a slice beside the updater and one without it.
const MOST_AGAIN: u64 = 10_000;

/// Changes without a pause, on CPU 1, in every other slice.
fn update(contender: &dyn Changing, how: Turn, layout: Layout, told: &Told) {
    pin(1);
    let mut random = fastrand::Rng::with_seed(7);
    let mut place = Place::new(&told.line);
    let mut turn = 0;
    for slice in 1..=TURNS {
        place.wait_calm();
        // Relaxed, as all here: what is told orders nothing.
        while told.over.load(Ordering::Relaxed) < slice {
            turn += 1;
            how.make(contender, layout, random.u64(..layout.count), turn);
            told.turns.store(turn, Ordering::Relaxed);
            if turn.is_multiple_of(16) {
                told.preempted.store(preemptions(), Ordering::Relaxed);
            }
        }
        place.wait_calm();
    }
}

/// Ends the updater, also if an answer was wrong. (To be dropped after the dispatcher's place in the line.)
struct Ending<'a>(&'a Told);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(TURNS, Ordering::Relaxed);
    }
}

/// The dispatcher's time for a write on CPU 0 beside the updater, which changes `changed`; that without it, in turns; the ratio of the
/// two; and the updater's time for a change.
fn beside_updater(
    contender: &dyn Changing,
    (changed, how): (&dyn Changing, Turn),
    layout: Layout,
    mut walk: Walk,
) -> [Figure; 4] {
    // Of a million pages few are changed in a slice, so none need be looked for again.
    let again = if layout.count > MOST_AGAIN {
        0
    } else {
        crate::warm_up(layout.count, Pattern::Random)
    };
    let told = Told::default();
    std::thread::scope(|scope| {
        scope.spawn(|| update(changed, how, layout, &told));
        let _ending = Ending(&told);
        pin(0);
        let mut place = Place::new(&told.line);
        let (mut writes_beside, mut writes_alone) = (None, None);
        let turns = (1..=TURNS).map(|slice| {
            place.wait_calm();
            let writes = *writes_beside
                .get_or_insert_with(|| writes_per_slice(contender, &mut walk, WARM_UP));
            serve_checked(contender, &mut walk, writes);
            let (turns, preempted) = told.look();
            let looked = Instant::now();
            let (beside, unrest) = checked_slice(contender, &mut walk, writes);
            let between = looked.elapsed();
            let (turns_after, preempted_after) = told.look();
            told.over.store(slice, Ordering::Relaxed);
            // No turn at all: the updater did not run.
            let hindered = preempted != preempted_after || turns == turns_after;
            let hindered = if hindered {
                Unrest::SPOILT
            } else {
                Unrest::NONE
            };
            let change = between.as_secs_f64() * 1e9 / made(turns_after - turns, how);

            place.wait_calm();
            let writes = *writes_alone
                .get_or_insert_with(|| writes_per_slice(contender, &mut walk, WARM_UP));
            // What was changed comes back into this CPU's caches.
            serve_checked(contender, &mut walk, writes.max(again));
            let (alone, too) = checked_slice(contender, &mut walk, writes);
            let values = [beside, alone, beside / alone, change];
            (values, unrest.max(hindered).max(too))
        });
        figures(turns)
    })
}

/// Changes that so many turns make; at least one.
#[allow(clippy::cast_precision_loss, reason = "some millions")]
fn made(turns: u64, how: Turn) -> f64 {
    turns.max(1) as f64 * f64::from(how.changes())
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

/// Beside which updater: one whose ranges come and go, one that replaces ranges, too, and one that changes a map that nobody looks into
/// (what two busy CPUs cost each other).
const UPDATERS: [(&str, Turn); 3] = [
    ("updater", Turn::ComeAndGo),
    ("updater that replaces", Turn::Replacing),
    (ELSEWHERE, Turn::ComeAndGo),
];
const ELSEWHERE: &str = "updater elsewhere";

/// A contender's figures beside one updater: those of [`beside_updater`], and the ratios to no updater.
#[derive(Default)]
struct Series {
    figures: [Vec<Figure>; 3],
    ratios: Vec<f64>,
}

fn measure(
    name: &'static str,
    layout: Layout,
    make: fn(Layout) -> Vec<Named>,
    rounds: u32,
) -> Vec<Row> {
    let contenders = make(layout);
    for (name, contender) in &contenders {
        check(name, &**contender, layout);
    }
    let elsewhere = make(layout).swap_remove(0).1;
    let mut all: Vec<[Series; 3]> = contenders.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for ((contender, changing), all) in contenders.iter().zip(&mut all) {
            for ((pattern, how), series) in UPDATERS.into_iter().zip(all) {
                let changed = match pattern {
                    ELSEWHERE if *contender != "ours" => continue,
                    ELSEWHERE => &elsewhere,
                    _ => changing,
                };
                let walk = Walk::new(layout, Pattern::Random, u64::from(round) * 7919);
                let [beside, alone, ratio, change] =
                    beside_updater(&**changing, (&**changed, how), layout, walk);
                let figures = series.figures.iter_mut();
                figures
                    .zip([beside, alone, change])
                    .for_each(|(all, figure)| all.push(figure));
                series.ratios.push(ratio.ns);
            }
        }
    }
    let mut rows = Vec::new();
    for ((contender, _), all) in contenders.iter().zip(all) {
        for ((pattern, _), series) in UPDATERS.into_iter().zip(all) {
            let row = |pattern, figures: &[Figure]| {
                Row::new(name, layout.count, pattern, contender, figures)
            };
            let [beside, alone, change] = &series.figures;
            if beside.is_empty() {
                continue;
            }
            if pattern == "updater" {
                rows.push(row("no updater", alone));
                rows.push(row("a change", change));
            }
            rows.push(row(pattern, beside).in_turns_with("no updater", series.ratios));
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
