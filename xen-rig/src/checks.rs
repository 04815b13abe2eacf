// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the rig's programs have in common: named checks, each with domains of its own, and what they say of how it went.

use std::error::Error;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ioreq_core::DomId;

use crate::{Done, Guest, Instr, Kind, Privcmd, Program};

/// Why a check failed.
pub type Failure = Box<dyn Error>;
/// A check: its name, and what it does.
pub type Check = (&'static str, fn(&Arc<Privcmd>) -> Result<(), Failure>);

/// Memory of a [`guest`]: 16 MiB without the VGA window.
pub const RAM: [Range<u64>; 2] = [0..0xa0, 0xc0..0x1000];
/// For anything that must happen.
pub const BOUND: Duration = Duration::from_secs(30);

/// Runs all checks of a program.
///
/// # Errors
/// When one failed; why has been printed.
pub fn run(program: &str, checks: &[Check]) -> Result<(), Failure> {
    let xen = Arc::new(Privcmd::open()?);
    let mut failed = 0;
    for (name, check) in checks {
        match check(&xen) {
            Ok(()) => println!("{program}: {name} ... ok"),
            Err(why) => {
                failed += 1;
                println!("{program}: {name} ... FAILED: {why}");
            }
        }
    }
    println!("{program}: {} checks, {failed} failed", checks.len());
    holds("no check failed", failed == 0)
}

/// Something that must be so.
///
/// # Errors
/// When it is not.
pub fn holds(what: &str, is: bool) -> Result<(), Failure> {
    if is {
        Ok(())
    } else {
        Err(format!("not so: {what}").into())
    }
}

/// A value that must be the expected one.
///
/// # Errors
/// When it is another.
pub fn is<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Result<(), Failure> {
    if got == expected {
        return Ok(());
    }
    Err(format!("{what}: {got:?}, not {expected:?}").into())
}

/// A domain of so many vCPUs with [`RAM`], hardware-assisted paging and no emulated device but the local APIC.
///
/// # Errors
/// Xen's.
pub fn guest(xen: &Arc<Privcmd>, vcpus: u32) -> Result<(Guest, DomId), Failure> {
    let kind = Kind {
        vcpus,
        hap: true,
        full: false,
    };
    let guest = Guest::create(xen, kind, &RAM)?;
    let domid = DomId(guest.domid());
    Ok((guest, domid))
}

/// Runs a program on vCPU 0 to its end.
///
/// # Errors
/// Xen's, or that it does not end.
pub fn runs(guest: &Guest, program: &[Instr]) -> Result<Vec<Done>, Failure> {
    through(&guest.start(0, program)?)
}

/// Waits for a program's end.
///
/// # Errors
/// Xen's, or that it does not end.
pub fn through(program: &Program) -> Result<Vec<Done>, Failure> {
    holds("the guest's program ends", program.wait(BOUND)?)?;
    Ok(program.results())
}

/// A store of 4 bytes.
#[must_use]
pub fn store(addr: u64, value: u64) -> Instr {
    Instr::Store {
        addr,
        width: 4,
        value,
    }
}
