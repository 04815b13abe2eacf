// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Times, in pairs: both contenders run, and take turns in offering their devices to the guest, for a slice of a tenth of a second. So
//! what the machine is like is the same for both of a pair, and what counts is the ratio of the two.

use std::time::Instant;

use crate::contender::{Server, Stack};
use crate::load::{self, Load, Took};
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
/// Calibrations whose median is what is normal.
const NORMAL: usize = 9;
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

    /// The median of several.
    fn normal(bench: &Bench) -> Result<Self, Failure> {
        let all = (0..NORMAL).map(|_| Calibration::take(bench));
        let all: Vec<Calibration> = all.collect::<Result<_, _>>()?;
        let median = |of: fn(&Calibration) -> u64| {
            let mut all: Vec<u64> = all.iter().map(of).collect();
            all.sort_unstable();
            all[NORMAL / 2]
        };
        Ok(Calibration {
            guest: median(|one| one.guest),
            dom0: median(|one| one.dom0),
        })
    }

    fn is_stall(self, normal: Calibration) -> bool {
        self.guest > 2 * normal.guest || self.dom0 > 2 * normal.dom0
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
        all.try_for_each(|(_, server, made)| made.check(server))
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
    pub(crate) fn times(&self, rounds: u64) -> Result<(), Failure> {
        let normal = Calibration::normal(self)?;
        println!(
            "BENCH calibration guest={} dom0={}",
            normal.guest, normal.dom0
        );
        for mode in Mode::BOTH {
            let mut both = Both::start(self, mode)?;
            let mut before = Calibration::take(self)?;
            for round in 0..rounds {
                for load in mode.loads() {
                    for pair in 0..pairs(mode, load).0 {
                        let number = round * 100 + pair;
                        before = self.pair(&mut both, (mode, load), number, (before, normal))?;
                    }
                }
            }
            both.end()?;
        }
        Ok(())
    }

    /// One pair, again if the emulator stalls; gives the calibration after it.
    fn pair(
        &self,
        both: &mut Both,
        (mode, load): (Mode, Load),
        number: u64,
        (mut before, normal): (Calibration, Calibration),
    ) -> Result<Calibration, Failure> {
        let (_, count) = pairs(mode, load);
        let mut stalls = 0;
        let (took, after) = loop {
            let took = both.pair(self, (mode, load), count, number % 2 == 1)?;
            let after = Calibration::take(self)?;
            let stalled = before.is_stall(normal) || after.is_stall(normal);
            if !stalled {
                break (took, after);
            }
            stalls += 1;
            println!(
                "BENCH stall mode={} load={} round={number} guest={} dom0={} \
                 guest_after={} dom0_after={}",
                mode.name(),
                load.name(),
                before.guest,
                before.dom0,
                after.guest,
                after.dom0
            );
            if stalls == TRIES {
                break (took, after);
            }
            before = after;
        };
        for (stack, took) in took {
            println!(
                "BENCH times stack={} mode={} load={} round={number} requests={count} ticks={} pauses={} stalled={}",
                stack.name(),
                mode.name(),
                load.name(),
                match mode {
                    Mode::Busy => took.all,
                    Mode::Sleeping => took.accesses,
                },
                took.all - took.accesses,
                u8::from(stalls == TRIES)
            );
        }
        Ok(after)
    }
}
