// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The agent's side of the house: where its things are in guest memory, the mailbox, instructions as records.
//!
//! Mailbox: program number posted u64 @0 and finished @8, number of instructions @16, of those that are through @24; from @0x200
//! on a record of 64 bytes each: opcode u64 @0, operands @8, @16, @24, result @40, status @48 (1 done, 2 a value, 3 a fault).
//! The agent's own: whether it executes an instruction @32, of a repeated one the turns left @40, the pause @48, its start @56.
//!
//! UNSAFETY: addresses of the agent's code in this program.

use std::ops::Range;

use crate::context::Start;
use crate::hypercall::Mapping;

std::arch::global_asm!(include_str!("agent.S"));

unsafe extern "C" {
    static xen_rig_agent: u8;
    static xen_rig_agent_fault: u8;
    static xen_rig_agent_irq: u8;
    static xen_rig_agent_hlt: u8;
    static xen_rig_agent_end: u8;
}

/// Frames that are the agent's.
pub(crate) const FRAMES: Range<u64> = 0x100..0x200;
/// Where the agent starts.
const START: u64 = 0x10_0000;
/// The interrupt descriptor table.
const IDT: u64 = 0x10_2000;
/// The global descriptor table.
const GDT: u64 = 0x10_3000;
/// The first of six page tables: the root, a table of 1 GiB entries, four of 2 MiB entries.
const PML4: u64 = 0x10_4000;
/// The mailboxes' frames.
const MAILBOXES: Range<u64> = 0x110..0x190;
/// Where a mailbox's records begin.
const RECORDS: usize = 0x200;
const RECORD: usize = 64;

/// The mailbox of a vCPU and its size in bytes.
fn mailbox(vcpu: u32, vcpus: u32) -> (u64, u64) {
    let frames = (MAILBOXES.end - MAILBOXES.start) / u64::from(vcpus.max(1));
    let start = MAILBOXES.start + u64::from(vcpu) * frames;
    (start << 12, frames << 12)
}

/// How a vCPU starts.
pub(crate) fn start(vcpu: u32, vcpus: u32) -> Start {
    Start {
        rip: START,
        r15: mailbox(vcpu, vcpus).0,
        cr3: PML4,
        gdt: GDT,
        idt: IDT,
        ..Start::default()
    }
}

/// Where an idle vCPU is before it sleeps; it is a byte further on while it does.
pub(crate) fn before_sleep() -> u64 {
    in_guest(&raw const xen_rig_agent_hlt)
}

/// One guest instruction. Addresses are guest-physical; `width` is in bytes: 1, 2, 4 or 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "operands as an assembler names them")]
pub enum Instr {
    In {
        port: u16,
        width: u8,
    },
    Out {
        port: u16,
        width: u8,
        value: u32,
    },
    Load {
        addr: u64,
        width: u8,
    },
    Store {
        addr: u64,
        width: u8,
        value: u64,
    },
    Store16 {
        addr: u64,
        value: [u64; 2],
    },
    RepStos {
        addr: u64,
        width: u8,
        value: u64,
        count: u64,
    },
    RepStosDown {
        addr: u64,
        width: u8,
        value: u64,
        count: u64,
    },
    RepMovs {
        from: u64,
        to: u64,
        width: u8,
        count: u64,
    },
    RepMovsDown {
        from: u64,
        to: u64,
        width: u8,
        count: u64,
    },
    RepIns {
        port: u16,
        to: u64,
        width: u8,
        count: u64,
    },
    RepOuts {
        port: u16,
        from: u64,
        width: u8,
        count: u64,
    },
    LockAdd {
        addr: u64,
        width: u8,
        value: u64,
    },
    Or {
        addr: u64,
        width: u8,
        value: u64,
    },
    Xchg {
        addr: u64,
        width: u8,
        value: u64,
    },
    /// With a width of 8 it is `cmpxchg8b`.
    Cmpxchg {
        addr: u64,
        width: u8,
        expected: u64,
        new: u64,
    },
    /// Calls `addr`, where a `ret` is.
    Fetch {
        addr: u64,
    },
    /// `address` is what goes into port 0xcf8, `port` one of 0xcfc to 0xcff.
    PciRead {
        address: u32,
        port: u16,
        width: u8,
    },
    PciWrite {
        address: u32,
        port: u16,
        width: u8,
        value: u32,
    },
    /// Sets the real-time clock to another hour.
    RtcSet,
    /// Spins until the 4 bytes of plain memory at `addr` are `value`.
    Await {
        addr: u64,
        value: u32,
    },
    /// Gives a frame back to Xen.
    GiveBack {
        gfn: u64,
    },
    /// Executes the next instruction `count` times (at least once), with `pause` turns of an empty loop in between. Gives the sum of
    /// the times that it took, without the pauses, in ticks of the time stamp counter.
    Repeat {
        count: u64,
        pause: u64,
    },
    /// Gives the time stamp counter.
    TimeStamp,
}

/// What came of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It is done and gives no value.
    Plain,
    /// The value it gave.
    Value(u64),
    /// An exception; the agent went on with the next instruction.
    Fault,
}

impl Instr {
    /// Row and column of the agent's table, and up to three operands.
    fn record(self) -> [u64; 4] {
        let (kind, width, operands) = match self {
            Instr::In { port, width } => (0, width, [port.into(), 0, 0]),
            Instr::Out { port, width, value } => (1, width, [port.into(), value.into(), 0]),
            Instr::Load { addr, width } => (2, width, [addr, 0, 0]),
            Instr::Store { addr, width, value } => (3, width, [addr, value, 0]),
            Instr::Store16 { addr, value } => (4, 1, [addr, value[0], value[1]]),
            Instr::RepStos {
                addr,
                width,
                value,
                count,
            } => (5, width, [addr, value, count]),
            Instr::RepStosDown {
                addr,
                width,
                value,
                count,
            } => (6, width, [addr, value, count]),
            Instr::RepMovs {
                from,
                to,
                width,
                count,
            } => (7, width, [from, to, count]),
            Instr::RepIns {
                port,
                to,
                width,
                count,
            } => (8, width, [port.into(), to, count]),
            Instr::RepOuts {
                port,
                from,
                width,
                count,
            } => (9, width, [port.into(), from, count]),
            Instr::LockAdd { addr, width, value } => (10, width, [addr, value, 0]),
            Instr::Or { addr, width, value } => (11, width, [addr, value, 0]),
            Instr::Xchg { addr, width, value } => (12, width, [addr, value, 0]),
            Instr::Cmpxchg {
                addr,
                width,
                expected,
                new,
            } => (13, width, [addr, expected, new]),
            Instr::Fetch { addr } => (14, 1, [addr, 0, 0]),
            Instr::PciRead {
                address,
                port,
                width,
            } => (15, width, [address.into(), port.into(), 0]),
            Instr::PciWrite {
                address,
                port,
                width,
                value,
            } => (16, width, [address.into(), port.into(), value.into()]),
            Instr::RtcSet => (17, 1, [0; 3]),
            Instr::GiveBack { gfn } => (18, 1, [gfn, 0, 0]),
            Instr::Await { addr, value } => (19, 1, [addr, value.into(), 0]),
            Instr::Repeat { count, pause } => (20, 1, [count.max(1), pause, 0]),
            Instr::TimeStamp => (21, 1, [0; 3]),
            Instr::RepMovsDown {
                from,
                to,
                width,
                count,
            } => (22, width, [from, to, count]),
        };
        let opcode = kind * 4 + u64::from(width.trailing_zeros());
        [opcode, operands[0], operands[1], operands[2]]
    }
}

/// The agent's code.
fn code() -> &'static [u8] {
    let start = &raw const xen_rig_agent;
    let end = &raw const xen_rig_agent_end;
    // SAFETY: both are labels of one section, read-only data of this program, the end after the start.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// A label's address in the guest.
fn in_guest(label: *const u8) -> u64 {
    START + (label.addr() - (&raw const xen_rig_agent).addr()) as u64
}

/// Puts the agent and its tables into the domain's frames [`FRAMES`].
pub(crate) fn install(memory: &Mapping) {
    let at = |address: u64| usize::try_from(address - START).unwrap_or(usize::MAX);
    memory.put(at(START), code());
    let (fault, irq) = (
        in_guest(&raw const xen_rig_agent_fault),
        in_guest(&raw const xen_rig_agent_irq),
    );
    for vector in 0..256 {
        let handler = if vector < 32 { fault } else { irq };
        // An interrupt gate: offset 15:0, selector 8, type 0x8e, offset 31:16; the agent is below 4 GiB.
        let gate = handler & 0xffff | 8 << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
        memory.write(at(IDT + 16 * vector), gate);
        memory.write(at(IDT + 16 * vector + 8), 0);
    }
    memory.write(at(GDT), 0);
    memory.write(at(GDT + 8), 0x00af_9b00_0000_ffff);
    memory.write(at(GDT + 16), 0x00cf_9300_0000_ffff);
    // Present and writable; the last level with pages of 2 MiB.
    memory.write(at(PML4), (PML4 + 0x1000) | 3);
    for gib in 0..4 {
        let table = PML4 + 0x2000 + gib * 0x1000;
        memory.write(at(PML4 + 0x1000 + 8 * gib), table | 3);
        for entry in 0..512 {
            memory.write(at(table + 8 * entry), gib << 30 | entry << 21 | 0x83);
        }
    }
}

/// A vCPU's mailbox, seen from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mailbox {
    /// Byte offset in the mapping of [`FRAMES`].
    at: usize,
    size: usize,
}

impl Mailbox {
    pub(crate) fn new(vcpu: u32, vcpus: u32) -> Self {
        let (start, size) = mailbox(vcpu, vcpus);
        let at = usize::try_from(start - START).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(0);
        Mailbox { at, size }
    }

    /// Posts a program and returns its number. The vCPU must be idle.
    pub(crate) fn post(self, memory: &Mapping, program: &[Instr]) -> u64 {
        assert!(
            RECORDS + program.len() * RECORD <= self.size,
            "a program of {} instructions does not fit the mailbox",
            program.len()
        );
        let mut at = self.at + RECORDS;
        for instr in program {
            for (word, value) in (at..).step_by(8).zip(instr.record()) {
                memory.write(word, value);
            }
            memory.write(at + 40, 0);
            memory.write(at + 48, 0);
            at += RECORD;
        }
        memory.write(self.at + 16, program.len() as u64);
        memory.write(self.at + 24, 0);
        let number = memory.read(self.at) + 1;
        // Last; x86 keeps the order of stores, and volatile that of the compiler.
        memory.write(self.at, number);
        number
    }

    pub(crate) fn is_finished(self, memory: &Mapping, number: u64) -> bool {
        memory.read(self.at + 8) == number
    }

    /// What came of the instructions that are through.
    pub(crate) fn results(self, memory: &Mapping) -> Vec<Done> {
        let through = usize::try_from(memory.read(self.at + 24)).unwrap_or(usize::MAX);
        let records = (self.at + RECORDS..).step_by(RECORD);
        records
            .take(through.min(self.size / RECORD))
            .map(|record| match memory.read(record + 48) {
                2 => Done::Value(memory.read(record + 40)),
                3 => Done::Fault,
                _ => Done::Plain,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_fits_its_frames_and_its_labels_are_inside() {
        assert!(code().len() <= 0x2000);
        let end = START + code().len() as u64;
        for label in [&raw const xen_rig_agent_fault, &raw const xen_rig_agent_irq] {
            assert!((START..end).contains(&in_guest(label)));
        }
    }

    #[test]
    fn mailboxes_do_not_overlap_and_stay_inside() {
        for vcpus in [1, 2, 3, 128] {
            let mut last = MAILBOXES.start << 12;
            for vcpu in 0..vcpus {
                let (start, size) = mailbox(vcpu, vcpus);
                assert!(start >= last && size >= 4096);
                last = start + size;
            }
            assert!(last <= MAILBOXES.end << 12);
        }
    }

    #[test]
    fn every_instruction_has_its_place_in_the_table() {
        assert_eq!(Instr::TimeStamp.record()[0], 21 * 4);
        let never = Instr::Repeat { count: 0, pause: 7 }.record();
        assert_eq!(never, [20 * 4, 1, 7, 0], "once, at least");
        let cas = Instr::Cmpxchg {
            addr: 1,
            width: 8,
            expected: 2,
            new: 3,
        };
        assert_eq!(cas.record(), [13 * 4 + 3, 1, 2, 3]);
    }
}
