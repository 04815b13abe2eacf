// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The behaviour suite on a real Xen: rows that end nothing in one boot, those that crash their domain in another, and a boot for
//! each that makes Xen panic. Every row of `docs/xen-behaviour.toml` that has a test must have its result, and the one on record.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::boot::{Boot, End, Log};
use super::parts::Parts;
use super::program;
use super::record::Record;
use super::release::Release;
use crate::run::root;

/// How long nothing may be said: longer than any row waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Deserialize)]
struct File {
    row: Vec<Row>,
}

/// What matters of a row here.
#[derive(Deserialize)]
struct Row {
    id: String,
    boot: Option<String>,
    untested: Option<String>,
}

/// How a row fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fared {
    Passed,
    /// The rig lacks what the row needs.
    Lacking,
    Failed(String),
}

/// The rows that have a test, and whose id contains `filter`.
fn rows(filter: Option<&str>) -> Result<Vec<Row>> {
    let path = root().join("docs/xen-behaviour.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let file: File = toml::from_str(&text)?;
    let rows = file
        .row
        .into_iter()
        .filter(|row| row.untested.is_none())
        .filter(|row| filter.is_none_or(|part| row.id.contains(part)));
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        bail!("no row's id contains {:?}", filter.unwrap_or_default());
    }
    Ok(rows)
}

/// Where this machine has no packages of a version: what is on record must at least be complete.
pub(super) fn on_record(release: Release) -> Result<String> {
    let record = Record::read(release)?;
    let rows = rows(None)?;
    let ids = rows.iter().map(|row| row.id.as_str());
    record.check_complete(ids)?;
    Ok(record.to_string())
}

/// Runs all rows, or those whose id contains `filter`, and compares the results with those on record, or `renew`s the record.
pub(super) fn run(parts: &Parts, smp: u8, filter: Option<&str>, renew: bool) -> Result<()> {
    let rows = rows(filter)?;
    let suite = program::behaviour()?;
    let mut results = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut version = String::new();
    let of = |kind: Option<&str>| -> Vec<&str> {
        let same = rows.iter().filter(|row| row.boot.as_deref() == kind);
        same.map(|row| row.id.as_str()).collect()
    };
    let beside = [of(Some("crash")), of(Some("two-processors"))].concat();
    for (name, ids) in [("plain", of(None)), ("crash", beside)] {
        if ids.is_empty() {
            continue;
        }
        // Most crashes come of what Xen remembers while a vCPU does not sleep: with one processor dom0 makes it sleep. For all
        // else one is steadier.
        let smp = if name == "crash" { smp.max(2) } else { smp };
        let log = boot(parts, smp, &suite, name, &ids)?;
        if !matches!(log.end, End::Done(_)) {
            wrong.push(format!("boot {name}: {}", log.end));
        }
        wrong.extend(log.leak().map(|leak| format!("boot {name}: {leak}")));
        if name == "plain" {
            wrong.extend(log.lines.iter().filter(|line| is_crash(line)).cloned());
        }
        results.extend(heard(&log));
        version = log.version;
    }
    for id in of(Some("panic")) {
        let log = boot(parts, smp, &suite, id, &[id])?;
        let fared = match log.end {
            End::XenPanic(_) => Fared::Passed,
            end => Fared::Failed(format!("expected a panic of Xen, but {end}")),
        };
        version = log.version;
        results.insert(id.to_owned(), fared);
    }
    report(&version, &rows, &results, wrong)?;
    let now = Record::new(&version, &results);
    if renew {
        return now.write(parts.release);
    }
    let record = Record::read(parts.release)?;
    if filter.is_none() {
        record.check_complete(rows.iter().map(|row| row.id.as_str()))?;
    }
    now.compare(&record)
}

/// One boot of the suite.
fn boot(parts: &Parts, smp: u8, suite: &Path, name: &str, ids: &[&str]) -> Result<Log> {
    let only = ids.join(",");
    // With one processor dom0 and the guest take turns, and what Xen's scheduler does is steady.
    let boot = match smp {
        1 => Boot::new(parts, smp),
        _ => Boot::new(parts, smp).patient_scheduler(),
    };
    let log = boot
        .program("behaviour", suite)
        .job(&format!(
            "BEHAVIOUR_BOOT={name} BEHAVIOUR_ROWS={only} /bin/behaviour"
        ))
        .run(PATIENCE)?;
    fs::copy(&log.path, log.path.with_file_name(format!("{name}.log")))?;
    println!(
        "boot {name}: {} rows, {}, {}",
        ids.len(),
        log.version,
        log.end
    );
    Ok(log)
}

/// A line of Xen's about a domain that it crashes.
pub(super) fn is_crash(line: &str) -> bool {
    line.contains("domain_crash called") || line.contains("crashed on cpu")
}

/// The results that a boot told.
fn heard(log: &Log) -> BTreeMap<String, Fared> {
    let mut results = BTreeMap::new();
    for line in &log.lines {
        let Some(at) = line.find("RIG: ") else {
            continue;
        };
        let mut words = line[at..].splitn(3, ' ').skip(1);
        let (Some(what), Some(id)) = (words.next(), words.next()) else {
            continue;
        };
        let fared = match what {
            "run" => Fared::Failed("it did not end".into()),
            "pass" => Fared::Passed,
            "lack" => Fared::Lacking,
            "fail" => Fared::Failed(id.split_once(": ").map_or("", |(_, why)| why).into()),
            _ => continue,
        };
        // Xen may go on in the same line.
        let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let end = id.find(|c| !kebab(c)).unwrap_or(id.len());
        results.insert(id[..end].to_owned(), fared);
    }
    results
}

fn report(
    version: &str,
    rows: &[Row],
    results: &BTreeMap<String, Fared>,
    mut wrong: Vec<String>,
) -> Result<()> {
    let known: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let mut counts = [0; 2];
    for id in &known {
        match results.get(*id) {
            Some(Fared::Passed) => counts[0] += 1,
            Some(Fared::Lacking) => {
                counts[1] += 1;
                println!("not possible here: {id}");
            }
            Some(Fared::Failed(why)) => wrong.push(format!("{id}: {why}")),
            None => wrong.push(format!("{id}: no result")),
        }
    }
    for id in results.keys().filter(|id| !known.contains(id.as_str())) {
        wrong.push(format!("{id}: a result for no row"));
    }
    println!(
        "{} of {} rows pass on {version}, {} are not possible there",
        counts[0],
        known.len(),
        counts[1]
    );
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} complaints:\n  {}", wrong.len(), wrong.join("\n  "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_whatever_xen_says_in_between() {
        let lines = [
            "(XEN) HVM1 save: CPURIG: run a-b",
            "RIG: pass a-b(XEN) uart interrupt",
            "RIG: run c-d",
            "RIG: run e-f",
            "RIG: fail e-f: left: 1",
            "RIG: lack g-h",
        ];
        let log = Log::of(lines.map(str::to_owned).into());
        let results = heard(&log);
        assert_eq!(results["a-b"], Fared::Passed);
        assert_eq!(results["c-d"], Fared::Failed("it did not end".into()));
        assert_eq!(results["e-f"], Fared::Failed("left: 1".into()));
        assert_eq!(results["g-h"], Fared::Lacking);
        assert_eq!(results.len(), 4);
    }
}
