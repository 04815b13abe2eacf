// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Running a target, and what libFuzzer says of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::build::{Nightly, build};
use super::{Target, files_in};
use crate::run::{Outcome, capture, root, succeed};

/// Bytes of the longest input.
const LONGEST: u64 = 2048;
/// Seconds after which one input hangs.
const HANG: u64 = 10;
/// Bytes of all seeds of a target, at most.
const SEEDS: u64 = 64 * 1024;

/// Where a target's inputs are.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// Kept in the repository; only read.
    pub(crate) seeds: PathBuf,
    /// What libFuzzer adds.
    pub(crate) found: PathBuf,
    /// Inputs that are findings.
    pub(crate) artifacts: PathBuf,
}

impl Corpus {
    /// Of a target, in the checkout `tree`.
    pub(crate) fn of(tree: &Path, name: &str) -> Result<Self> {
        let below = |folder: &str| tree.join("target/fuzz").join(folder).join(name);
        let corpus = Corpus {
            seeds: tree.join("fuzz/seeds").join(name),
            found: below("corpus"),
            artifacts: below("artifacts"),
        };
        for folder in [&corpus.found, &corpus.artifacts] {
            fs::create_dir_all(folder)?;
        }
        Ok(corpus)
    }
}

/// What became of a run.
#[derive(Debug)]
pub(crate) enum Ran {
    /// Nothing was found.
    Clean {
        executions: u64,
        seconds: u64,
        /// In the corpus at the end, without the seeds.
        inputs: usize,
    },
    /// Something was.
    Finding {
        /// The input; none if the program ended between two.
        artifact: Option<PathBuf>,
        /// The end of what the program said.
        output: String,
        after: Duration,
    },
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Rust's statics trip it: as cargo-fuzz sets it.
    command.env("ASAN_OPTIONS", "detect_odr_violation=0");
    command.env("RUST_BACKTRACE", "0");
    command
}

/// Runs a target for so long.
pub(crate) fn fuzz(program: &Path, corpus: &Corpus, seconds: u64) -> Result<Ran> {
    let before = files_in(&corpus.artifacts)?;
    let mut command = command(program);
    command.arg(&corpus.found);
    if corpus.seeds.is_dir() {
        command.arg(&corpus.seeds);
    }
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-timeout={HANG}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", corpus.artifacts.display()));
    let started = Instant::now();
    let limit = Duration::from_secs(seconds + 120);
    let (status, output) = match capture(&mut command, limit)? {
        Outcome::Ended { status, output } => (Some(status), output),
        Outcome::TimedOut => (None, "it did not end".into()),
    };
    let after = started.elapsed();
    if status.is_some_and(|status| status.success()) {
        let Some(executions) = stat(&output, "number_of_executed_units") else {
            bail!(
                "libFuzzer told no number of executions:\n{}",
                end_of(&output)
            );
        };
        return Ok(Ran::Clean {
            executions,
            seconds: after.as_secs(),
            inputs: files_in(&corpus.found)?.len(),
        });
    }
    let artifact = files_in(&corpus.artifacts)?
        .into_iter()
        .find(|path| !before.contains(path))
        .or_else(|| named(&output));
    Ok(Ran::Finding {
        artifact,
        output: end_of(&output),
        after,
    })
}

/// The input that the output names: one that was found before, too.
fn named(output: &str) -> Option<PathBuf> {
    let at = output.lines().rev().find_map(|line| {
        let (_, path) = line.split_once("Test unit written to ")?;
        Some(PathBuf::from(path.trim()))
    })?;
    at.is_file().then_some(at)
}

fn stat(output: &str, name: &str) -> Option<u64> {
    let prefix = format!("stat::{name}:");
    let line = output
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(&prefix))?;
    line.trim().parse().ok()
}

/// Without the program's progress.
fn end_of(output: &str) -> String {
    let told = |line: &&str| !line.starts_with('#') && !line.trim_start().starts_with("#");
    let lines: Vec<&str> = output.lines().filter(told).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Makes the seeds anew: the smallest inputs of seeds and corpus that reach as much.
pub(super) fn minimise(nightly: &Nightly, targets: &[&Target]) -> Result<()> {
    let names: Vec<_> = targets.iter().map(|target| target.name).collect();
    let programs = build(nightly, &root(), &root().join("target/fuzz/build"), &names)?;
    for name in names {
        let corpus = Corpus::of(&root(), name)?;
        let merged = root().join("target/fuzz/merged").join(name);
        let _none = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged)?;
        let mut merge = command(&programs.join(name));
        merge.args(["-set_cover_merge=1", "-use_counters=0", "-verbosity=0"]);
        // A copy: a run that goes on meanwhile takes files away.
        let all = root().join("target/fuzz/all").join(name);
        let _none = fs::remove_dir_all(&all);
        fs::create_dir_all(&all)?;
        for path in [files_in(&corpus.found)?, files_in(&corpus.seeds)?].concat() {
            if path.is_file() {
                fs::copy(&path, all.join(path.file_name().unwrap_or_default()))?;
            }
        }
        succeed(merge.arg(&merged).arg(&all))?;
        let kept = files_in(&merged)?;
        let bytes = kept
            .iter()
            .map(|path| fs::metadata(path).map(|data| data.len()));
        let bytes: u64 = bytes.sum::<std::io::Result<u64>>()?;
        println!("{name:8} {} seeds, {bytes} bytes", kept.len());
        if bytes > SEEDS {
            println!("{name:8} that is more than {SEEDS} bytes");
        }
        let _none = fs::remove_dir_all(&corpus.seeds);
        fs::create_dir_all(&corpus.seeds)?;
        for path in kept {
            fs::copy(
                &path,
                corpus.seeds.join(path.file_name().unwrap_or_default()),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts() {
        let output = "stat::number_of_executed_units: 7\nx\nstat::number_of_executed_units:  12\n";
        assert_eq!(stat(output, "number_of_executed_units"), Some(12));
        assert_eq!(stat(output, "peak_rss_mb"), None);
    }
}
