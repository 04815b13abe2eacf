// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loom model of the protocol: one page, a vCPU that writes it once, a worker, and the real [`Unmarker`].
//!
//! The vCPU and the worker are small models of Xen's side and of `server::service`; what is proven is that in no order of
//! their steps does the type change between an answer and its re-execution. Bound: 2 preemptions (set in the test), a few
//! seconds in a release build.

use loom::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;

const PAGE: Gfn = Gfn(5);
const NONE: u8 = 0;
const READY: u8 = 1;
const INPROCESS: u8 = 2;
const RESP_READY: u8 = 3;
const FREE: u8 = 0;
const HELD: u8 = 1;
const PARKED: u8 = 2;

struct World {
    /// Whether the page is marked; the lock is the p2m lock, under which a first pass traps.
    marked: Mutex<bool>,
    slot: AtomicU8,
    order: AtomicU8,
    parked: AtomicBool,
    known: AtomicBool,
    /// Held by the vCPU from consuming an answer until it has re-executed; a grace period waits for it.
    running: Mutex<()>,
    stores: AtomicU8,
    done: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(World {
            marked: Mutex::new(true),
            slot: AtomicU8::new(NONE),
            order: AtomicU8::new(FREE),
            parked: AtomicBool::new(false),
            known: AtomicBool::new(true),
            running: Mutex::new(()),
            stores: AtomicU8::new(0),
            done: AtomicBool::new(false),
        })
    }

    /// One store to the page.
    fn vcpu(&self) {
        {
            let marked = self.marked.lock().unwrap();
            if !*marked {
                self.stores.fetch_add(1, Ordering::Relaxed);
                self.done.store(true, Ordering::Release);
                return;
            }
            self.slot.store(READY, Ordering::Release);
        }
        while self.slot.load(Ordering::Acquire) != RESP_READY {
            thread::yield_now();
        }
        let _running = self.running.lock().unwrap();
        self.slot.store(NONE, Ordering::Release);
        assert!(
            *self.marked.lock().unwrap(),
            "domain crash: the type changed before re-execution"
        );
        self.done.store(true, Ordering::Release);
    }

    fn worker(&self) {
        while !self.done.load(Ordering::Acquire) {
            if self.slot.load(Ordering::Acquire) != READY {
                thread::yield_now();
                continue;
            }
            self.slot.store(INPROCESS, Ordering::Release);
            while let Err(now) =
                self.order
                    .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            {
                if now == PARKED {
                    self.parked.store(true, Ordering::Release);
                    while self.order.load(Ordering::Acquire) == PARKED {
                        thread::yield_now();
                    }
                    self.parked.store(false, Ordering::Release);
                }
                thread::yield_now();
            }
            self.stores.fetch_add(1, Ordering::Relaxed);
            self.order.store(FREE, Ordering::Release);
            self.slot.store(RESP_READY, Ordering::Release);
        }
    }
}

impl UnmarkEnv for Arc<World> {
    fn park(&self, _: Gfn) -> bool {
        self.order
            .compare_exchange(FREE, PARKED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
    fn unpark(&self, _: Gfn) {
        self.order.store(FREE, Ordering::Release);
    }
    fn is_leaving(&self, _: Gfn) -> bool {
        self.known.load(Ordering::Acquire)
    }
    fn look(&self, seen: &mut dyn FnMut(Look)) {
        match self.slot.load(Ordering::Acquire) {
            READY => seen(Look::Waiting(PAGE)),
            INPROCESS if self.parked.load(Ordering::Acquire) => seen(Look::Waiting(PAGE)),
            INPROCESS => seen(Look::Serving(PAGE)),
            RESP_READY => seen(Look::Answered(PAGE)),
            _ => {}
        }
    }
    fn grace(&self) -> Result<()> {
        drop(self.running.lock().unwrap());
        Ok(())
    }
    fn set_type(&self, ty: P2mType, _: GfnRange) -> Result<()> {
        *self.marked.lock().unwrap() = ty == P2mType::IoreqServer;
        Ok(())
    }
    fn forget(&self, _: GfnRange) {
        self.known.store(false, Ordering::Release);
        self.order.store(FREE, Ordering::Release);
    }
}

#[test]
fn loom_the_type_never_changes_under_a_write_in_flight() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 50_000;
    model.check(|| {
        let world = World::new();
        let vcpu = thread::spawn({
            let world = Arc::clone(&world);
            move || world.vcpu()
        });
        let worker = thread::spawn({
            let world = Arc::clone(&world);
            move || world.worker()
        });
        let mut unmarker = Unmarker::default();
        unmarker.push(PAGE.into());
        while unmarker.step(&world) != Step::Idle {
            thread::yield_now();
        }
        vcpu.join().unwrap();
        worker.join().unwrap();
        assert_eq!(
            world.stores.load(Ordering::Relaxed),
            1,
            "the write was made once"
        );
        if unmarker.stubborn().is_empty() {
            assert!(!*world.marked.lock().unwrap() && unmarker.unmarked() == 1);
        }
    });
}
