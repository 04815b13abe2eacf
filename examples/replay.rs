// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Plays a recording of the Linux example's device model to the same devices on the model, and says whether every answer is the same:
//! `cargo run --example replay FILE`.
//!
//! A recording is made by `linux-dm --record FILE` on a real Xen; `cargo xtask xen run --example linux` makes one, and leaves it in
//! `target/xen/linux.recording`. Exits with 1 if something differs, with 2 if it is no recording that can be played.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ioreq::replay::Mismatch;
use linux_dm::board::Failure;
use linux_dm::replay::{Replayed, play};

/// Plays a recording of the Linux example's device model, and compares every answer.
#[derive(Debug, Parser)]
#[command(name = "replay")]
struct Options {
    /// What `linux-dm --record` wrote.
    file: PathBuf,
    /// The disk's image as it was before it was recorded, so that what the disk read can be compared. It is not changed.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Shows what the console prints.
    #[arg(long)]
    console: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(replayed) => {
            println!("replay: {replayed}");
            ExitCode::SUCCESS
        }
        Err(err) if err.is::<Mismatch>() => {
            println!("replay: it differs: {err}");
            ExitCode::from(1)
        }
        Err(err) => {
            println!("replay: {}: {err}", options.file.display());
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<Replayed, Failure> {
    let file = BufReader::new(File::open(&options.file)?);
    let out: Box<dyn Write + Send> = match options.console {
        true => Box::new(io::stdout()),
        false => Box::new(io::sink()),
    };
    play(file, options.disk.as_deref(), out)
}
