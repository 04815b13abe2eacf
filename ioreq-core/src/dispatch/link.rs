// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences tagged atomic pointers; the registry of readers keeps what they point to.
//!
//! The parts of the index of a [`RangeMap`](super::RangeMap). A *link* stands for a piece of the space and leads to what can
//! answer there: nobody, the only range that touches the piece, a finer table of links, or (far up in the space) a list of
//! ranges. The two low bits of the pointer tell which, so that following a link is one load.

use std::marker::PhantomData;
use std::sync::Arc;

use super::grace::Grace;
use super::ranged::Ranged;
use super::zeroed::{Zero, boxed};
use crate::range::MmioRange;
use crate::sync::atomic::{AtomicPtr, Ordering};

/// What a link leads to in the end.
pub(super) type Entry<R> = Ranged<MmioRange, R>;

/// log2 of the links of a table of [`Pages`].
pub(super) const PAGES_SHIFT: u32 = if cfg!(loom) { 1 } else { 9 };
/// log2 of the links of a table of [`Cells`].
pub(super) const CELLS_SHIFT: u32 = if cfg!(loom) { 1 } else { 6 };

/// The links of the pages of a region.
pub(super) type Pages<R> = Table<R, { 1 << PAGES_SHIFT }>;
/// The links of the lines of a page, or of the addresses of a line.
pub(super) type Cells<R> = Table<R, { 1 << CELLS_SHIFT }>;

/// The two bits of a link's pointer that are not an address.
const TAG: usize = 3;
const TAG_ONE: usize = 0;
const TAG_LIST: usize = 1;
const TAG_PAGES: usize = 2;
const TAG_CELLS: usize = 3;

// The tag fits below every address that a link holds: an entry holds u64s, a list and a table hold pointers.
const _: () = assert!(align_of::<Entry<()>>() > TAG);
const _: () = assert!(align_of::<List<()>>() > TAG && align_of::<Cells<()>>() > TAG);

/// What a link leads to. In the shape of the tagged pointer, so that telling which costs nothing.
pub(super) enum Target<'a, R> {
    /// The only range that touches the piece; or nobody does.
    One(Option<&'a Entry<R>>),
    List(&'a List<R>),
    Pages(&'a Pages<R>),
    Cells(&'a Cells<R>),
}

/// What a link is given, and owns from then on; entries are owned by the map.
pub(super) enum Lead<R> {
    Nobody,
    One(*const Entry<R>),
    List(Box<List<R>>),
    Pages(Box<Pages<R>>),
    Cells(Box<Cells<R>>),
}

/// A tagged pointer, null at first.
pub(super) struct Link<R>(AtomicPtr<()>, PhantomData<fn() -> R>);

// SAFETY: a null pointer and nothing else.
unsafe impl<R> Zero for Link<R> {
    fn zero() -> Self {
        Link(Zero::zero(), PhantomData)
    }
}

impl<R: Send + Sync + 'static> Link<R> {
    /// Follows the link.
    ///
    /// # Safety
    /// What the link leads to must stay for `'a`: because the caller is a reader on line with the registry that what links
    /// lead to is retired to, and does not quiesce in `'a`; or because it holds the lock under which links are changed.
    #[inline]
    pub(super) unsafe fn follow<'a>(&self) -> Target<'a, R> {
        // Acquire: pairs with the Release in `lead`: what it leads to is whole.
        let tagged = self.0.load(Ordering::Acquire);
        let pointer = tagged.map_addr(|addr| addr & !TAG);
        match tagged.addr() & TAG {
            // SAFETY: the tag, which is no bit at all, says that this is null or came from an entry in `lead`; the caller keeps it.
            TAG_ONE => Target::One(unsafe { tagged.cast::<Entry<R>>().as_ref() }),
            // SAFETY: the tag says that this came from a list in `lead`; the caller keeps it.
            TAG_LIST => Target::List(unsafe { &*pointer.cast::<List<R>>() }),
            // SAFETY: the tag says that this came from such a table in `lead`; the caller keeps it.
            TAG_PAGES => Target::Pages(unsafe { &*pointer.cast::<Pages<R>>() }),
            // SAFETY: the tag says that this came from such a table in `lead`; the caller keeps it.
            _ => Target::Cells(unsafe { &*pointer.cast::<Cells<R>>() }),
        }
    }

    /// Whether it leads straight to this entry.
    #[inline]
    pub(super) fn leads_to(&self, entry: *const Entry<R>) -> bool {
        // Acquire: as in `follow`.
        let tagged = self.0.load(Ordering::Acquire);
        #[cfg(loom)]
        assert_ne!(tagged.addr(), FREED, "a link in a table that was freed");
        // The tag of an entry is no bit at all.
        std::ptr::addr_eq(tagged, entry)
    }

    /// Leads elsewhere; the list or table it led to goes to `unlinked`.
    pub(super) fn lead(&self, to: Lead<R>, unlinked: &mut Unlinked<R>) {
        let (pointer, tag) = match to {
            Lead::Nobody => (std::ptr::null_mut(), TAG_ONE),
            Lead::One(entry) => (entry.cast_mut().cast::<()>(), TAG_ONE),
            Lead::List(list) => (Box::into_raw(list).cast::<()>(), TAG_LIST),
            Lead::Pages(pages) => (Box::into_raw(pages).cast::<()>(), TAG_PAGES),
            Lead::Cells(cells) => (Box::into_raw(cells).cast::<()>(), TAG_CELLS),
        };
        // Relaxed: only whoever holds the map's lock comes here.
        let old = self.0.load(Ordering::Relaxed);
        // Release: pairs with the Acquire in `follow`.
        self.0
            .store(pointer.map_addr(|addr| addr | tag), Ordering::Release);
        let pointer = old.map_addr(|addr| addr & !TAG);
        match old.addr() & TAG {
            TAG_LIST => {
                // SAFETY: from `Box::into_raw` above, and the link that owned it leads elsewhere.
                let list = unsafe { Box::from_raw(pointer.cast::<List<R>>()) };
                unlinked.lists.push(list);
            }
            TAG_PAGES => {
                // SAFETY: from `Box::into_raw` above, and the link that owned it leads elsewhere.
                let pages = unsafe { Box::from_raw(pointer.cast::<Pages<R>>()) };
                unlinked.pages.push(pages);
            }
            TAG_CELLS => {
                // SAFETY: from `Box::into_raw` above, and the link that owned it leads elsewhere.
                let cells = unsafe { Box::from_raw(pointer.cast::<Cells<R>>()) };
                unlinked.cells.push(cells);
            }
            _ => {}
        }
    }
}

/// What links led to, and readers may still look at.
#[must_use = "readers may look at it: to be retired"]
pub(super) struct Unlinked<R> {
    #[allow(clippy::vec_box, reason = "readers look at them where they are")]
    lists: Vec<Box<List<R>>>,
    pages: Vec<Box<Pages<R>>>,
    #[allow(clippy::vec_box, reason = "readers look at them where they are")]
    cells: Vec<Box<Cells<R>>>,
    entry: Option<Arc<Entry<R>>>,
}

impl<R: Send + Sync + 'static> Unlinked<R> {
    /// Nothing but `entry`, which is about to be unlinked.
    pub(super) fn new(entry: Option<Arc<Entry<R>>>) -> Self {
        Unlinked {
            lists: Vec::new(),
            pages: Vec::new(),
            cells: Vec::new(),
            entry,
        }
    }

    /// Frees it all when no reader looks at it any more. After the last link that led to any of it.
    pub(super) fn retire(self, grace: &Grace) {
        let tables = self.lists.len() + self.pages.len() + self.cells.len();
        if self.entry.is_some() || tables > 0 {
            grace.retire(move || self.free());
        }
    }
}

#[cfg(not(loom))]
impl<R> Unlinked<R> {
    fn free(self) {
        drop(self);
    }
}

/// What links in tables lead to that are freed in a model, so that a reader who follows one is caught.
#[cfg(loom)]
const FREED: usize = !TAG;

#[cfg(loom)]
impl<R> Unlinked<R> {
    fn free(self) {
        let pages = self
            .pages
            .into_iter()
            .flat_map(|table| Box::leak(table).0.iter());
        let cells = self
            .cells
            .into_iter()
            .flat_map(|table| Box::leak(table).0.iter());
        for link in pages.chain(cells) {
            link.0
                .store(std::ptr::without_provenance_mut(FREED), Ordering::Relaxed);
        }
    }
}

/// The links of the pieces of a piece.
pub(super) struct Table<R, const N: usize>([Link<R>; N]);

// SAFETY: an array of what is valid when zeroed.
unsafe impl<R, const N: usize> Zero for Table<R, N> {
    fn zero() -> Self {
        Table(std::array::from_fn(|_| Zero::zero()))
    }
}

impl<R, const N: usize> Table<R, N> {
    pub(super) fn new() -> Box<Self> {
        const { assert!(N.is_power_of_two()) }
        boxed()
    }

    /// The link of the piece with this number, of all pieces of this size in the space.
    #[inline]
    pub(super) fn link(&self, piece: u64) -> &Link<R> {
        #[allow(clippy::cast_possible_truncation, reason = "below the table's length")]
        let at = (piece & (N as u64 - 1)) as usize;
        &self.0[at]
    }
}

/// Some ranges, by their first addresses.
pub(super) struct List<R>(Box<[(u64, *const Entry<R>)]>);

// SAFETY: the pointers stand for shared references to entries, which are Send and Sync because `R` is.
unsafe impl<R: Send + Sync> Send for List<R> {}
// SAFETY: as above.
unsafe impl<R: Send + Sync> Sync for List<R> {}

impl<R> List<R> {
    /// Of `entries`, in order.
    pub(super) fn new<'a>(entries: impl Iterator<Item = &'a Arc<Entry<R>>>) -> Box<Self>
    where
        R: 'a,
    {
        let item = |entry: &Arc<Entry<R>>| (entry.range.first(), Arc::as_ptr(entry));
        Box::new(List(entries.map(item).collect()))
    }

    /// The one range that can hold `addr`: the last that starts at or before it.
    ///
    /// # Safety
    /// As for [`Link::follow`], of the link that led here.
    #[inline]
    pub(super) unsafe fn below<'a>(&self, addr: u64) -> Option<&'a Entry<R>> {
        let after = self.0.partition_point(|(first, _)| *first <= addr);
        let (_, entry) = self.0.get(after.checked_sub(1)?)?;
        // SAFETY: lists are unlinked before the entries that they lead to are retired, so the caller keeps both.
        Some(unsafe { &**entry })
    }
}
