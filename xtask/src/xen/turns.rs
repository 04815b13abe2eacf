// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Boots beside each other: as many as this machine has processors for, so that no boot waits for one in the middle. A build counts as one.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;

/// Boots that run, by processors.
static BOOTS: Turns = Turns {
    taken: Mutex::new(0),
    given_back: Condvar::new(),
};

struct Turns {
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// Processors of this machine, for a boot; given back when it is dropped.
pub(super) struct Turn {
    of: &'static Turns,
    processors: usize,
}

/// Waits until this machine has so many processors left; one that wants more than there are gets all.
pub(super) fn wait_for(processors: u8) -> Turn {
    BOOTS.take(
        processors.into(),
        available_parallelism().map_or(1, Into::into),
    )
}

impl Turns {
    fn take(&'static self, wanted: usize, all: usize) -> Turn {
        let processors = wanted.min(all);
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self
            .given_back
            .wait_while(taken, |taken| *taken + processors > all);
        *taken.unwrap_or_else(PoisonError::into_inner) += processors;
        Turn {
            of: self,
            processors,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken -= self.processors;
        self.of.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_run_than_there_are_processors() {
        static TURNS: Turns = Turns {
            taken: Mutex::new(0),
            given_back: Condvar::new(),
        };
        let (one, other) = (TURNS.take(1, 2), TURNS.take(1, 2));
        let (send, taken) = channel();
        let waits = thread::spawn(move || {
            // More than there are: all of them.
            let _all = TURNS.take(3, 2);
            send.send(()).unwrap();
        });
        drop(one);
        let short = Duration::from_millis(50);
        assert!(taken.recv_timeout(short).is_err(), "one is taken still");
        drop(other);
        taken.recv().unwrap();
        waits.join().unwrap();
        assert_eq!(*TURNS.taken.lock().unwrap(), 0);
    }
}
