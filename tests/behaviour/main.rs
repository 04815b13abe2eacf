// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What Xen does that an ioreq server can see: one test for each row of `docs/xen-behaviour.toml`, generic over the
//! hypervisor, so that the model and the real thing answer the same questions.
//!
//! A test is a function named as its row, with `_` for `-`, in the file of its group, and an entry in [`registry`]. The row
//! says what must happen; where versions differ the test asks [`rig::Rig::version`]. Servers are served by hand here, never by
//! the framework's own server: the suite is about the other side.
//!
//! `cargo test --test behaviour` runs all rows on the model of every version; `-- model-4.17::claim` selects by name.
//! `cargo xtask xen test` runs them on a real Xen.
//! `BEHAVIOUR_WRITE_TABLE=1 cargo test --test behaviour` writes `docs/behaviour-table.md` anew.

#[cfg(feature = "xen")]
mod boot;
mod claim;
mod event;
mod kernel;
mod mem_type;
mod op;
mod range;
mod reach_io;
mod reach_tracked;
mod registry;
mod rig;
mod ring;
mod rows;
mod server;
mod setup;
mod slot;
mod support;
mod table;
mod trap;
mod unmark;
mod vram;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use registry::{Case, cases};
use rig::{Rig, SimRig, Version};
use rows::Row;

fn main() -> ExitCode {
    let rows = match rows::read() {
        Ok(rows) => rows,
        Err(why) => {
            eprintln!("{}: {why}", rows::PATH);
            return ExitCode::FAILURE;
        }
    };
    if std::env::var_os("BEHAVIOUR_WRITE_TABLE").is_some() {
        return match table::write(&rows) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("{}: {err}", table::PATH);
                ExitCode::FAILURE
            }
        };
    }
    #[cfg(feature = "xen")]
    if let Ok(boot) = std::env::var(boot::VARIABLE) {
        return boot::run(&boot, &rows);
    }
    let args = Arguments::from_args();
    let mut trials = about_rows(&rows);
    for version in [Version::V4_17, Version::V4_20] {
        trials.extend(on_rig(SimRig::new(version), &rows));
    }
    libtest_mimic::run(&args, trials).exit_code()
}

/// Rows and tests belong together; the table tells what the rows say.
fn about_rows(rows: &[Row]) -> Vec<Trial> {
    let names: Vec<String> = cases::<SimRig>().iter().map(Case::id).collect();
    let complete = rows::check(rows, &names);
    let current = table::check(rows);
    vec![
        Trial::test("rows::complete", move || complete.map_err(Failed::from)),
        Trial::test("rows::table-is-current", move || {
            current.map_err(Failed::from)
        }),
    ]
}

/// All rows that have a test, on one rig.
fn on_rig<R: Rig>(rig: R, rows: &[Row]) -> Vec<Trial> {
    let rig = Arc::new(rig);
    let trial = |case: Case<R>| {
        let name = format!("{}::{}", rig.name(), case.id());
        let row = rows.iter().find(|row| row.id == case.id());
        let lacking = row.is_some_and(|row| row.needs.iter().any(|need| !rig.has(*need)));
        let rig = Arc::clone(&rig);
        let run = move || {
            (case.run)(&rig);
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(lacking)
    };
    cases().into_iter().map(trial).collect()
}
