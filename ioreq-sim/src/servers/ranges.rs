// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Xen's `rangeset`, with its limit: merging, splitting, and the errno of each.

use libc::{EEXIST, ENOENT, ENOMEM};

/// Disjoint ranges that one server may have of one type (`MAX_NR_IO_RANGES`).
pub(crate) const MAX_RANGES: usize = 256;

/// Inclusive ranges, sorted, never adjacent or overlapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// Index of the last range that starts at or before `at`.
    fn find(&self, at: u64) -> Option<usize> {
        self.ranges.partition_point(|r| r.0 <= at).checked_sub(1)
    }

    /// Whether all of `start..=end` lies in one range.
    pub(crate) fn contains(&self, start: u64, end: u64) -> bool {
        self.find(start)
            .and_then(|i| self.ranges.get(i))
            .is_some_and(|r| r.1 >= end)
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.find(end)
            .and_then(|i| self.ranges.get(i))
            .is_some_and(|r| start <= r.1)
    }

    /// Adds a range that must not overlap.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> Result<(), i32> {
        if self.overlaps(start, end) {
            return Err(EEXIST);
        }
        let before = self.find(start);
        let next = before.map_or(0, |i| i + 1);
        let grown = before
            .and_then(|i| self.ranges.get_mut(i))
            .filter(|r| r.1.checked_add(1) == Some(start))
            .map(|r| r.1 = end)
            .is_some();
        let at = if grown {
            next - 1
        } else {
            // Xen takes a new node here even if the range is about to merge with the one that follows it.
            if self.ranges.len() >= MAX_RANGES {
                return Err(ENOMEM);
            }
            self.ranges.insert(next, (start, end));
            next
        };
        if let Some(&(follower, last)) = self.ranges.get(at + 1)
            && end.checked_add(1) == Some(follower)
        {
            self.ranges.remove(at + 1);
            if let Some(range) = self.ranges.get_mut(at) {
                range.1 = last;
            }
        }
        Ok(())
    }

    /// Removes a range that must lie in one range.
    pub(crate) fn remove(&mut self, start: u64, end: u64) -> Result<(), i32> {
        let at = self.find(start).ok_or(ENOENT)?;
        let &(low, high) = self.ranges.get(at).ok_or(ENOENT)?;
        if high < end {
            return Err(ENOENT);
        }
        match (low < start, high > end) {
            (true, true) => {
                if self.ranges.len() >= MAX_RANGES {
                    return Err(ENOMEM);
                }
                self.ranges[at] = (low, start - 1);
                self.ranges.insert(at + 1, (end + 1, high));
            }
            (true, false) => self.ranges[at] = (low, start - 1),
            (false, true) => self.ranges[at] = (end + 1, high),
            (false, false) => {
                self.ranges.remove(at);
            }
        }
        Ok(())
    }

    /// Number of disjoint ranges.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.ranges.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> RangeSet {
        let mut set = RangeSet::default();
        for n in 0..MAX_RANGES as u64 {
            set.add(n * 0x20, n * 0x20 + 0xf).unwrap();
        }
        set
    }

    #[test]
    fn overlap_is_eexist_and_adjacent_merges() {
        let mut set = RangeSet::default();
        set.add(0x100, 0x1ff).unwrap();
        assert_eq!(set.add(0x100, 0x1ff), Err(EEXIST));
        assert_eq!(set.add(0x1f0, 0x20f), Err(EEXIST));
        assert_eq!(set.add(0x0, u64::MAX), Err(EEXIST));
        set.add(0x200, 0x2ff).unwrap();
        set.add(0x0, 0xff).unwrap();
        assert_eq!(set.len(), 1);
        assert!(set.contains(0x0, 0x2ff) && !set.contains(0x0, 0x300));
    }

    #[test]
    fn removal_needs_the_whole_range_and_splits() {
        let mut set = RangeSet::default();
        set.add(0x100, 0x1ff).unwrap();
        assert_eq!(set.remove(0x900, 0x90f), Err(ENOENT));
        assert_eq!(set.remove(0x1f0, 0x20f), Err(ENOENT));
        assert_eq!(set.remove(0x0, 0x1ff), Err(ENOENT));
        set.remove(0x140, 0x14f).unwrap();
        assert_eq!(set.len(), 2);
        assert!(set.contains(0x100, 0x13f) && set.contains(0x150, 0x1ff));
        assert!(!set.contains(0x13f, 0x150));
        set.remove(0x100, 0x13f).unwrap();
        set.remove(0x150, 0x1fe).unwrap();
        assert!(set.contains(0x1ff, 0x1ff));
        set.remove(0x1ff, 0x1ff).unwrap();
        assert_eq!(set.len(), 0);
    }

    #[test]
    fn at_the_limit_a_new_range_and_a_split_are_enomem_but_growing_and_filling_work() {
        let mut set = full();
        assert_eq!(set.add(0x10_0000, 0x10_000f), Err(ENOMEM));
        assert_eq!(set.remove(0x4, 0x7), Err(ENOMEM));
        // Adjacent to the one that follows only: Xen asks for a node first.
        assert_eq!(set.add(0x18, 0x1f), Err(ENOMEM));
        set.add(0x10, 0x1f).unwrap(); // fills a gap: two become one
        assert_eq!(set.len(), MAX_RANGES - 1);
        set.add(0x10_0000, 0x10_000f).unwrap();
        assert_eq!(set.len(), MAX_RANGES);
    }

    #[test]
    fn the_ends_of_the_space_do_not_overflow() {
        let mut set = RangeSet::default();
        set.add(u64::MAX, u64::MAX).unwrap();
        set.add(0, 0).unwrap();
        assert!(set.contains(u64::MAX, u64::MAX) && !set.contains(u64::MAX - 1, u64::MAX));
        set.remove(u64::MAX, u64::MAX).unwrap();
        set.add(0, u64::MAX).unwrap_err();
        set.add(1, u64::MAX).unwrap();
        assert!(set.contains(0, u64::MAX));
    }
}
