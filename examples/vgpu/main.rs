// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main job: a vGPU's shadow page tables, under guests that drive it hard.
//!
//! Guest programs on several vCPUs act as a GPU driver (`vgpu-guest`): contexts come and go, buffers of many sizes are mapped,
//! moved and unmapped, table pages are freed and used as data, tables are written by two vCPUs and taken away meanwhile, copies and
//! fills are submitted. A test engine moves the bytes by the shadow alone. At every submission an independent walk of the guest's own
//! tables is compared with the shadow, and the guests check the bytes that come back.
//!
//! The guest is one of the embedded hypervisor model, or, with `--hypervisor xen`, a domain of the Xen that this runs on, in which the
//! program `vgpu-guest` runs: `cargo xtask xen run --example vgpu` makes both.

mod checker;
mod host;
mod machine;
mod model;
mod options;
mod platform;
mod report;
mod sim;
mod witness;
#[cfg(feature = "xen")]
mod xen;

use std::process::ExitCode;

use clap::Parser;
use ioreq::backends::vgpu::OutOfSync;

use model::Model;
use options::{Choice, On, Options};
use platform::Failure;
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
fn run(options: &Options) -> Result<bool, Failure> {
    let once = |policy| -> Result<Report, Failure> {
        let report = match options.hypervisor {
            On::Model => machine::run(&Model::new(options)?, options, policy)?,
            #[cfg(feature = "xen")]
            On::Xen => machine::run(&xen::Xen::new(options)?, options, policy)?,
            #[cfg(not(feature = "xen"))]
            On::Xen => return Err("built without the real Xen: --features xen has it".into()),
        };
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
