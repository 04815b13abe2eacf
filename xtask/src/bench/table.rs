// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table for people.

use super::figures::{Compared, Figures, Row};

/// Columns of ratios, and what they are to.
const COLUMNS: [(&str, &str); 10] = [
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
];

/// Of a goal.
fn mark(met: Option<bool>) -> &'static str {
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

/// A line per row of ours: nanoseconds, and ratios of ours to the others.
pub(crate) fn print(figures: &Figures, compared: &[Compared]) {
    println!(
        "\nNanoseconds of one write (median, spread of the rounds), and its ratio to others; below 1 is faster than they."
    );
    println!("✓ ✗: a goal met or missed. *: others took the CPU while it was measured.\n");
    let titles = COLUMNS.map(|(title, _)| format!("{title:>8}"));
    println!(
        "{:31} {:>8} {:16} {:>3} {:>8} {:>5} {}",
        "",
        "n",
        "pattern",
        "thr",
        "ns",
        "±%",
        titles.concat()
    );
    let mut last = String::new();
    for ours in figures.ours() {
        let group = format!("{} {}", ours.name, ours.contender);
        if group != last {
            println!("{}: {}", ours.name, ours.contender);
            last = group;
        }
        line(ours, figures, compared);
    }
    println!();
}

fn line(ours: &Row, figures: &Figures, compared: &[Compared]) {
    let name = format!("{}: {}", ours.name, ours.contender);
    let beside = |other: &&Compared| {
        (&other.name, other.n, &other.pattern, other.threads)
            == (&name, ours.n, &ours.pattern, ours.threads)
    };
    let beside: Vec<&Compared> = compared.iter().filter(beside).collect();
    let cells = COLUMNS.map(|(_, against)| format!("{:>8}", cell(&beside, against)));
    let is_of_itself = |other: &&&Compared| {
        let against = other.against.as_deref();
        against.is_some_and(|against| against.starts_with("a "))
    };
    let in_itself = mark(beside.iter().find(is_of_itself).and_then(|row| row.met));
    let any = std::iter::once(ours).chain(figures.beside(ours));
    let disturbed = if any.into_iter().any(|row| row.disturbed > 0) {
        "*"
    } else {
        ""
    };
    println!(
        "{:31} {:>8} {:16} {:>3} {:>8.1}{} {:>4.0} {} {disturbed}",
        "",
        ours.n,
        ours.pattern,
        ours.threads,
        ours.median(),
        in_itself,
        ours.spread() * 100.0,
        cells.concat()
    );
}
