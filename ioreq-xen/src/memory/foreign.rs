// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: maps a domain's frames into reserved address space, in place of what was there.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use ioreq_core::DomId;

use crate::sys::{Place, Privcmd};

/// Maps guest frames; errors are errno values. Real ones, or a fake's in tests.
pub(crate) trait FrameMapper: Send + Sync {
    /// Maps frames `first…` over the whole of `place`. Writes each page's error, 0 for those that are mapped now; if none is,
    /// nothing is left mapped.
    ///
    /// # Safety
    /// Nobody has been given an address inside the place.
    unsafe fn map(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32>;

    /// Maps frames `first…` into holes: pages of a place that [`map`](Self::map) left unmapped.
    fn fill(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32>;
}

/// A domain's frames.
#[derive(Debug)]
pub(crate) struct Foreign {
    privcmd: Arc<Privcmd>,
    domid: DomId,
}

/// Tries of a page that is paged out, each after [`PAGING_WAIT`].
const PAGING_TRIES: u32 = 100;
const PAGING_WAIT: Duration = Duration::from_millis(1);

impl Foreign {
    pub(crate) fn new(privcmd: Arc<Privcmd>, domid: DomId) -> Self {
        Foreign { privcmd, domid }
    }

    /// Pages that are paged out (ENOENT) are being fetched by Xen since they were asked for: waits for them.
    fn await_paging(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32> {
        for _ in 0..PAGING_TRIES {
            if !errors.contains(&libc::ENOENT) {
                break;
            }
            std::thread::sleep(PAGING_WAIT);
            for (at, error) in errors.iter_mut().enumerate() {
                if *error == libc::ENOENT
                    && let Some(page) = place.part(at, 1)
                {
                    let mut one = [0];
                    self.privcmd
                        .map_frames(self.domid, &page, first + at as u64, &mut one)?;
                    [*error] = one;
                }
            }
        }
        Ok(())
    }
}

impl FrameMapper for Foreign {
    unsafe fn map(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32> {
        // SAFETY: as our own caller says.
        unsafe { place.map(self.privcmd.as_raw_fd()) }?;
        let result = self
            .privcmd
            .map_frames(self.domid, place, first, errors)
            .and_then(|()| self.await_paging(place, first, errors));
        if result.is_err() || !errors.contains(&0) {
            // SAFETY: nobody was given an address since.
            unsafe { place.clear() }?;
        }
        result
    }

    fn fill(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32> {
        self.privcmd.map_frames(self.domid, place, first, errors)?;
        self.await_paging(place, first, errors)
    }
}
