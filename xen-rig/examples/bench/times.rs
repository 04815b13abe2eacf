// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Times, in rounds: every round has both contenders do everything, once the one first, once the other. Of one load the second
//! comes right after the first, so that what the machine is like then is the same for both.

use std::time::Instant;

use crate::contender::Stack;
use crate::load::{self, Load, Took};
use crate::{Bench, Failure, Made, Mode, WARM_UP};

/// Slices of a turn, and the accesses of each. Short ones, so that the median of all knows nothing of what disturbs a few of them.
fn slices(mode: Mode, load: Load) -> (u64, u64) {
    match (mode, load) {
        // Rings of 511, filled many times.
        (_, Load::VgaWrite) => (1, 4000),
        (Mode::Busy, _) => (3, 100),
        (Mode::Sleeping, _) => (4, 30),
    }
}

/// Tries of a turn's slices.
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

impl Bench {
    pub(crate) fn times(&self, rounds: u64) -> Result<(), Failure> {
        let normal = Calibration::normal(self)?;
        println!(
            "BENCH calibration guest={} dom0={}",
            normal.guest, normal.dom0
        );
        for round in 0..rounds {
            for mode in Mode::BOTH {
                let mut stacks = Stack::BOTH;
                if round % 2 == 1 {
                    stacks.reverse();
                }
                for load in mode.loads() {
                    for stack in stacks {
                        self.turn(round, mode, load, stack, normal)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One load of one contender.
    fn turn(
        &self,
        round: u64,
        mode: Mode,
        load: Load,
        stack: Stack,
        normal: Calibration,
    ) -> Result<(), Failure> {
        let server = stack.serve(&self.guest, mode.polling())?;
        let pause = self.pause(mode);
        let mut made = Made::default();
        let (slices, count) = slices(mode, load);
        let mut before = Calibration::take(self)?;
        let mut stalls = 0;
        let took = loop {
            load::start(&self.guest, load, WARM_UP, pause)?.wait()?;
            let slice = |_| load::start(&self.guest, load, count, pause)?.wait();
            let took: Vec<Took> = (0..slices).map(slice).collect::<Result<_, _>>()?;
            made.add(load, WARM_UP + slices * count);
            let after = Calibration::take(self)?;
            let stalled = before.is_stall(normal) || after.is_stall(normal);
            if !stalled {
                break took;
            }
            stalls += 1;
            println!(
                "BENCH stall stack={} mode={} load={} round={round} guest={} dom0={} \
                 guest_after={} dom0_after={}",
                stack.name(),
                mode.name(),
                load.name(),
                before.guest,
                before.dom0,
                after.guest,
                after.dom0
            );
            if stalls == TRIES {
                break took;
            }
            before = after;
        };
        for took in took {
            println!(
                "BENCH times stack={} mode={} load={} round={round} requests={count} ticks={} pauses={} stalled={}",
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
        made.check(server)
    }
}
