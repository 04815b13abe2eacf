// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The comparison for the record: `cargo xtask bench` runs this and makes the table. Writes a line of JSON per figure to
//! standard output: every round's figure of every contender, interleaved.

mod calls;
mod calm;
mod changes;
mod clock;
#[path = "../../ioreq-core/tests/counting/mod.rs"]
mod counting;
mod floors;
mod guest;
mod line;
mod memory;
mod mixed;
mod plan;
mod round_trip;
mod row;
mod shadow;
mod slices;
#[path = "../support/mod.rs"]
mod support;
mod tracking;
mod unmark;
mod updater;

use clap::Parser;

use clock::{cold_thread, one_thread, two_threads};
use plan::{Group, Named};
use row::Row;
use slices::Figure;
use support::contender::check;
use support::walk::{Pattern, Walk};

/// Compares dispatch with peers.
#[derive(Parser)]
struct Args {
    /// Rounds; in each, every contender is measured once.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only groups whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Is the process whose system calls are counted.
    #[arg(long, hide = true)]
    traced: Option<calls::Waiting>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Writes before the clock starts: the caches hold what they will.
fn warm_up(count: u64, pattern: Pattern) -> u32 {
    let writes = match pattern {
        Pattern::Hot => 0,
        Pattern::Sequential => count,
        Pattern::Random | Pattern::Chained => (count * 4).min(400_000),
    };
    u32::try_from(writes).unwrap_or(u32::MAX).max(5000)
}

/// One contender in one pattern.
struct Series<'a> {
    contender: &'a Named,
    pattern: Pattern,
    threads: u32,
    cold: bool,
    figures: Vec<Figure>,
    /// For two threads.
    to_one: Vec<f64>,
}

impl Series<'_> {
    fn measure(&mut self, group: &Group, round: u32) {
        let warm_up = warm_up(group.layout.count, self.pattern);
        let walk = |thread: u64| {
            let seed = u64::from(round) * 0x1_0001 + thread * 7919;
            Walk::new(group.layout, self.pattern, seed % group.layout.count)
        };
        let (_, contender) = self.contender;
        self.figures.push(match self.threads {
            1 if self.cold => cold_thread(&**contender, walk(0), warm_up),
            1 => one_thread(&**contender, walk(0), warm_up),
            _ => {
                let both = two_threads(&**contender, [walk(0), walk(1)], warm_up);
                self.to_one.push(both.to_one);
                both.figure
            }
        });
    }

    fn pattern(&self) -> &'static str {
        if self.cold {
            "random, cold"
        } else {
            self.pattern.name()
        }
    }

    fn row(&self, group: &Group) -> Row {
        let row = Row::new(
            group.name,
            group.layout.count,
            self.pattern(),
            self.contender.0,
            &self.figures,
        );
        match self.threads {
            1 => row,
            more => row
                .by(more)
                .in_turns_with("one thread", self.to_one.clone()),
        }
    }
}

fn measure(group: &Group, rounds: u32) {
    let contenders = (group.make)(group.layout);
    for (name, contender) in &contenders {
        check(name, &**contender, group.layout);
    }
    let mut all = Vec::new();
    for contender in &contenders {
        for pattern in group.patterns {
            let by_two = group.by_two.contains(pattern);
            let threads: &[u32] = if by_two { &[1, 2] } else { &[1] };
            all.extend(threads.iter().map(|threads| Series {
                contender,
                pattern: *pattern,
                threads: *threads,
                cold: false,
                figures: Vec::new(),
                to_one: Vec::new(),
            }));
        }
        if group.cold {
            all.push(Series {
                contender,
                pattern: Pattern::Random,
                threads: 1,
                cold: true,
                figures: Vec::new(),
                to_one: Vec::new(),
            });
        }
    }
    // By pattern, so that what is compared is measured side by side.
    all.sort_by_key(|series| (series.pattern(), series.threads));
    for round in 0..rounds {
        for series in &mut all {
            series.measure(group, round);
        }
    }
    for series in &all {
        series.row(group).print();
    }
}

/// Measures so many rounds.
type Rows = fn(u32) -> Vec<Row>;

/// What is not writes to ranges that stay as they are.
const OTHERS: &[(&str, Rows)] = &[
    ("changes of tracked pages", tracking::rows),
    ("dispatch beside an updater", updater::rows),
    ("round trip on the model", round_trip::rows),
    ("mixed load on the model", mixed::rows),
    ("system calls of a round trip", calls::rows),
    ("an idle server", mixed::idle),
    ("unmarking on the model", unmark::rows),
    ("memory of tracked pages", memory::rows),
    ("shadow page tables on the model", shadow::rows),
];

fn main() {
    let args = Args::parse();
    if let Some(waiting) = args.traced {
        calls::traced(waiting).expect("the model refuses nothing of this");
        return;
    }
    let groups = plan::groups();
    for group in groups
        .iter()
        .filter(|group| group.name.contains(&args.only))
    {
        eprintln!("{}, {}", group.name, group.layout.count);
        measure(group, args.rounds.max(1));
    }
    for (name, rows) in OTHERS {
        if name.contains(&args.only) {
            eprintln!("{name}");
            rows(args.rounds.max(1)).iter().for_each(Row::print);
        }
    }
}
