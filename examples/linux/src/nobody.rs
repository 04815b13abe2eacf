// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What no device has: counted, so that whoever builds a device model sees what a guest looks for.
//!
//! Xen answers what no server has by itself (all-ones), and tells nobody. Of several servers that have an address the newest gets
//! the access, so a server that is older than the devices' can have everything, and gets what is left over.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use ioreq::handler::{Access, Context, Handler, ReadOutcome, Space, WriteOutcome};

/// The most different places that are remembered: a guest may look everywhere.
const MOST: usize = 256;

/// Answers as an empty bus does, and counts.
#[derive(Default)]
pub struct Nobody {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    all: u64,
    /// By address space (ports first), and address: a port, or a page.
    places: BTreeMap<(bool, u64), u64>,
}

impl Nobody {
    fn count(&self, access: Access) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.all += 1;
        let memory = access.space != Space::Port;
        let place = (
            memory,
            if memory {
                access.addr >> 12
            } else {
                access.addr
            },
        );
        if seen.places.len() < MOST || seen.places.contains_key(&place) {
            *seen.places.entry(place).or_default() += 1;
        }
    }

    /// Accesses so far.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.all
    }
}

impl Handler for Nobody {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        self.count(access);
        access.width.all_ones().into()
    }

    fn write(&self, _: &Context<'_>, access: Access, _: u64) -> WriteOutcome {
        self.count(access);
        WriteOutcome::Done
    }
}

/// Where the guest looked, and how often.
impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "{} accesses", seen.all)?;
        for ((memory, place), count) in &seen.places {
            match memory {
                false => write!(f, ", port {place:#x}: {count}")?,
                true => write!(f, ", page {place:#x}: {count}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nobody")
            .field("accesses", &self.accesses())
            .finish_non_exhaustive()
    }
}
