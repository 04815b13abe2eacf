// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Instructions of a request, from READY seen to RESP_READY stored, counted by callgrind and compared with a checked-in file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::run::{cargo, root};

/// Requests of each run.
const REQUESTS: u32 = 1000;
/// How much a count may differ from the file's, in percent.
const SLACK: f64 = 2.0;
/// The most that a hostile vCPU may add to another's request, in percent.
const MOST_RISE: f64 = 5.0;
/// Kinds of requests, and the most instructions that are good enough.
const KINDS: [(&str, f64); 5] = [
    ("page-write", 250.0),
    ("mmio-write", 200.0),
    ("mmio-read", 200.0),
    ("port-write", 200.0),
    ("port-read", 200.0),
];

type Counts = BTreeMap<String, f64>;

/// What is checked in.
#[derive(Serialize, Deserialize)]
struct Recorded {
    /// The compiler that made the program: another one makes another program.
    rustc: String,
    counts: Counts,
}

fn file() -> PathBuf {
    root().join("benches/instructions/counts.json")
}

/// The compiler's version, as it tells it.
fn rustc() -> Result<String> {
    let output = Command::new("rustc")
        .arg("--version")
        .current_dir(root())
        .output()
        .context("cannot run rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// As a step of the checks.
pub(crate) fn check() -> Result<()> {
    run(false)
}

/// Counts, and compares with the file; or writes it.
pub(crate) fn run(record: bool) -> Result<()> {
    let program = build()?;
    let dir = tempfile::tempdir()?;
    let count = |kind: &str| count(&program, &[kind], dir.path());
    let empty = count("empty")?;
    let mut counts = Counts::new();
    for (kind, _) in KINDS {
        let all = count(kind)?;
        let each = all.checked_sub(empty).filter(|rest| *rest > 0);
        let each =
            each.ok_or_else(|| anyhow!("{kind}: {all} instructions, {empty} without requests"))?;
        #[allow(clippy::cast_precision_loss, reason = "some millions at most")]
        let each = each as f64 / f64::from(REQUESTS);
        counts.insert(kind.into(), (each * 10.0).round() / 10.0);
    }
    let rustc = rustc()?;
    if record {
        let recorded = Recorded {
            rustc: rustc.clone(),
            counts: counts.clone(),
        };
        let text = serde_json::to_string_pretty(&recorded)? + "\n";
        std::fs::write(file(), text).context("cannot write the counts")?;
    }
    let text = std::fs::read_to_string(file()).context("no recorded counts: see --record")?;
    let recorded: Recorded = serde_json::from_str(&text)?;
    println!(
        "\nInstructions of a request, READY seen to RESP_READY stored, empty handler, statistics on\n"
    );
    println!("{:12} {:>8} {:>9} {:>6}", "", "now", "recorded", "goal");
    for (kind, goal) in KINDS {
        let now = counts.get(kind).copied().unwrap_or(f64::NAN);
        let before = recorded.counts.get(kind).copied().unwrap_or(f64::NAN);
        let met = if now <= goal { '✓' } else { '✗' };
        println!("{kind:12} {now:8.1} {before:9.1} {goal:6.0}{met}");
    }
    println!();
    beside_hostile(&program, &counts, dir.path())?;
    if rustc != recorded.rustc {
        println!(
            "NOT COMPARED: recorded with {}, but this is {rustc}, which makes another program of the same source",
            recorded.rustc
        );
        return Ok(());
    }
    let wrong = differences(&counts, &recorded.counts);
    if !wrong.is_empty() {
        bail!(
            "{}: changed by more than {SLACK} %; if it is meant, run `cargo xtask bench --instructions --record`, and \
             name old count, new count and reason in the commit",
            wrong.join(", ")
        );
    }
    Ok(())
}

/// What a request costs while another vCPU of the same worker makes a hostile one beside it: no more than it does alone, nearly.
fn beside_hostile(program: &Path, counts: &Counts, dir: &Path) -> Result<()> {
    let hostile = count(program, &["hostile"], dir)?;
    let mut wrong = Vec::new();
    println!("{:12} {:>8} beside a hostile vCPU", "", "rise");
    for (kind, _) in KINDS {
        let both = count(program, &[kind, "--beside-hostile"], dir)?;
        let empty = count(program, &["empty"], dir)?;
        let own = both
            .checked_sub(hostile)
            .with_context(|| format!("{kind}: {both} instructions, {hostile} of them hostile"))?;
        #[allow(clippy::cast_precision_loss, reason = "some millions at most")]
        let own = (own as f64 - empty as f64) / f64::from(REQUESTS);
        let alone = counts.get(kind).copied().unwrap_or(f64::NAN);
        let rise = 100.0 * (own / alone - 1.0);
        println!("{kind:12} {rise:+7.1} %");
        if rise.is_nan() || rise > MOST_RISE {
            wrong.push(format!("{kind} {alone} → {own:.1}"));
        }
    }
    println!();
    if !wrong.is_empty() {
        bail!(
            "beside a hostile vCPU a request takes more than {MOST_RISE} % more instructions: {}",
            wrong.join(", ")
        );
    }
    Ok(())
}

/// What is not as recorded: in either direction, as an improvement is to be recorded, too.
fn differences(counts: &Counts, recorded: &Counts) -> Vec<String> {
    let differs = |kind: &str| {
        let (now, before) = (counts.get(kind), recorded.get(kind));
        match (now, before) {
            (Some(now), Some(before)) if (now - before).abs() <= before * SLACK / 100.0 => None,
            (Some(now), Some(before)) => Some(format!("{kind} {before} → {now}")),
            _ => Some(format!("{kind} is not on both sides")),
        }
    };
    let kinds: std::collections::BTreeSet<&String> = counts.keys().chain(recorded.keys()).collect();
    kinds.into_iter().filter_map(|kind| differs(kind)).collect()
}

/// Builds the program with the profile that benchmarks have; returns where it is.
fn build() -> Result<PathBuf> {
    let bench = ["bench", "-p", "ioreq", "--features", "callgrind"];
    let only = [
        "--bench",
        "instructions",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ];
    let mut build = cargo(&root(), &[&bench[..], &only].concat());
    let output = build
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo bench")?;
    if !output.status.success() {
        bail!("{build:?} ended with {}", output.status);
    }
    let lines = String::from_utf8(output.stdout).context("cargo's messages in UTF-8")?;
    let program = lines.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "instructions";
        let program = message["executable"].as_str()?;
        is_ours.then(|| PathBuf::from(program))
    });
    program.ok_or_else(|| anyhow!("cargo named no program"))
}

/// Instructions inside the windows of one run.
fn count(program: &Path, what: &[&str], dir: &Path) -> Result<u64> {
    let kind = what.join(" ");
    let out = dir.join(kind.replace(' ', ""));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(what)
        .args(["--requests", &REQUESTS.to_string()]);
    let output = valgrind
        .output()
        .context("cannot run valgrind: install the package valgrind")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{valgrind:?} ended with {}: {said}", output.status);
    }
    let text = std::fs::read_to_string(&out).context("callgrind wrote nothing")?;
    total(&text).ok_or_else(|| anyhow!("no total in callgrind's output for {kind}"))
}

/// The line `summary: N` or `totals: N` of callgrind's output.
fn total(text: &str) -> Option<u64> {
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    line("totals:").or_else(|| line("summary:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, f64)]) -> Counts {
        of.iter()
            .map(|(kind, count)| ((*kind).into(), *count))
            .collect()
    }

    #[test]
    fn the_total_is_read() {
        assert_eq!(total("events: Ir\nfn=(1)\n3 4\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn more_than_the_slack_in_either_direction_is_a_difference() {
        let recorded = counts(&[("a", 100.0)]);
        assert!(differences(&counts(&[("a", 102.0)]), &recorded).is_empty());
        assert_eq!(differences(&counts(&[("a", 102.1)]), &recorded).len(), 1);
        assert_eq!(differences(&counts(&[("a", 97.9)]), &recorded).len(), 1);
    }

    #[test]
    fn a_kind_on_one_side_only_is_a_difference() {
        let (one, two) = (counts(&[("a", 1.0)]), counts(&[("a", 1.0), ("b", 1.0)]));
        assert_eq!(differences(&one, &two).len(), 1);
        assert_eq!(differences(&two, &one).len(), 1);
    }
}
