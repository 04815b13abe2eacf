// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `--record`: the run's tables and plots in `docs/benchmarks.md`, between two markers. What people wrote around them stays.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::figures::{Compared, Figures, Row};
use super::plots;
use super::table::{columns, mark, number};
use crate::run::root;

const DOCUMENT: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- recorded: begin (cargo xtask bench --record) -->";
const END: &str = "<!-- recorded: end -->";

/// Writes plots and tables.
pub(crate) fn write(figures: &Figures, compared: &[Compared], rounds: u32) -> Result<()> {
    let path = root().join(DOCUMENT);
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let mut text = format!("{} Medians of {rounds} rounds.\n\n", machine());
    for (file, title, drawn) in plots::draw(figures)? {
        let to = format!("docs/plots/{file}");
        fs::create_dir_all(root().join("docs/plots"))?;
        fs::write(root().join(&to), drawn).with_context(|| format!("cannot write {to}"))?;
        writeln!(text, "![{title}](plots/{file})\n")?;
    }
    text.push_str(&tables(figures, compared)?);
    fs::write(&path, replaced(&document, &text)?)?;
    println!("written: {}", path.display());
    Ok(())
}

/// What it was measured on.
fn machine() -> String {
    let said = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = said("/proc/cpuinfo");
    let models = cpus.lines().filter(|line| line.starts_with("model name"));
    let model = models
        .clone()
        .next()
        .and_then(|line| line.split(": ").nth(1));
    let kernel = said("/proc/sys/kernel/osrelease");
    // The version; what follows names a build.
    let kernel = kernel.split('-').next().unwrap_or_default();
    let rustc = Command::new("rustc").arg("--version").output();
    let rustc = rustc.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let mut rustc = rustc.split_whitespace();
    format!(
        "{} × {}, Linux {}, rustc {}.",
        models.count(),
        model.unwrap_or("unknown"),
        kernel.trim(),
        rustc.nth(1).unwrap_or("unknown")
    )
}

/// The document with `text` between the markers.
fn replaced(document: &str, text: &str) -> Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .with_context(|| format!("{DOCUMENT} has no line {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{DOCUMENT} has no line {END} after it"))?;
    Ok(format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))
}

/// A table for each kind of work of ours.
fn tables(figures: &Figures, compared: &[Compared]) -> Result<String> {
    let mut text = String::new();
    for group in figures.groups() {
        table(&mut text, &group, figures, compared)?;
    }
    Ok(text)
}

fn table(
    text: &mut String,
    group: &[&Row],
    figures: &Figures,
    compared: &[Compared],
) -> Result<()> {
    let first = group.first().context("a group has a row")?;
    let lines: Vec<(&Row, Vec<&Compared>)> = group
        .iter()
        .map(|row| {
            let of_it = compared.iter().filter(|other| other.is_of(row));
            (*row, of_it.collect())
        })
        .collect();
    let columns = columns(
        lines
            .iter()
            .flat_map(|(_, compared)| compared.iter().copied()),
    );
    let what = match first.contender.as_str() {
        "ours" => first.name.clone(),
        _ => format!("{}: {}", first.name, first.contender),
    };
    writeln!(text, "**{what}**\n")?;
    write!(text, "| n | pattern | threads | {} | ± % |", first.unit)?;
    for (_, against) in &columns {
        write!(text, " to {against} |")?;
    }
    writeln!(text, "\n|{}", " --- |".repeat(5 + columns.len()))?;
    for (row, compared) in lines {
        let in_itself = compared.iter().find(|other| other.is_of_itself());
        let itself = match in_itself.map(|other| (other.met, other.goal)) {
            Some((Some(met), Some(goal))) => format!("{} (goal {goal:.3})", mark(Some(met))),
            _ => String::new(),
        };
        let disturbed = if figures.is_disturbed(row) { " *" } else { "" };
        write!(
            text,
            "| {} | {} | {} | {}{itself} | {:.0}{disturbed} |",
            row.n,
            row.pattern,
            row.threads,
            number(row.median()),
            row.spread() * 100.0
        )?;
        for (_, against) in &columns {
            let of = |other: &&&Compared| other.against.as_deref() == Some(*against);
            let cell = compared.iter().find(of).and_then(|other| {
                let goal = match (other.met, other.goal) {
                    (Some(met), Some(goal)) => format!("{} ({goal:.2})", mark(Some(met))),
                    _ => String::new(),
                };
                Some(format!("{:.2}{goal}", other.ratio?))
            });
            write!(text, " {} |", cell.unwrap_or_default())?;
        }
        text.push('\n');
    }
    text.push('\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_stays() {
        let document = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replaced(&document, "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replaced(&once, "new\n").unwrap(), once);
    }

    #[test]
    fn a_document_without_both_markers_is_left_alone() {
        assert!(replaced("prose", "new").is_err());
        assert!(replaced(&format!("{END} {BEGIN}"), "new").is_err());
    }

    #[test]
    fn a_table_has_the_columns_of_its_peers_and_says_what_was_missed() {
        let line = |n: u32, contender: &str, ns: f64, disturbed: u32| {
            format!(
                r#"{{"name":"ports","n":{n},"pattern":"hot","threads":1,"contender":"{contender}","rounds":[{ns}],"disturbed":{disturbed}}}"#
            )
        };
        let lines = [
            line(8, "ours", 4.0, 0),
            line(8, "vm-device", 5.0, 0),
            line(9, "ours", 4.0, 0),
            line(9, "vm-device", 8.0, 1),
        ]
        .join("\n");
        let figures = Figures::parse(&lines).unwrap();
        let text = tables(&figures, &figures.compare()).unwrap();
        let expected = "**ports**\n\n| n | pattern | threads | ns | ± % | to vm-device |\n\
            | --- | --- | --- | --- | --- | --- |\n| 8 | hot | 1 | 4.00 | 0 | 0.80✗ (0.70) |\n\
            | 9 | hot | 1 | 4.00 | 0 * | 0.50✓ (0.70) |\n\n";
        assert_eq!(text, expected);
    }
}
