// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Adaptive polling: stay on the slots while requests keep coming, sleep when they stop, and where polling does not help.
//!
//! What polling is worth is measured, not guessed: the time from an answer to the next request, once with a sleep in between and once
//! without. Where the guest has no processor beside the poller (one CPU, or more workers than CPUs) polling takes away the time that
//! the guest needs for its next request: the request comes late, or not while polling, and polling ends.

use std::time::{Duration, Instant};

/// How a worker waits for the next request.
///
/// While it polls, event channels stay masked and a request costs one notification and no other system call (where the
/// kernel's clock is read without one). It polls once the last requests have come within `longest` of an answer: for at most
/// twice the time that they took, and for `longest` where polling has helped every time lately, so that one late request costs no
/// sleep. It stops when polling does not bring the next request sooner than a sleep does, and tries again, less and less often.
///
/// ```
/// use std::time::Duration;
/// use ioreq_core::server::Polling;
/// let polling = Polling::default();
/// assert!(polling.longest() <= Duration::from_millis(1));
/// assert_eq!(Polling::off().longest(), Duration::ZERO); // always sleep
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
    /// Up to 50 µs: about what waking a sleeping thread costs.
    fn default() -> Self {
        Self::up_to(Duration::from_micros(50))
    }
}

/// Scans between two looks at the clock.
const CLOCK_EVERY: u32 = 32;
/// The most that successes are remembered.
const CREDIT: u32 = 8;
/// What a failure costs of it.
const COST: u32 = 2;
/// Sleeps, at least and at most, before polling is tried again.
const SKIP: (u32, u32) = (4, 1024);
/// Requests without polling that tell how long those take.
const SAMPLES: u32 = 4;
/// Polls between two sleeps that only keep those samples fresh.
const REFRESH: u32 = 512;

/// Of requests far apart one in so many is timed: a look at the clock is a part of what they cost.
const TIMED: u32 = 4;

/// How the next request is waited for.
#[derive(Debug)]
enum Idle {
    Polling {
        since: Instant,
        /// The last look at the clock.
        seen: Instant,
        rounds: u32,
        bound: Duration,
    },
    /// Asleep without polling, to see how long that takes.
    Asleep { since: Instant },
    /// Asleep, and nobody asks how long.
    Untimed,
    /// Asleep after polling: tells nothing of how long a sleep takes.
    InVain,
}

/// What to wait by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Poll(Duration),
    Sleep { timed: bool },
}

/// A worker's state of waiting.
#[derive(Debug)]
pub(super) struct Spin {
    longest: Duration,
    /// From an answer to the next request without polling, the last few; each cut to twice the longest time to poll.
    asleep: [Duration; SAMPLES as usize],
    /// Which of them is the oldest.
    oldest: usize,
    idle: Option<Idle>,
    /// Until the samples are refreshed.
    polls: u32,
    credit: u32,
    /// Sleeps to go without polling.
    skip: u32,
    /// Requests that need not be timed: the last that was came late.
    untimed: u32,
    /// The next number of those.
    next_skip: u32,
}

impl Spin {
    pub(super) fn new(polling: Polling) -> Self {
        Spin {
            longest: polling.longest,
            // Nothing is known: no polling until a few requests have come quickly.
            asleep: [polling.longest * 2; SAMPLES as usize],
            oldest: 0,
            idle: None,
            polls: REFRESH,
            credit: 0,
            skip: 0,
            untimed: 0,
            next_skip: SKIP.0,
        }
    }

    /// A request came.
    pub(super) fn served(&mut self, clock: impl FnOnce() -> Instant) {
        match self.idle.take() {
            Some(Idle::Polling { since, seen, .. }) if seen - since <= self.asleep() => {
                self.helped();
            }
            Some(Idle::Polling { .. }) => self.failed(),
            Some(Idle::Asleep { since }) => {
                let gap = (clock() - since).min(self.longest * 2);
                if let Some(oldest) = self.asleep.get_mut(self.oldest) {
                    *oldest = gap;
                }
                self.oldest = (self.oldest + 1) % self.asleep.len();
                self.untimed = if gap > self.longest { TIMED - 1 } else { 0 };
            }
            Some(Idle::Untimed | Idle::InVain) | None => {}
        }
    }

    /// The mean of the samples.
    fn asleep(&self) -> Duration {
        self.asleep.iter().sum::<Duration>() / SAMPLES
    }

    /// No request; whether to look again rather than sleep.
    pub(super) fn again(&mut self, clock: impl FnOnce() -> Instant) -> bool {
        if self.longest.is_zero() {
            return false;
        }
        match &mut self.idle {
            None => {
                self.idle = Some(match self.choose() {
                    Choice::Sleep { timed: false } => Idle::Untimed,
                    Choice::Sleep { timed: true } => Idle::Asleep { since: clock() },
                    Choice::Poll(bound) => {
                        let now = clock();
                        Idle::Polling {
                            since: now,
                            seen: now,
                            rounds: 0,
                            bound,
                        }
                    }
                });
                matches!(self.idle, Some(Idle::Polling { .. }))
            }
            Some(Idle::Polling {
                since,
                seen,
                rounds,
                bound,
            }) => {
                *rounds = rounds.wrapping_add(1);
                std::hint::spin_loop();
                if !rounds.is_multiple_of(CLOCK_EVERY) {
                    return true;
                }
                *seen = clock();
                if *seen - *since < *bound {
                    return true;
                }
                self.idle = Some(Idle::InVain);
                self.failed();
                false
            }
            Some(Idle::Asleep { .. } | Idle::Untimed | Idle::InVain) => false,
        }
    }

    /// Whether the next wait is a sleep from its beginning.
    pub(super) fn sleeps_next(&self) -> bool {
        self.longest.is_zero() || self.skip > 0 || self.is_seldom()
    }

    /// Whether the last requests did not come soon.
    fn is_seldom(&self) -> bool {
        self.asleep.iter().any(|gap| *gap > self.longest)
    }

    /// For the time that begins now.
    fn choose(&mut self) -> Choice {
        if self.is_seldom() {
            let timed = self.untimed == 0;
            self.untimed = self.untimed.saturating_sub(1);
            return Choice::Sleep { timed };
        }
        if self.skip > 0 {
            self.skip -= 1;
            // The last ones are what polling will be compared with.
            return Choice::Sleep {
                timed: self.skip < SAMPLES,
            };
        }
        self.polls -= 1;
        if self.polls == 0 {
            self.polls = REFRESH;
            return Choice::Sleep { timed: true };
        }
        Choice::Poll(match self.credit {
            CREDIT => self.longest,
            _ => (self.asleep() * 2).min(self.longest),
        })
    }

    fn helped(&mut self) {
        self.credit = (self.credit + 1).min(CREDIT);
        if self.credit == CREDIT {
            self.next_skip = SKIP.0;
        }
    }

    fn failed(&mut self) {
        match self.credit.checked_sub(COST) {
            Some(left) => self.credit = left,
            None => {
                self.credit = 0;
                self.skip = self.next_skip;
                self.next_skip = (self.next_skip * 4).min(SKIP.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONGEST: Duration = Duration::from_micros(200);

    /// A guest, and the time it sees.
    struct World {
        spin: Spin,
        now: Cell<Instant>,
        /// Microseconds from an answer to the next request while the worker polls (none: never), and while it sleeps.
        polling: Option<u64>,
        asleep: u64,
    }

    impl World {
        fn new(longest: Duration, polling: Option<u64>, asleep: u64) -> Self {
            World {
                spin: Spin::new(Polling::up_to(longest)),
                now: Cell::new(Instant::now()),
                polling,
                asleep,
            }
        }

        /// Time from an answer to the next, and whether the worker slept.
        fn request(&mut self) -> (Duration, bool) {
            let start = self.now.get();
            let after = |micros| start + Duration::from_micros(micros);
            let mut slept = false;
            loop {
                let there = if slept {
                    true
                } else {
                    self.polling
                        .is_some_and(|micros| self.now.get() >= after(micros))
                };
                let now = || self.now.get();
                if there {
                    self.spin.served(now);
                    return (self.now.get() - start, slept);
                }
                if self.spin.again(now) {
                    // A look takes a tenth of a microsecond.
                    self.now.set(self.now.get() + Duration::from_nanos(100));
                } else {
                    slept = true;
                    self.now
                        .set(self.now.get() + Duration::from_micros(self.asleep));
                }
            }
        }

        fn sleeps(&mut self, requests: u32) -> u32 {
            (0..requests).map(|_| u32::from(self.request().1)).sum()
        }
    }

    #[test]
    fn off_never_polls() {
        let mut world = World::new(Duration::ZERO, Some(1), 2);
        assert_eq!(world.sleeps(100), 100);
    }

    #[test]
    fn busy_without_a_sleep_after_a_few_requests() {
        let mut world = World::new(LONGEST, Some(10), 30);
        assert_eq!(world.sleeps(20), 4);
        assert!(world.sleeps(10_000) <= 20, "to see whether it still helps");
    }

    #[test]
    fn a_pause_now_and_then_does_not_end_it() {
        let mut world = World::new(LONGEST, Some(10), 30);
        world.sleeps(20);
        for _ in 0..20 {
            world.polling = None;
            assert_eq!(world.sleeps(1), 1);
            world.polling = Some(10);
            assert_eq!(world.sleeps(20), 0);
        }
    }

    /// One that is late is no reason to sleep where polling helps; the next is not waited for as long.
    #[test]
    fn one_late_request_costs_no_sleep() {
        let mut world = World::new(LONGEST, Some(10), 30);
        world.sleeps(20);
        world.polling = Some(150);
        assert_eq!(world.sleeps(1), 0);
        assert_eq!(world.sleeps(1), 1, "twice in a row");
        world.polling = Some(10);
        assert_eq!(world.sleeps(20), 0);
        world.polling = Some(150);
        assert_eq!(world.sleeps(1), 0, "trusted again");
    }

    #[test]
    fn no_polling_for_requests_that_are_far_apart() {
        let mut world = World::new(LONGEST, Some(5000), 5020);
        for _ in 0..1000 {
            let slept = Duration::from_micros(5020);
            assert_eq!(
                world.request(),
                (slept, true),
                "and not a moment of polling"
            );
        }
    }

    #[test]
    fn requests_far_apart_are_seldom_timed() {
        let mut spin = Spin::new(Polling::up_to(LONGEST));
        let (mut now, mut looks) = (Instant::now(), 0);
        let mut clock = || {
            looks += 1;
            now += LONGEST * 2;
            now
        };
        for _ in 0..400 {
            assert!(!spin.again(&mut clock));
            spin.served(&mut clock);
        }
        assert_eq!(looks, 2 * 400 / TIMED);
    }

    #[test]
    fn from_busy_to_seldom_and_back() {
        let mut world = World::new(LONGEST, Some(10), 30);
        world.sleeps(100);
        (world.polling, world.asleep) = (Some(5000), 5020);
        world.sleeps(50);
        assert_eq!(world.request().0, Duration::from_micros(5020));
        (world.polling, world.asleep) = (Some(10), 30);
        assert!(world.sleeps(100) < 50);
        assert!(world.sleeps(1000) <= 2);
    }

    /// One CPU: as long as the worker polls, the guest does not run.
    #[test]
    fn no_polling_where_it_keeps_the_guest_from_running() {
        let mut world = World::new(LONGEST, None, 30);
        world.sleeps(100);
        let started = world.now.get();
        assert_eq!(world.sleeps(10_000), 10_000);
        let took = world.now.get() - started;
        let best = Duration::from_micros(30) * 10_000;
        assert!(took < best + best / 100, "{took:?} instead of {best:?}");
    }

    /// Each try costs what two requests take: of the first few hundred there are no more than five.
    #[test]
    fn polling_in_vain_is_given_up_soon() {
        let mut world = World::new(LONGEST, None, 30);
        let started = world.now.get();
        world.sleeps(300);
        let tries = (world.now.get() - started).saturating_sub(Duration::from_micros(30) * 300);
        assert!(tries < Duration::from_micros(66) * 5, "{tries:?}");
    }

    /// What sleeping takes is not what it took long ago.
    #[test]
    fn old_measurements_do_not_count() {
        let mut world = World::new(LONGEST, Some(100), 180);
        world.sleeps(1000);
        (world.polling, world.asleep) = (Some(50), 30);
        world.sleeps(5000);
        assert!(world.sleeps(10_000) > 9_900);
    }

    /// One CPU: the hypervisor takes it from the poller after a while, so that requests come while it polls, but late.
    #[test]
    fn no_polling_where_it_makes_requests_late() {
        let mut world = World::new(LONGEST, Some(50), 30);
        world.sleeps(100);
        let started = world.now.get();
        assert!(world.sleeps(10_000) > 9_900);
        let took = world.now.get() - started;
        let best = Duration::from_micros(30) * 10_000;
        assert!(took < best + best / 100, "{took:?} instead of {best:?}");
    }

    #[test]
    fn comes_back_when_there_is_another_processor() {
        let mut world = World::new(LONGEST, None, 30);
        world.sleeps(10_000);
        world.polling = Some(10);
        assert!(world.sleeps(5000) < 1100);
        assert!(world.sleeps(1000) <= 2);
    }

    #[test]
    fn a_wake_up_for_nothing_begins_no_new_polling() {
        let mut spin = Spin::new(Polling::up_to(LONGEST));
        let now = Instant::now();
        spin.asleep = [LONGEST; SAMPLES as usize];
        assert!(spin.again(|| now));
        let late = now + LONGEST;
        let mut looks = 0;
        while spin.again(|| late) {
            looks += 1;
        }
        assert!(looks < CLOCK_EVERY);
        assert!(!spin.again(|| late), "woken, and nothing was there");
    }

    #[test]
    fn time_is_bounded() {
        assert_eq!(
            Polling::up_to(Duration::MAX).longest(),
            Duration::from_secs(1)
        );
    }
}
