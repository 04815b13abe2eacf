// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The disk on the model: requests, what a hostile driver does, and a thread that dies.

use std::os::unix::fs::FileExt;

use crate::support::disk::{self, DATA, Disk, FLUSH, GET_ID, IN, MESSAGE, OUT, fill};
use crate::support::ring::{AVAILABLE, DESCRIPTORS};
use crate::support::{Rig, SECTORS};
use ioreq::sim::Injected;
use linux_dm::virtio::Fuse;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn what_is_written_is_in_the_image_and_read_back() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        assert_eq!(cpu.load64(disk.bar + 0x2000)?, SECTORS, "its capacity");
        fill(cpu, DATA, 1024, 7)?;
        // In three parts that are no whole sectors.
        let parts = [
            (DATA, 100, false),
            (DATA + 100, 900, false),
            (DATA + 1000, 24, false),
        ];
        assert_eq!(disk.request(cpu, OUT, 5, &parts)?, (OK, 1));
        assert_eq!(disk.request(cpu, FLUSH, 0, &[])?, (OK, 1));
        let to = DATA + 0x10_0000;
        let parts = [(to, 1000, true), (to + 1000, 24, true)];
        assert_eq!(disk.request(cpu, IN, 5, &parts)?, (OK, 1025));
        for word in (0..1024).step_by(8) {
            assert_eq!(cpu.load64(to + word)?, 7 << 32 | word);
        }
        assert_eq!(disk.request(cpu, GET_ID, 0, &[(to, 20, true)])?, (OK, 21));
        assert_eq!(cpu.load64(to)?.to_le_bytes(), *b"ioreq-di");
        Ok(())
    });
    let mut bytes = [0; 8];
    rig.image.read_exact_at(&mut bytes, 5 * 512 + 8).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 7 << 32 | 8);
    let sent = rig.domain.injected();
    let (addr, data) = MESSAGE;
    assert_eq!(
        sent,
        [Injected::Msi { addr, data }; 4],
        "one for each request"
    );
}

#[test]
fn a_request_larger_than_what_is_copied_at_once() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        let len = 200 << 10;
        fill(cpu, DATA, len, 9)?;
        let len = u32::try_from(len).unwrap();
        assert_eq!(disk.request(cpu, OUT, 1, &[(DATA, len, false)])?, (OK, 1));
        let to = DATA + 0x10_0000;
        assert_eq!(disk.request(cpu, IN, 1, &[(to, len, true)])?, (OK, len + 1));
        for word in (0..u64::from(len)).step_by(8) {
            assert_eq!(cpu.load64(to + word)?, 9 << 32 | word);
        }
        Ok(())
    });
}

#[test]
fn a_driver_that_asks_for_what_cannot_be_is_told_so() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        let sector = [(DATA, 512, false)];
        assert_eq!(
            disk.request(cpu, OUT, SECTORS - 1, &sector)?,
            (OK, 1),
            "the last"
        );
        for at in [SECTORS, u64::MAX, u64::MAX / 512] {
            assert_eq!(disk.request(cpu, OUT, at, &sector)?, (FAILED, 1), "{at:#x}");
            assert_eq!(
                disk.request(cpu, IN, at, &[(DATA, 512, true)])?,
                (FAILED, 1)
            );
        }
        assert_eq!(
            disk.request(cpu, OUT, 0, &[(DATA, 511, false)])?,
            (FAILED, 1)
        );
        assert_eq!(disk.request(cpu, IN, 0, &[(DATA, 1, true)])?, (FAILED, 1));
        let nowhere = 1 << 40;
        assert_eq!(
            disk.request(cpu, OUT, 0, &[(nowhere, 512, false)])?,
            (FAILED, 1)
        );
        assert_eq!(
            disk.request(cpu, IN, 0, &[(nowhere, 512, true)])?,
            (FAILED, 1)
        );
        // 4 GiB less a sector, of which nothing is copied.
        assert_eq!(
            disk.request(cpu, OUT, 0, &[(DATA, 0xffff_fe00, false)])?,
            (FAILED, 1)
        );
        assert_eq!(disk.request(cpu, 77, 0, &sector)?, (UNSUPPORTED, 1));
        assert_eq!(disk.request(cpu, IN, 0, &[])?, (OK, 1), "of no sector");
        Ok(())
    });
    assert_eq!(rig.board.disk().stats().restarts, 0, "nothing of it panics");
}

#[test]
fn requests_without_header_or_status_are_used_up() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        for parts in [
            &[(DATA, 16, false)][..],
            &[(DATA, 16, true)],
            &[(DATA, 8, false), (DATA, 1, true)],
            &[(u64::MAX, 16, false), (u64::MAX, 1, true)],
        ] {
            disk.ring.offer(cpu, parts)?;
            disk.ring_bell(cpu)?;
            disk.ring.wait(cpu)?;
        }
        assert_eq!(disk.request(cpu, FLUSH, 0, &[])?, (OK, 1), "it goes on");
        Ok(())
    });
}

#[test]
fn a_ring_that_promises_what_it_does_not_give_rests_until_it_is_reset() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        // More requests than there are descriptors.
        cpu.store16(AVAILABLE + 2, 1000)?;
        disk.ring_bell(cpu)?;
        // A chain that leads to itself.
        disk.restart(cpu)?;
        cpu.store64(DESCRIPTORS, DATA)?;
        cpu.store32(DESCRIPTORS + 8, 16)?;
        cpu.store16(DESCRIPTORS + 12, 1)?;
        cpu.store16(DESCRIPTORS + 14, 0)?;
        cpu.store16(AVAILABLE + 4, 0)?;
        cpu.store16(AVAILABLE + 2, 1)?;
        disk.ring_bell(cpu)?;
        disk.restart(cpu)?;
        assert_eq!(disk.request(cpu, FLUSH, 0, &[])?, (OK, 1));
        // Rings that are not in memory: the device says that it needs a reset.
        disk.restart(cpu)?;
        cpu.store8(disk.bar + 0x14, 0)?;
        cpu.store8(disk.bar + 0x14, 3)?;
        cpu.store32(disk.bar + 8, 1)?;
        cpu.store32(disk.bar + 0xc, 1)?;
        cpu.store8(disk.bar + 0x14, 11)?;
        cpu.store64(disk.bar + 0x20, 1 << 40)?;
        cpu.store16(disk.bar + 0x1c, 1)?;
        cpu.store8(disk.bar + 0x14, 15)?;
        assert_eq!(cpu.load8(disk.bar + 0x14)?, 15 | 0x40);
        disk.restart(cpu)?;
        assert_eq!(disk.request(cpu, FLUSH, 0, &[])?, (OK, 1));
        Ok(())
    });
}

#[test]
fn features_that_were_not_offered_are_not_agreed() {
    let rig = Rig::new();
    rig.run(|cpu| {
        disk::place(cpu, disk::BAR)?;
        for (half, bits) in [(1, 2), (0, 1 << 31), (1, 0)] {
            cpu.store8(disk::BAR + 0x14, 0)?;
            cpu.store8(disk::BAR + 0x14, 3)?;
            cpu.store32(disk::BAR + 8, 1)?;
            cpu.store32(disk::BAR + 0xc, 1)?;
            cpu.store32(disk::BAR + 8, half)?;
            cpu.store32(disk::BAR + 0xc, bits)?;
            cpu.store8(disk::BAR + 0x14, 11)?;
            assert_eq!(cpu.load8(disk::BAR + 0x14)?, 3, "{half} {bits:#x}");
        }
        Ok(())
    });
}

#[test]
fn no_write_is_lost_or_torn_when_the_thread_dies() {
    const WRITES: u64 = 400;
    let rig = Rig::with_fuse(Fuse::every(4));
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        for number in 0..WRITES {
            let sector = number * 7 % (SECTORS - 8);
            fill(cpu, DATA, 4096, number)?;
            let parts = [(DATA, 2000, false), (DATA + 2000, 2096, false)];
            assert_eq!(disk.request(cpu, OUT, sector, &parts)?.0, OK);
            let to = DATA + 0x1_0000;
            assert_eq!(
                disk.request(cpu, IN, sector, &[(to, 4096, true)])?,
                (OK, 4097)
            );
            for word in (0..4096).step_by(8) {
                assert_eq!(cpu.load64(to + word)?, number << 32 | word);
            }
        }
        Ok(())
    });
    let stats = rig.board.disk().stats();
    assert!(stats.restarts > WRITES / 8, "{stats:?}");
    let mut bytes = [0; 8];
    let last = (WRITES - 1) * 7 % (SECTORS - 8);
    rig.image
        .read_exact_at(&mut bytes, last * 512 + 4088)
        .unwrap();
    assert_eq!(u64::from_le_bytes(bytes), (WRITES - 1) << 32 | 4088);
}

#[test]
fn the_device_moves_with_its_bar() {
    let rig = Rig::new();
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        let elsewhere = 0xe100_0000;
        disk::place(cpu, elsewhere)?;
        assert_eq!(
            cpu.load32(disk::BAR + 4)?,
            u32::MAX,
            "nobody is there any more"
        );
        disk.bar = elsewhere;
        assert_eq!(disk.request(cpu, FLUSH, 0, &[])?, (OK, 1), "it runs on");
        Ok(())
    });
    assert_eq!(rig.board.nobody().accesses(), 1);
}
