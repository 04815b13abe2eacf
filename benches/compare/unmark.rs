// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What it takes to unmark pages on the model, by the safe protocol, with nobody who writes to them: operations of the hypervisor, and time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioreq::claim::PageTracker;
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{Gfn, GfnRange, Op, P2mType};

use crate::clock::each;
use crate::row::Row;
use crate::slices::Figure;

/// Pages that are marked, and unmarked.
const PAGES: u64 = 1 << 15;
/// Pages of the largest batch of the protocol.
const BATCH: u64 = 1024;
/// The first of them.
const FIRST: u64 = 0x1000;

struct Nothing;

impl PageHandler for Nothing {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// What a run took.
struct Taken {
    /// Changes of types, for each page.
    changes: f64,
    /// Grace periods, for each batch that the pages would fill.
    grace: f64,
    time: Figure,
}

/// How they are let go.
struct Case {
    pattern: &'static str,
    /// Pages of a call.
    call: u64,
    /// From one page to the next.
    step: u64,
    /// The control thread is at work meanwhile, and takes what is there at the moment.
    meanwhile: bool,
}

/// Unmarks all pages.
#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn unmark(case: &Case) -> ioreq::Result<Taken> {
    let Case {
        call,
        step,
        meanwhile,
        ..
    } = *case;
    let frames = GfnRange::sized(0, FIRST + PAGES * step)?;
    let domain = Machine::new().create_domain(DomainConfig::new(2).memory(frames))?;
    let server = IoreqServer::builder(domain.hypervisor()).build()?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("pages");
    let running = meanwhile.then(|| server.start()).transpose()?;
    let calls: Vec<GfnRange> = if step == 1 {
        GfnRange::sized(FIRST, PAGES)?.batches(call).collect()
    } else {
        let page = |page| Gfn(FIRST + page * step).into();
        (0..PAGES).map(page).collect()
    };
    for pages in &calls {
        let tracked = tracker.track(*pages, Arc::new(Nothing) as _);
        tracked.expect("free pages of the domain");
    }
    let before = domain.counts();
    let started = Instant::now();
    for pages in &calls {
        tracker.untrack(*pages)?;
    }
    while claim.marked_pages() > 0 {
        claim.settle(Duration::from_secs(60))?;
    }
    let time = started.elapsed();
    let after = domain.counts();
    if let Some(running) = running {
        running.stop()?;
    }
    for pages in &calls {
        let ty = domain.mem_type(Gfn(pages.first()));
        assert_eq!(ty, Some(P2mType::RamRw), "it is unmarked");
    }
    let made = |op| (after.dmop(op) - before.dmop(op)) as f64;
    Ok(Taken {
        changes: made(Op::SetMemType) / PAGES as f64,
        grace: made(Op::SetServerState) / (PAGES / BATCH) as f64,
        time: Figure {
            ns: each(time, u32::try_from(PAGES).unwrap_or(u32::MAX)),
            disturbed: false,
        },
    })
}

/// All of it.
pub(crate) fn rows(rounds: u32) -> Vec<Row> {
    let case = |pattern, call, step, meanwhile| Case {
        pattern,
        call,
        step,
        meanwhile,
    };
    let cases = [
        case("a page a call", 1, 1, false),
        case("a page a call, meanwhile", 1, 1, true),
        case("64 a call, meanwhile", 64, 1, true),
        case("1024 a call, meanwhile", 1024, 1, true),
        case("every other page", 1, 2, false),
    ];
    let mut rows = Vec::new();
    for case in cases {
        let pattern = case.pattern;
        let runs = (0..rounds).map(|_| unmark(&case).expect("the model refuses nothing of it"));
        let runs: Vec<Taken> = runs.collect();
        let of = |what: fn(&Taken) -> f64| runs.iter().map(what).collect::<Vec<f64>>();
        let called = |name| (name, PAGES, pattern, "ours");
        rows.push(Row::of(
            "calls",
            called("changes of types to unmark a page"),
            of(|taken| taken.changes),
        ));
        rows.push(Row::of(
            "calls",
            called("grace periods to unmark 1024 pages"),
            of(|taken| taken.grace),
        ));
        let times: Vec<Figure> = runs.iter().map(|taken| taken.time).collect();
        let name = "unmarking a page";
        rows.push(Row::new(name, PAGES, pattern, "ours", &times));
    }
    rows
}
