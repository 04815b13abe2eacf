// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a claim against a write that traps: whatever their order, the write is made, the page unmarked before the type
//! is given up, and no vCPU finds its page changed between an answer and its re-execution.

use std::sync::Arc;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::world::{PAGE, World};
use super::{model, stop, worker};
use crate::claim::PageTracker;
use crate::handler::{Context, PageHandler, PageOutcome, PageWrite};

/// Counts writes.
struct Counts(Arc<AtomicUsize>);
impl PageHandler for Counts {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::Relaxed);
        PageOutcome::Apply
    }
}

/// Who serves beside the thread that drops the claim, which serves whenever nobody does.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nobody,
    /// A caller, for so many looks: without a bound loom would let it look for ever.
    Looks(usize),
    /// A worker.
    Worker,
}

/// Bound: one write, 3 preemptions.
#[test]
fn loom_a_claim_ends_under_a_write_in_flight() {
    model(3, || ends(Beside::Nobody));
}

/// Bound: one write, 4 looks, 1 preemption.
#[test]
fn loom_a_claim_ends_under_a_write_that_a_caller_serves() {
    model(1, || ends(Beside::Looks(4)));
}

/// Bound: one write, 1 preemption.
#[test]
fn loom_a_claim_ends_under_a_write_that_a_worker_serves() {
    model(1, || ends(Beside::Worker));
}

fn ends(beside: Beside) {
    let world = World::new();
    let server = world.server();
    let claim = server.claim_mem_type().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    claim
        .tracker("page")
        .track(PAGE.into(), Arc::new(Counts(Arc::clone(&calls))))
        .unwrap();
    let worker = (beside == Beside::Worker).then(|| worker(&server));
    let guest = thread::spawn({
        let world = Arc::clone(&world);
        move || world.store(5)
    });
    let caller = thread::spawn({
        let server = Arc::clone(&server);
        move || {
            let Beside::Looks(looks) = beside else { return };
            for _ in 0..looks {
                server.core().serve_unserved();
                thread::yield_now();
            }
        }
    });
    drop(claim);
    assert!(!world.is_claimed() && !world.is_marked());
    // The claim's end answers what had trapped; nothing can trap any more.
    guest.join().unwrap();
    caller.join().unwrap();
    if let Some(worker) = worker {
        stop(&server, worker);
    }
    assert_eq!(world.word(0), 5, "the write was lost");
    assert!(calls.load(Ordering::Relaxed) <= 1, "told twice");
}
