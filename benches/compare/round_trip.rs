// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Round trips on the model: from a vCPU's instruction to its end, through the server, beside raw programs with the same
//! wake-ups.

use std::time::Duration;

use ioreq::server::Polling;
use ioreq::sim::VcpuWait;

use crate::floors::{Raw, Waits};
use crate::guest::{Kind, Served, many_guests, one_guest, two_guests};
use crate::row::Row;
use crate::slices::Figure;

/// A slice of round trips without a sleep.
const SHORT: Duration = Duration::from_micros(250);
/// A slice of such with two each.
const LONG: Duration = Duration::from_millis(3);

/// Accesses of each vCPU in a slice of many.
const TRIPS: u32 = 200;

/// Figures of a contender each.
type Series = Vec<Vec<Figure>>;

const CONTENDERS: [&str; 3] = ["ours", "raw program", "slot alone"];

fn rows_of(name: &'static str, n: u64, pattern: &'static str, all: &Series) -> Vec<Row> {
    let rows = CONTENDERS.into_iter().zip(all);
    rows.map(|(contender, figures)| Row::new(name, n, pattern, contender, figures))
        .collect()
}

/// Nobody sleeps: the vCPU spins on CPU 0, the worker polls on CPU 1.
fn polling(rounds: u32) -> ioreq::Result<Vec<Row>> {
    let mut all = Kind::ALL.map(|_| vec![Vec::new(); 3]);
    for _ in 0..rounds {
        for (kind, series) in Kind::ALL.into_iter().zip(&mut all) {
            let served = Served::new(1, VcpuWait::Spin, |builder| builder)?;
            served.pin(1)?;
            let mut guests = served.guests(kind)?;
            series[0].push(one_guest(&mut *guests[0], served.taken(), SHORT));
            drop(guests);
            served.stop()?;
            for (waits, figures) in [Waits::Spins, Waits::OnSlot]
                .into_iter()
                .zip(&mut series[1..])
            {
                let raw = Raw::new(1, waits, false, 1);
                figures.push(one_guest(&mut *raw.guests()[0], raw.taken(), SHORT));
            }
        }
    }
    let rows = Kind::ALL.into_iter().zip(&all);
    Ok(rows
        .flat_map(|(kind, series)| rows_of("round trip, polling", 1, kind.name(), series))
        .collect())
}

/// Both sides sleep each time, on two CPUs and on one.
fn sleeping(rounds: u32) -> ioreq::Result<Vec<Row>> {
    let places = [("two CPUs", 1), ("one CPU", 0)];
    let mut all = places.map(|_| vec![Vec::new(); 2]);
    for _ in 0..rounds {
        for ((_, cpu), series) in places.into_iter().zip(&mut all) {
            let served = Served::new(1, VcpuWait::Sleep, |builder| {
                builder.polling(Polling::off())
            })?;
            served.pin(cpu)?;
            let raw = Raw::new(1, Waits::Sleeps, true, usize::try_from(cpu).unwrap_or(0));
            let (mut ours, mut floor) = (served.guests(Kind::MmioWrite)?, raw.guests());
            let figures = two_guests(
                (&mut *ours[0], served.taken()),
                (&mut *floor[0], raw.taken()),
                LONG,
            );
            for (figure, series) in figures.into_iter().zip(series) {
                series.push(figure);
            }
            drop(ours);
            served.stop()?;
        }
    }
    let rows = places.into_iter().zip(&all);
    Ok(rows
        .flat_map(|((place, _), series)| rows_of("round trip, sleeping", 1, place, series))
        .collect())
}

/// vCPUs that sleep and share CPU 0; one worker, on CPU 1, that polls as it does by default.
fn many(rounds: u32) -> ioreq::Result<Vec<Row>> {
    let counts = [1, 2, 4, 8];
    let mut all = counts.map(|_| vec![Vec::new(); 2]);
    for _ in 0..rounds {
        for (count, series) in counts.into_iter().zip(&mut all) {
            let served = Served::new(count, VcpuWait::Sleep, |builder| builder)?;
            served.pin(1)?;
            let mut guests = served.guests(Kind::MmioWrite)?;
            series[0].push(many_guests(&mut guests, served.taken(), TRIPS));
            drop(guests);
            served.stop()?;
            let count = usize::try_from(count).unwrap_or(1);
            let raw = Raw::new(count, Waits::Sleeps, false, 1);
            series[1].push(many_guests(&mut raw.guests(), raw.taken(), TRIPS));
        }
    }
    let rows = counts.into_iter().zip(&all);
    let name = "round trip, vCPUs of one worker";
    Ok(rows
        .flat_map(|(count, series)| rows_of(name, count.into(), "MMIO write", series))
        .collect())
}

/// All of it.
pub(crate) fn rows(rounds: u32) -> Vec<Row> {
    let parts = [polling, sleeping, many];
    let rows = parts.map(|part| part(rounds).expect("the model refuses nothing of this"));
    rows.into_iter().flatten().collect()
}
