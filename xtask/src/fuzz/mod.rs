// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, each for some time from its seeds.
//!
//! Built as cargo-fuzz builds them, with a nightly compiler; nothing is installed. What libFuzzer adds to a corpus goes below
//! `target/fuzz`, never to the seeds.

mod build;
mod coverage;
mod libfuzzer;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::run::{cargo, root, succeed};
pub(crate) use build::{Nightly, build};
pub(crate) use libfuzzer::{Corpus, Ran, fuzz};

/// A target, and the modules that it is about: files, or folders with all that is in them.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) about: &'static [&'static str],
}

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "slot",
        about: &[
            "ioreq-core/src/slot/",
            "ioreq-core/src/request/",
            "ioreq-core/src/dispatch/dispatcher.rs",
            "ioreq-core/src/dispatch/link.rs",
            "ioreq-core/src/dispatch/port_map.rs",
            "ioreq-core/src/dispatch/range_map.rs",
            "ioreq-core/src/dispatch/ranged.rs",
            "ioreq-core/src/dispatch/route.rs",
            "ioreq-core/src/server/bus.rs",
            "ioreq-core/src/server/carry.rs",
        ],
    },
    Target {
        name: "ring",
        about: &["ioreq-core/src/ring/", "ioreq-core/src/request/buffered.rs"],
    },
    Target {
        name: "stream",
        about: &[
            "ioreq-core/src/claim/",
            "ioreq-core/src/dispatch/counted.rs",
            "ioreq-core/src/dispatch/leaf.rs",
            "ioreq-core/src/dispatch/order.rs",
            "ioreq-core/src/dispatch/page_map.rs",
            "ioreq-core/src/dispatch/tally.rs",
        ],
    },
    Target {
        name: "shadow",
        about: &[
            "ioreq-backends/src/vgpu/shadow/",
            "ioreq-backends/src/vgpu/entry.rs",
        ],
    },
    Target {
        name: "saved",
        about: &[
            "ioreq-core/src/snapshot/",
            "ioreq-core/src/server/saved.rs",
            "ioreq-core/src/server/record.rs",
            "ioreq-backends/src/pci/saved.rs",
            "ioreq-backends/src/register_bank/saved.rs",
            "ioreq-backends/src/vgpu/saved.rs",
            "ioreq-backends/src/write_log/saved.rs",
        ],
    },
    Target {
        name: "pci",
        about: &["ioreq-backends/src/pci/"],
    },
];

/// Seconds of each target in `cargo xtask test`.
const SMOKE: u64 = 60;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only these targets.
    targets: Vec<String>,
    /// How long each runs.
    #[arg(long, default_value_t = SMOKE)]
    seconds: u64,
    /// How many run at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Instead: which lines of its modules each target's seeds reach. Needs no nightly compiler.
    #[arg(long)]
    coverage: bool,
    /// Instead: makes the seeds anew, as the fewest files that reach what seeds and corpus reach.
    #[arg(long)]
    minimise: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = chosen(&args.targets)?;
    if args.coverage {
        return coverage::tell(&targets);
    }
    let nightly = Nightly::find().context("fuzzing needs a nightly compiler")?;
    if args.minimise {
        return libfuzzer::minimise(&nightly, &targets);
    }
    smoke(&nightly, &targets, args.seconds, args.jobs)
}

/// The step of `cargo xtask test`.
pub(crate) fn check() -> Result<()> {
    replay()?;
    match Nightly::find() {
        Ok(nightly) => smoke(&nightly, &chosen(&[])?, SMOKE, 2),
        Err(why) => {
            println!("NOT RUN: fuzzing, for the seeds alone were replayed: {why:#}");
            Ok(())
        }
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !TARGETS.iter().any(|target| target.name == **name))
    {
        let known: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        bail!("no target named {unknown}: {}", known.join(", "));
    }
    let wanted = |target: &&Target| names.is_empty() || names.iter().any(|n| n == target.name);
    Ok(TARGETS.iter().filter(wanted).collect())
}

/// Format, lints, and all seeds once, on the stable compiler.
fn replay() -> Result<()> {
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    succeed(&mut cargo(
        &root(),
        &[&["fmt"][..], &manifest, &["--check"]].concat(),
    ))?;
    let plain = [
        &manifest[..],
        &[
            "--no-default-features",
            "--target-dir",
            "target/fuzz/stable",
        ],
    ]
    .concat();
    let deny = ["--all-targets", "--", "-D", "warnings"];
    succeed(&mut cargo(
        &root(),
        &[&["clippy"], &plain[..], &deny].concat(),
    ))?;
    succeed(&mut cargo(&root(), &[&["test"], &plain[..]].concat()))
}

fn smoke(nightly: &Nightly, targets: &[&Target], seconds: u64, jobs: usize) -> Result<()> {
    let names: Vec<_> = targets.iter().map(|target| target.name).collect();
    let programs = build(nightly, &root(), &root().join("target/fuzz/build"), &names)?;
    println!("{seconds} s each, {jobs} at a time: {}", names.join(", "));
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, targets.len().max(1)) {
            scope.spawn(|| {
                // Relaxed: a number of its own for each.
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let corpus = Corpus::of(&root(), name);
                    let ran =
                        corpus.and_then(|corpus| fuzz(&programs.join(name), &corpus, seconds));
                    let mut results = results.lock().unwrap_or_else(|e| e.into_inner());
                    results.push((*name, ran));
                }
            });
        }
    });
    let mut found = 0;
    for (name, ran) in results.into_inner().unwrap_or_else(|e| e.into_inner()) {
        match ran? {
            Ran::Clean {
                executions,
                seconds,
                inputs,
            } => println!(
                "{name:8} {executions:>10} executions in {seconds:>4} s, {:>6} a second, {inputs} inputs in the corpus, no finding",
                executions / seconds.max(1)
            ),
            Ran::Finding {
                artifact,
                output,
                after,
            } => {
                found += 1;
                println!("{output}\n{name:8} FINDING after {} s", after.as_secs());
                tell_replay(name, artifact.as_deref());
            }
        }
    }
    if found > 0 {
        bail!("{found} of {} targets have a finding", names.len());
    }
    Ok(())
}

fn tell_replay(name: &str, artifact: Option<&std::path::Path>) {
    match artifact {
        Some(path) => println!(
            "the input is {}; replay it with\n  cargo run --manifest-path fuzz/Cargo.toml --no-default-features --bin replay -- {name} {}",
            path.display(),
            path.display()
        ),
        None => println!("no input was left: see the output above"),
    }
}

/// Files of a folder; none if it is not there.
fn files_in(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}
