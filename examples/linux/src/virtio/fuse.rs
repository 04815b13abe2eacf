// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Death of a device's thread in the middle of its work, for tests.

use std::fmt;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};

/// A fuse in a worker's thread: burns at some of the points that the thread passes, and the thread dies there, whatever it was doing.
pub struct Fuse {
    /// On average so many points are passed until it burns; 0: it never does.
    every: u64,
    left: AtomicU64,
    burnt: AtomicU64,
    /// What is done instead of the thread's death.
    instead: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Fuse {
    /// One that never burns.
    #[must_use]
    pub fn never() -> Self {
        Self::every(0)
    }

    /// One that burns again and again, after 1 to `2 * every` points.
    #[must_use]
    pub fn every(every: u32) -> Self {
        let fuse = Fuse {
            every: every.into(),
            left: AtomicU64::new(0),
            burnt: AtomicU64::new(0),
            instead: None,
        };
        fuse.renew();
        fuse
    }

    /// One that burns once, after so many points, and then does something worse.
    #[must_use]
    pub fn once(after: u32, worse: impl Fn() + Send + Sync + 'static) -> Self {
        Fuse {
            every: 0,
            left: AtomicU64::new(after.into()),
            burnt: AtomicU64::new(0),
            instead: Some(Box::new(worse)),
        }
    }

    /// How often it burnt.
    #[must_use]
    pub fn burnt(&self) -> u64 {
        // Relaxed: a number.
        self.burnt.load(Ordering::Relaxed)
    }

    fn renew(&self) {
        if self.every > 0 {
            // Relaxed: one thread at a time passes points.
            self.left
                .store(fastrand::u64(1..=2 * self.every), Ordering::Relaxed);
        }
    }

    /// The thread passes a point, and may not come back.
    pub(super) fn point(&self) {
        // Relaxed: as in `renew`.
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return;
        }
        self.left.store(left - 1, Ordering::Relaxed);
        if left == 1 {
            self.burnt.fetch_add(1, Ordering::Relaxed);
            self.renew();
            if let Some(worse) = &self.instead {
                return worse();
            }
            // Without a message: it is meant to be so.
            panic::resume_unwind(Box::new("the fuse burnt"));
        }
    }
}

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fuse")
            .field("every", &self.every)
            .field("burnt", &self.burnt())
            .finish_non_exhaustive()
    }
}
