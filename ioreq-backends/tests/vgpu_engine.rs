// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The test engine: its registers, what it moves by the shadow, and what it refuses.

mod vgpu_rig;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ioreq_backends::vgpu::{Engine, Root, RootId, Status, regs};
use ioreq_core::{Gfn, MmioRange, VcpuId, Width};
use ioreq_sim::Injected;
use vgpu_rig::Rig;
use vm_memory::GuestAddress;

const ROOT: u64 = 0x10_000;
const MMIO: u64 = 0xe000_0000;

fn engine(rig: &Rig) -> Engine {
    Engine::new(rig.shadow.clone(), rig.frames.clone(), rig.ram.clone())
}

/// A 48-bit address space: 4 KiB pages at 0 and 0x2000 (frames 0x101 and 0x100), 64 KiB at 0x20_0000 (frame 0x200), 2 MiB at 0x40_0000
/// (frame 0x400), a read-only page at 0x3000, one that is no memory at 0x4000.
fn space(rig: &Rig) -> RootId {
    for (table, index, entry) in [
        (0x10, 0, 0x11_003),
        (0x11, 0, 0x12_003),
        (0x12, 0, 0x13_003),
        (0x12, 1, 0x14_803),
        (0x12, 2, 0x40_0083),
        (0x13, 0, 0x10_1003),
        (0x13, 2, 0x10_0003),
        (0x13, 3, 0x10_2001),
        (0x13, 4, 0x3fff_0000_0003),
        (0x14, 0, 0x20_0003),
    ] {
        rig.entry(table, index, entry);
    }
    rig.shadow.create(Root::L4(Gfn(0x10))).unwrap()
}

struct Command {
    root: u64,
    source: u64,
    target: u64,
    length: u32,
    op: u32,
}

impl Command {
    fn copy(source: u64, target: u64, length: u32) -> Self {
        Command {
            root: ROOT,
            source,
            target,
            length,
            op: regs::COPY,
        }
    }

    fn fill(target: u64, length: u32) -> Self {
        Command {
            op: regs::FILL,
            ..Self::copy(0, target, length)
        }
    }
}

const FILL: u8 = 0xa5;

/// Has a channel do it; returns the status.
fn run(rig: &Rig, engine: &Engine, channel: u64, command: &Command) -> u64 {
    let at = channel * regs::CHANNEL;
    for (register, value) in [
        (regs::ROOT, command.root),
        (regs::SOURCE, command.source),
        (regs::TARGET, command.target),
    ] {
        assert!(rig.write(engine, at + register, Width::B8, value));
    }
    assert!(rig.write(engine, at + regs::LENGTH, Width::B4, command.length.into()));
    // Of the value only the low byte counts.
    assert!(rig.write(
        engine,
        at + regs::VALUE,
        Width::B4,
        0xffff_ff00 | u64::from(FILL)
    ));
    assert!(rig.write(engine, at + regs::DOORBELL, Width::B4, command.op.into()));
    rig.read(engine, at + regs::STATUS, Width::B4).unwrap()
}

fn fill_with(rig: &Rig, addr: u64, bytes: &[u8]) {
    rig.ram.write(GuestAddress(addr), bytes).unwrap();
}

fn bytes(rig: &Rig, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rig.ram.read(GuestAddress(addr), &mut bytes).unwrap();
    bytes
}

#[test]
fn registers_are_as_written_and_have_their_own_width() {
    let rig = Rig::new(1);
    let engine = engine(&rig);
    let wide = [
        regs::ROOT,
        regs::SOURCE,
        regs::TARGET,
        regs::FENCE_ADDR,
        regs::FENCE,
    ];
    for (n, register) in (1..).zip(wide) {
        let last = (regs::CHANNELS - 1) * regs::CHANNEL + register;
        assert!(rig.write(&engine, last, Width::B8, n << 40));
        assert_eq!(rig.read(&engine, last, Width::B8), Some(n << 40));
        assert_eq!(
            rig.read(&engine, register, Width::B8),
            Some(0),
            "another channel's"
        );
        assert!(!rig.write(&engine, last, Width::B4, 1));
        assert_eq!(rig.read(&engine, last, Width::B4), None);
    }
    for register in [regs::LENGTH, regs::VALUE] {
        assert!(rig.write(&engine, register, Width::B4, 9));
        assert_eq!(rig.read(&engine, register, Width::B4), Some(9));
        assert!(!rig.write(&engine, register, Width::B8, 1));
    }
    assert_eq!(
        rig.read(&engine, regs::STATUS, Width::B4),
        Some(Status::Idle as u64)
    );
    assert!(!rig.write(&engine, regs::STATUS, Width::B4, 1), "read-only");
    assert!(
        !rig.write(&engine, regs::DOORBELL, Width::B8, 1),
        "not of that width"
    );
    assert_eq!(rig.read(&engine, regs::DOORBELL, Width::B4), None);
    for beyond in [regs::CHANNELS * regs::CHANNEL, u64::MAX - 7] {
        assert!(!rig.write(&engine, beyond, Width::B8, 1));
        assert_eq!(rig.read(&engine, beyond, Width::B8), None);
    }
    assert_eq!(engine.stats().submissions, 0);
}

#[test]
fn bytes_move_by_the_shadow_across_pages_of_all_sizes() {
    let rig = Rig::new(1);
    let engine = engine(&rig);
    space(&rig);
    let pattern: Vec<u8> = (0..0x1_2000_u32).map(|n| (n % 251) as u8).collect();
    fill_with(&rig, 0x40_0000, &pattern);
    // From the large page, not aligned, over the 64 KiB one.
    let done = run(
        &rig,
        &engine,
        0,
        &Command::copy(0x40_0123, 0x20_0456, 0xfb00),
    );
    assert_eq!(done, Status::Done as u64);
    assert_eq!(bytes(&rig, 0x20_0456, 0xfb00), pattern[0x123..][..0xfb00]);
    assert_eq!(bytes(&rig, 0x20_0000, 0x456), [0; 0x456], "nothing before");
    assert_eq!(bytes(&rig, 0x20_ff56, 0xaa), [0; 0xaa], "nothing after");
    // A fill up to the last byte of a page.
    assert_eq!(
        run(&rig, &engine, 0, &Command::fill(0xff0, 0x10)),
        Status::Done as u64
    );
    assert_eq!(bytes(&rig, 0x10_1ff0, 0x10), [FILL; 0x10]);
    assert_eq!(bytes(&rig, 0x10_1fef, 1), [0]);
    assert_eq!(
        run(&rig, &engine, 0, &Command::fill(0x2000, 0)),
        Status::Done as u64
    );
    assert_eq!(bytes(&rig, 0x10_0000, 1), [0], "0 bytes are none");
    assert_eq!(engine.stats().bytes, 0xfb00 + 0x10);
    assert_eq!(engine.stats().submissions, 3);
}

#[test]
fn a_fault_ends_a_command_where_it_is() {
    let rig = Rig::new(1);
    let engine = engine(&rig);
    space(&rig);
    // 0x1000 is not mapped.
    let status = run(&rig, &engine, 0, &Command::fill(0xff8, 0x100));
    assert_eq!(status, Status::Fault as u64);
    assert_eq!(
        bytes(&rig, 0x10_1ff8, 8),
        [FILL; 8],
        "bytes before it were moved"
    );
    let status = run(&rig, &engine, 0, &Command::fill(0x3000, 1));
    assert_eq!(status, Status::Fault as u64, "read-only");
    assert_eq!(bytes(&rig, 0x10_2000, 1), [0]);
    let status = run(&rig, &engine, 0, &Command::copy(0x3000, 0x2000, 8));
    assert_eq!(status, Status::Done as u64, "but it can be read");
    for source in [u64::MAX, 1 << 48, 0x1000] {
        let status = run(&rig, &engine, 0, &Command::copy(source, 0x2000, 8));
        assert_eq!(status, Status::Fault as u64, "{source:#x}");
    }
    assert_eq!(
        run(&rig, &engine, 0, &Command::fill(u64::MAX - 3, 8)),
        Status::Fault as u64
    );
    assert_eq!(engine.stats().faults, 6);
}

#[test]
fn the_scratch_page_reads_as_zeroes_and_takes_what_is_written() {
    let rig = Rig::new(1);
    let engine = engine(&rig);
    space(&rig);
    fill_with(&rig, 0x10_0000, &[1; 16]);
    assert_eq!(
        run(&rig, &engine, 0, &Command::copy(0x4000, 0x2000, 8)),
        Status::Done as u64
    );
    assert_eq!(bytes(&rig, 0x10_0000, 16), [[0; 8], [1; 8]].concat());
    assert_eq!(
        run(&rig, &engine, 0, &Command::fill(0x4ffe, 2)),
        Status::Done as u64
    );
    assert_eq!(
        run(&rig, &engine, 0, &Command::copy(0x4ffe, 0x2000, 2)),
        Status::Done as u64
    );
    assert_eq!(bytes(&rig, 0x10_0000, 2), [0; 2], "nothing is kept");
    assert_eq!(engine.stats().scratch, 8 + 2 + 2);
}

#[test]
fn bad_commands_are_told_and_do_nothing() {
    let rig = Rig::new(1);
    let engine = engine(&rig);
    space(&rig);
    let good = || Command::fill(0, 8);
    let longest = 64 << 20;
    for bad in [
        Command {
            root: 0x99_000,
            ..good()
        },
        Command {
            root: ROOT | 1,
            ..good()
        }, // no 32-bit one
        Command { op: 0, ..good() },
        Command { op: 3, ..good() },
        Command {
            length: longest + 1,
            ..good()
        },
        Command {
            length: u32::MAX,
            ..good()
        },
    ] {
        assert_eq!(run(&rig, &engine, 5, &bad), Status::Bad as u64);
    }
    assert_eq!((engine.stats().bad, engine.stats().bytes), (6, 0));
    // As long as may be is not bad; it ends where nothing is mapped.
    let status = run(
        &rig,
        &engine,
        5,
        &Command {
            length: longest,
            ..good()
        },
    );
    assert_eq!(status, Status::Fault as u64);
}

#[test]
fn a_32_bit_address_space_is_named_by_its_first_directory() {
    let rig = Rig::new(1);
    let engine = engine(&rig);
    rig.entry(0x21, 3, 0x22_003);
    rig.entry(0x22, 5, 0x10_0003);
    let l3 = Root::L3([Some(Gfn(0x20)), None, Some(Gfn(0x21)), None]);
    rig.shadow.create(l3).unwrap();
    let at = 2 << 30 | 3 << 21 | 5 << 12;
    let command = |root, target| Command {
        root,
        ..Command::fill(target, 16)
    };
    assert_eq!(
        run(&rig, &engine, 0, &command(0x20_001, at)),
        Status::Done as u64
    );
    assert_eq!(bytes(&rig, 0x10_0000, 16), [FILL; 16]);
    assert_eq!(
        run(&rig, &engine, 0, &command(0x20_001, 1 << 30)),
        Status::Fault as u64
    );
    assert_eq!(
        run(&rig, &engine, 0, &command(0x20_001, 1 << 32 | at)),
        Status::Fault as u64
    );
    assert_eq!(
        run(&rig, &engine, 0, &command(0x20_000, at)),
        Status::Bad as u64
    );
    assert_eq!(
        run(&rig, &engine, 0, &command(0x21_001, at)),
        Status::Bad as u64
    );
}

#[test]
fn a_submission_makes_the_shadow_right_before_anything_is_moved() {
    let rig = Rig::new(1);
    let observed = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&observed);
    let shadow = rig.shadow.clone();
    let engine = engine(&rig).observer(move |id, root| {
        let half = shadow.lookup(id, 0x2000).unwrap();
        seen.lock().unwrap().push((root, half.scratch));
    });
    space(&rig);
    let running = rig.server.start().unwrap();
    let guest = rig
        .domain
        .spawn(VcpuId(0), |cpu| cpu.store32(0x13_010, 0x10_3003));
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    let root = rig.shadow.find(Root::L4(Gfn(0x10))).unwrap();
    assert!(
        rig.shadow.lookup(root, 0x2000).unwrap().scratch,
        "half an entry so far"
    );
    assert_eq!(
        run(&rig, &engine, 0, &Command::fill(0x2000, 4)),
        Status::Done as u64
    );
    assert_eq!(bytes(&rig, 0x10_3000, 4), [FILL; 4]);
    assert_eq!(*observed.lock().unwrap(), [(Root::L4(Gfn(0x10)), false)]);
}

#[test]
fn done_is_told_by_fence_and_interrupt() {
    let rig = Rig::new(1);
    let interrupts = Arc::clone(rig.server.hypervisor());
    let engine = engine(&rig).interrupt(interrupts, 0xfee0_0000, 0x41);
    space(&rig);
    for (channel, fence_addr) in [(0, 0x30_000), (1, 0), (2, u64::MAX), (3, 0x9_0000_0000)] {
        let at = channel * regs::CHANNEL;
        rig.write(&engine, at + regs::FENCE_ADDR, Width::B8, fence_addr);
        rig.write(&engine, at + regs::FENCE, Width::B8, 0x1234_5678_9abc);
        // A fence that is no memory, or not wanted, costs the command nothing.
        assert_eq!(
            run(&rig, &engine, channel, &Command::fill(0, 1)),
            Status::Done as u64
        );
    }
    assert_eq!(rig.word(0x30_000), 0x1234_5678_9abc);
    assert_eq!(rig.word(0), 0);
    let msi = Injected::Msi {
        addr: 0xfee0_0000,
        data: 0x41,
    };
    assert_eq!(rig.domain.injected(), [msi; 4]);
    assert_eq!(
        run(&rig, &engine, 0, &Command::fill(0x1000, 1)),
        Status::Fault as u64
    );
    assert_eq!(rig.domain.injected().len(), 5, "a fault is told as well");
}

/// On the model: the vCPU that rings a long command's doorbell waits until the engine's thread is done.
#[test]
fn a_long_command_is_finished_by_the_engines_thread() {
    let rig = Rig::new(2);
    let engine = Arc::new(engine(&rig).start().unwrap());
    space(&rig);
    let range = MmioRange::sized(MMIO, 4096).unwrap();
    rig.server
        .route("engine", range, Arc::clone(&engine))
        .unwrap();
    let running = rig.server.start().unwrap();
    let commands = Arc::new(AtomicU64::new(0));
    let vcpus: Vec<_> = (0..2_u32)
        .map(|vcpu| {
            let commands = Arc::clone(&commands);
            let program = move |cpu: &mut ioreq_sim::Cpu| {
                let channel = MMIO + u64::from(vcpu) * regs::CHANNEL;
                // The two vCPUs have a half of the large page each.
                let half = 0x40_0000 + u64::from(vcpu) * 0x10_0000;
                for round in 1..=20_u32 {
                    cpu.store64(channel + regs::ROOT, ROOT)?;
                    cpu.store64(channel + regs::TARGET, half)?;
                    cpu.store32(channel + regs::LENGTH, 0x2_0000)?;
                    cpu.store32(channel + regs::VALUE, round)?;
                    cpu.store32(channel + regs::DOORBELL, regs::FILL)?;
                    assert_eq!(cpu.load32(channel + regs::STATUS)?, Status::Done as u32);
                    let expected = u64::from(round) * 0x0101_0101_0101_0101;
                    assert_eq!(cpu.load64(half)?, expected);
                    assert_eq!(cpu.load64(half + 0x1_fff8)?, expected, "to the last byte");
                    assert_eq!(cpu.load64(half + 0x2_0000)?, 0);
                    commands.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            rig.domain.spawn(VcpuId(vcpu), program).unwrap()
        })
        .collect();
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
    running.stop().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.deferred, stats.submissions), (40, 40));
    assert_eq!(stats.bytes, 40 * 0x2_0000);
    assert_eq!(commands.load(Ordering::Relaxed), 40);
}
