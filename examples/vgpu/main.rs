// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main job: a vGPU's shadow page tables, under guests that drive it hard.
//!
//! Guest programs on several vCPUs of the embedded hypervisor model act as a GPU driver: contexts come and go, buffers of many
//! sizes are mapped, moved and unmapped, table pages are freed and used as data, copies and fills are submitted. A test
//! engine moves the bytes by the shadow alone. At every submission an independent walk of the guest's own tables is compared
//! with the shadow, and the guests check the bytes that come back.

mod checker;
mod context;
mod driver;
mod frames;
mod machine;
mod options;
mod report;
mod reserve;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = options::Options::parse();
    match machine::run(&options) {
        Ok(report) => {
            report.print(&options);
            if report.is_right() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(err) => {
            eprintln!("vgpu: {err}");
            ExitCode::FAILURE
        }
    }
}
