// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How well a median of ratios is known.

/// The standard error of a median that is known well enough: that of half of a cell's pairs, so that the whole is known to 0.7 %.
const KNOWN: f64 = 0.01;

/// The ratios of half of the pairs of one cell.
#[derive(Debug, Default)]
pub(crate) struct Ratios(Vec<f64>);

impl Ratios {
    pub(crate) fn add(&mut self, ratio: f64) {
        let place = self.0.partition_point(|other| *other < ratio);
        self.0.insert(place, ratio);
    }

    /// From the distance of the quartiles, which a few wild pairs do not change: for a normal distribution it is 1.35 standard deviations, of
    /// which the median of n is off by 1.25 through the root of n.
    pub(crate) fn is_known(&self) -> bool {
        let Some(last) = self.0.len().checked_sub(1) else {
            return false;
        };
        let at = |quarter: usize| self.0[last * quarter / 4];
        #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
        let root = (self.0.len() as f64).sqrt();
        1.25 / 1.35 * (at(3) - at(1)) / root <= KNOWN * at(2)
    }
}
