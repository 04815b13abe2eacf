// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask sanitize`: the stress tests under ThreadSanitizer and AddressSanitizer, with a nightly compiler and a standard library
//! that is built for the sanitizer, too (`rust-src`). No complaint is suppressed, but for leaks of tests that forget what a process had when
//! it died.

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use crate::fuzz::Nightly;
use crate::run::{cargo, root};

/// Tests with threads that race on purpose.
const STRESS: &[&str] = &[
    "server_claim_end",
    "server_deferred",
    "server_faults",
    "server_handler_faults",
    "server_hostile",
    "server_loops",
    "server_parking",
    "server_quiesce",
    "server_take_over",
    "server_tracking",
];

/// Of these, those in which processes die: what they had is forgotten (`mem::forget`), which is a leak.
const FORGETS: &[&str] = &["server_take_over"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sanitizer {
    Thread,
    Address,
}

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only these [default: both].
    #[arg(value_enum)]
    sanitizers: Vec<Sanitizer>,
    /// Only these tests of the facade.
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let nightly = match Nightly::find() {
        Ok(nightly) => nightly,
        Err(why) => bail!("NOT RUN: sanitizers need a nightly compiler: {why:#}"),
    };
    let all = [Sanitizer::Thread, Sanitizer::Address];
    let chosen = match args.sanitizers.is_empty() {
        true => &all[..],
        false => &args.sanitizers,
    };
    let mut failed = Vec::new();
    for sanitizer in chosen {
        let wanted =
            |name: &&&str| args.tests.is_empty() || args.tests.iter().any(|only| only == *name);
        let (forget, keep): (Vec<&str>, Vec<&str>) = STRESS
            .iter()
            .filter(wanted)
            .partition(|name| FORGETS.contains(name));
        for (names, leaks) in [(keep, "1"), (forget, "0")] {
            if names.is_empty() {
                continue;
            }
            let mut command = tests(*sanitizer, &nightly, &names);
            command.env("ASAN_OPTIONS", format!("detect_leaks={leaks}"));
            if !command.status()?.success() {
                failed.push(format!("{sanitizer:?}"));
            }
        }
    }
    if !failed.is_empty() {
        bail!(
            "failed: {}. If the standard library could not be built: `rustup component add rust-src --toolchain nightly`",
            failed.join(", ")
        );
    }
    Ok(())
}

fn tests(sanitizer: Sanitizer, nightly: &Nightly, names: &[&str]) -> Command {
    let name = format!("{sanitizer:?}").to_lowercase();
    let target = format!("target/sanitize/{name}");
    let args = [
        "+nightly",
        "test",
        "-Zbuild-std",
        "-p",
        "ioreq",
        "--no-fail-fast",
    ];
    let place = ["--target", nightly.host(), "--target-dir", &target];
    let mut command = cargo(&root(), &[&args[..], &place].concat());
    for test in names {
        command.args(["--test", test]);
    }
    command
        .env("RUSTFLAGS", format!("-Zsanitizer={name}"))
        .env("CARGO_PROFILE_TEST_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_TEST_DEBUG", "line-tables-only")
        // The toolchain is the one that `+nightly` names.
        .env_remove("RUSTUP_TOOLCHAIN");
    command
}
