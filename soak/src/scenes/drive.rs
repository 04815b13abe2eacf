// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vCPU at work: program after program, each answer judged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use super::Round;
use crate::Failure;
use crate::oddities;
use crate::platform::{Ended, Guest, Platform};
use crate::tally::Check;
use crate::writer::{Style, Writer};

/// A vCPU's writer, of the round's seed.
pub(super) fn writer<P: Platform>(round: &Round<'_, P>, vcpu: u32, style: Style) -> Writer {
    Writer::new(vcpu, style, round.random(2 + u64::from(vcpu)).u64(..))
}

/// Starts the first `vcpus` vCPUs, each [driven](drive) by a thread.
pub(super) fn drive_all<'scope, P: Platform>(
    scope: &'scope Scope<'scope, '_>,
    round: &'scope Round<'_, P>,
    guest: &'scope P::Guest,
    stop: &'scope AtomicBool,
    vcpus: u32,
) -> Vec<ScopedJoinHandle<'scope, Result<Writer, Failure>>> {
    let one = |vcpu| {
        let writer = writer(round, vcpu, Style::All);
        scope.spawn(move || drive(round, guest, writer, vcpu, stop))
    };
    (0..vcpus).map(one).collect()
}

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
