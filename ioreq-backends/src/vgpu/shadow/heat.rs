// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which tables have earned to go out of sync: those that were written often before several submissions in a row. One burst
//! earns nothing: its table would be unmarked, looked at, and marked again for nothing.

/// Hot intervals that a table needs at first: it is likely to be hot in the next one, too.
const FIRST: u32 = 2;
/// Hot intervals that it needs at most, however often it came back in vain.
const MOST: u32 = 256;

/// A table's past. Intervals are told apart by their number: submissions so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heat {
    /// The interval in which the threshold was passed last.
    passed: Option<u64>,
    /// The last hot one.
    hot: Option<u64>,
    /// Hot intervals in a row.
    row: u32,
    needed: u32,
}

impl Default for Heat {
    fn default() -> Self {
        Heat {
            passed: None,
            hot: None,
            row: 0,
            needed: FIRST,
        }
    }
}

impl Heat {
    /// In interval `now` the table's writes passed another multiple of the threshold. Returns whether the table has earned to
    /// go out of sync.
    pub(super) fn pass(&mut self, now: u64) -> bool {
        let before = self.passed.replace(now);
        // A threshold's worth of writes since then, within one interval or across one submission.
        if before.is_none_or(|before| before.abs_diff(now) > 1) {
            self.row = 0;
            return false;
        }
        if self.hot.replace(now) != Some(now) {
            self.row = self.row.saturating_add(1);
        }
        self.row >= self.needed
    }

    /// The table came back. In vain, it needs to be hot twice as long the next time.
    pub(super) fn came_back(&mut self, gained: bool) {
        self.needed = if gained {
            FIRST
        } else {
            (self.needed * 2).min(MOST)
        };
        self.passed = None;
        self.row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes in each of `intervals`; whether the last one earned.
    fn passes(heat: &mut Heat, intervals: impl IntoIterator<Item = u64>) -> bool {
        intervals.into_iter().fold(false, |_, now| heat.pass(now))
    }

    #[test]
    fn one_burst_earns_nothing_however_long() {
        assert!(!passes(&mut Heat::default(), [5; 100]));
    }

    #[test]
    fn bursts_before_submissions_in_a_row_earn() {
        let mut heat = Heat::default();
        assert!(!passes(&mut heat, [5, 5]));
        assert!(passes(&mut heat, [6]));
        // Just a threshold's worth an interval.
        assert!(passes(&mut Heat::default(), [1, 2, 3]));
    }

    #[test]
    fn a_trickle_earns_nothing() {
        assert!(!passes(&mut Heat::default(), (0..100).map(|n| n * 2)));
        let mut heat = Heat::default();
        assert!(!passes(&mut heat, [1, 1, 3, 3, 5, 5, 7]), "cold in between");
        assert!(!passes(&mut Heat::default(), [u64::MAX, 0, u64::MAX]));
    }

    #[test]
    fn who_came_back_in_vain_needs_twice_as_long_up_to_a_bound() {
        let mut heat = Heat::default();
        heat.came_back(false);
        assert!(!passes(&mut heat, [1, 1, 2, 3]));
        assert!(passes(&mut heat, [4]));
        heat.came_back(true);
        assert!(passes(&mut heat, [5, 5, 6]));
        (0..40).for_each(|_| heat.came_back(false));
        assert!(!passes(&mut heat, 0..=u64::from(MOST) - 1));
        assert!(passes(&mut heat, [u64::from(MOST)]));
    }
}
