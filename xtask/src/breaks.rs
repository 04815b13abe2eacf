// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask breaks`: tests of the tests. Each patch in `tests/breaks` breaks one thing; the test that it names must fail, or the
//! fuzz target that it names find something.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::fuzz::{self, Corpus, Nightly, Ran};
use crate::run::{Outcome, capture, cargo, files, root, succeed};

/// How long one test may take, with its build.
const LIMIT: Duration = Duration::from_secs(240);

/// Seconds that a fuzz target runs without a patch, and with it.
const FUZZ_BEFORE: u64 = 5;
const FUZZ_WITH: u64 = 60;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only these patches, by file name without the ending.
    names: Vec<String>,
    /// Only checks that every patch applies.
    #[arg(long)]
    check: bool,
}

/// One patch: what it breaks, and the test that must notice.
#[derive(Debug, PartialEq, Eq)]
struct Patch {
    name: String,
    breaks: String,
    caught_by: Catcher,
    /// Environment of the test, `NAME=value with spaces`.
    env: Option<(String, String)>,
    /// The test notices by not ending.
    hangs: bool,
}

/// Who must notice.
#[derive(Debug, PartialEq, Eq)]
enum Catcher {
    /// Arguments of `cargo test`.
    Test(Vec<String>),
    /// A fuzz target, within a minute.
    Fuzz(String),
}

/// How a patch fared.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Caught,
    /// What it needs is not there.
    NotRun(String),
    Missed(String),
}

fn parse(name: &str, text: &str) -> Result<Patch> {
    let header = text.split("\ndiff --git").next().unwrap_or_default();
    let field = |key: &str| {
        let line = header
            .lines()
            .find_map(|line| line.strip_prefix(key))?
            .trim();
        (!line.is_empty()).then(|| line.to_owned())
    };
    let need =
        |key: &str| field(key).with_context(|| format!("{name}: no `{key}` line above the diff"));
    let env = match field("Env:") {
        None => None,
        Some(env) => {
            let (key, value) = env
                .split_once('=')
                .with_context(|| format!("{name}: `Env: NAME=value`"))?;
            Some((key.to_owned(), value.to_owned()))
        }
    };
    let caught_by = match field("Caught-by-fuzz:") {
        Some(target) if fuzz::TARGETS.iter().any(|known| known.name == target) => {
            Catcher::Fuzz(target)
        }
        Some(target) => bail!("{name}: no fuzz target {target}"),
        None => {
            let args = need("Caught-by:")?;
            Catcher::Test(args.split_whitespace().map(str::to_owned).collect())
        }
    };
    Ok(Patch {
        name: name.to_owned(),
        breaks: need("Breaks:")?,
        caught_by,
        env,
        hangs: field("Hang:").is_some_and(|hang| hang == "yes"),
    })
}

fn all() -> Result<Vec<(PathBuf, Patch)>> {
    let mut patches = Vec::new();
    for path in files("tests/breaks", ".patch")? {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let patch = parse(&name, &fs::read_to_string(&path)?)?;
        patches.push((path, patch));
    }
    patches.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    if patches.is_empty() {
        bail!("no patches in tests/breaks");
    }
    Ok(patches)
}

/// Checks that every patch applies to the checkout as it is.
pub(crate) fn check_all() -> Result<()> {
    let patches = all()?;
    let mut stale = Vec::new();
    for (path, patch) in &patches {
        let mut git = Command::new("git");
        if succeed(git.args(["apply", "--check"]).arg(path).current_dir(root())).is_err() {
            stale.push(patch.name.as_str());
        }
    }
    if !stale.is_empty() {
        bail!("these patches do not apply any more: {}", stale.join(", "));
    }
    println!("{} patches apply", patches.len());
    Ok(())
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        return check_all();
    }
    let mut patches = all()?;
    if let Some(unknown) = args
        .names
        .iter()
        .find(|name| !patches.iter().any(|(_, p)| p.name == **name))
    {
        bail!("no patch named {unknown}");
    }
    patches.retain(|(_, patch)| args.names.is_empty() || args.names.contains(&patch.name));

    let scratch = Scratch::new()?;
    let (mut missed, mut not_run) = (0, 0);
    let mut rows = Vec::new();
    for (path, patch) in &patches {
        println!("--- {}: {}", patch.name, patch.breaks);
        let verdict = match &patch.caught_by {
            Catcher::Test(args) => scratch.attempt(path, patch, args)?,
            Catcher::Fuzz(target) => scratch.attempt_fuzz(path, target)?,
        };
        match &verdict {
            Verdict::Caught => println!("caught"),
            Verdict::NotRun(why) => {
                not_run += 1;
                println!("NOT RUN: {why}");
            }
            Verdict::Missed(why) => {
                missed += 1;
                println!("{why}");
            }
        }
        rows.push((patch, verdict));
    }
    println!();
    for (patch, verdict) in &rows {
        let word = match verdict {
            Verdict::Caught => "caught",
            Verdict::Missed(_) => "MISSED",
            Verdict::NotRun(_) => "NOT RUN",
        };
        println!("{word:7} {:32} {}", patch.name, patch.breaks);
    }
    let caught = rows.len() - missed - not_run;
    println!("{caught} caught, {missed} missed, {not_run} not run");
    if missed > 0 {
        bail!("{missed} patches were not caught");
    }
    Ok(())
}

/// A copy of the checkout, with a target directory of its own that stays from patch to patch.
struct Scratch {
    tree: PathBuf,
    target: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self> {
        let base = root().join("target/breaks");
        let scratch = Scratch {
            tree: base.join("tree"),
            target: base.join("target"),
        };
        scratch.reset()?;
        Ok(scratch)
    }

    /// Makes the copy equal to the checkout; files that are equal already keep their time, so that builds stay incremental.
    fn reset(&self) -> Result<()> {
        let root = root();
        let wanted = files(".", "")?;
        for path in files_below(&self.tree)? {
            let name = path.strip_prefix(&self.tree)?;
            if !root.join(name).is_file() {
                fs::remove_file(&path)?;
            }
        }
        for path in wanted {
            let copy = self.tree.join(path.strip_prefix(&root)?);
            let text = fs::read(&path)?;
            if fs::read(&copy).is_ok_and(|old| old == text) {
                continue;
            }
            fs::create_dir_all(copy.parent().unwrap_or(&self.tree))?;
            fs::write(&copy, text)?;
        }
        Ok(())
    }

    fn test(&self, patch: &Patch, args: &[String]) -> Result<Outcome> {
        let args: Vec<&str> = ["test"]
            .into_iter()
            .chain(args.iter().map(String::as_str))
            .collect();
        let mut command = cargo(&self.tree, &args);
        command.env("CARGO_TARGET_DIR", &self.target);
        if let Some((key, value)) = &patch.env {
            command.env(key, value);
        }
        capture(&mut command, LIMIT)
    }

    fn apply(&self, path: &Path) -> Result<()> {
        let mut git = Command::new("git");
        // Outside any repository's view: the copy lies below an ignored directory of this one.
        git.arg("apply")
            .arg(path)
            .current_dir(&self.tree)
            .env("GIT_CEILING_DIRECTORIES", root().join("target/breaks"));
        succeed(&mut git)
    }

    fn fuzz(&self, nightly: &Nightly, target: &str, seconds: u64) -> Result<Ran> {
        let programs = fuzz::build(nightly, &self.tree, &self.target.join("fuzz"), &[target])?;
        // From the seeds alone.
        let corpus = self.tree.join("target/fuzz");
        if corpus.exists() {
            fs::remove_dir_all(&corpus)?;
        }
        fuzz::fuzz(
            &programs.join(target),
            &Corpus::of(&self.tree, target)?,
            seconds,
        )
    }

    /// The target finds nothing in a few seconds without the patch, and something in a minute with it.
    fn attempt_fuzz(&self, path: &Path, target: &str) -> Result<Verdict> {
        let nightly = match Nightly::find() {
            Ok(nightly) => nightly,
            Err(why) => return Ok(Verdict::NotRun(format!("{why:#}"))),
        };
        self.reset()?;
        if let Ran::Finding { output, .. } = self.fuzz(&nightly, target, FUZZ_BEFORE)? {
            return Ok(Verdict::Missed(format!(
                "the target has a finding without the patch:\n{}",
                tail(&output)
            )));
        }
        if self.apply(path).is_err() {
            return Ok(Verdict::Missed("it does not apply".into()));
        }
        let ran = self.fuzz(&nightly, target, FUZZ_WITH);
        self.reset()?;
        Ok(match ran? {
            Ran::Finding { after, output, .. } if after.as_secs() <= FUZZ_WITH => {
                let what = output.lines().find(|line| line.contains("panicked at"));
                println!(
                    "found after {:.1} s: {}",
                    after.as_secs_f32(),
                    what.unwrap_or("no panic")
                );
                Verdict::Caught
            }
            Ran::Finding { after, .. } => {
                Verdict::Missed(format!("found only after {} s", after.as_secs()))
            }
            Ran::Clean { executions, .. } => {
                Verdict::Missed(format!("nothing found in {executions} executions"))
            }
        })
    }

    fn attempt(&self, path: &Path, patch: &Patch, args: &[String]) -> Result<Verdict> {
        self.reset()?;
        match self.test(patch, args)? {
            Outcome::Ended { status, output } if status.success() => {
                if tests_run(&output) == 0 {
                    return Ok(Verdict::Missed("the test it names does not exist".into()));
                }
            }
            Outcome::Ended { output, .. } => {
                return Ok(Verdict::Missed(format!(
                    "the test fails without the patch:\n{}",
                    tail(&output)
                )));
            }
            Outcome::TimedOut => {
                return Ok(Verdict::Missed("the test hangs without the patch".into()));
            }
        }
        if self.apply(path).is_err() {
            return Ok(Verdict::Missed("it does not apply".into()));
        }
        let verdict = match self.test(patch, args)? {
            Outcome::TimedOut if patch.hangs => Verdict::Caught,
            Outcome::TimedOut => {
                Verdict::Missed("the test hangs, and its header does not say so".into())
            }
            Outcome::Ended { status, .. } if status.success() => {
                Verdict::Missed("the test passes".into())
            }
            Outcome::Ended { output, .. } => judge(&output),
        };
        self.reset()?;
        Ok(verdict)
    }
}

/// A failed test is a catch; a program that does not compile is not.
fn judge(output: &str) -> Verdict {
    if output.contains("test result: FAILED") || output.contains("(signal: ") {
        Verdict::Caught
    } else {
        Verdict::Missed(format!("the test did not run:\n{}", tail(output)))
    }
}

/// Tests that passed, by cargo's own lines.
fn tests_run(output: &str) -> u64 {
    let results = output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "));
    results
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path)
            } else {
                found.push(path)
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Breaks: the sky\nCaught-by: -p ioreq-core --lib sky\nEnv: RUSTFLAGS=--cfg loom\nHang: yes\n\ndiff --git a/x b/x\nBreaks: not this\n";

    #[test]
    fn a_header_is_read_up_to_the_diff() {
        let patch = parse("sky", PATCH).unwrap();
        assert_eq!(patch.breaks, "the sky");
        let args = ["-p", "ioreq-core", "--lib", "sky"].map(String::from);
        assert_eq!(patch.caught_by, Catcher::Test(args.into()));
        assert_eq!(patch.env, Some(("RUSTFLAGS".into(), "--cfg loom".into())));
        assert!(patch.hangs);
    }

    #[test]
    fn a_patch_without_its_test_is_an_error() {
        let err = parse(
            "sky",
            "Breaks: the sky\n\ndiff --git a/x b/x\nCaught-by: x\n",
        )
        .unwrap_err();
        assert!(err.to_string().contains("Caught-by"), "{err}");
    }

    #[test]
    fn a_fuzz_target_can_be_who_notices() {
        let text = |target| format!("Breaks: x\nCaught-by-fuzz: {target}\n\ndiff --git a/x b/x\n");
        let patch = parse("sky", &text("ring")).unwrap();
        assert_eq!(patch.caught_by, Catcher::Fuzz("ring".into()));
        assert!(parse("sky", &text("rang")).is_err());
    }

    #[test]
    fn only_a_failed_test_is_a_catch() {
        assert_eq!(
            judge("test result: FAILED. 0 passed; 1 failed"),
            Verdict::Caught
        );
        assert!(matches!(
            judge("error[E0308]: mismatched types"),
            Verdict::Missed(_)
        ));
    }

    #[test]
    fn a_name_that_matches_no_test_is_noticed() {
        assert_eq!(
            tests_run("test result: ok. 0 passed; 0 failed; 3 filtered out\n"),
            0
        );
        assert_eq!(
            tests_run("test result: ok. 2 passed; 0 failed\ntest result: ok. 1 passed; 0 failed\n"),
            3
        );
    }
}
