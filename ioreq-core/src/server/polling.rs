// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Adaptive polling: stay on the slots while requests keep coming, sleep when they stop.

use std::time::{Duration, Instant};

/// How a worker waits for the next request.
///
/// While it polls, event channels stay masked and a request costs one notification and no other system call. It gives up
/// after a time that adapts: twice as long after a request came while polling, half as long after none did.
///
/// ```
/// use std::time::Duration;
/// use ioreq_core::server::Polling;
/// let polling = Polling::default();
/// assert!(polling.longest() <= Duration::from_millis(1));
/// assert_eq!(Polling::off().longest(), Duration::ZERO); // always sleep: where polling would starve the guest
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polling {
    longest: Duration,
}

impl Polling {
    /// Poll for at most `longest` (cut to one second) after the last request.
    #[must_use]
    pub fn up_to(longest: Duration) -> Self {
        Polling {
            longest: longest.min(Duration::from_secs(1)),
        }
    }

    /// Never poll.
    #[must_use]
    pub fn off() -> Self {
        Polling {
            longest: Duration::ZERO,
        }
    }

    /// The longest time a worker polls without a request.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

impl Default for Polling {
    /// 50 µs where the machine has more than one CPU: about what waking a sleeping thread costs. Off on one CPU.
    fn default() -> Self {
        match std::thread::available_parallelism() {
            Ok(cpus) if cpus.get() > 1 => Self::up_to(Duration::from_micros(50)),
            _ => Self::off(),
        }
    }
}

/// A worker's state of waiting.
#[derive(Debug)]
pub(super) struct Spin {
    longest: Duration,
    now: Duration,
    idle_since: Option<Instant>,
    rounds: u32,
}

/// Scans between two looks at the clock.
const CLOCK_EVERY: u32 = 32;

impl Spin {
    pub(super) fn new(polling: Polling) -> Self {
        Spin {
            longest: polling.longest,
            now: polling.longest,
            idle_since: None,
            rounds: 0,
        }
    }

    /// A request came.
    pub(super) fn served(&mut self) {
        if self.idle_since.take().is_some() {
            self.now = (self.now * 2).clamp(self.shortest(), self.longest);
        }
        self.rounds = 0;
    }

    /// No request; whether to look again rather than sleep.
    pub(super) fn again(&mut self) -> bool {
        if self.longest.is_zero() {
            return false;
        }
        self.rounds = self.rounds.wrapping_add(1);
        let Some(since) = self.idle_since else {
            self.idle_since = Some(Instant::now());
            return true;
        };
        if !self.rounds.is_multiple_of(CLOCK_EVERY) || since.elapsed() < self.now {
            std::hint::spin_loop();
            return true;
        }
        self.now = (self.now / 2).max(self.shortest());
        self.idle_since = None;
        false
    }

    /// The worker was asleep and an event woke it: requests are about to come.
    pub(super) fn woken(&mut self) {
        self.idle_since = None;
        self.rounds = 0;
    }

    fn shortest(&self) -> Duration {
        self.longest / 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_never_polls() {
        let mut spin = Spin::new(Polling::off());
        assert!(!spin.again());
        spin.served();
        assert!(!spin.again());
    }

    #[test]
    fn gives_up_after_its_time_and_sooner_the_next() {
        let mut spin = Spin::new(Polling::up_to(Duration::from_micros(160)));
        assert!(spin.again(), "at least one more look");
        while spin.again() {}
        assert_eq!(spin.now, Duration::from_micros(80));
        for _ in 0..10 {
            while spin.again() {}
        }
        assert_eq!(
            spin.now,
            Duration::from_micros(10),
            "never below a sixteenth"
        );
        assert!(spin.again());
        spin.served();
        assert_eq!(
            spin.now,
            Duration::from_micros(20),
            "a request while polling makes it patient"
        );
    }

    #[test]
    fn time_is_bounded() {
        assert_eq!(
            Polling::up_to(Duration::MAX).longest(),
            Duration::from_secs(1)
        );
    }
}
