// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device-model process, as far as Xen and the kernel know it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioreq_core::{DomId, Error, ErrorKind, Op, Result};

use crate::evtchn::Handle;

/// One process: alive, with its open event-channel handles.
#[derive(Debug)]
pub(crate) struct Process {
    /// The domain that it runs in.
    pub(crate) emulator: DomId,
    killed: AtomicBool,
    handles: Mutex<Vec<Weak<Handle>>>,
}

impl Process {
    pub(crate) fn new(emulator: DomId) -> Self {
        Process {
            emulator,
            killed: AtomicBool::new(false),
            handles: Mutex::default(),
        }
    }

    pub(crate) fn opened(&self, handle: &Arc<Handle>) {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.retain(|h| h.strong_count() > 0);
        handles.push(Arc::downgrade(handle));
    }

    pub(crate) fn is_killed(&self) -> bool {
        // Acquire: pairs with `kill`.
        self.killed.load(Ordering::Acquire)
    }

    /// Refuses what a process that is gone cannot do.
    pub(crate) fn check(&self, op: Op) -> Result<()> {
        if self.is_killed() {
            return Err(Error::new(op, ErrorKind::Other).about("this process was killed"));
        }
        Ok(())
    }

    /// `kill -9`: the kernel closes what it had open. What Xen keeps, it keeps.
    pub(crate) fn kill(&self) {
        // Release: pairs with `is_killed`.
        self.killed.store(true, Ordering::Release);
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        for handle in handles.drain(..).filter_map(|h| h.upgrade()) {
            handle.close();
        }
    }
}
