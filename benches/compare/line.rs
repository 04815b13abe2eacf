// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Slices of two threads that begin together, when both CPUs are calm.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use crate::calm;

/// Times that two threads look whether both CPUs are calm, in all slices of a figure: some tenths of a second.
const LOOKS: u32 = 1 << 16;

/// More than ever arrive: somebody has left.
const LEFT: usize = usize::MAX / 2;

/// Two threads that begin at the same time.
#[derive(Default)]
pub(crate) struct Line {
    arrived: CachePadded<AtomicUsize>,
    /// Looks that found a CPU that was not calm.
    restless: CachePadded<AtomicUsize>,
}

/// A thread's place in it.
pub(crate) struct Place<'a> {
    line: &'a Line,
    waited: usize,
    restless: usize,
    looks: u32,
}

impl<'a> Place<'a> {
    pub(crate) fn new(line: &'a Line) -> Self {
        Place {
            line,
            waited: 0,
            restless: 0,
            looks: LOOKS,
        }
    }

    /// Waits, spinning, until both have come.
    pub(crate) fn wait(&mut self) {
        self.waited += 2;
        // AcqRel: what was written before is seen after.
        self.line.arrived.fetch_add(1, Ordering::AcqRel);
        while self.line.arrived.load(Ordering::Acquire) < self.waited {
            spin_loop();
        }
    }

    /// Waits until both CPUs do as much as they can at the same time, which two threads of one core cannot, or no longer.
    pub(crate) fn wait_calm(&mut self) {
        while self.looks > 0 && self.line.arrived.load(Ordering::Acquire) < LEFT {
            self.looks -= 1;
            self.wait();
            if !calm::unrest().is_calm() {
                // Relaxed, and below: the line orders it. So both see the same number, and go on together.
                self.line.restless.fetch_add(1, Ordering::Relaxed);
            }
            self.wait();
            let before = self.restless;
            self.restless = self.line.restless.load(Ordering::Relaxed);
            if self.restless == before {
                return;
            }
        }
        self.wait();
    }
}

/// Who leaves, at the end or because an answer was wrong, is waited for no more.
impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.arrived.store(LEFT, Ordering::Release);
    }
}
