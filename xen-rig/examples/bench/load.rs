// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest does: one access again and again.

use std::io;
use std::time::Duration;

use xen_rig::{Done, Guest, Instr};

/// Where the servers' devices are: both sides offer the same.
pub(crate) const PORT: u16 = 0x600;
pub(crate) const MMIO: u64 = 0xe000_0000;
/// Of 4 bytes each, at [`PORT`] and at [`MMIO`].
pub(crate) const REGISTERS: usize = 16;
pub(crate) const VGA: std::ops::RangeInclusive<u64> = 0xa_0000..=0xb_ffff;
/// The tracked page.
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

    fn instr(self) -> Instr {
        let width = 4;
        let store = |addr| Instr::Store {
            addr,
            width,
            value: VALUE.into(),
        };
        match self {
            Load::PortWrite => Instr::Out {
                port: PORT,
                width,
                value: VALUE,
            },
            Load::PortRead => Instr::In { port: PORT, width },
            Load::MmioWrite => store(MMIO),
            Load::MmioRead => Instr::Load { addr: MMIO, width },
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

/// A loop of `count` accesses, with `pause` turns of an empty loop in between. It runs on while the caller does something else.
pub(crate) fn start(guest: &Guest, load: Load, count: u64, pause: u64) -> io::Result<Loop> {
    let repeat = Instr::Repeat { count, pause };
    let program = [Instr::TimeStamp, repeat, load.instr(), Instr::TimeStamp];
    guest.start(0, &program).map(Loop)
}

/// A loop that runs.
pub(crate) struct Loop(xen_rig::Program);

impl Loop {
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    pub(crate) fn wait(&self) -> io::Result<Took> {
        if !self.0.wait_looking(BOUND, LOOK)? {
            let what = format!("the guest does not come through: {:?}", self.0.fate());
            return Err(io::Error::other(what));
        }
        let results = self.0.results();
        let [
            Done::Value(start),
            Done::Value(accesses),
            last,
            Done::Value(end),
        ] = results.as_slice()
        else {
            return Err(io::Error::other(format!("the guest says {results:?}")));
        };
        // Registers were last written with the value, or never.
        if let Done::Value(read) = last
            && ![0, u64::from(VALUE)].contains(read)
        {
            return Err(io::Error::other(format!("the guest reads {read:#x}")));
        }
        Ok(Took {
            all: end - start,
            accesses: *accesses,
        })
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
    let memory = Instr::Load {
        addr: (GFN + 1) << 12,
        width: 4,
    };
    let repeat = Instr::Repeat {
        count: 2,
        pause: turns,
    };
    let program = guest.start(0, &[Instr::TimeStamp, repeat, memory, Instr::TimeStamp])?;
    Loop(program).wait().map(|took| took.all)
}
