// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two trackers of one claim against a naive table of pages: who tracks what, what is marked, whose handler a store reaches.

#![cfg(not(loom))]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ioreq_core::claim::{PageState, PageTracker, Tracker};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq_core::server::IoreqServer;
use ioreq_core::{ErrorKind, Gfn, GfnRange, P2mType};
use ioreq_sim::{Domain, DomainConfig, Machine, SimHypervisor};
use proptest::prelude::*;
use vm_memory::GuestAddress;

/// The pages that are played with: the last of memory, and some beyond its end, which cannot be marked.
const FIRST: u64 = 0xff0;
const END: u64 = 0x1000;
const LAST: u64 = 0x1003;

/// Tells by a number which handler was called last.
struct Named(u64, Arc<AtomicU64>);

impl PageHandler for Named {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.1.store(self.0, Ordering::Relaxed);
        PageOutcome::Apply
    }
}

#[derive(Debug, Clone)]
enum Op {
    Track(usize, GfnRange),
    TrackEach(usize, Vec<u64>),
    Replace(usize, GfnRange),
    Untrack(usize, GfnRange),
    Settle,
}

fn range() -> impl Strategy<Value = GfnRange> {
    (FIRST..=LAST, 1_u64..6).prop_map(|(first, len)| {
        GfnRange::new(first, (first + len - 1).min(LAST)).expect("not empty")
    })
}

fn op() -> impl Strategy<Value = Op> {
    let each = prop::collection::vec(FIRST..=LAST, 0..8);
    prop_oneof![
        3 => (0_usize..2, range()).prop_map(|(who, pages)| Op::Track(who, pages)),
        4 => (0_usize..2, each).prop_map(|(who, pages)| Op::TrackEach(who, pages)),
        2 => (0_usize..2, range()).prop_map(|(who, pages)| Op::Replace(who, pages)),
        4 => (0_usize..2, range()).prop_map(|(who, pages)| Op::Untrack(who, pages)),
        2 => Just(Op::Settle),
    ]
}

/// How a page stands, as the oracle has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    /// By which tracker, with which handler.
    Tracked(usize, u64),
    Leaving,
    /// Leaving, because marking it failed.
    Unknown,
}

struct World {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    claim: ioreq_core::claim::MemTypeClaim<SimHypervisor>,
    trackers: [Tracker<SimHypervisor>; 2],
    called: Arc<AtomicU64>,
    /// Pages that are not ordinary.
    pages: BTreeMap<u64, Page>,
    /// Numbers handlers.
    next: u64,
}

impl World {
    fn new() -> Self {
        let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
        let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
        let claim = server.claim_mem_type().unwrap();
        let trackers = [claim.tracker("first"), claim.tracker("second")];
        World {
            domain,
            server,
            claim,
            trackers,
            called: Arc::default(),
            pages: BTreeMap::new(),
            next: 0,
        }
    }

    fn handler(&mut self) -> (u64, Arc<dyn PageHandler>) {
        self.next += 1;
        (
            self.next,
            Arc::new(Named(self.next, Arc::clone(&self.called))),
        )
    }

    /// What tracking the pages, each with the handler of that number, must do: in runs that stand alike, each all or nothing.
    fn expect_tracked(&mut self, who: usize, pages: &BTreeMap<u64, u64>) -> Option<ErrorKind> {
        let stands = |gfn: &u64| self.pages.get(gfn).copied();
        if pages
            .keys()
            .any(|gfn| matches!(stands(gfn), Some(Page::Tracked(..))))
        {
            return Some(ErrorKind::RouteConflict);
        }
        if pages.keys().any(|gfn| stands(gfn) == Some(Page::Unknown)) {
            return Some(ErrorKind::Retry);
        }
        let mut runs: Vec<Vec<u64>> = Vec::new();
        for gfn in pages.keys() {
            match runs.last_mut() {
                Some(run)
                    if run.last() == Some(&(gfn - 1))
                        && stands(gfn).is_some() == stands(&(gfn - 1)).is_some() =>
                {
                    run.push(*gfn);
                }
                _ => runs.push(vec![*gfn]),
            }
        }
        for run in runs {
            let leaving = self.pages.contains_key(&run[0]);
            let bad = !leaving && run.iter().any(|gfn| *gfn >= END);
            for gfn in run {
                let page = if bad {
                    Page::Unknown
                } else {
                    Page::Tracked(who, pages[&gfn])
                };
                self.pages.insert(gfn, page);
            }
            if bad {
                return Some(ErrorKind::WrongState);
            }
        }
        None
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Track(who, pages) => {
                let (number, handler) = self.handler();
                let given = pages.iter().map(|gfn| (gfn.0, number)).collect();
                let expected = self.expect_tracked(who, &given);
                let result = self.trackers[who].track(pages, handler);
                assert_eq!(result.err().map(|err| err.kind()), expected);
            }
            Op::TrackEach(who, gfns) => {
                let given: Vec<_> = gfns.iter().map(|gfn| (Gfn(*gfn), self.handler())).collect();
                let numbers: BTreeMap<u64, u64> =
                    given.iter().map(|(gfn, (n, _))| (gfn.0, *n)).collect();
                let twice = numbers.len() < gfns.len();
                let expected = match twice {
                    true => Some(ErrorKind::InvalidArgument),
                    false => self.expect_tracked(who, &numbers),
                };
                let given = given.into_iter().map(|(gfn, (_, handler))| (gfn, handler));
                let result = self.trackers[who].track_each(given.collect());
                let err = result.err();
                assert_eq!(err.as_ref().map(|err| err.kind()), expected);
                if let Some(err) = err.filter(|_| !twice) {
                    self.check_error(&err, &numbers);
                }
            }
            Op::Replace(who, pages) => {
                let (number, handler) = self.handler();
                let mine = |gfn: Gfn| matches!(self.pages.get(&gfn.0), Some(Page::Tracked(by, _)) if *by == who);
                let all = pages.iter().all(mine);
                let result = self.trackers[who].replace(pages, handler);
                assert_eq!(result.is_ok(), all);
                if all {
                    let new = pages.iter().map(|gfn| (gfn.0, Page::Tracked(who, number)));
                    self.pages.extend(new);
                }
            }
            Op::Untrack(who, pages) => {
                self.trackers[who].untrack(pages).unwrap();
                for (_, page) in self.pages.range_mut(pages.first()..=pages.last()) {
                    if matches!(page, Page::Tracked(by, _) if *by == who) {
                        *page = Page::Leaving;
                    }
                }
            }
            Op::Settle => {
                self.claim.settle(Duration::from_secs(10)).unwrap();
                self.pages
                    .retain(|_, page| matches!(page, Page::Tracked(..)));
            }
        }
    }

    /// A failure says of every page what became of it, as it is.
    fn check_error(&self, err: &ioreq_core::claim::MarkError, given: &BTreeMap<u64, u64>) {
        let all = |ranges: &[GfnRange]| -> BTreeSet<u64> {
            ranges
                .iter()
                .flat_map(GfnRange::iter)
                .map(|gfn| gfn.0)
                .collect()
        };
        let (done, unknown, untouched) = (all(&err.done), all(&err.unknown), all(&err.untouched));
        let told = done.len() + unknown.len() + untouched.len();
        assert_eq!(told, given.len(), "{err:?}");
        for (gfn, number) in given {
            let page = self.pages.get(gfn);
            let ours = matches!(page, Some(Page::Tracked(_, by)) if by == number);
            assert_eq!(done.contains(gfn), ours, "{gfn:#x}");
            if unknown.contains(gfn) {
                assert_eq!(page, Some(&Page::Unknown), "{gfn:#x}");
            }
        }
    }

    fn check(&self) {
        let mut dma = self.server.dma();
        for gfn in FIRST..=LAST {
            let page = self.pages.get(&gfn);
            let expected = match page {
                None => PageState::Untracked,
                Some(Page::Tracked(..)) => PageState::Tracked,
                Some(Page::Leaving | Page::Unknown) => PageState::Leaving,
            };
            for tracker in &self.trackers {
                assert_eq!(tracker.state(Gfn(gfn)), expected, "{gfn:#x}");
            }
            if gfn >= END {
                continue;
            }
            // What is unknown may be marked or not.
            if page != Some(&Page::Unknown) {
                let marked = self.domain.mem_type(Gfn(gfn)) == Some(P2mType::IoreqServer);
                assert_eq!(marked, page.is_some(), "{gfn:#x}");
            }
            self.called.store(0, Ordering::Relaxed);
            dma.write(GuestAddress(gfn << 12), &[1]).unwrap();
            let expected = match page {
                Some(Page::Tracked(_, number)) => *number,
                _ => 0,
            };
            assert_eq!(self.called.load(Ordering::Relaxed), expected, "{gfn:#x}");
        }
        assert_eq!(self.claim.marked_pages(), self.pages.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trackers_do_what_a_naive_table_says(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in ops {
            world.act(op);
            world.check();
        }
        let World { domain, server, claim, .. } = world;
        drop(claim);
        server.destroy().unwrap();
        prop_assert!(domain.leaks().is_clean(), "{:?}", domain.leaks());
    }
}
