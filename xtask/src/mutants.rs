// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask mutants`: cargo-mutants over what everything rests on. Nine in ten mutants must be caught, and each survivor must
//! have its reason in `docs/testing.md`.
//!
//! Each part runs twice: first against the tests that are about it, which take seconds and catch most; then what is left against
//! every test of the crates that use it.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::run::{cargo, root, succeed};

/// Least share of viable mutants that tests must catch, in per cent.
const GOAL: usize = 90;

/// Not mutated: the code of tests and of loom models, and what only people read.
const NOT_MUTATED: &[&str] = &[
    "--exclude",
    "**/tests.rs",
    "--exclude",
    "**/tests/**",
    "--exclude",
    "**/model.rs",
    "--exclude-re",
    "impl fmt::(Debug|Display) for",
];

/// Code that is mutated.
struct Part {
    name: &'static str,
    package: &'static str,
    files: &'static str,
    /// The tests that are about it.
    near: Tests,
}

/// Tests, besides the unit tests of their packages.
struct Tests {
    packages: &'static [&'static str],
    /// Names of test targets, with wildcards.
    targets: &'static [&'static str],
    /// Cases of a property; as many as it asks for, if none.
    cases: Option<&'static str>,
    /// Seconds after which a mutant counts as hanging, and so as caught: several times what the tests take on an idle machine.
    timeout: &'static str,
}

impl Tests {
    /// What Cargo is told to build and run.
    fn chosen(&self) -> impl Iterator<Item = &str> {
        let targets = self.targets.iter().flat_map(|target| ["--test", target]);
        std::iter::once("--lib").chain(targets)
    }

    /// Makes the tests of mutants quick.
    fn hasten(&self, command: &mut Command) {
        if let Some(cases) = self.cases {
            command.env("PROPTEST_CASES", cases);
        }
        // That a property fails is enough; optimized properties save more time than they cost; debug information is not worth its
        // link time here.
        command
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "1")
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_TEST_DEBUG", "0");
    }
}

const fn near(packages: &'static [&'static str], targets: &'static [&'static str]) -> Tests {
    Tests {
        packages,
        targets,
        cases: Some("64"),
        timeout: "40",
    }
}

/// All that run the code.
const ALL: Tests = Tests {
    packages: &["ioreq", "ioreq-core", "ioreq-backends"],
    targets: &[
        "slot_*",
        "ring_*",
        "request_*",
        "dispatch_*",
        "claim_*",
        "server_*",
        "vgpu_*",
        "write_log_*",
        "*_on_model",
    ],
    cases: None,
    timeout: "120",
};

const CORE: &[&str] = &["ioreq-core"];

const PARTS: &[Part] = &[
    Part {
        name: "slot",
        package: "ioreq-core",
        files: "ioreq-core/src/slot/**/*.rs",
        near: near(CORE, &["slot_protocol", "request_*"]),
    },
    Part {
        name: "ring",
        package: "ioreq-core",
        files: "ioreq-core/src/ring/**/*.rs",
        near: near(CORE, &["ring_consumer"]),
    },
    Part {
        name: "dispatch",
        package: "ioreq-core",
        files: "ioreq-core/src/dispatch/**/*.rs",
        near: near(CORE, &["dispatch_*", "claim_oracle"]),
    },
    Part {
        name: "claim",
        package: "ioreq-core",
        files: "ioreq-core/src/claim/**/*.rs",
        near: near(
            &["ioreq-core", "ioreq"],
            &[
                "claim_oracle",
                "server_claim_end",
                "server_parking",
                "server_quiesce",
                "server_take_over",
                "server_track*",
            ],
        ),
    },
    Part {
        name: "shadow",
        package: "ioreq-backends",
        files: "ioreq-backends/src/vgpu/shadow/**/*.rs",
        near: near(&["ioreq-backends"], &["vgpu_pvinfo"]),
    },
];

/// Reports whose lines are final: a mutant that one round caught, under which tests hang, that does not compile, or that is known to
/// survive.
const KEPT: [&str; 4] = ["caught.txt", "timeout.txt", "unviable.txt", ACCEPTED];

/// Survivors that the docs give a reason for.
const ACCEPTED: &str = "accepted.txt";

/// What cargo-mutants is told not to try again.
const NOT_AGAIN: &str = "mutants.out/previously_caught.txt";

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only these parts: slot, ring, dispatch, claim, shadow.
    parts: Vec<String>,
    /// Go on where an earlier run was interrupted: what it caught is not tried again.
    #[arg(long)]
    resume: bool,
    /// So many mutants at once: tests that hang take time, but no processor.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
}

/// What became of a part's mutants.
#[derive(Default)]
struct Outcome {
    caught: usize,
    timeout: usize,
    unviable: usize,
    missed: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args
        .parts
        .iter()
        .find(|part| !PARTS.iter().any(|known| known.name == **part))
    {
        bail!("no part named {unknown}");
    }
    if Command::new("cargo")
        .args(["mutants", "--version"])
        .output()
        .is_ok_and(|out| !out.status.success())
    {
        succeed(&mut cargo(
            &root(),
            &["install", "cargo-mutants", "--locked"],
        ))?;
    }
    let accepted = fs::read_to_string(root().join("docs/testing.md")).context("docs/testing.md")?;
    let (mut caught, mut missed, mut unexplained) = (0, 0, 0);
    for part in PARTS {
        let name = part.name;
        if !args.parts.is_empty() && !args.parts.iter().any(|wanted| wanted == name) {
            continue;
        }
        let output = root().join("target/mutants").join(name);
        if !args.resume && output.exists() {
            fs::remove_dir_all(&output)?;
        }
        fs::create_dir_all(&output)?;
        absorb(&output, &accepted)?;
        for tests in [&part.near, &ALL] {
            round(part, tests, args.jobs, &output)?;
            absorb(&output, &accepted)?;
        }
        let outcome = outcome(&output).with_context(|| format!("no report for {name}"))?;
        caught += outcome.caught + outcome.timeout;
        missed += outcome.missed.len();
        println!(
            "{name}: {} caught, {} timeouts, {} missed, {} unviable",
            outcome.caught,
            outcome.timeout,
            outcome.missed.len(),
            outcome.unviable
        );
        for survivor in &outcome.missed {
            let explained = is_explained(survivor, &accepted);
            println!(
                "  {} {survivor}",
                if explained { "accepted" } else { "SURVIVES" }
            );
            unexplained += usize::from(!explained);
        }
    }
    let all = caught + missed;
    if all == 0 {
        bail!("nothing was mutated");
    }
    println!(
        "{caught} of {all} caught: {:.1} %",
        caught as f64 * 100.0 / all as f64
    );
    if caught * 100 < all * GOAL {
        bail!("fewer than {GOAL} % of the mutants are caught");
    }
    if unexplained > 0 {
        bail!("{unexplained} survivors have no reason in docs/testing.md");
    }
    Ok(())
}

/// One round: every mutant that no earlier round caught.
fn round(part: &Part, tests: &Tests, jobs: u8, output: &Path) -> Result<()> {
    // cargo-mutants' own trial of the unmutated tree runs the tests of the mutated package alone.
    let mut trial = cargo(&root(), &["test", "--quiet"]);
    for package in tests.packages {
        trial.args(["--package", package]);
    }
    trial.args(tests.chosen());
    tests.hasten(&mut trial);
    succeed(&mut trial)?;

    let mut command = cargo(&root(), &["mutants", "--package", part.package]);
    command.args(["--file", part.files]).args(NOT_MUTATED);
    command.arg("--output").arg(output);
    for package in tests.packages {
        command.args(["--test-package", package]);
    }
    command
        .args(["--iterate", "--no-shuffle", "--colors", "never"])
        .args(["--timeout", tests.timeout, "--jobs", &jobs.to_string()])
        .args(["--baseline", "skip"]);
    // Not behind `--`: what is not run need not be built either.
    for argument in tests.chosen() {
        command.arg(format!("--cargo-arg={argument}"));
    }
    tests.hasten(&mut command);
    let status = command.status().context("cannot run cargo mutants")?;
    // 0: all caught; 2: survivors; 3: timeouts. Anything else: it could not do its work.
    match status.code() {
        Some(0 | 2 | 3) => Ok(()),
        _ => bail!("cargo mutants on {} ends with {status}", part.name),
    }
}

/// Keeps what a round, or an interrupted run, found for good: cargo-mutants' own report holds one round only. Survivors with a reason
/// in the docs are not tried again either.
fn absorb(output: &Path, accepted: &str) -> Result<()> {
    let report = output.join("mutants.out");
    let mut found = String::new();
    for name in KEPT {
        let mut new = lines(&report.join(name))?;
        if name == ACCEPTED {
            new = lines(&report.join("missed.txt"))?;
            new.retain(|survivor| is_explained(survivor, accepted));
        }
        let kept = output.join(name);
        new.extend(lines(&kept)?);
        let text: String = new.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&kept, &text).with_context(|| format!("{}", kept.display()))?;
        found.push_str(&text);
    }
    if report.exists() {
        let not_again = output.join(NOT_AGAIN);
        fs::write(&not_again, found).with_context(|| format!("{}", not_again.display()))?;
    }
    Ok(())
}

/// All rounds of a part together: what was caught once is caught, and the last round says what is not.
fn outcome(output: &Path) -> Result<Outcome> {
    let mut missed = lines(&output.join("mutants.out/missed.txt"))?;
    missed.extend(lines(&output.join(ACCEPTED))?);
    Ok(Outcome {
        caught: lines(&output.join("caught.txt"))?.len(),
        unviable: lines(&output.join("unviable.txt"))?.len(),
        timeout: lines(&output.join("timeout.txt"))?.len(),
        missed: missed.into_iter().collect(),
    })
}

/// The lines of a file; none, if there is no such file.
fn lines(path: &Path) -> Result<BTreeSet<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

/// Whether `docs/testing.md` has a row for this survivor. It reads `file:line:column: what`: lines move, so only the rest counts.
fn is_explained(survivor: &str, accepted: &str) -> bool {
    let file = survivor.split(':').next().unwrap_or_default();
    let what = survivor.splitn(4, ':').nth(3).unwrap_or(survivor).trim();
    accepted
        .lines()
        // A `|` would end the cell.
        .map(|line| line.replace("\\|", "|"))
        .any(|line| line.contains(file) && line.contains(&format!("`{what}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_is_explained_by_file_and_mutant_wherever_the_line_is() {
        let accepted = "| `a/b.rs` | `replace \\| with ^ in f` | the same value |\n";
        assert!(is_explained("a/b.rs:7:9: replace | with ^ in f", accepted));
        assert!(!is_explained("a/c.rs:7:9: replace | with ^ in f", accepted));
        assert!(!is_explained(
            "a/b.rs:7:9: replace | with ^ in f2",
            accepted
        ));
    }
}
