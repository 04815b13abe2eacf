// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Times, in pairs: both contenders run. Where servers sleep the guest goes from one's device to the other's and back within some tenths of a
//! second, in one loop; where they are busy, and where only one at a time can have the device, each has a slice of a tenth of a second.
//! So what the machine is like is the same for both of a pair, and what counts is the ratio of the two. Where it is not known well enough
//! after the rounds asked for, more follow.

use std::time::Instant;

use crate::contender::{Offer, Server, Stack};
use crate::load::{self, BEFORE, Load};
use crate::ratios::Ratios;
use crate::{Bench, Failure, Made, Mode, WARM_UP};

/// Pairs in a round, and the accesses of each stack in a pair. Short ones, and many: what disturbs one disturbs the other of the pair, or
/// else this pair alone.
fn pairs(mode: Mode, load: Load) -> (u64, u64) {
    match (mode, load) {
        // Rings of 511, filled many times.
        (_, Load::VgaWrite) => (1, 4000),
        (Mode::Busy, _) => (4, 60),
        (Mode::Sleeping, _) => (5, 40),
    }
}

/// The orders in which the servers are started.
const ORDERS: [[Stack; 2]; 2] = [[Stack::C, Stack::Ours], [Stack::Ours, Stack::C]];
/// Accesses before those that are measured, when a server's turn has come.
const AFTER: u64 = 6;
/// Blocks of a pair's accesses, for each stack, where both have their turns in one loop.
const BLOCKS: u64 = 2;
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

/// Both servers.
struct Both {
    /// In the order in which they were started.
    servers: Vec<(Stack, Server, Made)>,
}

impl Both {
    fn start(bench: &Bench, mode: Mode, order: [Stack; 2]) -> Result<Self, Failure> {
        let mut servers = Vec::new();
        for stack in order {
            let mut server = stack.serve(&bench.guest, mode.polling())?;
            let (pause, mut made) = (bench.pause(mode), Made::default());
            for load in mode.loads() {
                load::start(&bench.guest, (stack, load), WARM_UP, pause)?.wait()?;
                made.add(load, WARM_UP);
                arrived(bench, (stack, load), &mut made)?;
            }
            for what in handed_over(mode) {
                server.offer(*what, false)?;
            }
            servers.push((stack, server, made));
        }
        Ok(Both { servers })
    }

    /// Ticks of `count` accesses of each, in this order or the other.
    fn pair(
        &mut self,
        bench: &Bench,
        (mode, load): (Mode, Load),
        count: u64,
        swapped: bool,
    ) -> Result<Vec<(Stack, u64)>, Failure> {
        let mut order: Vec<_> = self.servers.iter_mut().collect();
        if swapped {
            order.reverse();
        }
        // Not where they are busy: one that polls has to stop before the other's turn, and a guest that waits for that, computing, is
        // behind all others then in the scheduler's eyes.
        if mode == Mode::Sleeping && !load.is_exclusive() {
            at_once(bench, load, count, order)
        } else {
            in_turn(bench, (mode, load), count, order)
        }
    }

    fn end(self) -> Result<(), Failure> {
        let mut all = self.servers.into_iter();
        all.try_for_each(|(stack, server, made)| made.check(stack, server))
    }
}

type Running = (Stack, Server, Made);

/// What only the server has whose turn it is. Where they are busy that is all, as if it were the only one: Xen asks each server that there is
/// whether an access is its own.
fn handed_over(mode: Mode) -> &'static [Offer] {
    match mode {
        Mode::Busy => &[Offer::Devices, Offer::Single],
        Mode::Sleeping => &[Offer::Single],
    }
}

/// A slice for each.
fn in_turn(
    bench: &Bench,
    (mode, load): (Mode, Load),
    count: u64,
    order: Vec<&mut Running>,
) -> Result<Vec<(Stack, u64)>, Failure> {
    let pause = bench.pause(mode);
    let slice = |(stack, server, made): &mut Running| {
        let access = (*stack, load);
        for what in handed_over(mode) {
            server.offer(*what, true)?;
        }
        load::start(&bench.guest, access, AFTER, pause)?.wait()?;
        let took = load::start(&bench.guest, access, count, pause)?.wait()?;
        made.add(load, AFTER + count);
        arrived(bench, access, made)?;
        // One that polls has stopped before the other's turn.
        std::thread::sleep(mode.polling().unwrap_or_default());
        for what in handed_over(mode) {
            server.offer(*what, false)?;
        }
        let ticks = match mode {
            Mode::Busy => took.all,
            Mode::Sleeping => took.accesses,
        };
        Ok((*stack, ticks))
    };
    order.into_iter().map(slice).collect()
}

/// A block of accesses for the one, then for the other, in one loop: the one, the other, the other, the one, and so on, so that neither of
/// them is the earlier one.
fn at_once(
    bench: &Bench,
    load: Load,
    count: u64,
    order: Vec<&mut Running>,
) -> Result<Vec<(Stack, u64)>, Failure> {
    let blocks: Vec<usize> = (0..BLOCKS)
        .flat_map(|block| if block % 2 == 0 { [0, 1] } else { [1, 0] })
        .collect();
    let stacks: Vec<Stack> = blocks
        .iter()
        .filter_map(|place| order.get(*place).map(|(stack, ..)| *stack))
        .collect();
    let pause = bench.pause(Mode::Sleeping);
    let each = count / BLOCKS;
    let all = load::start_blocks(&bench.guest, (load, &stacks), each, pause)?;
    let ticks = all.wait_blocks()?;
    let of = |(place, (stack, _, made)): (usize, &mut Running)| {
        made.add(load, BLOCKS * (BEFORE + each));
        let own = blocks.iter().zip(&ticks).filter(|(of, _)| **of == place);
        (*stack, own.map(|(_, ticks)| ticks).sum())
    };
    Ok(order.into_iter().enumerate().map(of).collect())
}

/// Sees that posted writes have reached the server that offers its devices: the answer to an access after them says so.
fn arrived(bench: &Bench, (stack, load): (Stack, Load), made: &mut Made) -> Result<(), Failure> {
    if load.is_posted() {
        load::start(&bench.guest, (stack, Load::PortRead), 1, 0)?.wait()?;
        made.add(Load::PortRead, 1);
    }
    Ok(())
}

impl Bench {
    pub(crate) fn times(&self, rounds: u64, at_most: u64) -> Result<(), Failure> {
        let mut calibrations = Calibrations::first(self)?;
        for mode in Mode::BOTH {
            // Xen asks the younger server first whether an access is its own: each is that for half of the rounds.
            for (half, order) in ORDERS.into_iter().enumerate() {
                let first = half as u64 * at_most.max(rounds);
                let halves = (rounds.div_ceil(2), at_most.div_ceil(2));
                self.half(mode, order, (first, halves), &mut calibrations)?;
            }
        }
        let normal = calibrations.normal();
        println!(
            "BENCH calibration guest={} dom0={}",
            normal.guest, normal.dom0
        );
        Ok(())
    }

    /// Half of a mode's rounds, with servers that are started in this order. `first` is the first round's number.
    fn half(
        &self,
        mode: Mode,
        order: [Stack; 2],
        (first, (rounds, at_most)): (u64, (u64, u64)),
        calibrations: &mut Calibrations,
    ) -> Result<(), Failure> {
        let mut both = Both::start(self, mode, order)?;
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
                    let number = (first + round) * 100 + pair;
                    let state = (&mut *calibrations, &mut before);
                    ratios.add(self.pair(&mut both, (mode, *load), number, state)?);
                }
            }
        }
        both.end()
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
            ticks[usize::from(stack == Stack::Ours)] = took;
            println!(
                "BENCH times stack={} mode={} load={} round={number} requests={count} ticks={took} stalled={}",
                stack.name(),
                mode.name(),
                load.name(),
                u8::from(stalls == TRIES)
            );
        }
        let [c, ours] = ticks;
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let ratio = c as f64 / ours as f64;
        Ok(ratio)
    }
}
