// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two servers fight for the memory type, under a guest that writes to the pages and talks to a third.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ioreq::{ErrorKind, GuestMap};

use super::devices::{Devices, builder};
use super::drive::drive_all;
use super::tracking::Tracking;
use super::{Round, clean, joined, nap};
use crate::Failure;
use crate::platform::{Guest, Platform};
use crate::tally::{Check, Fault};
use crate::writer::{Style, Writer};

const WRITERS: u32 = 2;

pub(super) fn round<P: Platform>(round: &Round<'_, P>) -> Result<(), Failure> {
    let mut random = round.random(0);
    let guest = round.platform.guest(WRITERS)?;
    let devices = Devices::new(&round.tally, Style::All)?;
    let server = builder(guest.process()?, &mut random).build()?;
    devices.route(&server)?;
    let running = server.start()?;
    let (stop, owners) = (AtomicBool::new(false), AtomicU64::new(0));
    let (rivals, writers) = thread::scope(|scope| {
        let writers = drive_all(scope, round, &guest, &stop, WRITERS);
        let rivals = [0, 1].map(|number| {
            let (guest, devices, owners) = (&guest, &devices, &owners);
            scope.spawn(move || {
                let fought = fight(round, guest, devices, owners, number);
                if fought.is_err() {
                    guest.destroy();
                }
                fought
            })
        });
        let rivals = rivals.into_iter().try_for_each(joined);
        stop.store(true, Ordering::Relaxed);
        let writers = writers.into_iter().map(joined);
        (rivals, writers.collect::<Result<Vec<Writer>, Failure>>())
    });
    rivals?;
    let ram = server.hypervisor().memory();
    for writer in &writers? {
        round
            .tally
            .checked(Check::Words, writer.compare_memory(&*ram)?);
        let registers = writer.compare_registers(&devices.bank, &devices.ports)?;
        round.tally.checked(Check::Registers, registers);
    }
    running.stop()?;
    let stats = server.stats();
    round.tally.requests(stats.requests() + stats.buffered);
    drop(ram);
    server.destroy().map_err(|err| err.error)?;
    clean(round, &guest)
}

/// Claims the type again and again, and tracks pages while it has it.
fn fight<P: Platform>(
    round: &Round<'_, P>,
    guest: &P::Guest,
    devices: &Devices,
    owners: &AtomicU64,
    number: u64,
) -> Result<(), Failure> {
    let mut random = round.random(1 << 16 | number);
    let server = builder(guest.process()?, &mut random).build()?;
    let running = server.start()?;
    while !round.is_over() {
        let claim = match server.claim_mem_type() {
            Ok(claim) => claim,
            Err(err) if err.kind() == ErrorKind::AlreadyClaimed => {
                round.tally.fault(Fault::Fight, 1);
                nap(&mut random, 500);
                continue;
            }
            Err(err) => return Err(err.into()),
        };
        if owners.fetch_add(1, Ordering::SeqCst) != 0 {
            return Err("two servers own the memory type".into());
        }
        let tracking = Tracking::new(claim, &round.tally, &devices.later);
        for _ in 0..random.u8(1..8) {
            tracking.change(&mut random, false)?;
            nap(&mut random, 1000);
        }
        tracking.judge()?;
        tracking.leave_all()?;
        owners.fetch_sub(1, Ordering::SeqCst);
    }
    running.stop()?;
    let stats = server.stats();
    round.tally.requests(stats.requests() + stats.buffered);
    server.destroy().map_err(|err| err.error)?;
    Ok(())
}
