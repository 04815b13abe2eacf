// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Churn of everything at once, with invariants checked all along: `cargo xtask soak`.
//!
//! Scenes run beside each other, round after round, each round in a domain of its own: guests whose every answer is known in advance,
//! a device model under them, and faults. Now and then all of them come to an end, and the process is looked at: nothing may have
//! grown. A seed says what every guest does, and which faults come in which order; what it does not say is how threads take turns.

mod death;
mod device;
mod epochs;
mod gauge;
mod layout;
mod oddities;
mod options;
mod platform;
mod report;
mod scenes;
mod tally;
mod writer;

use std::process::ExitCode;

use clap::Parser;

use options::{On, Options};
use platform::{Model, Xen};

/// Why something is not as it should be, or could not be tried.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let options = Options::parse();
    println!("soak: --seed {}", options.seed());
    let report = match options.hypervisor {
        On::Model => epochs::run(&Model::new(), &options),
        On::Xen => Xen::new().and_then(|xen| epochs::run(&xen, &options)),
    };
    match report {
        Ok(report) => {
            report.print(&options);
            match report.is_right() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(err) => {
            eprintln!("soak: {err}");
            ExitCode::FAILURE
        }
    }
}
