// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A board that takes the place of another in the middle of a guest's work.

use std::sync::{Arc, Mutex};

use ioreq::sim::Injected;
use linux_dm::saved::SavedBoard;

use crate::support::Rig;
use crate::support::disk::{DATA, Disk, FLUSH, IN, MESSAGE, OUT, fill};

/// What is kept of a board.
fn kept(rig: &Rig) -> Arc<Mutex<Vec<SavedBoard>>> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeper = Arc::clone(&kept);
    rig.board
        .keep(move |board| keeper.lock().unwrap().push(board.clone()));
    kept
}

fn last(kept: &Mutex<Vec<SavedBoard>>) -> SavedBoard {
    kept.lock().unwrap().last().unwrap().clone()
}

#[test]
fn a_guest_notices_nothing_of_it() {
    let rig = Rig::new();
    let kept = kept(&rig);
    let mut disk = rig.run(|cpu| {
        cpu.outb(0x3f9, 3)?;
        cpu.outb(0x3fb, 0x1b)?;
        let mut disk = Disk::start(cpu)?;
        fill(cpu, DATA, 512, 4)?;
        assert_eq!(disk.request(cpu, OUT, 9, &[(DATA, 512, false)])?.0, 0);
        // Offered, and nobody is told of it.
        let parts = [(DATA + 0x1000, 16, false), (DATA + 0x1010, 1, true)];
        disk.ring.offer(cpu, &parts)?;
        Ok(disk)
    });
    let before = rig.domain.injected().len();
    let rig = rig.replaced(last(&kept));
    rig.run(move |cpu| {
        assert_eq!(cpu.inb(0x3f9)?, 3, "the console's registers");
        assert_eq!(cpu.inb(0x3fb)?, 0x1b);
        for byte in *b"still here" {
            cpu.outb(0x3f8, byte)?;
        }
        // What was offered is served without a bell: it may have rung for the dead.
        disk.ring.wait(cpu)?;
        let to = DATA + 0x2000;
        assert_eq!(disk.request(cpu, IN, 9, &[(to, 512, true)])?, (0, 513));
        assert_eq!(cpu.load64(to + 8)?, 4 << 32 | 8);
        disk.restart(cpu)?;
        assert_eq!(disk.request(cpu, FLUSH, 0, &[])?.0, 0);
        Ok(())
    });
    assert_eq!(rig.printed.text(), "still here");
    let (addr, data) = MESSAGE;
    let since = rig.domain.injected().split_off(before);
    assert!(since.contains(&Injected::Msi { addr, data }), "{since:?}");
    assert!(
        since.contains(&Injected::Isa {
            irq: 4,
            asserted: true
        }),
        "a guest may wait for the console's interrupt: {since:?}"
    );
}

#[test]
fn a_console_that_was_silent_prints_again() {
    let rig = Rig::new();
    let kept = kept(&rig);
    rig.run(|cpu| cpu.outb(0x3f9, 1));
    let rig = rig.replaced(last(&kept));
    assert!(
        rig.domain.injected().is_empty(),
        "nobody waits for anything"
    );
    // A driver that has something to print enables the interrupt, and prints when it comes.
    rig.run(|cpu| cpu.outb(0x3f9, 3));
    let edge = |asserted| Injected::Isa { irq: 4, asserted };
    assert_eq!(rig.domain.injected(), [edge(true), edge(false)]);
}

#[test]
fn what_a_guest_relies_on_is_kept_before_it_goes_on() {
    let rig = Rig::new();
    let kept = kept(&rig);
    let first = last(&kept);
    let seen = Arc::clone(&kept);
    rig.run(move |cpu| {
        let count = || seen.lock().unwrap().len();
        let mut before = count();
        let mut grown = |what: &str| {
            assert!(count() > before, "{what}");
            before = count();
        };
        cpu.outb(0x3f9, 1)?;
        grown("a register of the console");
        let mut disk = Disk::start(cpu)?;
        grown("configuration space, a device's status");
        cpu.store32(u64::from(linux_dm::board::ENTROPY) + 0x70, 1)?;
        grown("the status of a device by MMIO");
        disk.restart(cpu)?;
        grown("a reset");
        disk.request(cpu, FLUSH, 0, &[])?;
        cpu.outb(0x3f8, b'x')?;
        assert_eq!(count(), before, "what guest memory knows, or nobody needs");
        Ok(())
    });
    assert_ne!(last(&kept), first);
}
