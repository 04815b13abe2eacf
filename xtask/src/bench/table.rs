// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table for people.

use super::figures::{Compared, Figures, Row};

/// Columns of ratios, and what they are to.
pub(super) const COLUMNS: [(&str, &str); 14] = [
    ("floor", "direct call"),
    ("vm-dev", "vm-device"),
    ("tree", "vm-device's tree"),
    ("+RwLock", "vm-device + RwLock"),
    ("+Mutex", "vm-device + Mutex"),
    ("BTree", "RwLock<BTreeMap>"),
    ("Hash", "RwLock<HashMap>"),
    ("papaya", "papaya"),
    ("1 thr", "one thread"),
    ("no upd.", "no updater"),
    ("raw", "raw program"),
    ("slot", "slot alone"),
    ("plain", "no shadow"),
    ("exchg", "one exchange"),
];

/// Of a goal.
pub(super) fn mark(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "✓",
        Some(false) => "✗",
        None => " ",
    }
}

fn cell(compared: &[&Compared], against: &str) -> String {
    let found = compared
        .iter()
        .find(|other| other.against.as_deref() == Some(against));
    let ratio = found.and_then(|found| Some((found.ratio?, found.met)));
    ratio.map_or_else(
        || "–".into(),
        |(ratio, met)| format!("{ratio:.2}{}", mark(met)),
    )
}

/// The columns that any of these has something in.
pub(super) fn columns<'a>(
    compared: impl Iterator<Item = &'a Compared> + Clone,
) -> Vec<(&'static str, &'static str)> {
    let has = |against: &str| {
        let mut all = compared.clone();
        all.any(|other| other.against.as_deref() == Some(against))
    };
    COLUMNS.into_iter().filter(|(_, of)| has(of)).collect()
}

/// As many digits as mean something.
pub(super) fn number(value: f64) -> String {
    match value {
        _ if value < 0.1 => format!("{value:.4}"),
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A line per row of ours: the figure, and ratios of ours to the others.
pub(crate) fn print(figures: &Figures, compared: &[Compared]) {
    println!(
        "\nOurs (median of the rounds, and their spread), and its ratio to others; below 1 is faster, or less, than they."
    );
    println!("✓ ✗: a goal met or missed. *: others shared a CPU in a round of it, of anybody's.");
    for group in figures.groups() {
        let Some(first) = group.first() else { continue };
        let of_it = |other: &&Compared| group.iter().any(|row| other.is_of(row));
        let columns = columns(compared.iter().filter(of_it));
        let titles = columns.iter().map(|(title, _)| format!("{title:>8}"));
        println!("\n{}: {}", first.name, first.contender);
        println!(
            "  {:>9} {:34} {:>3} {:>10}   {:>4} {}",
            "n",
            "pattern",
            "thr",
            first.unit,
            "±%",
            titles.collect::<String>()
        );
        for ours in group {
            line(ours, figures, compared, &columns);
        }
    }
    println!();
}

fn line(ours: &Row, figures: &Figures, compared: &[Compared], columns: &[(&str, &str)]) {
    let beside: Vec<&Compared> = compared.iter().filter(|other| other.is_of(ours)).collect();
    let cells = columns
        .iter()
        .map(|(_, against)| format!("{:>8}", cell(&beside, against)));
    let in_itself = beside.iter().find(|other| other.is_of_itself());
    let disturbed = if figures.is_disturbed(ours) { "*" } else { "" };
    println!(
        "  {:>9} {:34} {:>3} {:>10}{}  {:>4.0} {} {disturbed}",
        ours.n,
        ours.pattern,
        ours.threads,
        number(ours.median()),
        mark(in_itself.and_then(|row| row.met)),
        ours.spread() * 100.0,
        cells.collect::<String>()
    );
}
