// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A domain that is destroyed, shut down or crashed under load: its server says which, and nothing of it is left.

use std::sync::atomic::AtomicBool;
use std::thread;

use ioreq::ShutdownReason;
use ioreq::server::Exit;

use super::devices::{Devices, builder};
use super::drive::drive_all;
use super::tracking::Tracking;
use super::{Round, clean, joined, nap};
use crate::Failure;
use crate::platform::{Guest, Platform};
use crate::tally::Fault;
use crate::writer::{Style, Writer};

const WRITERS: u32 = 3;

pub(super) fn round<P: Platform>(round: &Round<'_, P>) -> Result<(), Failure> {
    let mut random = round.random(0);
    let guest = round.platform.guest(WRITERS)?;
    let devices = Devices::new(&round.tally, Style::All)?;
    let server = builder(guest.process()?, &mut random).build()?;
    devices.route(&server)?;
    let tracking = Tracking::new(server.claim_mem_type()?, &round.tally, &devices.later);
    let running = server.start()?;
    let stop = AtomicBool::new(false);
    let ended = thread::scope(|scope| {
        let writers = drive_all(scope, round, &guest, &stop, WRITERS);
        let changed = (0..random.u8(2..20)).try_for_each(|_| {
            nap(&mut random, 3000);
            tracking.change(&mut random, false)
        });
        let ended = changed.and_then(|()| end(round, &guest));
        if ended.is_err() {
            guest.destroy();
        }
        let writers = writers.into_iter().map(joined);
        writers.collect::<Result<Vec<Writer>, Failure>>()?;
        ended
    });
    let expected = ended?;
    let exit = running.wait()?;
    if exit != expected {
        return Err(format!("the server ended with {exit:?}, not {expected:?}").into());
    }
    tracking.judge()?;
    let stats = server.stats();
    round.tally.requests(stats.requests() + stats.buffered);
    drop(tracking);
    server.destroy().map_err(|err| err.error)?;
    clean(round, &guest)
}

/// Ends the domain in one of three ways; what its server is to say.
fn end<P: Platform>(round: &Round<'_, P>, guest: &P::Guest) -> Result<Exit, Failure> {
    match round.number % 3 {
        0 => {
            guest.destroy();
            round.tally.fault(Fault::Destroyed, 1);
            Ok(Exit::DomainGone)
        }
        1 => {
            guest.shut_down(false)?;
            round.tally.fault(Fault::Shutdown, 1);
            Ok(Exit::Shutdown(ShutdownReason::PowerOff))
        }
        _ => {
            guest.shut_down(true)?;
            round.tally.fault(Fault::Crashed, 1);
            Ok(Exit::Shutdown(ShutdownReason::Crash))
        }
    }
}
