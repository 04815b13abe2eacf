// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What waits for a table's next write or the next submission. One record of fixed size per table, so that what a guest can make
//! it grow to is bounded by the tables.

use crate::vgpu::entry::ENTRIES;

/// One bit per entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bits([u64; ENTRIES / 64]);

impl Bits {
    fn get(&self, index: usize) -> bool {
        let word = self.0.get(index / 64);
        word.is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    fn set(&mut self, index: usize, value: bool) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word = *word & !(1 << (index % 64)) | u64::from(value) << (index % 64);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

/// Which halves of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Halves {
    pub(super) low: bool,
    pub(super) high: bool,
}

impl Halves {
    /// Those that bytes `from..to` of an entry cover.
    pub(super) fn covered(from: usize, to: usize) -> Self {
        Halves {
            low: from == 0 && to >= 4,
            high: from <= 4 && to == 8,
        }
    }

    pub(super) fn whole(self) -> bool {
        self.low && self.high
    }
}

/// A table's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Entries that are half-written.
    half_written: Bits,
    /// Those halves of them that were written since the entry was last whole.
    low: Bits,
    high: Bits,
    /// Entries that show the scratch page though they need not for ever.
    retry: Bits,
}

impl Pending {
    /// Part of an entry was written. True if all of it has been by now; else it is half-written.
    pub(super) fn written(&mut self, index: usize, halves: Halves) -> bool {
        let all = Halves {
            low: halves.low || self.low.get(index),
            high: halves.high || self.high.get(index),
        };
        let open = !all.whole();
        self.half_written.set(index, open);
        self.low.set(index, open && all.low);
        self.high.set(index, open && all.high);
        !open
    }

    pub(super) fn retry(&mut self, index: usize) {
        self.retry.set(index, true);
    }

    pub(super) fn is_half_written(&self) -> bool {
        !self.half_written.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.half_written.is_empty() && self.retry.is_empty()
    }

    /// Entries to be made from guest memory.
    pub(super) fn entries(&self) -> impl Iterator<Item = usize> {
        (0..ENTRIES).filter(|index| self.half_written.get(*index) || self.retry.get(*index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: Halves = Halves {
        low: true,
        high: false,
    };
    const HIGH: Halves = Halves {
        low: false,
        high: true,
    };

    #[test]
    fn bytes_cover_halves() {
        assert_eq!(Halves::covered(0, 4), LOW);
        assert_eq!(Halves::covered(4, 8), HIGH);
        assert_eq!(Halves::covered(3, 8), HIGH);
        assert_eq!(Halves::covered(0, 7), LOW);
        assert!(Halves::covered(0, 8).whole());
        for (from, to) in [(0, 1), (0, 3), (1, 4), (2, 6), (5, 8), (7, 8)] {
            let halves = Halves::covered(from, to);
            assert!(!halves.low && !halves.high, "{from}..{to}");
        }
    }

    #[test]
    fn an_entry_is_whole_when_both_halves_came_in_any_order() {
        for (first, second) in [(LOW, HIGH), (HIGH, LOW)] {
            let mut pending = Pending::default();
            assert!(!pending.written(511, first));
            assert!(!pending.written(511, first), "the same half again");
            assert!(!pending.written(510, second), "another entry's half");
            assert_eq!(pending.entries().collect::<Vec<_>>(), [510, 511]);
            assert!(pending.written(511, second));
            assert_eq!(pending.entries().collect::<Vec<_>>(), [510]);
            assert!(pending.written(510, first));
            assert_eq!(pending, Pending::default());
        }
    }

    #[test]
    fn halves_of_before_do_not_count_twice() {
        let mut pending = Pending::default();
        assert!(!pending.written(0, LOW));
        assert!(pending.written(0, HIGH));
        assert!(!pending.written(0, HIGH), "a new entry begins");
        assert!(pending.is_half_written() && !pending.is_empty());
    }

    #[test]
    fn what_is_to_be_retried_is_not_half_written() {
        let mut pending = Pending::default();
        assert!(pending.is_empty());
        pending.retry(64);
        assert!(!pending.is_empty() && !pending.is_half_written());
        assert_eq!(pending.entries().collect::<Vec<_>>(), [64]);
        pending.retry(ENTRIES);
        assert_eq!(pending.entries().count(), 1, "there is no such entry");
    }
}
