// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The other devices of the board, on the model.

use std::time::Duration;

use crate::support::Rig;
use crate::support::disk::{DATA, Disk, IN, fill};
use crate::support::ring::{AVAILABLE, DESCRIPTORS, Ring, SIZE, USED};
use ioreq::hypervisor::Intx;
use ioreq::server::Exit;
use ioreq::sim::{Cpu, CpuFault, Injected};
use ioreq::{Sbdf, ShutdownReason, Width};
use linux_dm::board::ENTROPY_SLOT;
use linux_dm::watcher::Command;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn the_console_prints_and_is_typed_at() {
    let rig = Rig::new();
    rig.run(|cpu| {
        cpu.outb(0x3f9, 1)?; // interrupts when there is something to read
        for byte in *b"hello" {
            assert_ne!(cpu.inb(0x3fd)? & 0x20, 0, "it can be written");
            cpu.outb(0x3f8, byte)?;
        }
        Ok(())
    });
    assert_eq!(rig.printed.text(), "hello");
    // More than the 16550 holds.
    let text = "0123456789".repeat(20);
    let (typed, console) = (text.clone(), std::sync::Arc::clone(rig.board.console()));
    let typist =
        std::thread::spawn(move || console.type_in(typed.as_bytes(), Duration::from_secs(30)));
    let len = text.len();
    let read = rig.run(move |cpu| {
        let mut read = Vec::new();
        while read.len() < len {
            while cpu.inb(0x3fd)? & 1 == 0 {
                cpu.relax()?;
            }
            read.push(cpu.inb(0x3f8)?);
        }
        Ok(read)
    });
    assert_eq!(read, text.as_bytes());
    assert_eq!(typist.join().unwrap(), text.len());
    let edges = rig.domain.injected();
    let edge = |asserted| Injected::Isa { irq: 4, asserted };
    assert_eq!(edges[..2], [edge(true), edge(false)]);
}

#[test]
fn a_guest_that_does_not_read_is_not_waited_for() {
    let rig = Rig::new();
    let text = [b'x'; 1000];
    let typed = rig
        .board
        .console()
        .type_in(&text, Duration::from_millis(20));
    assert!(typed > 0 && typed < text.len(), "{typed}");
}

#[test]
fn configuration_space_is_found_by_its_ports() {
    let rig = Rig::new();
    rig.run(|cpu| {
        cpu.outl(0xcf8, 0x8000_0000)?;
        assert_eq!(cpu.inl(0xcf8)?, 0x8000_0000, "mechanism 1");
        let id = |cpu: &mut Cpu, slot| {
            let function = Sbdf::new(0, 0, slot, 0).unwrap();
            cpu.pci_config_read(function, 0, Width::B4)
        };
        assert_eq!(id(cpu, 0)?, 0x1237_8086);
        assert_eq!(id(cpu, 3)?, 0x1042_1af4);
        assert_eq!(id(cpu, 4)?, 0xffff_ffff);
        Ok(())
    });
}

#[test]
fn what_nobody_has_is_all_ones_and_counted() {
    let rig = Rig::new();
    rig.run(|cpu| {
        assert_eq!(cpu.inw(0x2f8)?, 0xffff);
        cpu.outb(0x80, 1)?;
        assert_eq!(cpu.load32(0xd100_0000)?, u32::MAX);
        cpu.store64(0xa_0000, 1)?;
        assert_eq!(cpu.inb(0x3fb)?, 3, "the console's is not");
        Ok(())
    });
    assert_eq!(rig.board.nobody().accesses(), 4);
    assert_eq!(
        rig.board.nobody().to_string(),
        "4 accesses, port 0x80: 1, port 0x2f8: 1, page 0xa0: 1, page 0xd1000: 1"
    );
}

/// Ends the domain; what the server says of it.
fn ended(program: fn(&mut Cpu) -> Result<(), CpuFault>) -> Exit {
    let mut rig = Rig::new();
    let guest = rig.domain.spawn(ioreq::VcpuId(0), program).unwrap();
    let exit = rig.wait();
    let _it_may_have_been_stopped = guest.join();
    exit
}

#[test]
fn power_off_and_reset_end_the_domain() {
    let off = ended(|cpu| {
        assert_eq!(cpu.inw(0xb004)?, 1, "ACPI is on");
        cpu.outw(0xb004, 0x2001)?; // another sleep state
        cpu.outw(0xb004, 0x3401)
    });
    assert_eq!(off, Exit::Shutdown(ShutdownReason::PowerOff));
    let reset = ended(|cpu| {
        cpu.outb(0xcf9, 2)?; // not yet
        assert_eq!(cpu.inb(0xcf9)?, 0);
        cpu.outb(0xcf9, 6)
    });
    assert_eq!(reset, Exit::Shutdown(ShutdownReason::Reboot));
}

#[test]
fn random_numbers_come_with_a_level_interrupt() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let base = u64::from(linux_dm::board::ENTROPY);
        let is = |cpu: &mut Cpu, register: u64| cpu.load32(base + register);
        assert_eq!((is(cpu, 0)?, is(cpu, 4)?, is(cpu, 8)?), (0x7472_6976, 2, 4));
        for (register, value) in [
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, 0),
            (0x38, u32::from(SIZE)),
            (0x80, u32::try_from(DESCRIPTORS).unwrap()),
            (0x90, u32::try_from(AVAILABLE).unwrap()),
            (0xa0, u32::try_from(USED).unwrap()),
            (0x44, 1),
            (0x70, 15),
        ] {
            cpu.store32(base + register, value)?;
        }
        assert_eq!(is(cpu, 0x70)?, 15);
        let mut ring = Ring::default();
        ring.offer(cpu, &[(DATA, 64, true)])?;
        cpu.store32(base + 0x50, 0)?;
        assert_eq!(ring.wait(cpu)?, 64);
        let mut words = Vec::new();
        for word in (0..64).step_by(8) {
            words.push(cpu.load64(DATA + word)?);
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(
            words.len(),
            8,
            "64 random bytes are not eight times the same"
        );
        while is(cpu, 0x60)? == 0 {
            cpu.relax()?;
        }
        cpu.store32(base + 0x64, 1)?;
        assert_eq!(is(cpu, 0x60)?, 0, "acknowledged");
        Ok(())
    });
    let line = |asserted| Injected::Intx {
        function: Sbdf::new(0, 0, ENTROPY_SLOT, 0).unwrap(),
        pin: Intx::A,
        asserted,
    };
    assert_eq!(rig.domain.injected(), [line(true), line(false)]);
}

/// Has the watcher do something with frames.
fn ask(cpu: &mut Cpu, command: Command, first: u64, count: u32) -> Result<u32, CpuFault> {
    cpu.outl(0x524, u32::try_from(first).unwrap())?;
    cpu.outl(0x528, count)?;
    cpu.outl(0x520, command as u32)?;
    cpu.inl(0x520)
}

#[test]
fn the_watcher_sees_every_write_and_the_disks() {
    let rig = Rig::alone();
    let memory = rig.domain.memory();
    rig.run(move |cpu| {
        let (frame, at) = (DATA >> 12, DATA);
        assert_eq!(ask(cpu, Command::Track, frame, 2)?, 0);
        assert_eq!(
            ask(cpu, Command::Track, frame, 1)?,
            u32::MAX,
            "it is tracked"
        );
        // Neither this nor the failure has ended what was.
        assert_eq!(ask(cpu, Command::Track, frame + 2, 1)?, 0);
        fill(cpu, at, 4096, 3)?;
        cpu.store8(at + 4095, 9)?;
        let writes = ask(cpu, Command::Count, 0, 0)?;
        let mut disk = Disk::start(cpu)?;
        disk.request(cpu, IN, 0, &[(at + 4, 512, true)])?;
        assert!(ask(cpu, Command::Count, 0, 0)? > writes, "the disk's, too");
        assert_eq!(ask(cpu, Command::Compare, 0, 0)?, 0);
        // Behind the framework's back: the watcher must notice, or its word is worth nothing.
        memory
            .write_obj(0x1234_u16, GuestAddress(at + 0x800))
            .unwrap();
        assert_eq!(ask(cpu, Command::Compare, 0, 0)?, 2);
        assert_eq!(ask(cpu, Command::Untrack, frame, 3)?, 0);
        assert_eq!(ask(cpu, Command::Compare, 0, 0)?, 0, "of nothing");
        let writes = ask(cpu, Command::Count, 0, 0)?;
        cpu.store8(at, 1)?;
        assert_eq!(
            ask(cpu, Command::Count, 0, 0)?,
            writes,
            "not tracked any more"
        );
        for (first, count) in [(frame, 0), (frame, 5000), (1 << 30, 1)] {
            assert_eq!(
                ask(cpu, Command::Track, first, count)?,
                u32::MAX,
                "{first:#x} {count}"
            );
        }
        Ok(())
    });
    assert_eq!(rig.board.watcher().stats().marked, 3);
}
