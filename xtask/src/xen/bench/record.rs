// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a boot's `BENCH` lines say, and figures of them.

use std::collections::BTreeMap;

use serde_json::Value;

/// A `BENCH` line: what it is about, and names with values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub(super) about: String,
    pub(super) values: BTreeMap<String, String>,
}

impl Record {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("BENCH ")?.split_whitespace();
        let about = words.next()?.to_owned();
        let pairs = words.map_while(|word| word.split_once('='));
        let values = pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Some(Record { about, values })
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or(f64::NAN)
    }

    pub(super) fn json(&self) -> Value {
        let mut values: serde_json::Map<String, Value> = self
            .values
            .iter()
            .map(|(name, value)| {
                let number = value.parse::<f64>().ok().map(Value::from);
                (
                    name.clone(),
                    number.unwrap_or_else(|| value.as_str().into()),
                )
            })
            .collect();
        values.insert("about".into(), self.about.as_str().into());
        values.into()
    }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (len, half) if len % 2 == 1 => values[half],
        (_, half) => f64::midpoint(values[half - 1], values[half]),
    }
}

/// Microseconds a request, in every slice, in their order.
pub(super) fn slices(records: &[Record], stack: &str, mode: &str, load: &str) -> Vec<f64> {
    let clock = records.iter().find(|record| record.about == "clock");
    let speed = clock.map_or(f64::NAN, |clock| {
        clock.number("ticks") / clock.number("micros")
    });
    let wanted = |record: &&Record| {
        record.about == "times"
            && record.text("stack") == stack
            && record.text("mode") == mode
            && record.text("load") == load
    };
    let of = |record: &Record| record.number("ticks") / record.number("requests") / speed;
    records.iter().filter(wanted).map(of).collect()
}

/// The quartiles below and above the median.
pub(super) fn quartiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |quarter: usize| {
        let last = values.len().saturating_sub(1);
        values.get(last * quarter / 4).copied().unwrap_or(f64::NAN)
    };
    (at(1), at(3))
}

/// The standard error of the median, as a part of it: from the quartiles, as the program in dom0 has it (`ratios.rs`).
pub(super) fn error(values: &[f64]) -> f64 {
    let (low, high) = quartiles(values.to_vec());
    #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
    let root = (values.len() as f64).sqrt();
    1.25 / 1.35 * (high - low) / root / median(values.to_vec())
}
