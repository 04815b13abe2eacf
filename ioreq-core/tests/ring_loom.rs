// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loom models of the buffered ring: the real `BufferedRing` and `Consumer` against a sender that does as Xen's
//! `ioreq_send_buffered` does in the ATOMIC mode, rewinding included.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p ioreq-core --release --target-dir target/loom --test ring_loom
//! ```
//!
//! Bounds: the pointers start at 509 or 510, so that a few requests pass the end of the ring and make Xen rewind; at most
//! three requests; one sender, one or two consumers; at most three preemptions. Time: seconds. Both pointers are one 64-bit
//! atomic: their halves do not act on one another, and no carry happens below 2^32. Not modelled: a full ring.
//!
//! Loom 0.7 overlooks schedules in which one thread's load, another's load *and then store* of the same atomic change places:
//! it remembers the last access only. So the sender loads by adding 0, relaxed, which orders nothing.
#![cfg(loom)]

use std::sync::Arc;

use ioreq_core::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM, IOREQ_TYPE_COPY};
use ioreq_core::ring::{BufferedRing, EntryIndex, Pointers, RingMemory};
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

const LEN: u32 = IOREQ_BUFFER_SLOT_NUM;
/// Places from here to the end of the ring, and as many at its start, exist.
const FIRST: usize = LEN as usize - 2;

struct Page {
    pointers: AtomicU64,
    entries: [AtomicU64; 5],
}

#[derive(Clone)]
struct Memory(Arc<Page>);

fn split(both: u64) -> Pointers {
    let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
    Pointers {
        read: half(both),
        write: half(both >> 32),
    }
}

fn join(read: u32, write: u32) -> u64 {
    u64::from(write) << 32 | u64::from(read)
}

impl Memory {
    fn starting_at(pointer: u32) -> Self {
        Memory(Arc::new(Page {
            pointers: AtomicU64::new(join(pointer, pointer)),
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
        }))
    }

    fn place(&self, at: EntryIndex) -> &AtomicU64 {
        &self.0.entries[(at.get() + LEN as usize - FIRST) % LEN as usize]
    }

    /// Xen's load of both pointers (see the module's last paragraph).
    fn load(&self) -> u64 {
        self.0.pointers.fetch_add(0, Ordering::Relaxed)
    }

    /// Xen's `ioreq_send_buffered`, with its lock held.
    fn send(&self, data: u64, wide: bool) {
        let pointers = &self.0.pointers;
        let write = split(self.load()).write;
        let parts: &[u64] = if wide {
            &[data & 0xffff_ffff, data >> 32]
        } else {
            &[data]
        };
        let mut sent = 0;
        for &part in parts {
            let part = u32::try_from(part).unwrap();
            let log2 = if wide { 3 } else { 2 };
            let entry = BufIoreqEntry::new(IOREQ_TYPE_COPY, false, log2, 0, part);
            self.place(EntryIndex::of(write + sent))
                .store(entry.bits(), Ordering::Relaxed);
            sent += 1;
        }
        fence(Ordering::Release); // smp_wmb
        // A plain store of the one half, which nobody else writes.
        pointers.fetch_add(u64::from(sent) << 32, Ordering::Relaxed);
        loop {
            let read = split(self.load()).read;
            if read < LEN {
                break;
            }
            // Loaded twice, as compilers make of Xen's source: what the consumer did in between is lost.
            let old = self.load();
            let n = read / LEN * LEN;
            let new = join(read - n, split(old).write - n);
            let _raced = pointers.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}

impl RingMemory for Memory {
    fn pointers(&self, order: Ordering) -> Pointers {
        split(self.0.pointers.load(order))
    }
    fn read_pointer(&self, order: Ordering) -> u32 {
        split(self.0.pointers.load(order)).read
    }
    fn write_pointer(&self, order: Ordering) -> u32 {
        split(self.0.pointers.load(order)).write
    }
    fn advance(&self, by: u32, order: Ordering) -> u32 {
        split(self.0.pointers.fetch_add(u64::from(by), order)).read
    }
    fn entry(&self, at: EntryIndex) -> BufIoreqEntry {
        BufIoreqEntry::from_bits(self.place(at).load(Ordering::Relaxed))
    }
}

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn in_order(start: u32, requests: &'static [(u64, bool)]) {
    model(move || {
        let memory = Memory::starting_at(start);
        let xen = {
            let memory = memory.clone();
            thread::spawn(move || {
                for &(data, wide) in requests {
                    memory.send(data, wide);
                }
            })
        };
        let ring = BufferedRing::in_memory(memory.clone());
        let mut consumer = ring.consumer().unwrap();
        let mut expected = requests.iter();
        while expected.len() > 0 {
            let drained = consumer.drain(2, |item| {
                let got = item.expect("no anomaly");
                assert_eq!(Some(got.data()), expected.next().map(|&(data, _)| data));
            });
            if drained.taken == 0 {
                thread::yield_now();
            }
        }
        xen.join().unwrap();
        // What Xen lost is made up for here; nothing comes again.
        assert_eq!(consumer.drain(1, |_| panic!("one too many")).taken, 0);
        assert!(ring.is_empty());
    });
}

#[test]
fn loom_single_entries_across_the_end_and_a_rewind() {
    in_order(LEN - 1, &[(1, false), (2, false), (3, false)]);
}

#[test]
fn loom_a_pair_across_the_end_and_a_rewind() {
    in_order(LEN - 1, &[(0x2_0000_0001, true), (3, false)]);
}

#[test]
fn loom_a_pair_that_ends_at_the_end() {
    in_order(LEN - 2, &[(0x2_0000_0001, true), (3, false)]);
}

/// Whoever finds the ring empty after a write that went in before, finds it handled.
#[test]
fn loom_empty_means_handled() {
    model(|| {
        let memory = Memory::starting_at(LEN - 1);
        memory.send(1, false);
        let ring = Arc::new(BufferedRing::in_memory(memory.clone()));
        let handled = Arc::new(AtomicU64::new(0));
        let xen = {
            let memory = memory.clone();
            thread::spawn(move || memory.send(2, false))
        };
        let other = {
            let (ring, handled) = (Arc::clone(&ring), Arc::clone(&handled));
            thread::spawn(move || {
                if let Some(mut consumer) = ring.consumer() {
                    consumer.drain(1, |item| {
                        handled.store(item.unwrap().data(), Ordering::Relaxed);
                    });
                }
            })
        };
        if ring.is_empty() {
            assert_ne!(handled.load(Ordering::Relaxed), 0);
        }
        other.join().unwrap();
        xen.join().unwrap();
    });
}

/// Two workers want to drain: one gets to, and together they lose and repeat nothing.
#[test]
fn loom_one_consumer_at_a_time() {
    model(|| {
        let memory = Memory::starting_at(LEN - 1);
        memory.send(1, false);
        memory.send(2, false);
        let ring = Arc::new(BufferedRing::in_memory(memory));
        // Not atomic in spirit: only the consumer counts.
        let next = Arc::new(AtomicU64::new(1));
        let drain = move |ring: &BufferedRing<Memory>, next: &AtomicU64| {
            if let Some(mut consumer) = ring.consumer() {
                consumer.drain(1, |item| {
                    let number = next.load(Ordering::Relaxed);
                    assert_eq!(item.unwrap().data(), number);
                    next.store(number + 1, Ordering::Relaxed);
                });
            }
        };
        let other = {
            let (ring, next) = (Arc::clone(&ring), Arc::clone(&next));
            thread::spawn(move || drain(&ring, &next))
        };
        drain(&ring, &next);
        other.join().unwrap();
        while !ring.is_empty() {
            drain(&ring, &next);
        }
        assert_eq!(next.load(Ordering::Relaxed), 3);
    });
}
