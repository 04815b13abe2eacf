// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: says when nobody has an address inside a chunk, which is when frames may be mapped over it.
//!
//! Which pages of a range are mapped: a state for each chunk, and a bitmap for chunks with holes. Readers take no lock; who
//! finds a page missing takes the range's lock and maps.
//!
//! A chunk goes from empty to full or holed, and from holed to full; a bit of its bitmap only from 0 to 1. So what a reader saw
//! mapped stays mapped.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::CHUNK_PAGES;
use super::cache::Tally;
use super::foreign::FrameMapper;
use crate::sys::Reservation;

/// No page of the chunk is mapped.
const EMPTY: u8 = 0;
/// Some pages are: the bitmap says which.
const HOLED: u8 = 1;
/// All are.
const FULL: u8 = 2;

const WORDS: usize = CHUNK_PAGES / 64;

/// A bit for each page of a chunk.
type Bitmap = [AtomicU64; WORDS];

#[derive(Debug)]
struct Chunk {
    state: AtomicU8,
    mapped: OnceLock<Box<Bitmap>>,
}

/// The chunks of one reservation.
pub(super) struct Chunks {
    space: Reservation,
    first_frame: u64,
    pages: usize,
    chunks: Box<[Chunk]>,
    mapper: Arc<dyn FrameMapper>,
    tally: Arc<Tally>,
    /// One maps at a time. Holds nothing: what it guards are the transitions.
    mapping: Mutex<()>,
}

impl Chunks {
    pub(super) fn new(
        first_frame: u64,
        pages: usize,
        mapper: Arc<dyn FrameMapper>,
        tally: Arc<Tally>,
    ) -> std::io::Result<Self> {
        let chunk = || Chunk {
            state: AtomicU8::new(EMPTY),
            mapped: OnceLock::new(),
        };
        Ok(Chunks {
            space: Reservation::new(pages)?,
            first_frame,
            pages,
            chunks: std::iter::repeat_with(chunk)
                .take(pages.div_ceil(CHUNK_PAGES))
                .collect(),
            mapper,
            tally,
            mapping: Mutex::new(()),
        })
    }

    /// The reservation, in which the pages that [`require`](Self::require) vouched for may be used.
    pub(super) fn space(&self) -> &Reservation {
        &self.space
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Has pages `first..=last` of the range mapped; what is mapped already costs one load a chunk.
    ///
    /// # Errors
    /// The page that cannot be mapped, and why.
    #[inline]
    pub(super) fn require(&self, first: usize, last: usize) -> Result<(), Unmapped> {
        // Nearly every access lies in one chunk, which is full.
        let at = first / CHUNK_PAGES;
        if at == last / CHUNK_PAGES
            && last < self.pages
            && self.chunks.get(at).is_some_and(Chunk::is_full)
        {
            return Ok(());
        }
        self.require_each(first, last)
    }

    #[inline(never)]
    fn require_each(&self, first: usize, last: usize) -> Result<(), Unmapped> {
        if last >= self.pages {
            return Err(Unmapped {
                page: last,
                errno: libc::EFAULT,
            });
        }
        for index in first / CHUNK_PAGES..=last / CHUNK_PAGES {
            let Some(chunk) = self.chunks.get(index) else {
                continue;
            };
            let start = index * CHUNK_PAGES;
            let from = first.max(start) - start;
            let to = last.min(start + CHUNK_PAGES - 1) - start;
            if !chunk.has(from, to) {
                self.map(index, chunk, from, to)?;
            }
        }
        Ok(())
    }

    /// Maps pages `from..=to` of a chunk that are missing.
    #[cold]
    fn map(&self, index: usize, chunk: &Chunk, from: usize, to: usize) -> Result<(), Unmapped> {
        let _turn = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        let start = index * CHUNK_PAGES;
        let len = CHUNK_PAGES.min(self.pages - start);
        // Relaxed: only the lock's holder changes it.
        if chunk.state.load(Ordering::Relaxed) == EMPTY {
            self.map_new(chunk, start, len).map_err(|errno| Unmapped {
                page: start + from,
                errno,
            })?;
        }
        for page in from..=to {
            if !chunk.has(page, page) {
                self.fill(chunk, start, page, len)
                    .map_err(|errno| Unmapped {
                        page: start + page,
                        errno,
                    })?;
            }
        }
        Ok(())
    }

    /// First use of a chunk: all its pages. Pages that did not map are left for [`fill`](Self::fill); if none did, the chunk
    /// stays empty.
    fn map_new(&self, chunk: &Chunk, start: usize, len: usize) -> Result<(), i32> {
        let place = self.space.place(start, len).ok_or(libc::EFAULT)?;
        let mut errors = vec![0; len];
        let first = self.first_frame + start as u64;
        // SAFETY: the chunk is empty, so `require` has not vouched for any page of it, and nobody else maps (the lock).
        unsafe { self.mapper.map(&place, first, &mut errors) }?;
        if !errors.contains(&0) {
            return Err(errors.first().copied().unwrap_or(libc::EINVAL));
        }
        self.tally.add();
        if errors.iter().all(|error| *error == 0) {
            // Release: pairs with `Chunk::has`, whose caller then uses the mapping.
            chunk.state.store(FULL, Ordering::Release);
            return Ok(());
        }
        for (page, _) in errors.iter().enumerate().filter(|(_, error)| **error == 0) {
            chunk.set(page);
        }
        // Release: as above; the bitmap is complete by now.
        chunk.state.store(HOLED, Ordering::Release);
        Ok(())
    }

    /// One page that was a hole.
    fn fill(&self, chunk: &Chunk, start: usize, page: usize, len: usize) -> Result<(), i32> {
        let place = self.space.place(start + page, 1).ok_or(libc::EFAULT)?;
        let mut error = [0];
        let frame = self.first_frame + (start + page) as u64;
        self.mapper.fill(&place, frame, &mut error)?;
        if error != [0] {
            let [errno] = error;
            return Err(errno);
        }
        chunk.set(page);
        if (0..len).all(|page| chunk.bit(page)) {
            // Release: as in `map_new`.
            chunk.state.store(FULL, Ordering::Release);
        }
        Ok(())
    }
}

impl Chunk {
    #[inline]
    fn is_full(&self) -> bool {
        // Acquire: as in `has`.
        self.state.load(Ordering::Acquire) == FULL
    }

    /// Whether pages `from..=to` are mapped.
    fn has(&self, from: usize, to: usize) -> bool {
        // Acquire: pairs with the Release stores of whoever mapped them.
        match self.state.load(Ordering::Acquire) {
            FULL => true,
            HOLED => (from..=to).all(|page| self.bit(page)),
            _ => false,
        }
    }

    fn bit(&self, page: usize) -> bool {
        self.mapped
            .get()
            .and_then(|words| words.get(page / 64))
            // Acquire: pairs with `set`.
            .is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 != 0)
    }

    fn set(&self, page: usize) {
        let words = self.mapped.get_or_init(Box::default);
        if let Some(word) = words.get(page / 64) {
            // Release: pairs with `bit`, whose caller then uses the page.
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }
}

/// A page of the range that is not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unmapped {
    /// Its number in the range.
    pub(super) page: usize,
    /// Why.
    pub(super) errno: i32,
}

#[cfg(test)]
mod tests;
