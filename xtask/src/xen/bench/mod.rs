// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The framework beside a C server on libxen*: boots and goals. What is measured is in `xen-rig/examples/bench`.

mod record;
mod tables;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use self::record::Record;
use self::tables::{ONE, TWO, calls_table, marks_table, over, times_table};
use super::boot::{Boot, Clock, End};
use super::parts::Parts;
use super::program;
use super::release::Release;
use crate::run::root;

/// How long nothing may be said.
const PATIENCE: Duration = Duration::from_secs(240);
/// Requests whose system calls are counted.
const COUNTED: u64 = 400;
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
    /// Times, both on one processor, by a clock that counts instructions.
    OneCpu,
    /// The same by the host's clock.
    OneCpuWall,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let releases = match args.release {
        Some(release) => vec![release],
        None => vec![Release::V4_17, Release::V4_20],
    };
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut missed = Vec::new();
    let mut report = serde_json::Map::new();
    let path = root().join("target/xen-bench.json");
    for release in releases {
        let parts = Parts::ready(release)?;
        println!("\nXen {}: {}", release.name(), parts.package);
        // A part says nothing for minutes.
        let tell = |name: &str, minutes: u32| {
            let log = parts.log();
            eprintln!(
                "{name}: about {minutes} min; follow it in {}",
                log.display()
            );
        };
        let mut all = Vec::new();
        if wanted(Part::Calls) {
            tell("calls", 1);
            let records = count_calls(&parts)?;
            missed.extend(about(release, calls_table(&records)));
            all.push(("calls", records));
        }
        if wanted(Part::Marks) {
            tell("marks", 1);
            let records = boot(&parts, 2, Clock::Host, "bench marks 5")?;
            marks_table(&records);
            all.push(("marks", records));
        }
        // `more`: how many times the rounds, at most, until a ratio is known well enough. By instructions it is known sooner.
        for (part, name, smp, clock, goals, more, minutes) in [
            (Part::Times, "times", 2, Clock::Host, TWO, 2, 4),
            (Part::OneCpu, "one-cpu", 1, Clock::Instructions, ONE, 1, 4),
            (Part::OneCpuWall, "one-cpu-wall", 1, Clock::Host, ONE, 4, 12),
        ] {
            if wanted(part) {
                tell(name, minutes);
                let job = format!("bench times {} {}", args.rounds, args.rounds * more);
                let records = boot(&parts, smp, clock, &job)?;
                missed.extend(about(release, times_table(name, &records, goals)));
                all.push((name, records));
            }
        }
        let all = all.into_iter().map(|(name, records)| {
            let records: Vec<Value> = records.iter().map(Record::json).collect();
            (name.to_owned(), json!(records))
        });
        report.insert(release.name().into(), Value::Object(all.collect()));
        // After each version: what the other one comes to is not known.
        fs::write(&path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("{}", path.display()))?;
    }
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
        let records = boot(parts, 2, Clock::Host, &format!("bench calls {COUNTED}"))?;
        let missed = over(&records);
        if missed.is_empty() || tries == TRIES {
            return Ok(records);
        }
        tries += 1;
        println!("once more: {}", missed.join("; "));
    }
}

fn boot(parts: &Parts, smp: u8, clock: Clock, job: &str) -> Result<Vec<Record>> {
    let log = Boot::new(parts, smp)
        .clock(clock)
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
