// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Boots Linux as an HVM domain of the Xen that this runs on, as root in dom0, with this program as its only device model. There is no
//! other: no QEMU, no firmware, no toolstack.
//!
//! `cargo xtask xen run --example linux` does it with a Xen of its own.

mod life;
mod options;
mod origin;
mod screen;
mod script;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use ioreq::ShutdownReason;
use ioreq::server::Exit;
use linux_dm::board::Failure;
use xen_rig::Privcmd;

use options::Options;
use origin::Origin;
use script::Script;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            println!("linux-dm: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Boots it, and again when it reboots, until it powers off.
fn run(options: &Options) -> Result<(), Failure> {
    let xen = Arc::new(Privcmd::open()?);
    let mut script = match &options.script {
        Some(path) => Script::read(path)?,
        None => Script::default(),
    };
    for life in 0..=options.reboots {
        let origin = match (&options.state, life) {
            (Some(path), 0) if options.take_over => Origin::taken_over(path)?,
            (Some(path), _) => Origin::kept(path),
            (None, _) => Origin::Alone,
        };
        let (exit, left) = life::live(options, &xen, script, &origin)?;
        match exit {
            Exit::Shutdown(ShutdownReason::PowerOff) => return left.is_played(),
            Exit::Shutdown(ShutdownReason::Reboot) => script = left,
            exit => return Err(format!("the guest did not power off: {exit:?}").into()),
        }
    }
    Err("the guest reboots again: --reboots allows it to".into())
}
