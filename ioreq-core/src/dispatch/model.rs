// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loom models of publish, retract, synchronize and the order byte, on the very source. Bound: 3 preemptions for the first
//! two, 2 for the third; seconds each in a release build.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::published::Published;
use super::*;
use crate::ids::Gfn;

/// A value that knows when it has been dropped.
struct Tracked(Arc<AtomicBool>);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 50_000;
    model.check(body);
}

#[test]
fn loom_a_reader_never_holds_what_was_freed() {
    model(3, || {
        let grace = Grace::new();
        let (first, second) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let value = std::sync::Arc::new(Published::new(Tracked(Arc::clone(&first)), grace.clone()));
        let mut reader = grace.reader();
        let looks = thread::spawn({
            let value = value.clone();
            move || {
                let mut guard = reader.enter();
                for _ in 0..2 {
                    let found = value.load(&guard);
                    thread::yield_now();
                    assert!(
                        !found.0.load(Ordering::Acquire),
                        "freed while a reader held it"
                    );
                    guard.quiesce();
                }
            }
        });
        value.publish(Tracked(Arc::clone(&second)));
        grace.collect();
        looks.join().unwrap();
        grace.collect();
        assert!(first.load(Ordering::Acquire), "never freed");
        assert!(!second.load(Ordering::Acquire));
    });
}

#[test]
fn loom_synchronize_returns_after_the_last_call_of_a_removed_route() {
    model(3, || {
        let grace = Grace::new();
        let ports = std::sync::Arc::new(PortMap::new(grace.clone()));
        let running = Arc::new(AtomicUsize::new(0));
        let range = crate::PortRange::new(1, 2).unwrap();
        let _new = ports.insert(range, &std::sync::Arc::new(()));
        let mut reader = grace.reader();
        let worker = thread::spawn({
            let (ports, running) = (ports.clone(), Arc::clone(&running));
            move || {
                let guard = reader.enter();
                if ports.find(1, 1, &guard).is_some() {
                    // The handler runs.
                    running.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                    running.fetch_sub(1, Ordering::Relaxed);
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
