// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who is looking, and when nobody can be looking at something any more.
//!
//! Reclamation by quiescent states. A reader that is *on line* may hold what it found; between two requests it announces a
//! quiescent state, and off line (asleep, or outside a pass) it holds nothing. A global number counts changes. Going on line
//! and quiescing copy the number into the reader's own word, so a word of at least *n* says: this reader has let go of
//! everything that was removed before the number became *n*.
//!
//! * Unlink, fence, then count up: whoever reads the new number sees the unlinking (Release/Acquire on the number). What is
//!   retired is counted in batches, when somebody collects: counting each would take the number's cache line from readers.
//!   What a reader remembers of earlier look-ups it forgets when it sees another number (see `last_hit`).
//! * A reader that goes on line stores its word, then a fence, then looks. A collector fences, then reads the words. Of two
//!   SeqCst fences one is first: either the collector sees the word and waits for the reader, or the reader sees the
//!   unlinking and never had the thing.
//!
//! Going on line costs that fence, quiescing a load; a store only if the number has changed, so that the reader's line stays with it
//! and with collectors. No reader ever waits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use crossbeam::utils::{Backoff, CachePadded};

use super::last_hit::LastHit;
use crate::error::{Error, ErrorKind, Op, Result};
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::{Mutex, MutexGuard, pause};

/// Things that are retired before readers who are on line are bothered: each batch takes the number's cache line from them.
const BATCH: usize = 32;
/// A reader's word when it is off line.
const OFF_LINE: u64 = 0;
type Garbage = Box<dyn FnOnce() + Send>;
type Word = Arc<CachePadded<AtomicU64>>;

#[cfg(not(loom))]
std::thread_local! {
    /// The registry that this thread is on line with, by address; 0 if there is none.
    static ON_LINE: Cell<usize> = const { Cell::new(0) };
    /// More of them. Nearly always there are none, and a worker that wakes up need not touch the list.
    static MORE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}
#[cfg(loom)]
loom::thread_local! {
    static ON_LINE: Cell<usize> = Cell::new(0);
    static MORE: RefCell<Vec<usize>> = RefCell::new(Vec::new());
}

/// Looks at the list of further registries. None at a thread's very end, when the list is gone: a server that a thread-local value
/// owns ends then, and holds nothing while it waits.
#[cold]
fn more<T>(look: impl FnOnce(&mut Vec<usize>) -> T) -> Option<T> {
    MORE.try_with(|more| look(&mut more.borrow_mut())).ok()
}

/// This thread is on line with the registry at `address`, once more.
#[inline]
fn on_line(address: usize) {
    ON_LINE.with(|one| match one.get() {
        0 => one.set(address),
        _ => drop(more(|more| more.push(address))),
    });
}

/// Once less.
#[inline]
fn off_line(address: usize) {
    ON_LINE.with(|one| {
        if one.get() == address {
            one.set(0);
            return;
        }
        more(|more| {
            if let Some(at) = more.iter().rposition(|other| *other == address) {
                more.swap_remove(at);
            }
        });
    });
}

/// Whether this thread is on line with the registry at `address`.
fn is_on_line(address: usize) -> bool {
    ON_LINE.with(Cell::get) == address || more(|more| more.contains(&address)) == Some(true)
}

/// The registry of readers, and the garbage that waits for them.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
/// use ioreq_core::dispatch::Grace;
///
/// let grace = Grace::new();
/// let mut reader = grace.reader();
/// let freed = Arc::new(AtomicBool::new(false));
///
/// let mut guard = reader.enter(); // on line: what it finds stays
/// let flag = freed.clone();
/// grace.retire(move || flag.store(true, Ordering::Relaxed));
/// grace.collect();
/// assert!(!freed.load(Ordering::Relaxed), "the reader may hold it");
/// guard.quiesce();
/// grace.collect();
/// assert!(freed.load(Ordering::Relaxed));
/// ```
pub struct Grace {
    /// Counts batches and synchronizations. Starts at 1, so that no word of an on-line reader is [`OFF_LINE`]. On a line of its own, and
    /// all that a change takes away from readers besides what it changes.
    now: CachePadded<AtomicU64>,
    readers: Mutex<Vec<Word>>,
    garbage: Mutex<Backlog>,
}

/// What waits to be freed.
#[derive(Default)]
struct Backlog {
    /// Retired since the last batch was closed.
    open: Vec<Garbage>,
    /// Batches with the number that readers have to reach, in order.
    closed: VecDeque<(u64, Vec<Garbage>)>,
}

impl Grace {
    /// A registry without readers.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Grace {
            now: CachePadded::new(AtomicU64::new(1)),
            readers: Mutex::new(Vec::new()),
            garbage: Mutex::new(Backlog::default()),
        })
    }

    /// A new reader, off line; each thread that looks things up has its own.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> Reader {
        let word = Arc::new(CachePadded::new(AtomicU64::new(OFF_LINE)));
        lock(&self.readers).push(Arc::clone(&word));
        Reader {
            grace: Arc::clone(self),
            word,
            last: LastHit::new(),
        }
    }

    /// Keeps `free` until no reader can hold any more what was unlinked before this call; [`collect`](Self::collect) runs
    /// it. Runs nothing itself and never waits for readers, so that it can be called anywhere and under any lock.
    pub fn retire(&self, free: impl FnOnce() + Send + 'static) {
        let free: Garbage = Box::new(free);
        lock(&self.garbage).open.push(free);
    }

    /// Frees what can be freed now: all that was retired, if no reader is on line; otherwise what was retired before an
    /// earlier call since which all of them have quiesced. Never waits. Call it without a lock that what is freed may want.
    pub fn collect(&self) {
        if !self.close_batch() {
            return;
        }
        let seen = self.seen_by_all();
        loop {
            // Batch by batch, and outside the lock: what is freed may retire more.
            let batch = {
                let mut garbage = lock(&self.garbage);
                match garbage.closed.front() {
                    Some((stamp, _)) if *stamp <= seen => garbage.closed.pop_front(),
                    _ => None,
                }
            };
            let Some((_, batch)) = batch else { return };
            for free in batch {
                // The destructor of a handler is not ours; what else waits is freed all the same.
                if catch_unwind(AssertUnwindSafe(free)).is_err() {
                    tracing::error!("what was retired panicked when it was freed");
                }
            }
        }
    }

    /// The same for whoever changes something often, while readers who are on line look things up: they are bothered only once for
    /// every 32 things that were retired. If nobody is on line, all is freed. Somebody should [`collect`](Self::collect) now and then;
    /// a server's control thread does, ten times a second.
    ///
    /// ```
    /// # use ioreq_core::dispatch::Grace;
    /// let grace = Grace::new();
    /// let mut reader = grace.reader();
    /// let guard = reader.enter();
    /// grace.retire(|| println!("freed"));
    /// grace.collect_in_batches();
    /// assert_eq!(grace.backlog(), 1, "not worth it yet");
    /// drop(guard);
    /// grace.collect_in_batches();
    /// assert_eq!(grace.backlog(), 0);
    /// ```
    pub fn collect_in_batches(&self) {
        let (enough, any) = {
            let garbage = lock(&self.garbage);
            let any = !garbage.open.is_empty() || !garbage.closed.is_empty();
            (garbage.open.len() >= BATCH, any)
        };
        if enough || any && self.nobody_is_on_line() {
            self.collect();
        }
    }

    /// A hint: what is freed is up to [`collect`](Self::collect).
    fn nobody_is_on_line(&self) -> bool {
        // Relaxed: a hint.
        let off_line = |word: &Word| word.load(Ordering::Relaxed) == OFF_LINE;
        lock(&self.readers).iter().all(off_line)
    }

    /// Closes the batch of what was retired since the last time, if there is any; false if nothing waits.
    fn close_batch(&self) -> bool {
        let mut garbage = lock(&self.garbage);
        if !garbage.open.is_empty() {
            self.close(&mut garbage);
        }
        !garbage.closed.is_empty()
    }

    /// Counts up for what was retired. Under the lock, so that the batches are in the order of their numbers.
    fn close(&self, garbage: &mut Backlog) {
        let stamp = self.advance();
        let batch = std::mem::take(&mut garbage.open);
        garbage.closed.push_back((stamp, batch));
    }

    /// Waits until every reader that is on line has quiesced or gone off line: afterwards nobody holds what was unlinked
    /// before this call.
    ///
    /// # Errors
    /// `WouldDeadlock` if this thread is on line itself: it would wait for itself.
    pub fn synchronize(&self) -> Result<()> {
        if is_on_line(self.address()) {
            return Err(Error::new(Op::Synchronize, ErrorKind::WouldDeadlock));
        }
        let stamp = self.advance();
        let words = lock(&self.readers).clone();
        fence(Ordering::SeqCst);
        for word in words {
            let backoff = Backoff::new();
            while !has_seen(&word, stamp) {
                pause(&backoff);
            }
        }
        self.collect();
        Ok(())
    }

    /// Number of things that were retired and not freed yet.
    #[must_use]
    pub fn backlog(&self) -> usize {
        let garbage = lock(&self.garbage);
        garbage.open.len()
            + garbage
                .closed
                .iter()
                .map(|(_, batch)| batch.len())
                .sum::<usize>()
    }

    /// Counts up, after what was unlinked.
    fn advance(&self) -> u64 {
        // SeqCst: pairs with the reader's fence in `enter` (see the module).
        fence(Ordering::SeqCst);
        // Release: pairs with the Acquire loads in `enter`, `quiesce` and `ReadGuard::now`.
        self.now.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The largest number that every on-line reader has seen.
    fn seen_by_all(&self) -> u64 {
        // Acquire: pairs with `advance` in another thread, whose garbage we may be about to free.
        let mut seen = self.now.load(Ordering::Acquire);
        let readers = lock(&self.readers);
        // SeqCst: pairs with the reader's fence in `enter` (see the module).
        fence(Ordering::SeqCst);
        for word in readers.iter() {
            // Acquire: pairs with the reader's Release store: its use of what is freed is over.
            match word.load(Ordering::Acquire) {
                OFF_LINE => {}
                announced => seen = seen.min(announced),
            }
        }
        seen
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

fn has_seen(word: &AtomicU64, stamp: u64) -> bool {
    // Acquire: pairs with the reader's Release store: what it did before is over, and visible.
    let announced = word.load(Ordering::Acquire);
    announced == OFF_LINE || announced >= stamp
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Grace {
    fn drop(&mut self) {
        // Readers hold the registry, so there are none left.
        self.collect();
    }
}

impl fmt::Debug for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readers = lock(&self.readers).len();
        let garbage = self.backlog();
        f.debug_struct("Grace")
            .field("readers", &readers)
            .field("garbage", &garbage)
            .finish()
    }
}

/// One thread's right to look things up.
///
/// ```
/// use ioreq_core::{ErrorKind, dispatch::Grace};
///
/// let grace = Grace::new();
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// // What is looked up now stays valid until the guard quiesces or ends: waiting for that here would never end.
/// assert_eq!(grace.synchronize().unwrap_err().kind(), ErrorKind::WouldDeadlock);
/// drop(guard);
/// grace.synchronize()?;
/// # Ok::<(), ioreq_core::Error>(())
/// ```
// In this order: side by side, the two pointers would be taken into a vector register, at every wake-up (see `Service::serve_taken`).
#[repr(C)]
pub struct Reader {
    grace: Arc<Grace>,
    /// What it found last, in whichever map.
    last: LastHit,
    word: Word,
}

impl Reader {
    /// Goes on line.
    #[must_use]
    pub fn enter(&mut self) -> ReadGuard<'_> {
        on_line(self.grace.address());
        // Acquire: pairs with `advance`: everything unlinked before that number is seen as unlinked.
        let now = self.grace.now.load(Ordering::Acquire);
        // Relaxed: the fence below orders it.
        self.word.store(now, Ordering::Relaxed);
        // SeqCst: pairs with the collector's fence (see the module).
        fence(Ordering::SeqCst);
        // Acquire: as above. After the fence: a collector that does not see the word has counted up, and what he frees is forgotten.
        if self.grace.now.load(Ordering::Acquire) != self.last.number() {
            self.last.renew(now);
        }
        ReadGuard {
            grace: &self.grace,
            word: &self.word,
            last: &self.last,
            on_this_thread: PhantomData,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Release: as in `quiesce`. Off line already, unless a guard was forgotten; whoever waits for this reader must not wait
        // for ever.
        self.word.store(OFF_LINE, Ordering::Release);
        lock(&self.grace.readers).retain(|word| !Arc::ptr_eq(word, &self.word));
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// On line: what is found under this guard stays until it quiesces or ends.
///
/// It stays on the thread that entered, so that [`Grace::synchronize`] knows who would wait for himself:
///
/// ```compile_fail,E0277
/// # use ioreq_core::dispatch::Grace;
/// let grace = Grace::new();
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// std::thread::scope(|scope| {
///     scope.spawn(move || drop(guard)); // not Send
/// });
/// ```
///
/// See [`Grace`] for an example.
#[derive(Debug)]
pub struct ReadGuard<'r> {
    /// The reader's parts, each at hand.
    grace: &'r Grace,
    word: &'r AtomicU64,
    last: &'r LastHit,
    /// Neither Send nor Sync.
    on_this_thread: PhantomData<*mut ()>,
}

impl ReadGuard<'_> {
    /// Announces that nothing found so far is used any more (the borrow checker sees to that).
    #[inline]
    pub fn quiesce(&mut self) {
        // Acquire: as in `enter`.
        let now = self.grace.now.load(Ordering::Acquire);
        // With the number that is in the word already there is nothing to tell.
        if now != self.last.number() {
            self.tell(now);
        }
    }

    #[cold]
    fn tell(&self, now: u64) {
        self.last.renew(now);
        // Release: pairs with the collector's Acquire load: our use is over before it frees.
        self.word.store(now, Ordering::Release);
    }

    /// Panics unless the guard is of this registry: under another's, things are freed without waiting for it.
    #[inline]
    pub(super) fn check(&self, grace: &Arc<Grace>) {
        assert!(
            std::ptr::eq(self.grace, Arc::as_ptr(grace)),
            "a read guard of another registry"
        );
    }

    /// What its reader found last.
    #[inline]
    pub(super) fn last(&self) -> &LastHit {
        self.last
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // Release: as in `quiesce`.
        self.word.store(OFF_LINE, Ordering::Release);
        off_line(self.grace.address());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn synchronize_in_a_guard_is_an_error_and_of_another_registry_is_not() {
        let (grace, other) = (Grace::new(), Grace::new());
        let mut reader = grace.reader();
        let guard = reader.enter();
        assert_eq!(
            grace.synchronize().unwrap_err().kind(),
            ErrorKind::WouldDeadlock
        );
        other.synchronize().unwrap();
        drop(guard);
        grace.synchronize().unwrap();
    }

    #[test]
    fn synchronize_waits_for_a_reader_that_is_on_line_and_for_no_other() {
        let grace = Grace::new();
        let _asleep = grace.reader();
        let mut reader = grace.reader();
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let guard = reader.enter();
            let waiter = scope.spawn(|| {
                grace.synchronize().unwrap();
                done.load(Ordering::Acquire)
            });
            for _ in 0..1000 {
                std::thread::yield_now();
            }
            done.store(1, Ordering::Release);
            drop(guard);
            assert_eq!(
                waiter.join().unwrap(),
                1,
                "returned while the reader was on line"
            );
        });
    }

    #[test]
    fn garbage_is_freed_with_the_registry_at_the_latest() {
        let freed = Arc::new(AtomicUsize::new(0));
        let grace = Grace::new();
        let mut reader = grace.reader();
        {
            let _guard = reader.enter();
            for _ in 0..128 {
                let freed = Arc::clone(&freed);
                grace.retire(move || {
                    freed.fetch_add(1, Ordering::Relaxed);
                });
            }
            assert_eq!(freed.load(Ordering::Relaxed), 0);
        }
        drop((reader, grace));
        assert_eq!(freed.load(Ordering::Relaxed), 128);
    }

    #[test]
    fn what_is_freed_may_retire_more() {
        let grace = Grace::new();
        let (again, freed) = (Arc::downgrade(&grace), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&freed);
        grace.retire(move || {
            if let Some(grace) = again.upgrade() {
                grace.retire(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        grace.collect();
        grace.collect();
        assert_eq!(freed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_reader_that_goes_takes_no_other_with_it() {
        let (grace, freed) = (Grace::new(), Arc::new(AtomicUsize::new(0)));
        let (gone, mut stays) = (grace.reader(), grace.reader());
        let guard = stays.enter();
        drop(gone);
        let count = Arc::clone(&freed);
        grace.retire(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        grace.collect();
        assert_eq!(freed.load(Ordering::Relaxed), 0, "a reader may look at it");
        drop(guard);
        grace.collect();
        assert_eq!(freed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_forgotten_guard_does_not_outlast_its_reader() {
        let grace = Grace::new();
        let mut reader = grace.reader();
        std::mem::forget(reader.enter());
        let waiter = std::thread::spawn({
            let grace = Arc::clone(&grace);
            move || grace.synchronize()
        });
        drop(reader);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_destructor_that_panics_keeps_nothing_from_being_freed() {
        let (grace, freed) = (Grace::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..2 {
            let freed = Arc::clone(&freed);
            grace.retire(|| panic!("destructor"));
            grace.retire(move || {
                freed.fetch_add(1, Ordering::Relaxed);
            });
        }
        grace.collect();
        assert_eq!((freed.load(Ordering::Relaxed), grace.backlog()), (2, 0));
    }

    #[test]
    fn readers_on_line_are_bothered_once_a_batch() {
        let (grace, freed) = (Grace::new(), Arc::new(AtomicUsize::new(0)));
        let change = || {
            let freed = Arc::clone(&freed);
            grace.retire(move || {
                freed.fetch_add(1, Ordering::Relaxed);
            });
            grace.collect_in_batches();
        };
        let now = || grace.now.load(Ordering::Relaxed);
        let (mut reader, before) = (grace.reader(), now());
        let mut guard = reader.enter();
        (1..BATCH).for_each(|_| change());
        assert_eq!(now(), before, "not worth it yet");
        change();
        assert_eq!((now(), freed.load(Ordering::Relaxed)), (before + 1, 0));
        guard.quiesce();
        (0..BATCH).for_each(|_| change());
        assert_eq!(now(), before + 2);
        assert_eq!(freed.load(Ordering::Relaxed), BATCH, "the first batch");
        // Off line: what was counted for is freed, too.
        drop(guard);
        grace.collect_in_batches();
        assert_eq!(
            (freed.load(Ordering::Relaxed), grace.backlog()),
            (2 * BATCH, 0)
        );
        change();
        assert_eq!(grace.backlog(), 0, "nobody to wait for");
    }

    #[test]
    fn what_is_retired_after_a_batch_waits_for_the_next() {
        let (grace, freed) = (Grace::new(), Arc::new(AtomicUsize::new(0)));
        let retire = || {
            let freed = Arc::clone(&freed);
            grace.retire(move || {
                freed.fetch_add(1, Ordering::Relaxed);
            });
        };
        let mut reader = grace.reader();
        let mut guard = reader.enter();
        retire();
        grace.collect(); // closes the batch
        guard.quiesce();
        retire(); // the reader may have seen this one after it quiesced
        grace.collect();
        assert_eq!((freed.load(Ordering::Relaxed), grace.backlog()), (1, 1));
        guard.quiesce();
        grace.collect();
        assert_eq!((freed.load(Ordering::Relaxed), grace.backlog()), (2, 0));
    }
}
