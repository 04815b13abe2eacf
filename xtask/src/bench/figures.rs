// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Figures as the comparison writes them, and ratios of them.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::goals;

/// One contender's figures for one kind of work, a figure a round.
#[derive(Deserialize, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) n: u64,
    pub(crate) pattern: String,
    pub(crate) threads: u32,
    pub(crate) contender: String,
    /// Of the figures: "ns", of one operation, or another one.
    #[serde(default = "nanoseconds")]
    pub(crate) unit: String,
    rounds: Vec<f64>,
    /// Rounds whose figure is of slices in which others shared a CPU: the calmest third.
    pub(crate) disturbed: usize,
    /// What it was measured in turns with, and each round's ratio to that.
    #[serde(default)]
    in_turns: Option<(String, Vec<f64>)>,
}

fn nanoseconds() -> String {
    "ns".into()
}

/// Ours against one of the others, or by itself.
#[derive(Serialize, Clone)]
pub(crate) struct Compared {
    /// The group, and which of ours.
    pub(crate) name: String,
    pub(crate) n: u64,
    pub(crate) pattern: String,
    pub(crate) threads: u32,
    /// Ours: the median of the rounds; null if the figures are no times.
    pub(crate) median_ns: Option<f64>,
    /// Ours: half the distance from the lowest to the highest round, as a part of the median.
    pub(crate) spread: f64,
    /// "a nanosecond", or another unit, if the goal is one of the figure by itself; null if there is nothing to compare with.
    pub(crate) against: Option<String>,
    /// The median of each round's ratio of ours to the other.
    pub(crate) ratio: Option<f64>,
    /// The highest ratio that is good enough; null if there is no goal.
    pub(crate) goal: Option<f64>,
    pub(crate) met: Option<bool>,
}

impl Compared {
    /// Whether it is of that row.
    pub(crate) fn is_of(&self, row: &Row) -> bool {
        (&self.name, self.n, &self.pattern, self.threads)
            == (&row.title(), row.n, &row.pattern, row.threads)
    }

    /// Whether it says how the figure by itself compares with its goal.
    pub(crate) fn is_of_itself(&self) -> bool {
        let against = self.against.as_deref();
        against.is_some_and(|against| against.starts_with("a "))
    }

    fn new(row: &Row, against: Option<&str>, ratio: Option<f64>, goal: Option<f64>) -> Self {
        Compared {
            name: row.title(),
            n: row.n,
            pattern: row.pattern.clone(),
            threads: row.threads,
            median_ns: (row.unit == "ns").then(|| row.median()),
            spread: row.spread(),
            against: against.map(Into::into),
            ratio,
            goal,
            met: goal.zip(ratio).map(|(goal, ratio)| ratio <= goal),
        }
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    /// Its group, and whose it is.
    fn title(&self) -> String {
        format!("{}: {}", self.name, self.contender)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.contender.starts_with("ours")
    }

    /// Whether it is of the same writes.
    pub(crate) fn is_beside(&self, other: &Row) -> bool {
        (&self.name, self.n, &self.pattern, self.threads)
            == (&other.name, other.n, &other.pattern, other.threads)
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

    pub(crate) fn all(&self) -> impl Iterator<Item = &Row> {
        self.0.iter()
    }

    pub(crate) fn ours(&self) -> impl Iterator<Item = &Row> {
        self.0.iter().filter(|row| row.is_ours())
    }

    /// The same, those of one kind of work and one of ours together.
    pub(crate) fn groups(&self) -> Vec<Vec<&Row>> {
        let mut groups: Vec<Vec<&Row>> = Vec::new();
        for row in self.ours() {
            let is_its = |group: &&mut Vec<&Row>| {
                let first = group.first();
                first.is_some_and(|first| first.title() == row.title())
            };
            match groups.iter_mut().find(is_its) {
                Some(group) => group.push(row),
                None => groups.push(vec![row]),
            }
        }
        groups
    }

    /// The others that served the same writes.
    pub(crate) fn beside<'a>(&'a self, ours: &'a Row) -> impl Iterator<Item = &'a Row> {
        let beside = move |row: &&Row| !row.is_ours() && row.is_beside(ours);
        self.0.iter().filter(beside)
    }

    /// Whether others shared a CPU while a round of it, or of one beside it, was measured.
    pub(crate) fn is_disturbed(&self, ours: &Row) -> bool {
        let mut all = std::iter::once(ours).chain(self.beside(ours));
        all.any(|row| row.disturbed > 0)
    }

    /// Every one of ours against every other beside it; and everybody against what it was measured in turns with.
    pub(crate) fn compare(&self) -> Vec<Compared> {
        let mut all = Vec::new();
        for row in &self.0 {
            let before = all.len();
            let mut add = |against: &str, ratio: f64, goal| {
                all.push(Compared::new(row, Some(against), Some(ratio), goal));
            };
            if let Some((other, ratios)) = &row.in_turns {
                let goal = row.is_ours().then(|| goals::in_turns(row, other)).flatten();
                add(other, median(ratios.iter().copied()), goal);
            }
            if !row.is_ours() {
                continue;
            }
            for other in self.beside(row) {
                add(&other.contender, row.ratio(other), goals::of(row, other));
            }
            if let Some((unit, goal)) = goals::of_itself(row) {
                add(unit, row.median(), Some(goal));
            }
            if all.len() == before {
                all.push(Compared::new(row, None, None, None));
            }
        }
        all
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
        let compared = Figures::parse(&lines).unwrap().compare();
        assert_eq!(compared.len(), 1);
        assert_eq!(
            (compared[0].ratio, compared[0].median_ns),
            (Some(0.5), Some(1.0))
        );
        assert_eq!(compared[0].spread, 1.0);
        assert_eq!((compared[0].goal, compared[0].met), (Some(0.7), Some(true)));
    }

    #[test]
    fn a_goal_that_is_missed_is_told() {
        let lines = [line("ours", "[1]"), line("vm-device", "[1]")].join("\n");
        let compared = Figures::parse(&lines).unwrap().compare();
        assert_eq!(compared[0].met, Some(false));
    }

    #[test]
    fn two_threads_are_compared_with_one_of_the_same_moment() {
        let two = line("ours", "[6,6,6]").replace(
            r#""threads":1"#,
            r#""threads":2,"in_turns":["one thread",[0.5,0.8,0.6]]"#,
        );
        let lines = [line("ours", "[4,4,4]"), two].join("\n");
        let compared = Figures::parse(&lines).unwrap().compare();
        let mut both = compared.into_iter().filter(|row| row.threads == 2);
        let both = both.next().unwrap();
        assert_eq!(both.against.as_deref(), Some("one thread"));
        assert_eq!((both.ratio, both.met), (Some(0.6), Some(false)));
    }

    #[test]
    fn what_a_dispatcher_keeps_is_told_beside_its_goal() {
        let line = |pattern: &str, ratios: &str| {
            let in_turns = format!(r#""in_turns":["no updater",{ratios}],"n":256,"#);
            line("ours", "[6,6]")
                .replace("hot", pattern)
                .replace(r#""n":8,"#, &in_turns)
        };
        let lines = [
            line("no updater", "[]").replace(r#""in_turns":["no updater",[]],"#, ""),
            line("updater", "[1.5,1.5]"),
            line("updater elsewhere", "[1,1]"),
        ];
        let rows = Figures::parse(&lines.join("\n")).unwrap();
        let of = |pattern: &str| {
            let all = rows.compare();
            let mut found = all.into_iter().filter(|row| row.pattern == pattern);
            found.find(|row| row.against.as_deref() == Some("no updater"))
        };
        assert!(of("no updater").is_none());
        let beside = of("updater").unwrap();
        assert_eq!((beside.ratio, beside.met), (Some(1.5), Some(false)));
        assert_eq!(of("updater elsewhere").unwrap().goal, None);
    }

    #[test]
    fn what_has_nothing_beside_it_is_told_all_the_same() {
        let alone = Figures::parse(&line("ours", "[1]")).unwrap().compare();
        let [row] = alone.as_slice() else {
            panic!("one row");
        };
        assert_eq!((row.median_ns, &row.against), (Some(1.0), &None));
        assert_eq!((row.ratio, row.met), (None, None));
    }

    #[test]
    fn figures_that_are_no_times_are_not_told_as_such() {
        let bytes = line("ours", "[9]").replace(r#""threads""#, r#""unit":"bytes","threads""#);
        assert_eq!(Figures::parse(&bytes).unwrap().compare()[0].median_ns, None);
    }

    #[test]
    fn figures_that_are_none_are_errors() {
        assert!(Figures::parse(&line("ours", "[]")).is_err());
        assert!(Figures::parse(&line("ours", "[0]")).is_err());
        assert!(Figures::parse("no JSON").is_err());
    }
}
