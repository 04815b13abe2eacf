// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Calls of dom0's `privcmd` that no device model should make: to see what the driver says to them.
//!
//! UNSAFETY: `mmap` of the device, and a `write` from memory that may not be there.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use super::hypercall::{DmOpArgs, DmOpBuffer, MapArgs, Privcmd, ioc};

const PAGE: usize = 4096;

impl Privcmd {
    /// A DMOP of so many buffers: the operation, and empty ones.
    ///
    /// # Errors
    /// The driver's, or Xen's.
    pub fn dm_op_of(&self, domid: u16, op: &mut [u8], buffers: u16) -> io::Result<()> {
        let mut list = vec![
            DmOpBuffer {
                address: op.as_mut_ptr() as u64,
                size: 0,
            };
            usize::from(buffers)
        ];
        if let Some(first) = list.first_mut() {
            first.size = op.len() as u64;
        }
        let mut args = DmOpArgs {
            domid,
            count: buffers,
            buffers: list.as_mut_ptr() as u64,
        };
        let request = ioc(5, size_of::<DmOpArgs>());
        // SAFETY: the structure of this request; `buffers` buffers, of `op`'s length and of none.
        unsafe { self.ioctl(request, &raw mut args) }.map(drop)
    }

    /// Reserves a place for guest frames in this process's address space.
    ///
    /// # Errors
    /// The system's.
    pub fn reserve(&self, pages: usize) -> io::Result<Reserved<'_>> {
        let size = pages * PAGE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.file().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Reserved {
            privcmd: self,
            start,
            pages,
        })
    }
}

/// A place for guest frames.
#[derive(Debug)]
pub struct Reserved<'a> {
    privcmd: &'a Privcmd,
    start: *mut libc::c_void,
    pages: usize,
}

impl Reserved<'_> {
    /// Fills it from its beginning with guest frames; each frame's errno, 0 if it is mapped.
    ///
    /// # Errors
    /// The driver's, about all of them; or that there is no place for so many.
    pub fn fill(&self, domid: u16, frames: &[u64]) -> io::Result<Vec<i32>> {
        if frames.len() > self.pages {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut errors = vec![0_i32; frames.len()];
        let mut args = MapArgs {
            count: u32::try_from(frames.len()).map_err(io::Error::other)?,
            domid,
            address: self.start as u64,
            frames: frames.as_ptr() as u64,
            errors: errors.as_mut_ptr() as u64,
        };
        let request = ioc(4, size_of::<MapArgs>());
        // SAFETY: the structure of this request; address and arrays have `count` pages and entries.
        let result = unsafe { self.privcmd.ioctl(request, &raw mut args) };
        match result {
            // ENOENT: frames that are paged out, which err[] tells, too.
            Err(err) if err.raw_os_error() != Some(libc::ENOENT) => Err(err),
            _ => Ok(errors.iter().map(|errno| -errno).collect()),
        }
    }

    /// Whether a load from a page works; where it does not, it would be a SIGBUS.
    ///
    /// # Errors
    /// The system's, but for the one that says no.
    pub fn is_readable(&self, page: usize) -> io::Result<bool> {
        assert!(page < self.pages);
        let (_reader, writer) = io::pipe()?;
        let from = self.start.wrapping_byte_add(page * PAGE);
        // SAFETY: the system call reads a word from this mapping; it says EFAULT where a load of ours would be a signal.
        let written = unsafe { libc::write(writer.as_raw_fd(), from, 8) };
        if written == 8 {
            return Ok(true);
        }
        let err = io::Error::last_os_error();
        match err.raw_os_error() {
            Some(libc::EFAULT) => Ok(false),
            _ => Err(err),
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        let result = unsafe { libc::munmap(self.start, self.pages * PAGE) };
        debug_assert_eq!(result, 0);
    }
}
