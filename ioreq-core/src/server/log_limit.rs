// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Keeps a guest from filling the log: events that it can cause are logged a few times a second at most.

use std::time::Instant;

use crate::sync::atomic::{AtomicU64, Ordering};

/// Events logged in one second.
const PER_SECOND: u64 = 8;

/// A limit on one server's guest-caused log events. Counters tell the whole number.
#[derive(Debug)]
pub(super) struct LogLimit {
    started: Instant,
    /// The current second in the upper bits, events logged in it in the lower 16.
    window: AtomicU64,
}

impl LogLimit {
    pub(super) fn new() -> Self {
        LogLimit {
            started: Instant::now(),
            window: AtomicU64::new(0),
        }
    }

    /// Whether the next event may be logged.
    pub(super) fn allow(&self) -> bool {
        self.allow_at(self.started.elapsed().as_secs())
    }

    fn allow_at(&self, second: u64) -> bool {
        // Relaxed, and not atomic as a whole: two workers may log one event more between them, which does no harm.
        let window = self.window.load(Ordering::Relaxed);
        let count = if window >> 16 == second {
            window & 0xffff
        } else {
            0
        };
        if count >= PER_SECOND {
            return false;
        }
        self.window
            .store(second << 16 | (count + 1), Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_the_next_second_starts_anew() {
        let limit = LogLimit::new();
        let logged = (0..1000).filter(|_| limit.allow_at(5)).count() as u64;
        assert_eq!(logged, PER_SECOND);
        assert!(limit.allow_at(6));
    }
}
