// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: reserves address space, and maps files into parts of it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use super::{Errno, last_errno};

const PAGE: usize = 4096;

/// Address space of so many pages, inaccessible until a file is mapped into parts of it. Unmapped as a whole when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    addr: NonNull<u8>,
    pages: usize,
}

impl Reservation {
    /// At least one page.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        let len = pages
            .max(1)
            .checked_mul(PAGE)
            .filter(|&len| isize::try_from(len).is_ok())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new inaccessible mapping touches no memory that exists; every argument is a plain value.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        NonNull::new(addr.cast::<u8>())
            .filter(|addr| addr.as_ptr().cast() != libc::MAP_FAILED)
            .map(|addr| Reservation {
                addr,
                pages: pages.max(1),
            })
            .ok_or_else(io::Error::last_os_error)
    }

    /// The part of `pages` pages from page `first` on; None unless it lies inside, and is not empty.
    pub(crate) fn place(&self, first: usize, pages: usize) -> Option<Place<'_>> {
        let all = Place {
            addr: self.addr,
            pages: self.pages,
            _reservation: PhantomData,
        };
        all.part(first, pages)
    }

    /// The first byte.
    pub(crate) fn addr(&self) -> NonNull<u8> {
        self.addr
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the address space that `new` made, with whatever was mapped into it since; whoever was given an address in
        // it keeps `self` alive.
        let rc = unsafe { libc::munmap(self.addr.as_ptr().cast(), self.pages * PAGE) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping");
    }
}

// SAFETY: owns its address space, which is valid from every thread.
unsafe impl Send for Reservation {}
// SAFETY: gives out addresses only.
unsafe impl Sync for Reservation {}

/// A part of a reservation.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    addr: NonNull<u8>,
    pages: usize,
    _reservation: PhantomData<&'a Reservation>,
}

impl Place<'_> {
    /// Its first byte.
    pub(crate) fn addr(&self) -> NonNull<u8> {
        self.addr
    }

    /// Its length.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The part of `pages` pages from page `first` on; None unless it lies inside, and is not empty.
    pub(crate) fn part(&self, first: usize, pages: usize) -> Option<Self> {
        let end = first.checked_add(pages)?;
        if pages == 0 || end > self.pages {
            return None;
        }
        // SAFETY: `first < self.pages`, so the offset is inside the place, which is inside the reservation.
        let addr = unsafe { self.addr.add(first * PAGE) };
        Some(Place {
            addr,
            pages,
            _reservation: PhantomData,
        })
    }

    /// Maps a file here from its start on, shared, readable and writable, in place of what was mapped.
    ///
    /// # Safety
    /// Nobody has been given an address inside the place.
    pub(crate) unsafe fn map(&self, fd: RawFd) -> Result<(), Errno> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: as the caller says.
        unsafe { self.replace(prot, libc::MAP_SHARED, fd) }
    }

    /// Makes it inaccessible again.
    ///
    /// # Safety
    /// Nobody has been given an address inside the place.
    pub(crate) unsafe fn clear(&self) -> Result<(), Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: as the caller says.
        unsafe { self.replace(libc::PROT_NONE, flags, -1) }
    }

    /// Puts zeros here that stay, in place of what was mapped, for the accesses still to come of those who have an address:
    /// memory all the time, readable and writable, that somebody else changed.
    pub(crate) fn blank(&self) -> Result<(), Errno> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the new mapping takes the old one's place at once, with at least its rights, so whoever has an address in it
        // finds valid memory; all of them expect its contents to change (it was shared).
        unsafe { self.replace(prot, flags, -1) }
    }

    /// # Safety
    /// Nobody has been given an address inside the place, or the new mapping is as good for those who have.
    unsafe fn replace(&self, prot: i32, flags: i32, fd: RawFd) -> Result<(), Errno> {
        // SAFETY: MAP_FIXED replaces exactly this place's pages, which the reservation owns for as long as this value lives, and
        // which nobody uses (the caller's word).
        let addr = unsafe {
            libc::mmap(
                self.addr.as_ptr().cast(),
                self.pages * PAGE,
                prot,
                flags | libc::MAP_FIXED,
                fd,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(last_errno());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_inside() {
        let space = Reservation::new(4).unwrap();
        assert!(space.place(0, 4).is_some());
        assert!(space.place(3, 1).is_some());
        assert!(space.place(3, 2).is_none());
        assert!(space.place(4, 1).is_none());
        assert!(space.place(0, 0).is_none());
        assert!(space.place(usize::MAX, 2).is_none());
        let third = space.place(2, 1).unwrap().addr();
        assert_eq!(third.addr().get() - space.addr().addr().get(), 2 * PAGE);
    }

    #[test]
    fn a_blanked_page_is_zeroes_and_can_be_written() {
        let space = Reservation::new(2).unwrap();
        let page = space.place(1, 1).unwrap();
        page.blank().unwrap();
        let word = page.addr().cast::<u32>();
        // SAFETY: just mapped, readable and writable, and ours.
        unsafe { word.write_volatile(7) };
        page.blank().unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { word.read_volatile() }, 0);
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(Reservation::new(usize::MAX).is_err());
        assert!(Reservation::new(1 << 50).is_err());
    }
}
