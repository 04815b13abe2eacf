// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Times, in pairs: both contenders run, and take turns in offering their devices to the guest, for a slice of a tenth of a second. So
//! what the machine is like is the same for both of a pair, and what counts is the ratio of the two. Where it is not known well enough
//! after the rounds asked for, more follow.

use std::time::Instant;

use crate::contender::{Server, Stack};
use crate::load::{self, Load, Took};
use crate::ratios::Ratios;
use crate::{Bench, Failure, Made, Mode, WARM_UP};

/// Pairs of slices in a round, and the accesses of a slice. Short ones, and many: what disturbs one disturbs the other of the pair,
/// or else this pair alone.
fn pairs(mode: Mode, load: Load) -> (u64, u64) {
    match (mode, load) {
        // Rings of 511, filled many times.
        (_, Load::VgaWrite) => (1, 4000),
        (Mode::Busy, _) => (4, 60),
        (Mode::Sleeping, _) => (5, 20),
    }
}

/// Accesses after the devices came back, before those that are measured.
const AFTER: u64 = 6;
/// Tries of a pair.
const TRIES: u32 = 6;
/// Calibrations before anything is measured.
const FIRST: usize = 9;
/// Turns of dom0's calibration.
const TURNS: u64 = 2_000_000;

/// How long loops take, of the guest and of dom0, that nothing in this machine disturbs. What does is the machine around it.
#[derive(Debug, Clone, Copy)]
struct Calibration {
    /// Ticks.
    guest: u64,
    /// Nanoseconds.
    dom0: u64,
}

impl Calibration {
    fn take(bench: &Bench) -> Result<Self, Failure> {
        let guest = load::calibrate(&bench.guest, bench.turns * 5)?;
        let start = Instant::now();
        for turn in 0..TURNS {
            std::hint::black_box(turn);
        }
        let dom0 = u64::try_from(start.elapsed().as_nanos())?;
        Ok(Calibration { guest, dom0 })
    }
}

/// All calibrations of a boot. What is normal is their median: a boot that begins in a quiet moment would find stalls everywhere after
/// it, if its first ones were the measure.
#[derive(Debug, Default)]
struct Calibrations {
    /// Both sorted.
    guest: Vec<u64>,
    dom0: Vec<u64>,
}

impl Calibrations {
    fn first(bench: &Bench) -> Result<Self, Failure> {
        let mut all = Calibrations::default();
        for _ in 0..FIRST {
            all.take(bench)?;
        }
        Ok(all)
    }

    /// One more.
    fn take(&mut self, bench: &Bench) -> Result<Calibration, Failure> {
        let one = Calibration::take(bench)?;
        for (all, one) in [(&mut self.guest, one.guest), (&mut self.dom0, one.dom0)] {
            all.insert(all.partition_point(|other| *other < one), one);
        }
        Ok(one)
    }

    fn normal(&self) -> Calibration {
        let median = |all: &[u64]| all.get(all.len() / 2).copied().unwrap_or(u64::MAX / 2);
        Calibration {
            guest: median(&self.guest),
            dom0: median(&self.dom0),
        }
    }

    fn is_stall(&self, one: Calibration) -> bool {
        let normal = self.normal();
        one.guest > 2 * normal.guest || one.dom0 > 2 * normal.dom0
    }
}

/// Both servers, of which one at a time offers its devices.
struct Both {
    servers: Vec<(Stack, Server, Made)>,
}

impl Both {
    fn start(bench: &Bench, mode: Mode) -> Result<Self, Failure> {
        let mut servers = Vec::new();
        for stack in Stack::BOTH {
            let mut server = stack.serve(&bench.guest, mode.polling())?;
            let (pause, mut made) = (bench.pause(mode), Made::default());
            for load in mode.loads() {
                load::start(&bench.guest, load, WARM_UP, pause)?.wait()?;
                made.add(load, WARM_UP);
                arrived(bench, load, &mut made)?;
            }
            server.offer(false)?;
            servers.push((stack, server, made));
        }
        Ok(Both { servers })
    }

    /// A slice of each, in this order or the other.
    fn pair(
        &mut self,
        bench: &Bench,
        (mode, load): (Mode, Load),
        count: u64,
        swapped: bool,
    ) -> Result<Vec<(Stack, Took)>, Failure> {
        let pause = bench.pause(mode);
        let mut order: Vec<_> = self.servers.iter_mut().collect();
        if swapped {
            order.reverse();
        }
        let slice = |(stack, server, made): &mut (Stack, Server, Made)| {
            server.offer(true)?;
            load::start(&bench.guest, load, AFTER, pause)?.wait()?;
            let took = load::start(&bench.guest, load, count, pause)?.wait()?;
            made.add(load, AFTER + count);
            arrived(bench, load, made)?;
            // One that polls has stopped before the other's turn.
            std::thread::sleep(mode.polling().unwrap_or_default());
            server.offer(false)?;
            Ok((*stack, took))
        };
        order.into_iter().map(slice).collect()
    }

    fn end(self) -> Result<(), Failure> {
        let mut all = self.servers.into_iter();
        all.try_for_each(|(stack, server, made)| made.check(stack, server))
    }
}

/// Sees that posted writes have reached the server that offers its devices: the answer to an access after them says so.
fn arrived(bench: &Bench, load: Load, made: &mut Made) -> Result<(), Failure> {
    if load.is_posted() {
        load::start(&bench.guest, Load::PortRead, 1, 0)?.wait()?;
        made.add(Load::PortRead, 1);
    }
    Ok(())
}

impl Bench {
    pub(crate) fn times(&self, rounds: u64, at_most: u64) -> Result<(), Failure> {
        let mut calibrations = Calibrations::first(self)?;
        for mode in Mode::BOTH {
            let mut both = Both::start(self, mode)?;
            let mut before = calibrations.take(self)?;
            let mut cells: Vec<(Load, Ratios)> =
                mode.loads().map(|load| (load, Ratios::default())).collect();
            for round in 0..at_most.max(rounds) {
                for (load, ratios) in &mut cells {
                    // By how far apart the ratios lie, never by what they are: else one would go on until the figure pleases.
                    let enough = load.is_posted() || ratios.is_known();
                    if round >= rounds && enough {
                        continue;
                    }
                    for pair in 0..pairs(mode, *load).0 {
                        let number = round * 100 + pair;
                        let state = (&mut calibrations, &mut before);
                        ratios.add(self.pair(&mut both, (mode, *load), number, state)?);
                    }
                }
            }
            both.end()?;
        }
        let normal = calibrations.normal();
        println!(
            "BENCH calibration guest={} dom0={}",
            normal.guest, normal.dom0
        );
        Ok(())
    }

    /// One pair, again if the emulator stalls; gives its ratio. `before` is the calibration before it, and then the one after it.
    fn pair(
        &self,
        both: &mut Both,
        (mode, load): (Mode, Load),
        number: u64,
        (calibrations, before): (&mut Calibrations, &mut Calibration),
    ) -> Result<f64, Failure> {
        let (_, count) = pairs(mode, load);
        let mut stalls = 0;
        let took = loop {
            let took = both.pair(self, (mode, load), count, number % 2 == 1)?;
            let after = calibrations.take(self)?;
            let stalled = calibrations.is_stall(*before) || calibrations.is_stall(after);
            let around = (std::mem::replace(before, after), after);
            if !stalled {
                break took;
            }
            stalls += 1;
            println!(
                "BENCH stall mode={} load={} round={number} guest={} dom0={} \
                 guest_after={} dom0_after={}",
                mode.name(),
                load.name(),
                around.0.guest,
                around.0.dom0,
                around.1.guest,
                around.1.dom0
            );
            if stalls == TRIES {
                break took;
            }
        };
        let mut ticks = [0; 2];
        for (stack, took) in took {
            let of_mode = match mode {
                Mode::Busy => took.all,
                Mode::Sleeping => took.accesses,
            };
            ticks[usize::from(stack == Stack::Ours)] = of_mode;
            println!(
                "BENCH times stack={} mode={} load={} round={number} requests={count} ticks={} pauses={} stalled={}",
                stack.name(),
                mode.name(),
                load.name(),
                of_mode,
                took.all - took.accesses,
                u8::from(stalls == TRIES)
            );
        }
        let [c, ours] = ticks;
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let ratio = c as f64 / ours as f64;
        Ok(ratio)
    }
}
