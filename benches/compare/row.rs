// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the comparison writes down: a line of JSON per contender and kind of work.

use serde::Serialize;

use crate::slices::Figure;

/// One contender's figures.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) n: u64,
    pub(crate) pattern: &'static str,
    pub(crate) threads: u32,
    pub(crate) contender: &'static str,
    /// What the figures are: "ns", of one operation, or another unit.
    pub(crate) unit: &'static str,
    /// A figure a round.
    rounds: Vec<f64>,
    /// Rounds in which too few slices were undisturbed.
    disturbed: usize,
    /// What it was measured in turns with, and the ratio to that in each round.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_turns: Option<(&'static str, Vec<f64>)>,
}

impl Row {
    pub(crate) fn new(
        name: &'static str,
        n: u64,
        pattern: &'static str,
        contender: &'static str,
        figures: &[Figure],
    ) -> Self {
        Row {
            name,
            n,
            pattern,
            threads: 1,
            contender,
            unit: "ns",
            rounds: figures.iter().map(|figure| figure.ns).collect(),
            disturbed: figures.iter().filter(|figure| figure.disturbed).count(),
            in_turns: None,
        }
    }

    /// Figures that are no times. There are no disturbed ones among them.
    pub(crate) fn of(
        unit: &'static str,
        (name, n, pattern, contender): (&'static str, u64, &'static str, &'static str),
        rounds: Vec<f64>,
    ) -> Self {
        Row {
            unit,
            rounds,
            ..Row::new(name, n, pattern, contender, &[])
        }
    }

    /// The same by so many threads.
    pub(crate) fn by(self, threads: u32) -> Self {
        Row { threads, ..self }
    }

    /// Measured in turns with something else: each round's ratio to that.
    pub(crate) fn in_turns_with(self, other: &'static str, ratios: Vec<f64>) -> Self {
        let in_turns = Some((other, ratios));
        Row { in_turns, ..self }
    }

    pub(crate) fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("plain data"));
    }
}
