// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask mutants`: cargo-mutants over what everything rests on. Nine in ten mutants must be caught, and each survivor must
//! have its reason in `docs/testing.md`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use serde_json::Value;

use crate::run::{cargo, root, succeed};

/// Least share of viable mutants that tests must catch, in per cent.
const GOAL: usize = 90;

/// What is mutated: name, package, files.
const PARTS: &[(&str, &str, &str)] = &[
    ("slot", "ioreq-core", "ioreq-core/src/slot/**/*.rs"),
    ("ring", "ioreq-core", "ioreq-core/src/ring/**/*.rs"),
    ("dispatch", "ioreq-core", "ioreq-core/src/dispatch/**/*.rs"),
    ("claim", "ioreq-core", "ioreq-core/src/claim/**/*.rs"),
    (
        "shadow",
        "ioreq-backends",
        "ioreq-backends/src/vgpu/shadow/**/*.rs",
    ),
];

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only these parts: slot, ring, dispatch, claim, shadow.
    parts: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args
        .parts
        .iter()
        .find(|part| !PARTS.iter().any(|(name, ..)| name == *part))
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
    for (name, package, glob) in PARTS {
        if !args.parts.is_empty() && !args.parts.iter().any(|part| part == name) {
            continue;
        }
        let output = root().join("target/mutants").join(name);
        fs::create_dir_all(&output)?;
        let out = output.to_string_lossy().into_owned();
        let command = [
            "mutants",
            "--package",
            package,
            "--file",
            glob,
            "--output",
            &out,
            "--test-workspace",
            "true",
            "--jobs",
            "1",
            "--minimum-test-timeout",
            "60",
            "--no-shuffle",
        ];
        // It ends with an error when mutants survive; what counts is in its report.
        let _survivors = cargo(&root(), &command)
            .status()
            .context("cannot run cargo mutants")?;
        let report = fs::read_to_string(output.join("mutants.out/outcomes.json"))
            .with_context(|| format!("{name}: cargo-mutants left no report: no such files?"))?;
        let outcomes: Value = serde_json::from_str(&report)?;
        let count = |key: &str| {
            outcomes[key]
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0)
        };
        if count("total_mutants") == 0 {
            bail!("{name}: nothing to mutate in {glob}");
        }
        caught += count("caught") + count("timeout");
        missed += count("missed");
        println!(
            "{name}: {} caught, {} missed, {} timeouts, {} unviable",
            count("caught"),
            count("missed"),
            count("timeout"),
            count("unviable")
        );
        let survivors =
            fs::read_to_string(output.join("mutants.out/missed.txt")).unwrap_or_default();
        for survivor in survivors.lines() {
            // `file:line:column: what`: lines move, so only the rest is compared.
            let file = survivor.split(':').next().unwrap_or_default();
            let what = survivor.splitn(4, ':').nth(3).unwrap_or(survivor).trim();
            let explained = accepted
                .lines()
                .any(|line| line.contains(file) && line.contains(what));
            println!(
                "  {} {survivor}",
                if explained { "accepted" } else { "SURVIVES" }
            );
            unexplained += usize::from(!explained);
        }
    }
    let all = (caught + missed).max(1);
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
