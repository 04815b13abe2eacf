// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask bench`: ours against peers and floors, in one run on one machine; and instructions of a request.

mod figures;
mod goals;
pub(crate) mod instructions;
mod plots;
mod record;
mod table;
mod vgpu;

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::run::{cargo, root};
use figures::{Compared, Figures};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Rounds; every contender is measured once in each. With fewer than five the table is a first look only.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only groups whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Counts the instructions of a request with callgrind instead, and compares with the checked-in counts.
    #[arg(long)]
    instructions: bool,
    /// Writes tables and plots into docs/benchmarks.md, too; with --instructions, the counts anew.
    #[arg(long)]
    record: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.instructions {
        return instructions::run(args.record);
    }
    let rounds = args.rounds.to_string();
    let bench = ["bench", "-p", "ioreq", "--bench", "compare", "--"];
    let options = ["--rounds", &rounds, "--only", &args.only];
    let mut bench = cargo(&root(), &[&bench[..], &options].concat());
    let output = bench
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo bench")?;
    if !output.status.success() {
        bail!("{bench:?} ended with {}", output.status);
    }
    let mut lines = String::from_utf8(output.stdout).context("figures in UTF-8")?;
    if vgpu::NAME.contains(&args.only) {
        eprintln!("{}", vgpu::NAME);
        lines.push_str(&vgpu::row()?);
    }
    let figures = Figures::parse(&lines)?;
    if figures.is_empty() {
        bail!("no group's name contains {:?}", args.only);
    }
    let compared = figures.compare();
    table::print(&figures, &compared);
    let path = root().join("target/bench.json");
    std::fs::write(&path, serde_json::to_string_pretty(&compared)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.display());
    let of_goal = |compared: &&Compared| compared.goal.is_some();
    let goals = compared.iter().filter(of_goal).count();
    let met = compared
        .iter()
        .filter(|compared| compared.met == Some(true));
    println!("{} of {goals} goals met", met.count());
    if args.record {
        record::write(&figures, &compared, args.rounds)?;
    }
    Ok(())
}
