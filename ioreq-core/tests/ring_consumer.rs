// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The consumer of the buffered ring on a real page, against a producer that does as Xen's `ioreq_send_buffered` does.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use ioreq_core::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM, IOREQ_TYPE_COPY};
use ioreq_core::hypervisor::SharedPage;
use ioreq_core::request::BufferedRequest;
use ioreq_core::ring::{BufferedRing, Drained, EntryIndex, Pointers, RingAnomaly, RingMemory};
use proptest::prelude::*;

const LEN: u32 = IOREQ_BUFFER_SLOT_NUM;

/// The page: both pointers in word 0 (read below, write above), then the entries.
#[repr(align(4096))]
struct Page([AtomicU64; 512]);

impl Page {
    fn new() -> Arc<Page> {
        Arc::new(Page([const { AtomicU64::new(0) }; 512]))
    }

    fn ring(self: &Arc<Page>) -> BufferedRing {
        let addr = NonNull::from(&**self).cast();
        // SAFETY: 4096 bytes of atomics, which live as long as the Arc that the page keeps.
        let page = unsafe { SharedPage::new(addr, Arc::clone(self) as _) };
        BufferedRing::new(page.expect("aligned"))
    }

    fn pointers(&self) -> (u32, u32) {
        split(self.0[0].load(Ordering::Acquire))
    }

    fn set_pointers(&self, read: u32, write: u32) {
        self.0[0].store(join(read, write), Ordering::Release);
    }

    fn set_entry(&self, pointer: u32, entry: BufIoreqEntry) {
        self.0[1 + (pointer % LEN) as usize].store(entry.bits(), Ordering::Relaxed);
    }

    /// Xen's side. False if there is no room.
    fn send(&self, wide: bool, data: u64) -> bool {
        let entries = if wide { 2 } else { 1 };
        let (read, write) = self.pointers();
        if write.wrapping_sub(read) >= LEN - (entries - 1) {
            return false;
        }
        self.set_entry(write, entry(wide, low(data)));
        if wide {
            self.set_entry(write.wrapping_add(1), entry(wide, low(data >> 32)));
        }
        fence(Ordering::Release); // smp_wmb
        // A plain store of one half on Xen's side; it is the only writer of that half.
        self.0[0].fetch_add(u64::from(entries) << 32, Ordering::Relaxed);
        for _ in entries..=LEN {
            let (read, write) = self.pointers();
            if read < LEN {
                break;
            }
            let n = read / LEN * LEN;
            let _raced = self.0[0].compare_exchange(
                join(read, write),
                join(read - n, write - n),
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
        true
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap()
}

fn split(both: u64) -> (u32, u32) {
    (low(both), low(both >> 32))
}

fn join(read: u32, write: u32) -> u64 {
    u64::from(write) << 32 | u64::from(read)
}

fn entry(wide: bool, data: u32) -> BufIoreqEntry {
    BufIoreqEntry::new(
        IOREQ_TYPE_COPY,
        false,
        if wide { 3 } else { 2 },
        0xa0000,
        data,
    )
}

type Item = Result<BufferedRequest, RingAnomaly>;

fn drain(ring: &BufferedRing, budget: u32) -> (Vec<Item>, Drained) {
    let mut items = vec![];
    let drained = ring
        .consumer()
        .expect("free")
        .drain(budget, |item| items.push(item));
    (items, drained)
}

fn data(items: &[Item]) -> Vec<u64> {
    items.iter().map(|item| item.unwrap().data()).collect()
}

#[test]
fn empty_then_one_then_empty() {
    let page = Page::new();
    let ring = page.ring();
    assert!(ring.is_empty());
    assert_eq!(drain(&ring, 5), (vec![], Drained::default()));
    assert!(page.send(false, 7));
    assert!(!ring.is_empty());
    let (items, drained) = drain(&ring, 5);
    assert_eq!(data(&items), [7]);
    assert_eq!(
        drained,
        Drained {
            taken: 1,
            more: false
        }
    );
    assert!(ring.is_empty());
    assert_eq!(page.pointers(), (1, 1));
}

#[test]
fn the_budget_bounds_a_drain() {
    let page = Page::new();
    let ring = page.ring();
    for n in 0..5 {
        assert!(page.send(n % 2 == 1, n));
    }
    assert_eq!(
        drain(&ring, 0).1,
        Drained {
            taken: 0,
            more: true
        }
    );
    let (items, drained) = drain(&ring, 2);
    assert_eq!(
        (data(&items), drained),
        (
            vec![0, 1],
            Drained {
                taken: 2,
                more: true
            }
        )
    );
    let (items, drained) = drain(&ring, 3);
    assert_eq!(
        (data(&items), drained),
        (
            vec![2, 3, 4],
            Drained {
                taken: 3,
                more: false
            }
        )
    );
}

#[test]
fn a_full_ring_is_no_anomaly() {
    let page = Page::new();
    let ring = page.ring();
    let mut sent = 0;
    while page.send(false, sent) {
        sent += 1;
    }
    assert_eq!(sent, u64::from(LEN));
    assert_eq!(page.pointers(), (0, LEN));
    let (items, drained) = drain(&ring, u32::MAX);
    assert_eq!(data(&items), (0..sent).collect::<Vec<_>>());
    assert!(!drained.more && page.send(true, 0), "room again");
}

#[test]
fn pairs_cross_the_end_and_pointers_are_rewound() {
    let page = Page::new();
    let ring = page.ring();
    page.set_pointers(LEN - 1, LEN - 1);
    let wide = 0x0123_4567_89ab_cdef;
    assert!(page.send(true, wide)); // in places 510 and 0
    assert_eq!(data(&drain(&ring, 1).0), [wide]);
    assert_eq!(page.pointers(), (LEN + 1, LEN + 1));
    assert!(page.send(false, 2));
    assert_eq!(page.pointers(), (1, 2), "rewound by the send");
    assert_eq!(data(&drain(&ring, 9).0), [2]);
}

#[test]
fn a_rewind_while_an_entry_is_handled_is_not_undone() {
    let page = Page::new();
    let ring = page.ring();
    page.set_pointers(LEN, LEN);
    page.0[0].fetch_add(1 << 32, Ordering::Relaxed);
    page.set_entry(LEN, entry(false, 1));
    let mut seen = vec![];
    ring.consumer().unwrap().drain(1, |item| {
        seen.push(item);
        assert!(page.send(false, 2));
        assert_eq!(page.pointers(), (0, 2), "rewound");
    });
    assert_eq!(data(&seen), [1]);
    assert_eq!(page.pointers(), (1, 2));
    assert_eq!(data(&drain(&ring, 9).0), [2]);
}

#[test]
fn an_entry_counts_as_there_until_it_was_handled() {
    let page = Page::new();
    let ring = page.ring();
    page.send(false, 1);
    ring.consumer().unwrap().drain(1, |_| {
        assert!(!ring.is_empty());
        assert!(ring.consumer().is_none(), "two consumers");
    });
    assert!(ring.is_empty());
    assert!(ring.consumer().is_some(), "given back");
}

#[test]
fn a_panic_gives_the_entry_and_the_ring_up() {
    for wide in [false, true] {
        let page = Page::new();
        let ring = page.ring();
        page.send(wide, 1);
        page.send(false, 2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            drain_with(&ring, |_| panic!("a handler's"))
        }));
        assert!(panicked.is_err());
        let (read, _) = page.pointers();
        assert_eq!(read, if wide { 2 } else { 1 }, "given up at once");
        assert_eq!(data(&drain(&ring, 9).0), [2], "once, and no more");
    }
}

fn drain_with(ring: &BufferedRing, handle: impl FnMut(Item)) {
    ring.consumer().expect("free").drain(1, handle);
}

/// Pointers that go round while `is_empty` looks: from one entry in the ring, by a rewind and 510 sends, to a full ring.
struct LapBetweenLoads(AtomicU64);

impl LapBetweenLoads {
    fn next(&self) -> Pointers {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Pointers {
                read: LEN,
                write: LEN + 1,
            },
            _ => Pointers {
                read: 0,
                write: LEN,
            },
        }
    }
}

impl RingMemory for LapBetweenLoads {
    fn pointers(&self, _: Ordering) -> Pointers {
        self.next()
    }
    fn read_pointer(&self, _: Ordering) -> u32 {
        self.next().read
    }
    fn write_pointer(&self, _: Ordering) -> u32 {
        self.next().write
    }
    fn advance(&self, _: u32, _: Ordering) -> u32 {
        unreachable!("nobody drains")
    }
    fn entry(&self, _: EntryIndex) -> BufIoreqEntry {
        unreachable!("nobody drains")
    }
}

#[test]
fn a_lap_does_not_look_like_an_empty_ring() {
    assert!(!BufferedRing::in_memory(LapBetweenLoads(AtomicU64::new(0))).is_empty());
}

#[test]
fn impossible_pointers_empty_the_ring() {
    for (read, write) in [
        (0, LEN + 1),
        (1, 0),
        (0, u32::MAX),
        (u32::MAX, LEN),
        (5, 5 + (1 << 31)),
        (u32::MAX, u32::MAX - 1),
    ] {
        let page = Page::new();
        let ring = page.ring();
        page.set_pointers(read, write);
        let (items, drained) = drain(&ring, u32::MAX);
        assert_eq!(items, [Err(RingAnomaly::Overrun { read, write })]);
        assert_eq!(
            drained,
            Drained {
                taken: 0,
                more: false
            }
        );
        assert_eq!(
            page.pointers(),
            (write, write),
            "write_pointer is Xen's alone"
        );
        if write < u32::MAX - 1 {
            assert!(page.send(false, 3));
            assert_eq!(data(&drain(&ring, 9).0), [3], "usable again");
        }
    }
}

#[test]
fn pointers_may_wrap() {
    let page = Page::new();
    let ring = page.ring();
    page.set_entry(u32::MAX, entry(true, 1));
    page.set_entry(0, entry(true, 2));
    page.set_pointers(u32::MAX, 1);
    assert_eq!(data(&drain(&ring, 9).0), [2 << 32 | 1]);
    assert_eq!(page.pointers(), (1, 1));
}

#[test]
fn half_a_pair_is_dropped() {
    let page = Page::new();
    let ring = page.ring();
    let half = entry(true, 1);
    page.set_entry(0, half);
    page.set_pointers(0, 1);
    assert_eq!(drain(&ring, 9).0, [Err(RingAnomaly::Torn { entry: half })]);
    assert!(ring.is_empty());
}

#[test]
fn a_moved_read_pointer_is_noticed() {
    let page = Page::new();
    let ring = page.ring();
    page.send(false, 1);
    page.send(false, 2);
    let mut items = vec![];
    ring.consumer().unwrap().drain(1, |item| {
        if items.is_empty() {
            page.set_pointers(9, 2);
        }
        items.push(item);
    });
    assert_eq!(
        items.get(1),
        Some(&Err(RingAnomaly::Moved {
            expected: 0,
            found: 9
        }))
    );
    assert_eq!(
        drain(&ring, 9).0,
        [Err(RingAnomaly::Overrun { read: 10, write: 2 })]
    );
    assert!(ring.is_empty());
}

#[test]
fn increments_that_xen_loses_are_made_up_for() {
    let page = Page::new();
    let ring = page.ring();
    for value in 1..=3 {
        page.send(false, value);
    }
    assert_eq!(data(&drain(&ring, 9).0), [1, 2, 3]);
    // Between two drains: the read pointer offers what was taken, with and without something new behind it.
    page.set_pointers(1, 3);
    assert!(!ring.is_empty());
    assert_eq!(drain(&ring, 9).0, []);
    assert_eq!(page.pointers(), (3, 3));
    page.send(false, 4);
    page.set_pointers(2, 4);
    assert_eq!(data(&drain(&ring, 9).0), [4]);
    // While an entry is handled.
    page.send(false, 5);
    page.send(false, 6);
    let mut items = vec![];
    ring.consumer().unwrap().drain(9, |item| {
        if items.is_empty() {
            page.set_pointers(3, 6);
        }
        items.push(item);
    });
    assert_eq!(data(&items), [5, 6]);
    assert_eq!(page.pointers(), (6, 6));
}

#[test]
fn what_is_lost_and_what_is_absurd() {
    let known = || {
        let page = Page::new();
        let ring = page.ring();
        for value in 1..=300 {
            page.send(false, value);
        }
        assert_eq!(drain(&ring, 400).0.len(), 300);
        (page, ring)
    };
    // A full ring, one of its entries taken already.
    let (page, ring) = known();
    page.set_pointers(299, 299 + LEN);
    assert_eq!(drain(&ring, 1).0, []);
    assert_eq!(page.pointers(), (300, 299 + LEN));
    // One entry more than a ring holds.
    let (page, ring) = known();
    let (read, write) = (299, 300 + LEN);
    page.set_pointers(read, write);
    let overrun = RingAnomaly::Overrun { read, write };
    assert_eq!(drain(&ring, 1).0, [Err(overrun)]);
    // Half a ring back is the most that is believed; further it is a move.
    for (back, anomalies) in [(LEN / 2, 0), (LEN / 2 + 1, 1)] {
        let (page, ring) = known();
        page.send(false, 301);
        let mut items = vec![];
        ring.consumer().unwrap().drain(1, |item| {
            if items.is_empty() {
                page.set_pointers(300 - back, 301);
            }
            items.push(item);
        });
        assert_eq!(items.len(), 1 + anomalies, "{back}: {items:?}");
    }
}

/// Ends the sender when the consumer panics, so that a failure is one, not a hang.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn two_threads_many_laps() {
    const COUNT: u64 = 100_000;
    let page = Page::new();
    let ring = page.ring();
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..COUNT {
                while !page.send(n % 3 == 0, n << 16) {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::yield_now();
                }
            }
        });
        let _stop = Stop(&stopped);
        let mut next = 0;
        let mut fruitless = 0;
        while next < COUNT {
            let (before, empty) = (next, ring.is_empty());
            ring.consumer().expect("free").drain(100, |item| {
                let expected = next << 16;
                let got = item.expect("no anomaly").data();
                let wide = next % 3 == 0;
                assert_eq!(
                    got,
                    if wide {
                        expected
                    } else {
                        expected & 0xffff_ffff
                    }
                );
                next += 1;
            });
            // A rewind between the loads of `is_empty` may hide an empty ring, once: the next rewind is a lap away.
            fruitless = if empty || next > before {
                0
            } else {
                fruitless + 1
            };
            assert!(fruitless <= 1, "something there, nothing taken");
            if empty {
                std::thread::yield_now();
            }
        }
    });
    assert!(ring.is_empty());
    assert!(page.pointers().0 < 2 * LEN, "never rewound");
}

proptest! {
    #[test]
    fn like_a_queue(ops in prop::collection::vec((any::<bool>(), any::<u64>(), 0_u32..40), 1..600)) {
        let page = Page::new();
        let ring = page.ring();
        let mut oracle = VecDeque::new();
        for (wide, value, budget) in ops {
            if budget < 30 {
                if page.send(wide, value) {
                    oracle.push_back(if wide { value } else { value & 0xffff_ffff });
                }
            } else {
                let (items, drained) = drain(&ring, budget);
                let expected: Vec<_> = oracle.drain(..oracle.len().min(budget as usize)).collect();
                prop_assert_eq!(data(&items), expected);
                prop_assert_eq!(drained.taken as usize, items.len());
                prop_assert_eq!(drained.more, !oracle.is_empty());
            }
            prop_assert_eq!(ring.is_empty(), oracle.is_empty());
        }
    }

    #[test]
    fn any_page_is_drained_within_the_budget(
        pointers in any::<u64>(),
        near in 0_u32..600,
        is_near in any::<bool>(),
        seed in any::<u64>(),
        budget in 0_u32..700,
    ) {
        let page = Page::new();
        let ring = page.ring();
        let mut word = seed | 1;
        for entry in &page.0 {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            entry.store(word, Ordering::Relaxed);
        }
        let (read, write) = split(pointers);
        let write = if is_near { read.wrapping_add(near) } else { write };
        page.set_pointers(read, write);
        let distance = write.wrapping_sub(read);

        let (items, drained) = drain(&ring, budget);
        prop_assert!(items.len() <= budget as usize);
        prop_assert_eq!(page.pointers().1, write);
        prop_assert_eq!(drained.more, !ring.is_empty());
        let over = items.iter().filter(|i| matches!(i, Err(RingAnomaly::Overrun { .. }))).count();
        prop_assert_eq!(over, usize::from(distance > LEN && budget > 0));
        if budget > LEN {
            prop_assert!(ring.is_empty());
        }
        for request in items.into_iter().flatten() {
            let _either = request.decode();
        }
    }
}
