// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loom models of publish, retract, synchronize and the order byte, on the very source, with tables of two entries a level.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ioreq-core --release --lib dispatch::model`

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::*;
use crate::handler::{Context, PageHandler, PageOutcome, PageWrite, Verdict};
use crate::ids::Gfn;
use crate::range::{GfnRange, MmioRange, PortRange};

/// A value that knows when it has been dropped.
struct Tracked(Arc<AtomicBool>);

impl Tracked {
    fn new() -> (Self, Arc<AtomicBool>) {
        let dropped = Arc::new(AtomicBool::new(false));
        (Tracked(Arc::clone(&dropped)), dropped)
    }

    /// What a handler does: it may take its time, and may not be freed meanwhile.
    fn call(&self) {
        assert!(
            !self.0.load(Ordering::Relaxed),
            "freed before it was called"
        );
        thread::yield_now();
        assert!(!self.0.load(Ordering::Relaxed), "freed under a reader");
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 50_000;
    model.check(body);
}

fn addrs(first: u64, last: u64) -> MmioRange {
    MmioRange::new(first, last).unwrap()
}

/// A range that shares its page with another comes and goes: entry, list and table change under the reader.
#[test]
fn loom_a_reader_never_holds_what_was_freed() {
    model(3, || {
        let grace = Grace::new();
        let map = std::sync::Arc::new(RangeMap::new(grace.clone()));
        let ((first, first_dropped), (second, second_dropped)) = (Tracked::new(), Tracked::new());
        map.insert(addrs(0, 0), first).unwrap();
        let mut reader = grace.reader();
        let looks = thread::spawn({
            let map = map.clone();
            move || {
                let mut guard = reader.enter();
                for addr in [0, 1] {
                    if let Some(found) = map.find(addr, 1, &guard) {
                        found.call();
                    }
                    guard.quiesce();
                }
            }
        });
        map.insert(addrs(1, 1), second).unwrap();
        assert!(map.remove(addrs(0, 0)));
        grace.collect();
        assert!(map.remove(addrs(1, 1)));
        looks.join().unwrap();
        grace.collect();
        assert!(first_dropped.load(Ordering::Relaxed), "never freed");
        assert!(second_dropped.load(Ordering::Relaxed), "never freed");
    });
}

/// What a reader remembers from an earlier look goes while it looks again.
#[test]
fn loom_what_was_found_last_is_not_found_after_it_was_freed() {
    model(3, || {
        let grace = Grace::new();
        let map = std::sync::Arc::new(RangeMap::new(grace.clone()));
        let (route, dropped) = Tracked::new();
        map.insert(addrs(0, 1), route).unwrap();
        let mut reader = grace.reader();
        let looks = thread::spawn({
            let map = map.clone();
            move || {
                let mut guard = reader.enter();
                for _ in 0..2 {
                    if let Some(found) = map.find(0, 1, &guard) {
                        found.call();
                    }
                    guard.quiesce();
                }
                drop(guard);
                // Asleep meanwhile: nobody waits for it.
                let guard = reader.enter();
                if let Some(found) = map.find(0, 1, &guard) {
                    found.call();
                }
            }
        });
        assert!(map.remove(addrs(0, 1)));
        grace.collect();
        looks.join().unwrap();
        grace.collect();
        assert!(dropped.load(Ordering::Relaxed), "never freed");
    });
}

/// The link that a reader remembers is in a table, which is freed while the reader quiesces, or is off line, or comes back.
#[test]
fn loom_a_link_that_is_remembered_is_not_followed_after_its_table_was_freed() {
    model(3, || {
        let grace = Grace::new();
        let map = std::sync::Arc::new(RangeMap::new(grace.clone()));
        for first in [0, 2] {
            map.insert(addrs(first, first + 1), Tracked::new().0)
                .unwrap();
        }
        let mut reader = grace.reader();
        // Remembered.
        assert!(map.find(0, 1, &reader.enter()).is_some());
        let looks = thread::spawn({
            let map = map.clone();
            move || {
                let mut guard = reader.enter();
                map.find(0, 1, &guard).map(Tracked::call);
                guard.quiesce();
                map.find(0, 1, &guard).map(Tracked::call);
            }
        });
        assert!(map.remove(addrs(0, 1)) && map.remove(addrs(2, 3)));
        grace.collect();
        looks.join().unwrap();
    });
}

/// Who was told that a route is gone does not find it, whatever it remembers, collected or not; nor do finds in another map of the
/// registry bring it back.
#[test]
fn loom_what_was_found_last_is_not_found_after_its_removal() {
    model(3, || {
        let grace = Grace::new();
        let maps = std::sync::Arc::new([0, 1].map(|_| RangeMap::new(grace.clone())));
        for map in &*maps {
            map.insert(addrs(0, 1), Tracked::new().0).unwrap();
        }
        let gone = Arc::new(AtomicBool::new(false));
        let mut reader = grace.reader();
        let looks = thread::spawn({
            let (maps, gone) = (maps.clone(), Arc::clone(&gone));
            move || {
                let mut guard = reader.enter();
                maps[0].find(0, 1, &guard).map(Tracked::call);
                guard.quiesce();
                let told = gone.load(Ordering::Acquire);
                let found = maps[0].find(0, 1, &guard);
                assert!(!told || found.is_none(), "found after its removal");
                found.map(Tracked::call);
                assert!(maps[1].find(0, 1, &guard).is_some());
                assert!(!told || maps[0].find(0, 1, &guard).is_none());
            }
        });
        assert!(maps[0].remove(addrs(0, 1)));
        gone.store(true, Ordering::Release);
        grace.collect();
        looks.join().unwrap();
    });
}

#[test]
fn loom_synchronize_returns_after_the_last_call_of_a_removed_route() {
    model(3, || {
        let grace = Grace::new();
        let ports = std::sync::Arc::new(PortMap::new(grace.clone()));
        let running = Arc::new(AtomicUsize::new(0));
        let range = PortRange::new(1, 2).unwrap();
        ports.insert(range, ()).unwrap();
        let mut reader = grace.reader();
        let worker = thread::spawn({
            let (ports, running) = (ports.clone(), Arc::clone(&running));
            move || {
                let mut guard = reader.enter();
                for _ in 0..2 {
                    if ports.find(1, 1, &guard).is_some() {
                        // The handler runs.
                        running.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                        running.fetch_sub(1, Ordering::Relaxed);
                    }
                    guard.quiesce();
                }
            }
        });
        assert!(ports.remove(range));
        grace.synchronize().unwrap();
        assert_eq!(
            running.load(Ordering::Relaxed),
            0,
            "a handler of the removed route runs"
        );
        worker.join().unwrap();
    });
}

/// Two threads retire and collect, one reads.
#[test]
fn loom_garbage_of_one_thread_is_freed_by_another_in_time() {
    model(2, || {
        let grace = Grace::new();
        let map = std::sync::Arc::new(PortMap::new(grace.clone()));
        let (route, dropped) = Tracked::new();
        let range = PortRange::new(0, 0).unwrap();
        map.insert(range, route).unwrap();
        let mut reader = grace.reader();
        let looks = thread::spawn({
            let map = map.clone();
            move || {
                let guard = reader.enter();
                if let Some(found) = map.find(0, 1, &guard) {
                    found.call();
                }
            }
        });
        let collects = thread::spawn({
            let grace = grace.clone();
            move || grace.collect()
        });
        assert!(map.remove(range));
        grace.collect();
        looks.join().unwrap();
        collects.join().unwrap();
        grace.collect();
        assert!(dropped.load(Ordering::Relaxed), "never freed");
    });
}

/// A page's own handler: its fallback is its number.
struct Own(u64, Tracked);

impl PageHandler for Own {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Drop
    }
    fn fallback(&self) -> Verdict {
        self.1.call();
        Verdict::Replace(self.0)
    }
}

/// A kind and its only handler go while a reader has the page's entry, and another kind wants the number, of which the model has one.
#[test]
fn loom_an_entry_of_a_kind_that_is_gone_leads_to_no_other_kind() {
    model(3, || {
        let grace = Grace::new();
        let pages = std::sync::Arc::new(PageMap::new(Gfn(1), grace.clone()).unwrap());
        let (tracked, dropped) = Tracked::new();
        let lead = |number, tracked| {
            let own: std::sync::Arc<dyn PageHandler> = std::sync::Arc::new(Own(number, tracked));
            let kind = pages.kind(&*own, number)?;
            kind.with(&own)
        };
        pages
            .insert(Gfn(0).into(), &lead(1, tracked).unwrap())
            .unwrap();
        let mut reader = grace.reader();
        let looks = thread::spawn({
            let pages = pages.clone();
            move || {
                let guard = reader.enter();
                let page = pages.find(Gfn(0), &guard);
                if let Some(Lead { route, own }) = page.and_then(|page| page.lead()) {
                    let number = own.map(|own| own.get().fallback());
                    assert_eq!(number, Some(Verdict::Replace(*route)), "of two kinds");
                }
            }
        });
        assert_eq!(pages.remove(Gfn(0).into()), 1);
        grace.collect();
        if let Some(other) = lead(2, Tracked::new().0) {
            pages.insert(Gfn(0).into(), &other).unwrap();
        }
        looks.join().unwrap();
        grace.collect();
        assert!(dropped.load(Ordering::Relaxed), "never freed");
        pages.clear();
        grace.collect();
        assert!(lead(3, Tracked::new().0).is_some(), "the number is lost");
    });
}

/// The only page of a leaf leaves and comes back while a reader is on its way to it: the leaf may go, and the page has
/// another order then. Whoever holds an order and still finds a route is the only one.
#[test]
fn loom_a_page_that_comes_back_has_one_order() {
    model(3, || {
        let grace = Grace::new();
        let pages = std::sync::Arc::new(PageMap::new(Gfn(1), grace.clone()).unwrap());
        let page = GfnRange::from(Gfn(0));
        let (route, dropped) = Tracked::new();
        pages.insert(page, &Counted::new(route)).unwrap();
        let inside = Arc::new(AtomicUsize::new(0));
        let serve = |reader: &mut Reader, pages: &PageMap<Tracked>, inside: &AtomicUsize| {
            let guard = reader.enter();
            let Some(page) = pages.find(Gfn(0), &guard) else {
                return;
            };
            let order = page.lock().unwrap();
            if let Some(route) = page.route() {
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two at once");
                route.call();
                inside.fetch_sub(1, Ordering::Relaxed);
            }
            drop(order);
        };
        let mut reader = grace.reader();
        let worker = thread::spawn({
            let (pages, inside) = (pages.clone(), Arc::clone(&inside));
            move || serve(&mut reader, &pages, &inside)
        });
        assert_eq!(pages.remove(page), 1);
        let (again, _) = Tracked::new();
        pages.insert(page, &Counted::new(again)).unwrap();
        serve(&mut grace.reader(), &pages, &inside);
        worker.join().unwrap();
        grace.collect();
        assert!(dropped.load(Ordering::Relaxed), "never freed");
    });
}

#[test]
fn loom_the_order_of_a_page_excludes_and_parks() {
    model(2, || {
        let grace = Grace::new();
        let pages = std::sync::Arc::new(PageMap::new(Gfn(1), grace.clone()).unwrap());
        pages.insert(Gfn(1).into(), &Counted::new(())).unwrap();
        // Two halves of one fact: whoever holds the order sees them equal.
        let halves = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let (pages, halves) = (pages.clone(), Arc::clone(&halves));
                let mut reader = grace.reader();
                thread::spawn(move || {
                    let guard = reader.enter();
                    let page = pages.find(Gfn(1), &guard).unwrap();
                    let Ok(order) = page.lock() else { return false };
                    let before = halves.0.load(Ordering::Relaxed);
                    assert_eq!(before, halves.1.load(Ordering::Relaxed), "not excluded");
                    halves.0.store(before + 1, Ordering::Relaxed);
                    thread::yield_now();
                    halves.1.store(before + 1, Ordering::Relaxed);
                    drop(order);
                    true
                })
            })
            .collect();
        let parked = pages.park(Gfn(1));
        let seen = (
            halves.0.load(Ordering::Relaxed),
            halves.1.load(Ordering::Relaxed),
        );
        if parked {
            assert_eq!(seen.0, seen.1, "parked while a write was served");
        }
        let served = writers
            .into_iter()
            .map(|w| usize::from(w.join().unwrap()))
            .sum::<usize>();
        if parked {
            assert_eq!(
                halves.0.load(Ordering::Relaxed),
                seen.0,
                "served while parked"
            );
        } else {
            assert_eq!(served, 2);
        }
    });
}
