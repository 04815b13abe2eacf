// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Figures as the comparison writes them, and ratios of them.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::goals;

/// One contender's figures for one kind of write: nanoseconds each, a figure a round.
#[derive(Deserialize, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) n: u64,
    pub(crate) pattern: String,
    pub(crate) threads: u32,
    pub(crate) contender: String,
    rounds: Vec<f64>,
    /// Rounds whose figure is of slices in which others took the CPU.
    pub(crate) disturbed: usize,
}

/// Ours against one of the others.
#[derive(Serialize)]
pub(crate) struct Compared {
    /// The group, and which of ours.
    pub(crate) name: String,
    pub(crate) n: u64,
    pub(crate) pattern: String,
    pub(crate) threads: u32,
    /// Ours: the median of the rounds.
    pub(crate) median_ns: f64,
    /// Ours: half the distance from the lowest to the highest round, as a part of the median.
    pub(crate) spread: f64,
    pub(crate) against: String,
    /// The median of each round's ratio of ours to the other.
    pub(crate) ratio: f64,
    /// The highest ratio that is good enough; null if there is no goal.
    pub(crate) goal: Option<f64>,
    pub(crate) met: Option<bool>,
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    pub(crate) fn is_ours(&self) -> bool {
        self.contender.starts_with("ours")
    }

    /// Whether it is of the same writes.
    pub(crate) fn is_beside(&self, other: &Row) -> bool {
        (&self.name, self.n, &self.pattern, self.threads)
            == (&other.name, other.n, &other.pattern, other.threads)
    }

    /// Whether it is the same by one thread.
    fn is_alone(&self, two: &Row) -> bool {
        let same = (&self.name, self.n, &self.pattern, &self.contender)
            == (&two.name, two.n, &two.pattern, &two.contender);
        same && self.threads == 1 && two.threads == 2
    }

    pub(crate) fn median(&self) -> f64 {
        median(self.rounds.iter().copied())
    }

    pub(crate) fn spread(&self) -> f64 {
        let lowest = self.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = self.rounds.iter().copied().fold(0.0, f64::max);
        (highest - lowest) / 2.0 / self.median()
    }

    /// The median of each round's ratio to the other.
    pub(crate) fn ratio(&self, other: &Row) -> f64 {
        let rounds = self.rounds.iter().zip(&other.rounds);
        median(rounds.map(|(ours, other)| ours / other))
    }
}

/// All rows of a run.
pub(crate) struct Figures(Vec<Row>);

impl Figures {
    /// From lines of JSON.
    pub(crate) fn parse(lines: &str) -> Result<Self> {
        let row = |line: &str| {
            let row: Row = serde_json::from_str(line).with_context(|| format!("row {line:?}"))?;
            if row.rounds.is_empty() || row.rounds.iter().any(|ns| !ns.is_finite() || *ns <= 0.0) {
                bail!("no figures in {line:?}");
            }
            Ok(row)
        };
        lines.lines().map(row).collect::<Result<_>>().map(Figures)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn ours(&self) -> impl Iterator<Item = &Row> {
        self.0.iter().filter(|row| row.is_ours())
    }

    /// The others that served the same writes.
    pub(crate) fn beside<'a>(&'a self, ours: &'a Row) -> impl Iterator<Item = &'a Row> {
        let beside = move |row: &&Row| !row.is_ours() && row.is_beside(ours);
        self.0.iter().filter(beside)
    }

    /// Every one of ours against every other beside it.
    pub(crate) fn compare(&self) -> Result<Vec<Compared>> {
        let mut all = Vec::new();
        for ours in self.ours() {
            let before = all.len();
            let compared = |against: &str, ratio: f64, goal: Option<f64>| Compared {
                name: format!("{}: {}", ours.name, ours.contender),
                n: ours.n,
                pattern: ours.pattern.clone(),
                threads: ours.threads,
                median_ns: ours.median(),
                spread: ours.spread(),
                against: against.into(),
                ratio,
                goal,
                met: goal.map(|goal| ratio <= goal),
            };
            for other in self.beside(ours) {
                let goal = goals::of(ours, other);
                all.push(compared(&other.contender, ours.ratio(other), goal));
            }
            if all.len() == before {
                bail!("nothing beside {} in {}", ours.contender, ours.name);
            }
            if let Some(one) = self.0.iter().find(|row| row.is_alone(ours)) {
                // Both threads' writes count: half the time of one is perfect.
                all.push(compared(
                    "one thread",
                    ours.ratio(one),
                    Some(goals::TWO_THREADS),
                ));
            }
            if let Some(goal) = goals::nanoseconds(ours) {
                all.push(compared("a nanosecond", ours.median(), Some(goal)));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(contender: &str, rounds: &str) -> String {
        format!(
            r#"{{"name":"ranges, page-aligned","n":8,"pattern":"hot","threads":1,"contender":"{contender}","rounds":{rounds},"disturbed":0}}"#
        )
    }

    #[test]
    fn ratios_are_of_rounds_and_not_of_medians() {
        // The machine was three times as slow in the second round; what is compared was measured side by side.
        let lines = [line("ours", "[1,3,1]"), line("vm-device", "[2,6,2]")].join("\n");
        let compared = Figures::parse(&lines).unwrap().compare().unwrap();
        assert_eq!(compared.len(), 1);
        assert_eq!((compared[0].ratio, compared[0].median_ns), (0.5, 1.0));
        assert_eq!(compared[0].spread, 1.0);
        assert_eq!((compared[0].goal, compared[0].met), (Some(0.7), Some(true)));
    }

    #[test]
    fn a_goal_that_is_missed_is_told() {
        let lines = [line("ours", "[1]"), line("vm-device", "[1]")].join("\n");
        let compared = Figures::parse(&lines).unwrap().compare().unwrap();
        assert_eq!(compared[0].met, Some(false));
    }

    #[test]
    fn figures_that_are_none_are_errors() {
        assert!(Figures::parse(&line("ours", "[]")).is_err());
        assert!(Figures::parse(&line("ours", "[0]")).is_err());
        assert!(Figures::parse("no JSON").is_err());
        let alone = Figures::parse(&line("ours", "[1]")).unwrap();
        assert!(alone.compare().is_err(), "nothing to compare with");
    }
}
