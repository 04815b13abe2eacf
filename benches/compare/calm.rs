// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether a slice had its CPU for itself. The kernel says when it gave the CPU to another thread. What it cannot say: on a rented machine a
//! CPU is often one of two hardware threads of a core, and does half as much while the other one works for somebody else, for some
//! milliseconds at a time. So the same piece of work is timed before and after each slice.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::slices::Unrest;

/// Turns of the piece of work: a few microseconds.
const TURNS: u64 = 1000;

/// The quickest so far, in nanoseconds.
static QUICKEST: AtomicU64 = AtomicU64::new(u64::MAX);

fn nanos(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// Does the piece of work: more independent steps than a core has units for, of the most ordinary kind, so that whoever shares them is
/// noticed. (Swapping bytes keeps the compiler from using vectors, whose units are others.)
pub(crate) fn unrest() -> Unrest {
    let started = Instant::now();
    let mut numbers = black_box([1_u64, 2, 3, 4, 5, 6, 7, 8]);
    for turn in 0..TURNS {
        for number in &mut numbers {
            *number = number.swap_bytes().wrapping_add(turn);
        }
    }
    black_box(numbers);
    let took = nanos(started.elapsed());
    // Relaxed: a number of its own.
    let quickest = QUICKEST.fetch_min(took, Ordering::Relaxed).min(took);
    Unrest::of(took, quickest)
}

/// Times that the kernel took the CPU away from this thread.
pub(crate) fn preemptions() -> i64 {
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure that it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(result, 0, "the kernel counts context switches of threads");
    usage.ru_nivcsw
}

/// How long the slices of a figure may yet wait for calm moments, together. For each figure anew, so that the last ones have as much as
/// the first.
pub(crate) struct Patience(Duration);

impl Patience {
    /// For a figure of a large table.
    pub(crate) fn little() -> Self {
        Patience(Duration::from_millis(60))
    }

    /// For one of a few.
    pub(crate) fn much() -> Self {
        Patience(Duration::from_millis(400))
    }

    /// Waits until this CPU does as much as it can, or no longer.
    pub(crate) fn wait(&mut self) {
        let started = Instant::now();
        while !unrest().is_calm() && started.elapsed() < self.0 {}
        self.0 = self.0.saturating_sub(started.elapsed());
    }
}

/// Looks after a slice of this thread.
#[must_use]
pub(crate) struct Watch {
    preempted: i64,
    /// As the slice began; none for a long one.
    before: Option<Unrest>,
}

impl Watch {
    /// Before the slice.
    pub(crate) fn begin() -> Self {
        let before = Some(unrest());
        Watch {
            before,
            preempted: preemptions(),
        }
    }

    /// For a slice of many milliseconds, in which no CPU is calm: looks only whether the kernel took it away.
    pub(crate) fn long() -> Self {
        Watch {
            preempted: preemptions(),
            before: None,
        }
    }

    /// After it: how much others disturbed it.
    pub(crate) fn end(self) -> Unrest {
        if preemptions() != self.preempted {
            return Unrest::SPOILT;
        }
        self.before
            .map_or(Unrest::NONE, |before| before.max(unrest()))
    }
}
