// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask soak`: churn of everything at once, on the model or, in its dom0, on a real Xen.

use std::process::Command;

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::run::{cargo, root, succeed};
use crate::xen;

/// Seconds of it in `cargo xtask test`.
const SMOKE: u64 = 60;
/// Memory is compared between quiet points. Left to itself glibc keeps now more and now less of what is free: stacks of threads that
/// ended, heaps of threads, large blocks.
const STEADY: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.pthread.stack_cache_size=0:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=131072",
);

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// How long.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
    /// And so many seconds more [default: 60 without --minutes].
    #[arg(long)]
    seconds: Option<u64>,
    /// Seed of what guests do and of which faults come when; without it one is made up, and told.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this scene: busy, lives, rivals, ends or vgpu.
    #[arg(long)]
    scene: Option<String>,
    /// Only this round of the scene, once.
    #[arg(long, requires = "scene")]
    round: Option<u64>,
    /// On a real Xen, in dom0.
    #[arg(long)]
    xen: bool,
    /// Which one.
    #[arg(long, value_enum, default_value = "4.17", requires = "xen")]
    release: xen::Release,
}

impl Args {
    /// As the program takes them.
    fn options(&self) -> Vec<String> {
        let default = if self.minutes == 0 { SMOKE } else { 0 };
        let seconds = 60 * self.minutes + self.seconds.unwrap_or(default);
        let mut all = vec!["--json".into(), "--seconds".into(), seconds.to_string()];
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                all.extend([name.to_owned(), value]);
            }
        };
        add("--seed", self.seed.map(|seed| seed.to_string()));
        add("--scene", self.scene.clone());
        add("--round", self.round.map(|round| round.to_string()));
        all
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.xen {
        let alone = args.scene.is_some();
        return xen::soak(args.release, STEADY, &args.options(), alone);
    }
    succeed(&mut program(&args.options()))
}

/// A minute of it on the model, with a seed of its own each time.
pub(crate) fn check() -> Result<()> {
    let seconds = SMOKE.to_string();
    succeed(&mut program(&["--seconds".into(), seconds]))
}

/// The program, built and run.
fn program(options: &[String]) -> Command {
    let mut command = cargo(
        &root(),
        &["run", "--release", "--quiet", "-p", "soak", "--"],
    );
    command.args(options).env(STEADY.0, STEADY.1);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    fn options(words: &[&str]) -> String {
        let words = ["soak"].iter().chain(words);
        let alone = Alone::try_parse_from(words).unwrap();
        alone.args.options().join(" ")
    }

    #[test]
    fn minutes_and_seconds_add_up() {
        assert_eq!(options(&[]), "--json --seconds 60");
        assert_eq!(options(&["--minutes", "30"]), "--json --seconds 1800");
        assert_eq!(
            options(&["--minutes", "1", "--seconds", "5"]),
            "--json --seconds 65"
        );
        let again = options(&["--seed", "7", "--scene", "busy", "--round", "3"]);
        assert_eq!(again, "--json --seconds 60 --seed 7 --scene busy --round 3");
        assert!(
            Alone::try_parse_from(["soak", "--round", "3"]).is_err(),
            "of which scene?"
        );
    }
}
