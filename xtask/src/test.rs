// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask test`: every check, one after the other; nothing is skipped in silence.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;

use crate::run::{cargo, root, succeed};
use crate::{
    bench, breaks, doc_examples, doc_tests, fuzz, guide, main_job, packages, soak, source, xen,
};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Runs only these steps (see --list). What is left out is told.
    #[arg(long, value_name = "STEP", num_args = 1..)]
    only: Vec<String>,
    /// Lists the steps and ends.
    #[arg(long)]
    list: bool,
}

type Step = (&'static str, &'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    (
        "packages",
        "what the checks need of the machine is installed",
        packages::ensure,
    ),
    (
        "source",
        "licence lines, declared unsafe, no left-overs",
        source::check,
    ),
    ("format", "cargo fmt --check", format),
    (
        "clippy",
        "clippy with -D warnings, in every feature set",
        clippy,
    ),
    (
        "docs",
        "rustdoc with -D warnings; every public type has an example; tests that documents name exist",
        docs,
    ),
    ("tests", "unit, integration and doc tests", tests),
    (
        "guide",
        "the packages, and the guide's crate built against them",
        guide::check,
    ),
    (
        "examples",
        "examples build; the main job shows what it promises",
        main_job::run,
    ),
    (
        "audit",
        "the request path's audit: no lock, no allocation",
        audit,
    ),
    (
        "counts",
        "instructions of a request, as recorded",
        bench::instructions::check,
    ),
    ("loom", "models of the lock-free protocols", loom),
    (
        "breaks",
        "every patch of tests/breaks applies",
        breaks::check_all,
    ),
    (
        "fuzz",
        "each fuzz target for a minute, from its seeds",
        fuzz::check,
    ),
    (
        "soak",
        "a minute of everything at once, with faults, on the model",
        soak::check,
    ),
    (
        "xen",
        "the behaviour suite and the backend's tests on a real Xen",
        xen::check,
    ),
    (
        "guests",
        "the main job and a Linux guest on a real Xen",
        xen::check_guests,
    ),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for (name, what, _) in STEPS {
            println!("{name:10} {what}");
        }
        return Ok(());
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|only| !STEPS.iter().any(|step| step.0 == **only))
    {
        bail!("no step named {unknown}: see --list");
    }
    let mut results = Vec::new();
    for (name, what, step) in STEPS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        println!("\n=== {name}: {what}");
        let started = Instant::now();
        let result = step();
        if let Err(err) = &result {
            println!("{err:#}");
        }
        results.push((*name, result.is_ok(), started.elapsed().as_secs_f32()));
    }
    println!("\n=== summary");
    for (name, passed, seconds) in &results {
        println!(
            "{name:10} {} {seconds:7.1} s",
            if *passed { "passed" } else { "FAILED" }
        );
    }
    let left_out = STEPS.len() - results.len();
    if left_out > 0 {
        println!("{left_out} steps were not asked for");
    }
    let failed = results.iter().filter(|result| !result.1).count();
    println!("{} passed, {failed} failed", results.len() - failed);
    if failed > 0 {
        bail!("{failed} of {} steps failed", results.len());
    }
    Ok(())
}

fn format() -> Result<()> {
    succeed(&mut cargo(&root(), &["fmt", "--all", "--check"]))
}

/// The facade's features.
const FEATURES: [&str; 6] = ["sim", "xen", "backends", "audit", "serde", "replay"];

/// Every set of the facade's features, every target with the default set and with all, and the guest's program as a real domain gets it.
fn clippy() -> Result<()> {
    let whole = ["clippy", "--workspace", "--all-targets"];
    let deny = ["--", "-D", "warnings"];
    succeed(&mut cargo(&root(), &[&whole[..], &deny].concat()))?;
    succeed(&mut cargo(
        &root(),
        &[&whole[..], &["--all-features"], &deny].concat(),
    ))?;
    xen::lint_guest()?;
    for set in 0..1_u32 << FEATURES.len() {
        let features: Vec<&str> = (0..)
            .zip(FEATURES)
            .filter(|(bit, _)| set >> bit & 1 == 1)
            .map(|(_, feature)| feature)
            .collect();
        let features = features.join(",");
        println!("features: {features}");
        let library = ["clippy", "--quiet", "-p", "ioreq", "--lib"];
        let only = ["--no-default-features", "--features", &features];
        succeed(&mut cargo(&root(), &[&library[..], &only, &deny].concat()))?;
    }
    Ok(())
}

fn docs() -> Result<()> {
    doc_examples::forget()?;
    let mut doc = cargo(
        &root(),
        &["doc", "--workspace", "--no-deps", "--all-features"],
    );
    succeed(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    doc_examples::check()?;
    doc_tests::check()
}

/// With saved state: without the feature its tests would be empty.
fn tests() -> Result<()> {
    let features = ["--features", "ioreq/serde,ioreq-backends/serde"];
    let test = [&["test", "--workspace"][..], &features].concat();
    succeed(&mut cargo(&root(), &test))
}

fn audit() -> Result<()> {
    let args = [
        "test",
        "-p",
        "ioreq",
        "--features",
        "audit",
        "--test",
        "audit",
        "--",
        "--test-threads=1",
    ];
    succeed(&mut cargo(&root(), &args))
}

fn loom() -> Result<()> {
    // A target directory of its own: the flag would make cargo build everything anew each time.
    let args = [
        "test",
        "-p",
        "ioreq-core",
        "--release",
        "--target-dir",
        "target/loom",
        "--lib",
        "--tests",
        "loom",
    ];
    let mut test = cargo(&root(), &args);
    succeed(test.env("RUSTFLAGS", "--cfg loom"))
}
