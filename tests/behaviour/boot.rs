// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rows of one boot of a real machine, one after the other. Each result is a line of its own on the serial line, where Xen
//! and dom0 write, too: `RIG: run ID`, then `RIG: pass ID` or `RIG: fail ID: why`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::registry::{Case, cases};
use crate::rig::{Rig, XenRig};
use crate::rows::{Boot, Row};

/// The variable that says which rows: `plain`, `crash`, or the id of one; and that this is a real machine.
pub(crate) const VARIABLE: &str = "BEHAVIOUR_BOOT";

/// The variable that says which of them: ids with commas between; all, if it is not set.
const ONLY: &str = "BEHAVIOUR_ROWS";

/// Runs the rows of the boot called `boot`.
pub(crate) fn run(boot: &str, rows: &[Row]) -> ExitCode {
    let rig = match XenRig::new() {
        Ok(rig) => rig,
        Err(err) => {
            eprintln!("no Xen to test: {err}");
            return ExitCode::FAILURE;
        }
    };
    let only = std::env::var(ONLY).ok();
    let mut failed = 0;
    for case in cases::<XenRig>() {
        let id = case.id();
        let Some(row) = rows.iter().find(|row| row.id == id) else {
            continue;
        };
        let wanted = match row.boot {
            None => boot == "plain",
            Some(Boot::Crash | Boot::TwoProcessors) => boot == "crash",
            Some(Boot::Panic) => false,
        };
        let left_out = only
            .as_ref()
            .is_some_and(|only| !only.split(',').any(|name| name == id));
        if left_out || (!wanted && boot != id) {
            continue;
        }
        if !row.needs.iter().all(|need| rig.has(*need)) {
            println!("RIG: lack {id}");
            continue;
        }
        println!("RIG: run {id}");
        match attempt(&case, &rig) {
            Ok(()) => println!("RIG: pass {id}"),
            Err(why) => {
                failed += 1;
                println!("RIG: fail {id}: {}", why.replace('\n', " / "));
            }
        }
    }
    // Here and not only at the boot's end: this process still has open what it left open.
    match rig.leaks() {
        Ok(leaks) if leaks.left.is_empty() => println!("RIG: clean {leaks}"),
        Ok(leaks) => {
            failed += 1;
            println!("RIG: leak {leaks}");
        }
        Err(err) => {
            failed += 1;
            println!("RIG: leak: nobody can tell: {err}");
        }
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn attempt(case: &Case<XenRig>, rig: &XenRig) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| (case.run)(rig))).map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}
