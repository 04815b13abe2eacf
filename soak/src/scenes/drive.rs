// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vCPU at work: program after program, each answer judged.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Round;
use crate::Failure;
use crate::oddities;
use crate::platform::{Ended, Guest, Platform};
use crate::tally::Check;
use crate::writer::Writer;

/// Drives a vCPU until it is told to stop, or its domain is gone; the account it keeps.
pub(super) fn drive<P: Platform>(
    round: &Round<'_, P>,
    guest: &P::Guest,
    mut writer: Writer,
    vcpu: u32,
    stop: &AtomicBool,
) -> Result<Writer, Failure> {
    let mut cpu = guest.vcpu(vcpu)?;
    let mut random = round.random(u64::from(vcpu) << 8);
    while !stop.load(Ordering::Relaxed) {
        let len = random.usize(8..=round.platform.program_len());
        let program = writer.program(len);
        match cpu.run(&program.0) {
            Ok(results) => {
                let judged = writer.judge(&program, &results)?;
                round.tally.checked(Check::Answers, judged);
            }
            Err(Ended::Gone) => return Ok(writer),
            Err(wrong) => return Err(format!("vCPU {vcpu}: {wrong}").into()),
        }
        round.pulse.beat();
    }
    Ok(writer)
}

/// Has a vCPU execute what makes little sense, until it is told to stop.
pub(super) fn drive_oddly<P: Platform>(
    round: &Round<'_, P>,
    guest: &P::Guest,
    vcpu: u32,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let mut cpu = guest.vcpu(vcpu)?;
    let mut random = round.random(u64::from(vcpu) << 8);
    while !stop.load(Ordering::Relaxed) {
        let program = oddities::program(&mut random, round.platform.program_len() / 2);
        match cpu.run(&program) {
            Ok(_) => {}
            Err(Ended::Gone) => break,
            Err(wrong) => return Err(format!("vCPU {vcpu}, which is odd: {wrong}").into()),
        }
        round.pulse.beat();
    }
    Ok(())
}
