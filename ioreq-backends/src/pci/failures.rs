// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Failures that nobody is there to be told of, because a guest's write caused them: counted, and logged ever more rarely, so that
//! a guest cannot fill the log.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use ioreq_core::{Error, Sbdf};

#[derive(Debug, Default)]
pub(super) struct Failures(AtomicU64);

impl Failures {
    pub(super) fn note(&self, function: Sbdf, what: impl fmt::Display, err: &Error) {
        // Relaxed: a counter; nothing else is told by it.
        let count = self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count.is_power_of_two() {
            tracing::warn!(%function, %what, %err, count, "a PCI function's request failed");
        }
    }

    pub(super) fn count(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed)
    }
}
