// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest that writes whatever it likes into its tables, PVINFO and the engine, from several vCPUs at once: it gets what it gets, and
//! the server, the domain and all else go on.

mod vgpu_rig;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use ioreq_backends::vgpu::{Engine, OutOfSync, Pvinfo, Root, regs};
use ioreq_core::{Gfn, MmioRange, VcpuId, Width};
use ioreq_sim::{Cpu, CpuFault, XenVersion};
use vgpu_rig::{FRAMES, Rig};

const PVINFO: u64 = 0xe007_8000;
const ENGINE: u64 = 0xe008_0000;
/// Frames that are tables of all levels, and their own targets.
const TABLES: std::ops::Range<u64> = 0x10..0x1c;

/// xorshift64*: a guest's dice.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        u32::try_from(drawn % u64::from(sides)).unwrap()
    }

    /// A frame: mostly a table, sometimes data, sometimes no memory.
    fn frame(&mut self) -> u64 {
        match self.roll(8) {
            0 => 0x100 + u64::from(self.roll(16)),
            1 => [FRAMES - 1, FRAMES, 1 << 20, (1 << 34) - 1][self.roll(4) as usize],
            _ => self.table(),
        }
    }

    fn table(&mut self) -> u64 {
        TABLES.start + u64::from(self.roll(12))
    }

    fn entry(&mut self) -> u64 {
        let flags = [0, 1, 3, 0x83, 0x803, 0x8000_0000_0000_0fff][self.roll(6) as usize];
        self.frame() << 12 | flags
    }
}

fn table_write(cpu: &mut Cpu, dice: &mut Dice) -> Result<(), CpuFault> {
    let table = dice.table();
    let index = [0, 1, 2, 16, 511][dice.roll(5) as usize];
    let at = (table << 12) + index * 8;
    let entry = dice.entry();
    match dice.roll(6) {
        0 => cpu.store(at, Width::B4, entry & 0xffff_ffff),
        1 => cpu.store(at + 4, Width::B4, entry >> 32),
        2 => cpu.store(at + u64::from(dice.roll(7)), Width::B2, entry & 0xffff),
        // Over the end of an entry; not of the page: Xen crashes a guest that does so while the first of the two comes to be
        // tracked (see the `claim` module).
        3 if index < 511 => cpu.store64(at + 4, entry),
        _ => cpu.store64(at, entry),
    }
}

fn notify(cpu: &mut Cpu, dice: &mut Dice) -> Result<(), CpuFault> {
    for n in 0..4 {
        let pointer = if dice.roll(3) == 0 {
            0
        } else {
            dice.frame() << 12
        };
        cpu.store64(PVINFO + 0x838 + n * 8, pointer)?;
    }
    cpu.store32(
        PVINFO + 0x818,
        [2, 2, 3, 4, 4, 5, 6, 99][dice.roll(8) as usize],
    )
}

fn submit(cpu: &mut Cpu, dice: &mut Dice) -> Result<(), CpuFault> {
    // Channels are shared, too.
    let channel = ENGINE + u64::from(dice.roll(2)) * regs::CHANNEL;
    cpu.store64(
        channel + regs::ROOT,
        dice.frame() << 12 | u64::from(dice.roll(2)),
    )?;
    for register in [regs::SOURCE, regs::TARGET] {
        let addr =
            [0, 0x1000, 1 << 21, 511 << 12, 1 << 30, 1 << 39, u64::MAX][dice.roll(7) as usize];
        cpu.store64(channel + register, addr)?;
    }
    let length = [0, 8, 5000, 0x2_0000, u32::MAX][dice.roll(5) as usize];
    cpu.store32(channel + regs::LENGTH, length)?;
    cpu.store64(channel + regs::FENCE_ADDR, dice.frame() << 12)?;
    cpu.store32(channel + regs::DOORBELL, dice.roll(4))
}

fn guest(cpu: &mut Cpu, mut dice: Dice) -> Result<(), CpuFault> {
    for _ in 0..4000 {
        match dice.roll(20) {
            0 => notify(cpu, &mut dice)?,
            1 | 2 => submit(cpu, &mut dice)?,
            _ => table_write(cpu, &mut dice)?,
        }
    }
    Ok(())
}

#[test]
fn a_guest_that_writes_anything_anywhere_is_served_to_the_end() {
    for (seed, version) in (1..).zip([XenVersion::V4_17, XenVersion::V4_20]) {
        let rig = Rig::with(version, 3, OutOfSync::after(NonZeroU32::MIN));
        let engine = Engine::new(rig.shadow.clone(), rig.frames.clone(), rig.ram.clone());
        let engine = Arc::new(engine.start().unwrap());
        let pvinfo = Arc::new(Mutex::new(Pvinfo::new(rig.shadow.clone(), 1)));
        let page = |base| MmioRange::sized(base, 4096).unwrap();
        rig.server
            .route("pvinfo", page(PVINFO), pvinfo.clone())
            .unwrap();
        rig.server
            .route("engine", page(ENGINE), engine.clone())
            .unwrap();
        let running = rig.server.start().unwrap();
        let vcpus: Vec<_> = (0..3_u32)
            .map(|vcpu| {
                let dice = Dice(seed * 1000 + u64::from(vcpu) + 1);
                rig.domain
                    .spawn(VcpuId(vcpu), |cpu| guest(cpu, dice))
                    .unwrap()
            })
            .collect();
        for vcpu in vcpus {
            vcpu.join().unwrap();
        }
        let stats = rig.server.stats();
        assert_eq!((stats.panics, stats.malformed), (0, 0));
        assert!(stats.page_writes > 1000, "{stats:?}");
        let told = pvinfo.lock().unwrap().stats();
        assert!(
            told.created > 10 && told.failed > 10 && told.unknown > 10,
            "{told:?}"
        );
        let done = engine.stats();
        assert!(done.faults > 10 && done.bad > 10, "{done:?}");
        let shadow = rig.shadow.stats();
        assert!(shadow.clashes > 10 && shadow.bad_frames > 10, "{shadow:?}");
        assert!(
            shadow.tables <= TABLES.end - TABLES.start + 16 + 2,
            "{shadow:?}"
        );
        // Whatever its tables are by now, a walk of them ends.
        for gfn in TABLES {
            if let Some(root) = rig.shadow.find(Root::L4(Gfn(gfn))) {
                rig.shadow.submit(root);
                assert!(rig.shadow.mappings(root).len() < 1 << 24);
            }
        }
        running.stop().unwrap();
        assert_eq!(rig.domain.crash_reason(), None);
        // The claim ends all tracking, as if the device were unplugged.
        drop(rig.claim);
        assert_eq!(rig.ram.load(vm_memory::GuestAddress(0), Width::B8), Ok(0));
        drop((engine, pvinfo));
        rig.server.destroy().unwrap();
        let leaks = rig.domain.leaks();
        assert!(leaks.is_clean(), "{leaks:?}");
    }
}
