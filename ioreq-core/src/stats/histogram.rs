// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Latency histogram: log-linear, 8 buckets per power of two (12.5 % wide at most), nanoseconds.

use std::time::Duration;

use super::Counter;

const SUB_BITS: u32 = 3;
const SUBS: usize = 1 << SUB_BITS;
const BUCKETS: usize = SUBS * (64 - SUB_BITS as usize + 1);

/// One worker's histogram: written by that worker, read by anybody.
#[derive(Debug)]
pub(crate) struct Histogram(Box<[Counter]>);

impl Default for Histogram {
    fn default() -> Self {
        // Loom has no clock, and would pay for each bucket in each execution.
        let buckets = if cfg!(loom) { 0 } else { BUCKETS };
        Histogram((0..buckets).map(|_| Counter::default()).collect())
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUBS as u64 {
        return usize::try_from(nanos).unwrap_or(0);
    }
    let exponent = 63 - nanos.leading_zeros();
    let sub = usize::try_from(nanos >> (exponent - SUB_BITS) & (SUBS as u64 - 1)).unwrap_or(0);
    (exponent - SUB_BITS + 1) as usize * SUBS + sub
}

/// The largest value that falls into `bucket`.
fn upper(bucket: usize) -> u64 {
    if bucket < SUBS {
        return bucket as u64;
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "there are fewer than 2^9 buckets"
    )]
    let shift = (bucket / SUBS) as u32 - 1;
    let low = ((SUBS + bucket % SUBS) as u64) << shift;
    low + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts one latency. Only the owning worker calls this.
    pub(crate) fn record(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(counter) = self.0.get(bucket(nanos)) {
            counter.bump();
        }
    }
}

/// Latencies of requests, from READY seen to RESP_READY stored, in nanoseconds. Percentiles are upper bounds of buckets that
/// are at most 12.5 % wide.
///
/// ```
/// use ioreq_core::stats::Latency;
/// assert_eq!(Latency::default().percentile(0.99), None); // nothing measured
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latency {
    counts: Vec<u64>,
}

impl Latency {
    /// Adds a worker's histogram.
    pub(crate) fn merge(&mut self, histogram: &Histogram) {
        self.counts.resize(BUCKETS, 0);
        for (sum, counter) in self.counts.iter_mut().zip(&histogram.0) {
            *sum += counter.get();
        }
    }

    /// How many requests were measured.
    #[must_use]
    pub fn measured(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many of them took less than `nanos` nanoseconds; exact for powers of two, else up to an eighth of `nanos` too few.
    #[must_use]
    pub fn below(&self, nanos: u64) -> u64 {
        let buckets = self.counts.iter().enumerate();
        let below = buckets.filter(|(index, _)| upper(*index) < nanos);
        below.map(|(_, count)| count).sum()
    }

    /// The sum of all in nanoseconds, at most an eighth too much.
    #[must_use]
    pub fn sum(&self) -> u128 {
        let buckets = self.counts.iter().enumerate();
        let sums = buckets.map(|(index, count)| u128::from(*count) * u128::from(upper(index)));
        sums.sum()
    }

    /// The latency that the fraction `q` (0 to 1) of the measured requests did not exceed; `None` without a measurement.
    #[must_use]
    pub fn percentile(&self, q: f64) -> Option<u64> {
        let total = self.measured();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among counts; a rounding error of one in 2^53 does not matter"
        )]
        let rank = ((total as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        self.counts.iter().enumerate().find_map(|(index, count)| {
            seen += count;
            (seen >= rank && *count > 0).then(|| upper(index))
        })
    }

    /// The largest measured latency.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        self.percentile(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_everything_in_order_and_tightly() {
        let mut last = None;
        for nanos in (0..5000)
            .chain((13..64).map(|shift| 1 << shift))
            .chain([u64::MAX - 1, u64::MAX])
        {
            let bucket = bucket(nanos);
            assert!(
                bucket < BUCKETS && Some(bucket) >= last,
                "{nanos} in {bucket}"
            );
            assert!(
                upper(bucket) >= nanos,
                "{nanos} above its bucket's end {}",
                upper(bucket)
            );
            assert!(
                upper(bucket) - nanos <= nanos / 8,
                "{nanos}: bucket too wide"
            );
            last = Some(bucket);
        }
        assert_eq!(upper(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let histogram = Histogram::default();
        for nanos in 1..=100 {
            histogram.record(Duration::from_nanos(nanos * 1000));
        }
        let mut latency = Latency::default();
        latency.merge(&histogram);
        assert_eq!(latency.measured(), 100);
        let near = |q, expected: u64| {
            let got = latency.percentile(q).unwrap();
            assert!(
                got >= expected && got <= expected + expected / 8,
                "{q}: {got}, not {expected}"
            );
        };
        near(0.0, 1000);
        near(0.5, 50_000);
        near(0.99, 99_000);
        near(1.0, 100_000);
    }
}
