// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wakes a service group from any thread.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{Error, Op, Result};
use crate::hypervisor::EventChannels;
use crate::sync::atomic::{AtomicBool, Ordering};

/// An eventfd that is written to only when nobody has done so since the last look.
pub(super) struct Waker {
    fd: EventFd,
    signalled: AtomicBool,
    /// Of a group whose worker waits in these, instead of for `fd`.
    events: OnceLock<Arc<dyn EventChannels>>,
}

impl Waker {
    pub(super) fn new() -> Result<Self> {
        let fd = EventFd::new(EFD_NONBLOCK).map_err(|err| Error::from_io(Op::Serve, &err))?;
        Ok(Waker {
            fd,
            signalled: AtomicBool::new(false),
            events: OnceLock::new(),
        })
    }

    /// From now on these are woken, too. Before there is anybody to wake.
    pub(super) fn wakes(&self, events: Arc<dyn EventChannels>) {
        let _once = self.events.set(events);
    }

    /// Makes the group look at its queues.
    pub(super) fn wake(&self) {
        // AcqRel: what was queued before this is visible to the worker whose `take` sees the flag.
        if self.signalled.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(err) = self.fd.write(1) {
            // The counter is full: then it is readable, which is all that is wanted.
            tracing::debug!(%err, "eventfd write");
        }
        if let Some(events) = self.events.get()
            && let Err(err) = events.wake()
        {
            tracing::error!(%err, "a worker could not be woken");
        }
    }

    /// Whether somebody woke the group since the last call; a load where nobody did.
    #[inline(always)]
    pub(super) fn take(&self) -> bool {
        // Relaxed: only a hint that the swap is worth its cost.
        self.signalled.load(Ordering::Relaxed) && self.drain()
    }

    /// The same after a sleep: empties the fd whatever the flag says, because a writer may come late with its write.
    #[cold]
    #[inline(never)]
    pub(super) fn drain(&self) -> bool {
        // Non-blocking; an empty counter means that the writer has not got there yet, and the fd will wake us once for nothing.
        let _empty = self.fd.read();
        // AcqRel: pairs with the swap in `wake`; what was queued before it is visible from here on.
        self.signalled.swap(false, Ordering::AcqRel)
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker")
            .field("signalled", &self.signalled)
            .finish_non_exhaustive()
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
