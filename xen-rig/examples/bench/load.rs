// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest does: one access again and again.

use std::io;
use std::time::Duration;

use xen_rig::{Done, Guest, Instr};

use crate::contender::Stack;

/// Registers of 4 bytes each, at [`Stack::port`] and at [`Stack::mmio`].
pub(crate) const REGISTERS: usize = 16;
/// Which one server at a time can have.
pub(crate) const VGA: std::ops::RangeInclusive<u64> = 0xa_0000..=0xb_ffff;
/// The tracked page: the memory type is one server's at a time.
pub(crate) const GFN: u64 = 0x300;

/// What every write writes.
const VALUE: u32 = 3;
/// No loop takes longer.
const BOUND: Duration = Duration::from_secs(100);
/// Between two looks at whether the guest is through: a look takes dom0's processor from the server.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    PortWrite,
    PortRead,
    MmioWrite,
    MmioRead,
    PageWrite,
    VgaWrite,
}

impl Load {
    pub(crate) const ALL: [Load; 6] = [
        Load::PortWrite,
        Load::PortRead,
        Load::MmioWrite,
        Load::MmioRead,
        Load::PageWrite,
        Load::VgaWrite,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::PortWrite => "port-write",
            Load::PortRead => "port-read",
            Load::MmioWrite => "mmio-write",
            Load::MmioRead => "mmio-read",
            Load::PageWrite => "page-write",
            Load::VgaWrite => "vga-write",
        }
    }

    /// The guest does not wait for an answer.
    pub(crate) fn is_posted(self) -> bool {
        self == Load::VgaWrite
    }

    /// What one access adds to the server's sum of written values.
    pub(crate) fn adds(self) -> u64 {
        match self {
            Load::PortRead | Load::MmioRead => 0,
            _ => VALUE.into(),
        }
    }

    /// Only one server at a time can offer it.
    pub(crate) fn is_exclusive(self) -> bool {
        matches!(self, Load::PageWrite | Load::VgaWrite)
    }

    fn instr(self, stack: Stack) -> Instr {
        let width = 4;
        let store = |addr| Instr::Store {
            addr,
            width,
            value: VALUE.into(),
        };
        match self {
            Load::PortWrite => Instr::Out {
                port: stack.port(),
                width,
                value: VALUE,
            },
            Load::PortRead => Instr::In {
                port: stack.port(),
                width,
            },
            Load::MmioWrite => store(stack.mmio()),
            Load::MmioRead => Instr::Load {
                addr: stack.mmio(),
                width,
            },
            Load::PageWrite => store(GFN << 12),
            Load::VgaWrite => store(*VGA.start()),
        }
    }
}

/// How long a loop took the guest, in ticks of its time stamp counter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    /// From the first access to the last.
    pub(crate) all: u64,
    /// Without the pauses.
    pub(crate) accesses: u64,
}

/// A loop of `count` accesses to a stack's device, with `pause` turns of an empty loop in between. It runs on while the caller does
/// something else.
pub(crate) fn start(
    guest: &Guest,
    (stack, load): (Stack, Load),
    count: u64,
    pause: u64,
) -> io::Result<Loop> {
    let repeat = Instr::Repeat { count, pause };
    start_timed(guest, &[repeat, load.instr(stack)])
}

/// Blocks of `count` accesses, a block each for the stacks of `order` as often as it has them, with `pause` turns of an empty loop
/// between any two; the first [`BEFORE`] of a block are on top of that. It is one loop of the guest, in which nobody else has
/// anything to do.
pub(crate) fn start_blocks(
    guest: &Guest,
    (load, order): (Load, &[Stack]),
    count: u64,
    pause: u64,
) -> io::Result<Loop> {
    let repeat = |count| Instr::Repeat { count, pause };
    let block = |stack: &Stack| {
        let access = load.instr(*stack);
        let [rest, memory] = idle(pause);
        [repeat(BEFORE), access, repeat(count), access, rest, memory]
    };
    let blocks: Vec<Instr> = order.iter().flat_map(block).collect();
    start_timed(guest, &blocks)
}

/// Accesses at the beginning of a block, before those that are measured.
pub(crate) const BEFORE: u64 = 3;

/// No exit, nobody else's work.
fn idle(turns: u64) -> [Instr; 2] {
    let memory = Instr::Load {
        addr: (GFN + 1) << 12,
        width: 4,
    };
    let repeat = Instr::Repeat {
        count: 2,
        pause: turns,
    };
    [repeat, memory]
}

fn start_timed(guest: &Guest, instructions: &[Instr]) -> io::Result<Loop> {
    let stamp = [Instr::TimeStamp];
    let program = [&stamp, instructions, &stamp].concat();
    guest.start(0, &program).map(Loop)
}

/// A loop that runs.
pub(crate) struct Loop(xen_rig::Program);

impl Loop {
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for a loop of one kind of access.
    pub(crate) fn wait(&self) -> io::Result<Took> {
        let (all, loops) = self.results()?;
        match loops.as_slice() {
            [accesses] => Ok(Took {
                all,
                accesses: *accesses,
            }),
            _ => Err(io::Error::other(format!("the guest says {loops:?}"))),
        }
    }

    /// Waits for blocks; ticks of the measured accesses of each.
    pub(crate) fn wait_blocks(&self) -> io::Result<Vec<u64>> {
        let (_, loops) = self.results()?;
        Ok(loops
            .chunks(3)
            .filter_map(|block| block.get(1))
            .copied()
            .collect())
    }

    /// Ticks from the first time stamp to the second one, and of each repeated instruction in between.
    fn results(&self) -> io::Result<(u64, Vec<u64>)> {
        if !self.0.wait_looking(BOUND, LOOK)? {
            let (through, fate) = (self.0.results().len(), self.0.fate());
            let what = format!("the guest is stuck after {through} instructions: {fate:?}");
            return Err(io::Error::other(what));
        }
        let results = self.0.results();
        let wrong = || io::Error::other(format!("the guest says {results:?}"));
        let [Done::Value(start), loops @ .., Done::Value(end)] = results.as_slice() else {
            return Err(wrong());
        };
        let each = loops.chunks(2).map(|one| match one {
            // Registers were last written with the value, or never; memory never.
            [Done::Value(ticks), Done::Plain] => Ok(*ticks),
            [Done::Value(ticks), Done::Value(read)] if [0, u64::from(VALUE)].contains(read) => {
                Ok(*ticks)
            }
            _ => Err(wrong()),
        });
        Ok((end - start, each.collect::<io::Result<_>>()?))
    }
}

/// The guest's time stamp counter.
pub(crate) fn time_stamp(guest: &Guest) -> io::Result<u64> {
    let program = guest.start(0, &[Instr::TimeStamp])?;
    program.wait(BOUND)?;
    match program.results().as_slice() {
        [Done::Value(ticks)] => Ok(*ticks),
        other => Err(io::Error::other(format!("the guest says {other:?}"))),
    }
}

/// Ticks that `turns` of the guest's empty loop take. No exit, nobody else's work: longer than usual means that the machine that
/// emulates all this was away.
pub(crate) fn calibrate(guest: &Guest, turns: u64) -> io::Result<u64> {
    start_timed(guest, &idle(turns))?
        .wait()
        .map(|took| took.all)
}
