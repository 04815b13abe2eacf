// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: memory of whole pages that stays where it is: mapped, locked, and unmapped when it is dropped.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Pages of this process, locked into memory, zeros at first.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// So many pages.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        Self::map(pages, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// So many pages that can be executed, too.
    pub(crate) fn executable(pages: usize) -> io::Result<Self> {
        Self::map(pages, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
    }

    fn map(pages: usize, protection: libc::c_int) -> io::Result<Self> {
        let len = pages * PAGE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Pages { start, len };
        // SAFETY: the mapping that was just made.
        if unsafe { libc::mlock(start.as_ptr().cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages)
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped, initialised by the kernel, and borrowed with `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
