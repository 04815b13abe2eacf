// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest that writes what it likes: into its own slot and into a buffered ring, and with instructions.
//!
//! What comes of it may not reach the others' memory and registers, or nothing could be said of those. So addresses that make sense
//! are of frames and ports that nobody else has, further from the others than one request reaches (32 KiB).

use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use ioreq::sim::{HostileRing, HostileSlots};
use ioreq::{MmioRange, PortRange, VcpuId};
use xen_rig::Instr;

/// Its own frames' address, its own MMIO, its own ports.
const MEMORY: u64 = 0x80_0000;
const MMIO: u64 = 0xf000_0000;
const PORTS: u16 = 0xff80;

pub(crate) fn mmio() -> MmioRange {
    MmioRange::sized(MMIO, 0x1000).expect("in the address space")
}

pub(crate) fn ports() -> PortRange {
    PortRange::sized(PORTS, 0x80).expect("in the address space")
}

fn address(random: &mut Rng) -> u64 {
    match random.u8(0..6) {
        0 => MEMORY + random.u64(0..0x1000),
        1 => MMIO - 8 + random.u64(0..0x1010),
        2 => u64::from(PORTS) + random.u64(0..0x100),
        3 => u64::MAX - random.u64(0..0x1_0000),
        4 => 1 << 52 | random.u64(..),
        _ => MEMORY + 0xff0 + random.u64(0..0x20),
    }
}

/// Rewrites a slot, field by field, as fast as it goes, until it is told to stop.
pub(crate) fn rewrite_slot(slots: &HostileSlots, vcpu: VcpuId, seed: u64, stop: &AtomicBool) {
    let Some(slot) = slots.slot(vcpu) else { return };
    let mut random = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        slot.addr.store(address(&mut random), Ordering::Relaxed);
        slot.data.store(address(&mut random), Ordering::Relaxed);
        let count = match random.u8(0..4) {
            0 => random.u32(..),
            1 => random.u32(0..5000),
            _ => 1,
        };
        slot.count.store(count, Ordering::Relaxed);
        slot.size.store(random.u32(0..10), Ordering::Relaxed);
        slot.vp_eport.store(random.u32(..), Ordering::Relaxed);
        slot.pad.store(random.u16(..), Ordering::Relaxed);
        let kind = random.choice([0, 1, 1, 2, 7, 8, 255]).unwrap_or(1);
        slot.kind.store(kind, Ordering::Relaxed);
        slot.flags.store(random.u8(..), Ordering::Relaxed);
        rest(&mut random);
    }
    // An empty slot, for whoever looks at the end.
    slot.flags.store(0, Ordering::Relaxed);
}

/// Rewrites a ring's pointers and entries.
pub(crate) fn rewrite_ring(ring: &HostileRing, seed: u64, stop: &AtomicBool) {
    let mut random = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let read = ring.read_pointer().load(Ordering::Relaxed);
        let write = match random.u8(0..4) {
            0 => random.u32(..),
            1 => read.wrapping_add(random.u32(0..1024)),
            2 => read.wrapping_sub(random.u32(0..1024)),
            _ => read.wrapping_add(random.u32(0..4)),
        };
        ring.write_pointer().store(write, Ordering::Relaxed);
        if random.u8(0..8) == 0 {
            ring.read_pointer().store(random.u32(..), Ordering::Relaxed);
        }
        // Type, direction, size; 20 bits of an address: ports of nobody, or below the others' memory.
        let entry = random.u64(..) & !0xf_ff00_0000_u64 | random.u64(0..0x100);
        if let Some(at) = ring.entry(random.u32(0..511)) {
            at.store(entry, Ordering::Relaxed);
        }
        rest(&mut random);
    }
}

/// Not always at full speed: what lies for a moment is looked at in other ways.
fn rest(random: &mut Rng) {
    match random.u16(..) {
        0..16 => std::thread::sleep(std::time::Duration::from_micros(50)),
        16..0x1000 => std::thread::yield_now(),
        _ => {}
    }
}

/// Instructions that make little sense.
pub(crate) fn program(random: &mut Rng, len: usize) -> Vec<Instr> {
    let one = |random: &mut Rng| {
        let width = 1 << random.u8(0..3);
        let (port, value) = (PORTS - 8 + random.u16(0..0x80), random.u32(..));
        let addr = MMIO + random.u64(0..0xff8);
        match random.u8(0..8) {
            0 => Instr::In { port, width },
            1 => Instr::Out { port, width, value },
            2 => Instr::Load { addr, width },
            3 => Instr::Store {
                addr,
                width,
                value: value.into(),
            },
            4 => Instr::RepStos {
                addr: MMIO,
                width,
                value: value.into(),
                count: random.u64(1..1024),
            },
            5 => Instr::RepIns {
                port,
                to: MEMORY + random.u64(0..0x800),
                width,
                count: random.u64(1..300),
            },
            6 => Instr::RepOuts {
                port,
                from: MEMORY + random.u64(0..0x800),
                width,
                count: random.u64(1..300),
            },
            _ => Instr::RepMovs {
                from: MEMORY + random.u64(0..0x200) * 4,
                to: MMIO,
                width,
                count: random.u64(1..200),
            },
        }
    };
    (0..len).map(|_| one(random)).collect()
}
