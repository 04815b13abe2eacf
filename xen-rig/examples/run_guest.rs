// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Makes a domain that runs a program of its own, and has a device model serve it: runs a command with `--domid N` at its end, and
//! sees that the domain lives when the command has ended.

use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Parser;
use xen_rig::{Fate, Guest, Image, Kind, Privcmd};

/// Makes a domain with a program in it, and runs a command with `--domid N` at its end.
#[derive(Debug, Parser)]
struct Options {
    /// The program: a static ELF file.
    #[arg(long)]
    image: PathBuf,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    vcpus: u32,
    /// Guest frames that are memory: the first and the one after the last, in hexadecimal. Several times for several parts.
    #[arg(long, value_parser = frames, required = true)]
    frames: Vec<Range<u64>>,
    /// The device model and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// `FIRST-END`.
fn frames(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let parts = text.split_once('-');
    let range = parts.and_then(|(first, end)| Some(number(first)?..number(end)?));
    range
        .filter(|range| range.start < range.end)
        .ok_or_else(|| format!("{text} is not FIRST-END in hexadecimal"))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("RIG: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let image = Image::parse(&std::fs::read(&options.image)?)?;
    let xen = Arc::new(Privcmd::open()?);
    let kind = Kind {
        vcpus: options.vcpus,
        hap: true,
        full: false,
    };
    let guest = Guest::boot(&xen, kind, &options.frames, &image)?;
    guest.unpause()?;
    let domid = guest.domid().to_string();
    println!("RIG: domain {domid} runs");
    let (program, arguments) = options.command.split_first().ok_or("no command")?;
    let status = Command::new(program)
        .args(arguments)
        .args(["--domid", &domid])
        .status()?;
    let fate = guest.fate()?;
    if fate != Fate::Alive {
        return Err(format!("the domain did not survive it: {fate:?}").into());
    }
    match status.success() {
        true => Ok(()),
        false => Err(format!("{program} ended with {status}").into()),
    }
}
