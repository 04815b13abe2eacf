// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The framework beside a C server on libxen*: boots, tables, goals. What is measured is in `xen-rig/examples/bench`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::boot::{Boot, End};
use super::parts::Parts;
use super::program;
use super::release::Release;
use crate::run::root;

/// How long nothing may be said.
const PATIENCE: Duration = Duration::from_secs(240);
/// Requests whose system calls are counted.
const COUNTED: u64 = 400;
/// System calls a request at most, of ours.
const CALLS: [(&str, f64); 2] = [("busy", 1.05), ("sleeping", 4.0)];
/// How many times as fast as the C stack ours is at least, with a processor each for dom0 and the guest.
const TWO: [(&str, f64); 2] = [("busy", 1.3), ("sleeping", 0.98)];
/// The same with one processor for both.
const ONE: [(&str, f64); 2] = [("busy", 0.98), ("sleeping", 0.98)];
/// Boots to try for the counts: when the emulator stops for a while, a poll or two of a busy server is in vain.
const TRIES: u32 = 3;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The version of Xen; all if none is given.
    #[arg(long = "xen", value_enum)]
    release: Option<Release>,
    /// Rounds of times.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// What is measured; all if nothing is given.
    #[arg(long, value_enum, num_args = 1..)]
    only: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// System calls a request.
    Calls,
    /// Changes of page types.
    Marks,
    /// Times, dom0 and the guest on processors of their own.
    Times,
    /// Times, both on one processor.
    OneCpu,
}

/// A `BENCH` line: what it is about, and names with values.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    about: String,
    values: BTreeMap<String, String>,
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("BENCH ")?.split_whitespace();
        let about = words.next()?.to_owned();
        let pairs = words.map_while(|word| word.split_once('='));
        let values = pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Some(Record { about, values })
    }

    fn text(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
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

pub(super) fn run(args: &Args) -> Result<()> {
    let releases = match args.release {
        Some(release) => vec![release],
        None => vec![Release::V4_17, Release::V4_20],
    };
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut missed = Vec::new();
    let mut report = serde_json::Map::new();
    for release in releases {
        let parts = Parts::ready(release)?;
        println!("\nXen {}: {}", release.name(), parts.package);
        let mut all = Vec::new();
        if wanted(Part::Calls) {
            let records = count_calls(&parts)?;
            missed.extend(about(release, calls_table(&records)));
            all.push(("calls", records));
        }
        if wanted(Part::Marks) {
            let records = boot(&parts, 2, "bench marks 5")?;
            marks_table(&records);
            all.push(("marks", records));
        }
        for (part, name, smp, goals) in [
            (Part::Times, "times", 2, TWO),
            (Part::OneCpu, "one-cpu", 1, ONE),
        ] {
            if wanted(part) {
                let records = boot(&parts, smp, &format!("bench times {}", args.rounds))?;
                missed.extend(about(release, times_table(name, &records, goals)));
                all.push((name, records));
            }
        }
        let all = all.into_iter().map(|(name, records)| {
            let records: Vec<Value> = records.iter().map(Record::json).collect();
            (name.to_owned(), json!(records))
        });
        report.insert(release.name().into(), Value::Object(all.collect()));
    }
    let path = root().join("target/xen-bench.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("{}", path.display()))?;
    println!("\n{}", path.display());
    if missed.is_empty() {
        return Ok(());
    }
    bail!("{} goals missed:\n  {}", missed.len(), missed.join("\n  "));
}

fn about(release: Release, missed: Vec<String>) -> impl Iterator<Item = String> {
    let in_release = move |what| format!("{}: {what}", release.name());
    missed.into_iter().map(in_release)
}

fn count_calls(parts: &Parts) -> Result<Vec<Record>> {
    let mut tries = 1;
    loop {
        let records = boot(parts, 2, &format!("bench calls {COUNTED}"))?;
        let missed = over(&records);
        if missed.is_empty() || tries == TRIES {
            return Ok(records);
        }
        tries += 1;
        println!("once more: {}", missed.join("; "));
    }
}

fn boot(parts: &Parts, smp: u8, job: &str) -> Result<Vec<Record>> {
    let log = Boot::new(parts, smp)
        .program("bench", &program::fast_example("xen-rig", "bench")?)
        .program("cserver", &program::c_server()?)
        .job(job)
        .run(PATIENCE)?;
    println!("{job}, {smp} processors: {}, {}", log.version, log.end);
    if log.end != End::Done(0) {
        let said = log.lines.iter().filter(|line| !line.starts_with("(XEN)"));
        let said: Vec<&str> = said.map(String::as_str).collect();
        let last = said.len().saturating_sub(10);
        bail!(
            "{}\nthe log: {}",
            said[last..].join("\n"),
            log.path.display()
        );
    }
    log.succeeded()?;
    Ok(log
        .lines
        .iter()
        .filter_map(|line| Record::parse(line))
        .collect())
}

/// Of ours, what calls too much.
fn over(records: &[Record]) -> Vec<String> {
    let ours = records
        .iter()
        .filter(|record| record.about == "calls" && record.text("stack") == "ours");
    let mut missed = Vec::new();
    for record in ours {
        let each = record.number("calls") / record.number("requests");
        let goal = CALLS.iter().find(|(mode, _)| *mode == record.text("mode"));
        let posted = record.text("load") == "vga-write";
        let Some((mode, most)) = goal.filter(|_| !posted) else {
            continue;
        };
        // Nothing that is no number is good.
        if each.is_nan() || each > *most {
            missed.push(format!(
                "{each:.2} system calls a {} when {mode}, not {most}: {}",
                record.text("load"),
                record.text("of")
            ));
        }
    }
    missed
}

fn calls_table(records: &[Record]) -> Vec<String> {
    println!(
        "\n| system calls a request | | C | ours | of which | beside |\n| --- | --- | --- | --- | --- | --- |"
    );
    let find = |stack: &str, like: &Record| {
        records.iter().find(|record| {
            record.about == "calls"
                && record.text("stack") == stack
                && ["mode", "load"]
                    .iter()
                    .all(|key| record.text(key) == like.text(key))
        })
    };
    let mut pairs = 0;
    for c in records.iter().filter(|record| record.text("stack") == "c") {
        let Some(ours) = find("ours", c) else {
            continue;
        };
        pairs += 1;
        let each = |record: &Record| record.number("calls") / record.number("requests");
        println!(
            "| {} | {} | {:.2} | {:.2} | {} | {} |",
            c.text("load"),
            c.text("mode"),
            each(c),
            each(ours),
            ours.text("of"),
            ours.text("others"),
        );
    }
    let mut missed = over(records);
    if pairs < 11 {
        missed.push(format!("system calls: {pairs} figures, not 11"));
    }
    missed
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (len, half) if len % 2 == 1 => values[half],
        (_, half) => f64::midpoint(values[half - 1], values[half]),
    }
}

/// Microseconds a request, in every round: the median of its slices.
fn rounds(records: &[Record], stack: &str, mode: &str, load: &str) -> Vec<f64> {
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
    let mut rounds: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for record in records.iter().filter(wanted) {
        let round = record.text("round").parse().unwrap_or_default();
        rounds.entry(round).or_default().push(of(record));
    }
    rounds.into_values().map(median).collect()
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:.0}–{most:.0}")
}

fn times_table(name: &str, records: &[Record], goals: [(&str, f64); 2]) -> Vec<String> {
    println!(
        "\n| {name}: µs a request | | C | spread | ours | spread | C / ours | of rounds | goal |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut missed = Vec::new();
    for (mode, goal) in goals {
        for load in [
            "port-write",
            "port-read",
            "mmio-write",
            "mmio-read",
            "page-write",
            "vga-write",
        ] {
            let (c, ours) = (
                rounds(records, "c", mode, load),
                rounds(records, "ours", mode, load),
            );
            // Sleeping, nobody waits for a posted write.
            if load == "vga-write" && mode == "sleeping" {
                continue;
            }
            let ratios: Vec<f64> = c.iter().zip(&ours).map(|(c, ours)| c / ours).collect();
            let ratio = median(c.clone()) / median(ours.clone());
            let has_goal = load != "vga-write";
            println!(
                "| {load} | {mode} | {:.0} | {} | {:.0} | {} | {ratio:.2} | {:.2} | {} |",
                median(c.clone()),
                spread(&c),
                median(ours.clone()),
                spread(&ours),
                median(ratios),
                if has_goal {
                    goal.to_string()
                } else {
                    "–".into()
                }
            );
            if has_goal && (ratio.is_nan() || ratio < goal) {
                missed.push(format!("{name}: {load} {mode}: {ratio:.2}, not {goal}"));
            }
        }
    }
    let stalls = records
        .iter()
        .filter(|record| record.about == "stall")
        .count();
    let kept = records
        .iter()
        .filter(|record| record.text("stalled") == "1")
        .count();
    println!("{stalls} slices repeated for a stall of the emulator, {kept} kept with one");
    missed
}

fn marks_table(records: &[Record]) {
    println!(
        "\n| changing page types | batch | C: pages/s | ours: pages/s | C / ours | C: DMOPs a page | ours |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for record in records.iter().filter(|record| record.about == "dmops") {
        let key = (record.text("step"), record.text("batch"));
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    for (step, batch) in keys {
        let of = |about: &str, stack: &str, value: &str| {
            let wanted = records.iter().filter(|record| {
                record.about == about
                    && record.text("stack") == stack
                    && record.text("step") == step
                    && record.text("batch") == batch
            });
            let each = |record: &Record| record.number(value) / record.number("pages");
            median(wanted.map(each).collect())
        };
        let (c, ours) = (of("marks", "c", "seconds"), of("marks", "ours", "seconds"));
        println!(
            "| {step} | {batch} | {:.0} | {:.0} | {:.2} | {:.4} | {:.4} |",
            1.0 / c,
            1.0 / ours,
            c / ours,
            of("dmops", "c", "dmops"),
            of("dmops", "ours", "dmops")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(stack: &str, mode: &str, load: &str, calls: u32) -> Record {
        let line = format!(
            "BENCH calls stack={stack} mode={mode} load={load} requests=100 calls={calls} of=x:1"
        );
        Record::parse(&line).expect("a record")
    }

    #[test]
    fn other_lines_are_no_records() {
        assert_eq!(Record::parse("(XEN) BENCH x"), None);
        assert_eq!(Record::parse("BENCH"), None);
        let record = Record::parse("BENCH clock ticks=30 micros=10").expect("a record");
        assert_eq!(
            (record.number("ticks"), record.number("x").is_nan()),
            (30.0, true)
        );
    }

    #[test]
    fn too_many_calls_are_seen_and_none_of_the_c_stack() {
        let all = [
            calls("ours", "busy", "port-read", 105),
            calls("ours", "sleeping", "port-read", 400),
            calls("ours", "busy", "vga-write", 900),
            calls("c", "busy", "port-read", 400),
        ];
        assert!(over(&all).is_empty());
        assert_eq!(over(&[calls("ours", "busy", "port-read", 106)]).len(), 1);
        assert_eq!(
            over(&[calls("ours", "sleeping", "port-read", 401)]).len(),
            1
        );
        assert!(!calls_table(&all).is_empty(), "figures are missing");
    }

    #[test]
    fn a_ratio_below_its_goal_is_missed_and_so_is_a_missing_one() {
        let of = |stack: &str, ticks: u32| {
            let line = format!(
                "BENCH times stack={stack} mode=busy load=port-read requests=1 ticks={ticks}"
            );
            Record::parse(&line).expect("a record")
        };
        let clock = Record::parse("BENCH clock ticks=10 micros=10").expect("a record");
        let missed = |ours| {
            let records = [clock.clone(), of("c", 130), of("c", 150), of("ours", ours)];
            let missed = times_table("t", &records, TWO);
            missed.iter().any(|what| what.contains("port-read busy"))
        };
        assert!(!missed(107));
        assert!(missed(108));
        assert_eq!(
            times_table("t", std::slice::from_ref(&clock), TWO).len(),
            10
        );
    }

    #[test]
    fn medians() {
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
