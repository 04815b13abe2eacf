// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loom models of the slot protocol: the real `Slot` and `Taken` against a vCPU that does as Xen's `ioreq_send` and
//! `wait_for_io` do, over all interleavings and all values that the orderings allow.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p ioreq-core --release --target-dir target/loom --test slot_loom
//! ```
//!
//! Bounds: one slot; at most two requests in a row; two threads that poll until they succeed, or three of which those that
//! poll beside another one give up after [`PATIENCE`] looks (each such model asserts that it also ran to its end); at most
//! three preemptions with two threads, two with three. Time: seconds. Not modelled: several vCPUs (slots share nothing),
//! notification (a polling vCPU sees every answer).
//!
//! Loom 0.7 overlooks schedules in which one thread's load, another's load *and then store* of the same atomic change places:
//! it remembers the last access only. So `ioreq_send`'s test of a free slot is made at the end of each model instead, where it
//! says as much: nobody wrote to a slot that had been given back.
#![cfg(loom)]

use std::sync::Arc;

use ioreq_core::VcpuId;
use ioreq_core::abi::*;
use ioreq_core::slot::{SlotIndex, SlotMemory, Slots, Taken};
use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

/// One slot, in loom's atomics.
#[derive(Clone)]
struct Memory(Arc<Cells>);

struct Cells {
    addr: AtomicU64,
    data: AtomicU64,
    count: AtomicU32,
    size: AtomicU32,
    flags: AtomicU8,
    kind: AtomicU8,
}

impl Memory {
    fn new() -> Self {
        Memory(Arc::new(Cells {
            addr: AtomicU64::new(0),
            data: AtomicU64::new(0),
            count: AtomicU32::new(0),
            size: AtomicU32::new(0),
            flags: AtomicU8::new(STATE_IOREQ_NONE),
            kind: AtomicU8::new(0),
        }))
    }

    /// Nobody touched the slot after its vCPU took the answer.
    fn assert_free(&self) {
        let state = self.0.flags.load(Ordering::Relaxed) & IOREQ_STATE_MASK;
        assert_eq!(state, STATE_IOREQ_NONE, "device model set bad IO state");
    }

    /// Xen's `ioreq_send`: contents, barrier, READY.
    fn send(&self, number: u64, bits: u8) {
        let cells = &*self.0;
        cells.addr.store(number, Ordering::Relaxed);
        cells.data.store(number + 100, Ordering::Relaxed);
        cells.count.store(1, Ordering::Relaxed);
        cells
            .size
            .store(u32::try_from(number).unwrap(), Ordering::Relaxed);
        cells.kind.store(IOREQ_TYPE_COPY, Ordering::Relaxed);
        fence(Ordering::SeqCst); // prepare_wait_on_xen_event_channel
        cells
            .flags
            .store(bits | STATE_IOREQ_READY, Ordering::Relaxed);
    }

    /// Xen's `wait_for_io`: the state goes forward only, then the barrier, then NONE and the data.
    fn wait(&self, bits: u8) -> u64 {
        self.wait_for(bits, usize::MAX).expect("endless patience")
    }

    /// The same, for so many looks at most.
    fn wait_for(&self, bits: u8, looks: usize) -> Option<u64> {
        let cells = &*self.0;
        let mut previous = STATE_IOREQ_NONE;
        for _ in 0..looks {
            let flags = cells.flags.load(Ordering::Relaxed);
            fence(Ordering::Acquire); // smp_rmb
            assert_eq!(flags & !IOREQ_STATE_MASK, bits, "other bits were lost");
            let state = flags & IOREQ_STATE_MASK;
            assert!(
                state >= previous && state <= STATE_IORESP_READY,
                "domain crash"
            );
            previous = state;
            if state == STATE_IORESP_READY {
                break;
            }
            thread::yield_now();
        }
        if previous != STATE_IORESP_READY {
            return None;
        }
        cells
            .flags
            .store(bits | STATE_IOREQ_NONE, Ordering::Relaxed);
        Some(cells.data.load(Ordering::Relaxed))
    }
}

impl SlotMemory for Memory {
    fn flags(&self, _: SlotIndex, order: Ordering) -> u8 {
        self.0.flags.load(order)
    }
    fn set_flags(&self, _: SlotIndex, flags: u8, order: Ordering) {
        self.0.flags.store(flags, order);
    }
    fn addr(&self, _: SlotIndex) -> u64 {
        self.0.addr.load(Ordering::Relaxed)
    }
    fn data(&self, _: SlotIndex) -> u64 {
        self.0.data.load(Ordering::Relaxed)
    }
    fn set_data(&self, _: SlotIndex, data: u64) {
        self.0.data.store(data, Ordering::Relaxed);
    }
    fn count(&self, _: SlotIndex) -> u32 {
        self.0.count.load(Ordering::Relaxed)
    }
    fn size(&self, _: SlotIndex) -> u32 {
        self.0.size.load(Ordering::Relaxed)
    }
    fn vp_eport(&self, _: SlotIndex) -> u32 {
        0
    }
    fn kind(&self, _: SlotIndex) -> u8 {
        self.0.kind.load(Ordering::Relaxed)
    }
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

/// A model that may end early on some schedules; `body` says whether it ran to its end, and must on some.
fn model_that_may_give_up(preemptions: usize, body: impl Fn() -> bool + Sync + Send + 'static) {
    let complete = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&complete);
    model(preemptions, move || {
        if body() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_ne!(complete.load(Ordering::Relaxed), 0, "never ran to its end");
}

/// Looks of a thread that polls beside another one that polls: without a bound loom would let the two poll for ever.
const PATIENCE: usize = 2;

fn slots(memory: &Memory) -> Slots<Memory> {
    Slots::in_memory(memory.clone(), 1).unwrap()
}

/// Polls until there is a request, as a worker does.
fn take(slots: &Slots<Memory>) -> Taken<'_, Memory> {
    let slot = slots.get(VcpuId(0)).unwrap();
    poll(usize::MAX, || slot.take()).expect("endless patience")
}

fn poll<T>(looks: usize, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..looks {
        if let Some(found) = look() {
            return Some(found);
        }
        thread::yield_now();
    }
    None
}

/// The copy is of one request, whole.
fn check(taken: &Taken<'_, Memory>, number: u64) {
    let raw = taken.raw();
    assert_eq!((raw.addr, raw.data), (number, number + 100));
    assert_eq!((u64::from(raw.size), raw.count), (number, 1));
    assert_eq!(raw.kind, IOREQ_TYPE_COPY);
}

#[test]
fn loom_two_reads_in_a_row() {
    model(3, || {
        let memory = Memory::new();
        let vcpu = {
            let memory = memory.clone();
            thread::spawn(move || {
                for number in 1..=2 {
                    memory.send(number, IOREQ_DIR_READ);
                    assert_eq!(memory.wait(IOREQ_DIR_READ), number * 10);
                }
            })
        };
        let slots = slots(&memory);
        for number in 1..=2 {
            let taken = take(&slots);
            check(&taken, number);
            let _ = taken.answer(Some(number * 10));
        }
        vcpu.join().unwrap();
        memory.assert_free();
        assert_eq!(slots.abandoned(), 0);
    });
}

/// What a handler did before the answer is there for the guest after it: here, a store to guest memory.
#[test]
fn loom_a_store_to_memory_is_visible_after_the_answer() {
    model(3, || {
        let memory = Memory::new();
        let ram = Arc::new(AtomicU64::new(0));
        let vcpu = {
            let (memory, ram) = (memory.clone(), Arc::clone(&ram));
            thread::spawn(move || {
                memory.send(1, IOREQ_DF);
                memory.wait(IOREQ_DF);
                assert_eq!(ram.load(Ordering::Relaxed), 101);
            })
        };
        let slots = slots(&memory);
        let taken = take(&slots);
        ram.store(taken.raw().data, Ordering::Relaxed);
        let _ = taken.answer(None);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_deferred_to_another_thread() {
    model(2, || {
        let memory = Memory::new();
        let vcpu = {
            let memory = memory.clone();
            thread::spawn(move || {
                memory.send(1, IOREQ_DIR_READ);
                assert_eq!(memory.wait(IOREQ_DIR_READ), 10);
            })
        };
        let slots = slots(&memory);
        let owned = take(&slots).into_owned();
        let completer = thread::spawn(move || {
            check(&owned, 1);
            drop(owned.answer(Some(10)));
        });
        assert!(slots.get(VcpuId(0)).unwrap().take().is_none(), "twice");
        completer.join().unwrap();
        vcpu.join().unwrap();
        memory.assert_free();
        assert_eq!(slots.abandoned(), 0);
    });
}

/// The worker goes on with the slot meanwhile, and takes the next request whoever answered the last.
#[test]
fn loom_the_next_request_after_a_deferred_one() {
    model_that_may_give_up(2, || {
        let memory = Memory::new();
        let vcpu = {
            let memory = memory.clone();
            thread::spawn(move || {
                memory.send(1, IOREQ_DIR_READ);
                let Some(data) = memory.wait_for(IOREQ_DIR_READ, PATIENCE) else {
                    return;
                };
                assert_eq!(data, 10);
                memory.send(2, IOREQ_DIR_READ);
            })
        };
        let slots = slots(&memory);
        let owned = take(&slots).into_owned();
        let completer = thread::spawn(move || drop(owned.answer(Some(10))));
        let next = poll(PATIENCE, || slots.get(VcpuId(0)).unwrap().take());
        if let Some(taken) = &next {
            check(taken, 2);
        }
        let complete = next.map(|taken| taken.answer(Some(20))).is_some();
        completer.join().unwrap();
        vcpu.join().unwrap();
        complete
    });
}

#[test]
fn loom_dropped_here_then_dropped_by_another_thread() {
    model(3, || {
        let memory = Memory::new();
        let vcpu = {
            let memory = memory.clone();
            thread::spawn(move || {
                for number in 1..=2 {
                    memory.send(number, IOREQ_DIR_READ);
                    assert_eq!(memory.wait(IOREQ_DIR_READ), u64::MAX);
                }
            })
        };
        let slots = slots(&memory);
        drop(take(&slots));
        let owned = take(&slots).into_owned();
        thread::spawn(move || drop(owned)).join().unwrap();
        vcpu.join().unwrap();
        memory.assert_free();
        assert_eq!(slots.abandoned(), 2);
    });
}

/// A process takes a request and dies; the next one finds it INPROCESS, with all its fields.
#[test]
fn loom_taken_over() {
    model_that_may_give_up(3, || {
        let memory = Memory::new();
        let dead = {
            let slots = slots(&memory);
            thread::spawn(move || {
                std::mem::forget(slots.get(VcpuId(0)).unwrap().take());
            })
        };
        let heir = {
            let slots = slots(&memory);
            thread::spawn(move || {
                // One look: loom shows a thread that yielded no value again that it could have seen before.
                let taken = slots.get(VcpuId(0)).unwrap().resume();
                if let Some(taken) = &taken {
                    check(taken, 1);
                }
                taken.map(|taken| taken.answer(Some(10))).is_some()
            })
        };
        memory.send(1, IOREQ_DIR_READ);
        dead.join().unwrap();
        let answered = heir.join().unwrap();
        if answered {
            assert_eq!(memory.wait(IOREQ_DIR_READ), 10);
            memory.assert_free();
        }
        answered
    });
}

/// A look from aside shows the request of the state that it shows, or that of a later one.
#[test]
fn loom_peeked_at() {
    model_that_may_give_up(2, || {
        let memory = Memory::new();
        let vcpu = {
            let memory = memory.clone();
            thread::spawn(move || {
                memory.send(1, 0);
                if memory.wait_for(0, PATIENCE).is_some() {
                    memory.send(2, 0);
                }
            })
        };
        let observer = {
            let slots = slots(&memory);
            thread::spawn(move || {
                let view = slots.get(VcpuId(0)).unwrap().peek();
                if view.state != STATE_IOREQ_NONE {
                    assert!(matches!(view.addr, 1 | 2), "of no request");
                    assert_eq!(view.kind, IOREQ_TYPE_COPY);
                }
                view.state == STATE_IORESP_READY
            })
        };
        let slots = slots(&memory);
        let taken = poll(PATIENCE, || slots.get(VcpuId(0)).unwrap().take());
        if let Some(taken) = taken {
            let _ = taken.answer(None);
        }
        vcpu.join().unwrap();
        observer.join().unwrap()
    });
}
