// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main job: a vGPU's shadow page tables, under guests that drive it hard.
//!
//! Guest programs on several vCPUs of the embedded hypervisor model act as a GPU driver: contexts come and go, buffers of many
//! sizes are mapped, moved and unmapped, table pages are freed and used as data, copies and fills are submitted. A test
//! engine moves the bytes by the shadow alone. At every submission an independent walk of the guest's own tables is compared
//! with the shadow, and the guests check the bytes that come back.

mod checker;
mod common;
mod context;
mod driver;
mod frames;
mod machine;
mod options;
mod report;
mod reserve;
mod roots;
mod submission;

use std::process::ExitCode;

use clap::Parser;
use ioreq::backends::vgpu::OutOfSync;

use options::{Choice, Options};
use report::Report;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("vgpu: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Runs it once, or once each way; whether every byte and every entry was right.
fn run(options: &Options) -> Result<bool, machine::Failure> {
    let once = |policy| -> Result<Report, machine::Failure> {
        let report = machine::run(options, policy)?;
        report.print(options);
        Ok(report)
    };
    let (before, report) = match options.out_of_sync {
        Choice::Off => (None, once(OutOfSync::off())?),
        Choice::On => (None, once(OutOfSync::on())?),
        Choice::Compare => {
            println!("-- every table tracked");
            let before = once(OutOfSync::off())?;
            println!("-- hot tables out of sync");
            (Some(before), once(OutOfSync::on())?)
        }
    };
    if let Some(before) = &before {
        report.print_gain(before);
    }
    if options.json {
        println!("{}", report.json(options, before.as_ref()));
    }
    Ok(report.is_right() && before.is_none_or(|before| before.is_right()))
}
