// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Developer commands of the workspace: `cargo xtask …`.

mod bench;
mod breaks;
mod doc_examples;
mod doc_tests;
mod fuzz;
mod guide;
mod main_job;
mod mutants;
mod packages;
mod run;
mod sanitize;
mod soak;
mod source;
mod test;
mod xen;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer commands of the ioreq workspace"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every check: format, lints, docs, all tests, models. What CI runs.
    Test(test::Args),
    /// Applies each patch of tests/breaks to a copy and expects its test to fail.
    Breaks(breaks::Args),
    /// Compares dispatch with its peers: one table, and target/bench.json.
    Bench(bench::Args),
    /// Mutation testing of the parts that everything rests on.
    Mutants(mutants::Args),
    /// Fuzz targets, each for some time from its seeds; which lines those reach.
    Fuzz(fuzz::Args),
    /// The stress tests under ThreadSanitizer and AddressSanitizer.
    Sanitize(sanitize::Args),
    /// Churn of everything at once, with invariants checked all along.
    Soak(soak::Args),
    /// Packages the crates, and does with them what docs/guide.md says, chapter by chapter.
    Guide(guide::Args),
    /// A real Xen in QEMU.
    Xen(xen::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Test(args) => test::run(&args),
        Command::Breaks(args) => breaks::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Sanitize(args) => sanitize::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Guide(args) => guide::run(&args),
        Command::Xen(args) => xen::run(&args),
    }
}
