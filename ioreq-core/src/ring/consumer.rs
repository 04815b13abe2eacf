// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Looking into the ring, and draining it.

use std::fmt;

use super::anomaly::RingAnomaly;
use super::memory::{EntryIndex, RingMemory};
use super::page::BufferedPage;
use crate::abi::IOREQ_BUFFER_SLOT_NUM;
use crate::hypervisor::SharedPage;
use crate::request::BufferedRequest;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The place of the next entry, before the first was taken.
const UNKNOWN: u32 = u32::MAX;
/// The most increments of the read pointer that Xen is believed to have lost at once: as many as do not look like a move ahead.
const MOST_LOST: u32 = IOREQ_BUFFER_SLOT_NUM / 2;

/// The buffered ring of one server. Make one per page: it is what keeps consumers apart.
///
/// Xen can lose increments of the read pointer: where it rewinds the pointers (`ioreq_send_buffered`) it reads them twice, takes what it
/// writes from the first and what it compares with from the second (seen in the machine code of Debian's 4.17 and 4.20, and on a running
/// 4.17). The ring remembers where it is, and makes up for it: no entry is taken twice.
///
/// ```
/// use ioreq_core::{abi::{BufIoreqEntry, IOREQ_TYPE_COPY}, ring::BufferedRing};
/// # use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
/// # use ioreq_core::hypervisor::SharedPage;
/// # #[repr(align(4096))]
/// # struct Page([AtomicU64; 512]);
/// # let owner = Arc::new(Page([const { AtomicU64::new(0) }; 512]));
/// # let addr = std::ptr::NonNull::from(&*owner).cast();
/// # // SAFETY: 4096 bytes of atomics, alive as long as `owner`, which the page keeps.
/// # let page = unsafe { SharedPage::new(addr, owner.clone()) }?;
/// # let entry = BufIoreqEntry::new(IOREQ_TYPE_COPY, false, 2, 0xa0000, 7);
/// # owner.0[1].store(entry.bits(), Ordering::Relaxed);
/// # owner.0[0].store(1 << 32, Ordering::Release); // write_pointer = 1
/// let ring = BufferedRing::new(page);
/// assert!(!ring.is_empty());
/// let mut seen = vec![];
/// let mut consumer = ring.consumer().expect("nobody else consumes");
/// let drained = consumer.drain(64, |request| seen.push(request));
/// assert_eq!((drained.taken, drained.more), (1, false));
/// assert_eq!(seen[0].unwrap().decode()?.to_string(), "v0: write of 4 bytes to mmio 0xa0000");
/// assert!(ring.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BufferedRing<M = BufferedPage> {
    memory: M,
    consumed: AtomicBool,
    /// The place of the next entry to take, or [`UNKNOWN`]. The consumer's own, handed on with `consumed`: so Relaxed everywhere.
    next: AtomicU32,
}

impl BufferedRing<BufferedPage> {
    /// The ring in the buffered page.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        Self::in_memory(BufferedPage::new(page))
    }
}

impl<M: RingMemory> BufferedRing<M> {
    /// The ring in any [`RingMemory`].
    #[must_use]
    pub fn in_memory(memory: M) -> Self {
        BufferedRing {
            memory,
            consumed: AtomicBool::new(false),
            next: AtomicU32::new(UNKNOWN),
        }
    }

    /// Whether all that Xen had put into the ring has been taken *and handled*. Two loads, for any thread at any time.
    ///
    /// A yes is always true. A no may be wrong while Xen rewinds an empty ring, or has lost an increment, and costs a look.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Acquire: pairs with the `smp_wmb` of Xen's `ioreq_send_buffered`, and keeps the next load behind this one: a rewind
        // takes equally much off both, so equality then means that the other pointer has reached this one.
        let write = self.memory.write_pointer(Ordering::Acquire);
        // Acquire: pairs with the Release of `Consumer::give_up`, so that what the handlers did is visible.
        self.memory.read_pointer(Ordering::Acquire) == write
    }

    /// The right to consume, for one thread at a time; `None` while another one has it.
    #[must_use]
    pub fn consumer(&self) -> Option<Consumer<'_, M>> {
        // Acquire: pairs with the Release in the drop of the last consumer, whose accesses to the ring thus are over. Relaxed
        // when it fails: nothing is read then.
        let taken =
            self.consumed
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.ok()?;
        Some(Consumer { ring: self })
    }
}

impl<M> fmt::Debug for BufferedRing<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedRing").finish_non_exhaustive()
    }
}

/// What [`Consumer::drain`] did.
///
/// ```
/// use ioreq_core::ring::Drained;
/// assert_eq!(Drained::default(), Drained { taken: 0, more: false });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Requests taken. Anomalies are not among them.
    pub taken: u32,
    /// The budget ended before the ring.
    pub more: bool,
}

/// The right to consume a ring, given back when dropped.
///
/// ```
/// use ioreq_core::{BufIoreq, Transport, ring::BufferedRing};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let id = hv.create_server(BufIoreq::Atomic)?;
/// let ring = BufferedRing::new(hv.buffered_page(id)?);
/// let mut consumer = ring.consumer().expect("nobody else consumes");
/// assert!(ring.consumer().is_none(), "one at a time");
/// let drained = consumer.drain(64, |request| println!("{request:?}"));
/// assert_eq!(drained.taken, 0, "the guest wrote nothing yet");
/// drop(consumer);
/// assert!(ring.consumer().is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Consumer<'a, M: RingMemory = BufferedPage> {
    ring: &'a BufferedRing<M>,
}

impl<M: RingMemory> Consumer<'_, M> {
    /// Takes requests until the ring is empty or `budget` calls of `handle` were made (one more for a read pointer that someone
    /// moved meanwhile); making up for what Xen lost counts as one. An entry is given up when `handle` returns, or panics.
    ///
    /// After an [`Overrun`](RingAnomaly::Overrun) the ring is empty; the other anomalies cost one entry at most.
    pub fn drain(
        &mut self,
        budget: u32,
        mut handle: impl FnMut(Result<BufferedRequest, RingAnomaly>),
    ) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..budget {
            // Acquire: pairs with the `smp_wmb` of Xen's `ioreq_send_buffered`: the entries before `write` are there.
            let pointers = self.ring.memory.pointers(Ordering::Acquire);
            let distance = pointers.distance();
            if distance == 0 {
                return drained;
            }
            if let Some(lost) = self.lost(pointers.read, distance) {
                // Release: as in `GiveUp`.
                self.ring.memory.advance(lost, Ordering::Release);
                continue;
            }
            let (entries, item) = if distance > IOREQ_BUFFER_SLOT_NUM {
                let (read, write) = (pointers.read, pointers.write);
                (distance, Err(RingAnomaly::Overrun { read, write }))
            } else {
                self.copy(pointers.read, distance)
            };
            drained.taken += u32::from(item.is_ok());
            self.expect(pointers.read.wrapping_add(entries));
            let give_up = GiveUp {
                memory: &self.ring.memory,
                entries,
            };
            handle(item);
            let (expected, found) = (pointers.read, give_up.now());
            if behind(found, EntryIndex::of(expected)) > MOST_LOST {
                // Relaxed: see the field.
                self.ring.next.store(UNKNOWN, Ordering::Relaxed);
                handle(Err(RingAnomaly::Moved { expected, found }));
            }
        }
        drained.more = !self.ring.is_empty();
        drained
    }

    fn expect(&self, next: u32) {
        let next = u32::try_from(EntryIndex::of(next).get()).unwrap_or(UNKNOWN);
        // Relaxed: see the field.
        self.ring.next.store(next, Ordering::Relaxed);
    }

    /// How many entries before the next one the read pointer offers again, with `distance` entries in the ring.
    fn lost(&self, read: u32, distance: u32) -> Option<u32> {
        // Relaxed: see the field.
        let next = self.ring.next.load(Ordering::Relaxed);
        if next == UNKNOWN || distance > IOREQ_BUFFER_SLOT_NUM {
            return None;
        }
        let lost = behind(read, EntryIndex::of(next));
        (1..=distance.min(MOST_LOST))
            .contains(&lost)
            .then_some(lost)
    }

    /// Copies the request at `read`, of `distance` entries in the ring (at least 1), and says how many it takes.
    fn copy(&self, read: u32, distance: u32) -> (u32, Result<BufferedRequest, RingAnomaly>) {
        let entry = self.ring.memory.entry(EntryIndex::of(read));
        if let Some(single) = BufferedRequest::single(entry) {
            return (1, Ok(single));
        }
        let second = (distance >= 2).then(|| EntryIndex::of(read.wrapping_add(1)));
        let pair = second.and_then(|at| BufferedRequest::pair(entry, self.ring.memory.entry(at)));
        match pair {
            Some(pair) => (2, Ok(pair)),
            None => (1, Err(RingAnomaly::Torn { entry })),
        }
    }
}

/// How many places the pointer is behind.
fn behind(pointer: u32, place: EntryIndex) -> u32 {
    let places = IOREQ_BUFFER_SLOT_NUM as usize;
    let behind = (place.get() + places - EntryIndex::of(pointer).get()) % places;
    u32::try_from(behind).unwrap_or(0)
}

impl<M: RingMemory> Drop for Consumer<'_, M> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `BufferedRing::consumer`.
        self.ring.consumed.store(false, Ordering::Release);
    }
}

impl<M: RingMemory> fmt::Debug for Consumer<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

/// Gives entries up, at the latest when dropped by a panic of the handler: else the ring would offer them for ever.
struct GiveUp<'a, M: RingMemory> {
    memory: &'a M,
    entries: u32,
}

impl<M: RingMemory> GiveUp<'_, M> {
    /// Returns the read pointer as found.
    fn now(mut self) -> u32 {
        self.advance()
    }

    fn advance(&mut self) -> u32 {
        // Release: pairs with Xen's load of `read_pointer`, before it fills these entries again, and with `is_empty`. A
        // read-modify-write: a rewind by Xen between load and store would be undone by a plain store.
        self.memory
            .advance(std::mem::take(&mut self.entries), Ordering::Release)
    }
}

impl<M: RingMemory> Drop for GiveUp<'_, M> {
    fn drop(&mut self) {
        if self.entries != 0 {
            self.advance();
        }
    }
}
