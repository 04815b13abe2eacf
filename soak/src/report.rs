// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is told at the end.

use std::sync::Arc;

use serde_json::json;

use crate::gauge::{Gauge, slope};
use crate::options::Options;
use crate::tally::{Check, Fault, Tally};

/// The most that memory may rise over the last half.
const MOST_SLOPE: f64 = 0.01;

pub(crate) struct Report {
    pub(crate) platform: String,
    pub(crate) seconds: f64,
    pub(crate) tally: Arc<Tally>,
    /// One for each quiet point.
    pub(crate) gauges: Vec<Gauge>,
    /// What was wrong.
    pub(crate) wrong: Vec<String>,
    /// Not everything was asked for.
    pub(crate) one_scene: bool,
}

impl Report {
    fn slope(&self) -> f64 {
        let rss: Vec<u64> = self.gauges.iter().map(|gauge| gauge.rss_kib).collect();
        slope(&rss)
    }

    /// What is not as it should be.
    fn complaints(&self) -> Vec<String> {
        let mut all = self.wrong.clone();
        if self.slope() > MOST_SLOPE {
            all.push(format!(
                "resident memory rose by {:.2} % over the last half",
                100.0 * self.slope()
            ));
        }
        all
    }

    pub(crate) fn is_right(&self) -> bool {
        self.complaints().is_empty()
    }

    pub(crate) fn print(&self, options: &Options) {
        let tally = &self.tally;
        println!(
            "soak on {}, --seed {}, {:.0} s: {} rounds, {} requests",
            self.platform,
            options.seed(),
            self.seconds,
            tally.all_rounds(),
            tally.all_requests()
        );
        println!("faults:");
        for fault in Fault::ALL
            .iter()
            .filter(|fault| tally.of_fault(**fault) > 0)
        {
            println!("  {:>10} {}", tally.of_fault(*fault), fault.words());
        }
        println!("checks:");
        for check in Check::ALL
            .iter()
            .filter(|check| tally.of_check(**check) > 0)
        {
            println!("  {:>10} {}", tally.of_check(*check), check.words());
        }
        if let (Some(first), Some(last)) = (self.gauges.first(), self.gauges.last()) {
            println!(
                "resident memory {} KiB at the first quiet point, {} KiB at the last, slope over the last half {:+.2} %",
                first.rss_kib,
                last.rss_kib,
                100.0 * self.slope()
            );
            println!(
                "descriptors {} then, {} now; threads {} then, {} now",
                first.descriptors, last.descriptors, first.threads, last.threads
            );
        }
        for complaint in self.complaints() {
            println!("WRONG: {complaint}");
        }
        if self.is_right() {
            println!("nothing was wrong");
        }
        if options.json {
            println!("{}", self.json(options));
        }
    }

    fn json(&self, options: &Options) -> serde_json::Value {
        let faults = Fault::ALL
            .iter()
            .map(|fault| (fault.words().to_owned(), json!(self.tally.of_fault(*fault))));
        let checks = Check::ALL
            .iter()
            .map(|check| (check.words().to_owned(), json!(self.tally.of_check(*check))));
        let ends = |gauge: Option<&Gauge>| {
            gauge.map(|gauge| {
                json!({ "rss_kib": gauge.rss_kib, "descriptors": gauge.descriptors, "threads": gauge.threads })
            })
        };
        json!({
            "platform": self.platform,
            "seed": options.seed(),
            "one_scene": self.one_scene,
            "seconds": self.seconds,
            "rounds": self.tally.all_rounds(),
            "requests": self.tally.all_requests(),
            "faults": faults.collect::<serde_json::Map<_, _>>(),
            "checks": checks.collect::<serde_json::Map<_, _>>(),
            "first": ends(self.gauges.first()),
            "last": ends(self.gauges.last()),
            "rss_slope": self.slope(),
            "wrong": self.complaints(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rss: &[u64]) -> Report {
        let gauge = |kib: &u64| Gauge {
            rss_kib: *kib,
            descriptors: 9,
            threads: 2,
        };
        Report {
            platform: "nothing".into(),
            seconds: 1.0,
            tally: Arc::default(),
            gauges: rss.iter().map(gauge).collect(),
            wrong: Vec::new(),
            one_scene: false,
        }
    }

    #[test]
    fn memory_that_rises_is_wrong() {
        assert!(report(&[1000; 20]).is_right());
        let rising: Vec<u64> = (0..20).map(|at| 10_000 + 10 * at).collect();
        assert!(report(&rising).is_right(), "0.9 %");
        let rising: Vec<u64> = (0..20).map(|at| 10_000 + 13 * at).collect();
        assert!(!report(&rising).is_right(), "1.2 %");
        let mut bad = report(&[1000; 20]);
        bad.wrong.push("a word of memory".into());
        assert!(!bad.is_right());
    }
}
