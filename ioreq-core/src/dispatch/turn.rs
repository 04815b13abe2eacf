// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whose turn it is with an order that two workers want.
//!
//! Handing an order over costs transfers of cache lines between two CPUs, far more than a write to a page that one of them has to
//! itself. So they take long turns. Whoever waits asks for the order at once, and gets it after the write that is being served. But who had to
//! give it up and comes right back leaves it to whoever asked, and leaves them a turn before it asks in its turn. While it waits it
//! only reads the byte, and its keeper does not write it: the line stays in both caches.
//!
//! Nobody waits without bound for one who keeps it: a keeper that is asked gives up when it quiesces next, after its write or its look at
//! its slots, and stays away until whoever asked has had it. Of several who wait, chance decides who is next, and each gives a turn to the others
//! after its own.

use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;

use crate::sync::pause;

/// How long who gave an order up leaves it to others, since then: some tens of times what handing it over costs.
const TURN: Duration = Duration::from_micros(4);
/// How long it leaves it free for whoever asked: more than the steps in which those sleep who have waited for long.
const PATIENCE: Duration = Duration::from_micros(200);
/// Spins between two looks at an order in another's turn.
const SPINS: u32 = 8;

/// How somebody waits for an order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// When it was given up to somebody else whose turn is not over.
    gave_up: Option<Instant>,
    /// They have not taken it yet, as far as is known.
    stands_back: bool,
}

impl Turn {
    /// Of one who did not have it last.
    pub(super) const fn first() -> Self {
        Turn {
            gave_up: None,
            stands_back: false,
        }
    }

    /// Of one who gives it up now.
    #[cfg(not(loom))]
    pub(super) fn after_giving_up() -> Self {
        Turn {
            gave_up: Some(Instant::now()),
            stands_back: true,
        }
    }

    /// The order is free: whether to take it.
    pub(super) fn may_take(&mut self) -> bool {
        if self.has_lasted(PATIENCE) {
            self.stands_back = false;
        }
        !self.stands_back
    }

    /// Somebody has it: whether to ask for it.
    pub(super) fn may_ask(&mut self) -> bool {
        self.stands_back = false;
        if self.has_lasted(TURN) {
            self.gave_up = None;
        }
        self.gave_up.is_none()
    }

    fn has_lasted(&self, time: Duration) -> bool {
        self.gave_up.is_some_and(|since| since.elapsed() >= time)
    }

    /// Waits a little.
    pub(super) fn wait(&self, backoff: &Backoff) {
        if self.gave_up.is_some() && !self.stands_back {
            // A turn is short.
            (0..SPINS).for_each(|_| std::hint::spin_loop());
        } else {
            pause(backoff);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn gave_up(before: Duration) -> Turn {
        Turn {
            gave_up: Instant::now().checked_sub(before),
            stands_back: true,
        }
    }

    #[test]
    fn whoever_did_not_have_it_takes_it_or_asks_at_once() {
        assert!(Turn::first().may_take());
        assert!(Turn::first().may_ask());
    }

    #[test]
    fn whoever_gave_it_up_leaves_it_to_the_other_and_asks_after_a_turn() {
        // A test cannot be sure of microseconds; of an hour it can.
        let later = Instant::now() + Duration::from_secs(3600);
        let mut turn = Turn {
            gave_up: Some(later),
            stands_back: true,
        };
        assert!(!turn.may_take(), "it is for whoever asked");
        assert!(!turn.may_ask(), "they have just taken it");
        assert!(turn.may_take(), "they have had it");
        let mut turn = gave_up(TURN);
        assert!(turn.may_ask(), "their turn is over");
        let mut turn = gave_up(PATIENCE);
        assert!(turn.may_take(), "whoever asked does not come");
    }
}
