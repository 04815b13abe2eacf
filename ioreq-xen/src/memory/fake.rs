// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: makes a memory file and maps it, as the kernel maps foreign frames. Tests only.
//!
//! A domain's frames without a domain: pages of a memory file, with holes where a test wants them.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::foreign::FrameMapper;
use crate::sys::Place;

/// Maps frame `n` as page `n` of a memory file, page by page.
#[derive(Debug)]
pub(super) struct FakeFrames {
    file: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Frames that the guest does not have.
    pub(super) holes: BTreeSet<u64>,
    /// The next call fails as a whole.
    pub(super) fail: Option<i32>,
    /// Calls of `map` and `fill`: first frame and number.
    pub(super) calls: Vec<(&'static str, u64, usize)>,
}

impl FakeFrames {
    pub(super) fn new(frames: u64) -> Self {
        // SAFETY: a constant name, and flags.
        let fd = unsafe { libc::memfd_create(c"frames".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just made, and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = i64::try_from(frames * 4096).unwrap();
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::ftruncate(fd, len) }, 0);
        FakeFrames {
            file,
            state: Mutex::default(),
        }
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As the kernel: each page apart; a page that is mapped already is refused.
    fn pages(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32> {
        for (at, error) in errors.iter_mut().enumerate() {
            let frame = first + at as u64;
            if self.with(|state| state.holes.contains(&frame)) {
                *error = libc::EINVAL;
                continue;
            }
            let page = place.part(at, 1).unwrap();
            // SAFETY: a hole or a new chunk, which nobody has an address in (the contract of `map` and `fill`).
            let addr = unsafe {
                libc::mmap(
                    page.addr().as_ptr().cast(),
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    self.file.as_raw_fd(),
                    i64::try_from(frame * 4096).unwrap(),
                )
            };
            assert_ne!(addr, libc::MAP_FAILED);
            *error = 0;
        }
        Ok(())
    }
}

impl FrameMapper for FakeFrames {
    unsafe fn map(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32> {
        self.with(|state| {
            state.calls.push(("map", first, errors.len()));
            state.fail.take().map_or(Ok(()), Err)
        })?;
        self.pages(place, first, errors)
    }

    fn fill(&self, place: &Place<'_>, first: u64, errors: &mut [i32]) -> Result<(), i32> {
        self.with(|state| {
            state.calls.push(("fill", first, errors.len()));
            state.fail.take().map_or(Ok(()), Err)
        })?;
        self.pages(place, first, errors)
    }
}
