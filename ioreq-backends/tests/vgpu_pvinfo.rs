// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The PVINFO page: what a guest finds there, and what its notifications do.

mod vgpu_rig;

use std::sync::Mutex;

use ioreq_backends::vgpu::{Pvinfo, PvinfoStats, Root};
use ioreq_core::{Gfn, Width};
use proptest::prelude::*;
use vgpu_rig::{FRAMES, Rig};

const PDP: u64 = 0x838;
const NOTIFY: u64 = 0x818;

fn page(rig: &Rig) -> Mutex<Pvinfo> {
    Mutex::new(Pvinfo::new(rig.shadow.clone(), 7))
}

fn stats(page: &Mutex<Pvinfo>) -> PvinfoStats {
    page.lock().unwrap().stats()
}

/// Writes root pointers, then the notification.
fn notify(rig: &Rig, page: &Mutex<Pvinfo>, pointers: [u64; 4], code: u64) -> bool {
    for (n, pointer) in (0..).zip(pointers) {
        assert!(rig.write(page, PDP + 8 * n, Width::B8, pointer));
    }
    rig.write(page, NOTIFY, Width::B4, code)
}

#[test]
fn a_driver_finds_magic_version_caps_and_resources() {
    let rig = Rig::new(1);
    let page = page(&rig);
    let read = |offset, width| rig.read(&page, offset, width);
    assert_eq!(read(0, Width::B8), Some(0x4776_5447_7654_4776));
    assert_eq!(read(4, Width::B4), Some(0x4776_5447));
    assert_eq!(read(1, Width::B2), Some(0x5447), "unaligned, too");
    assert_eq!(
        (read(8, Width::B2), read(0xa, Width::B2)),
        (Some(1), Some(0))
    );
    assert_eq!(read(0xc, Width::B4), Some(7));
    let caps = read(0x10, Width::B4).unwrap();
    assert_eq!(caps & (1 << 2), 1 << 2, "48-bit address spaces");
    assert_eq!(
        caps & (1 << 3),
        0,
        "no emulation of status pages is promised"
    );
    let resources = [0x40, 0x44, 0x48, 0x4c, 0x50].map(|at| read(at, Width::B4));
    let expected = [0, 256 << 20, 256 << 20, 1 << 30, 16];
    assert_eq!(resources, expected.map(Some));
    assert_eq!(read(4092, Width::B4), Some(0));
    assert_eq!(read(4092, Width::B8), None, "beyond the page");
    assert_eq!(read(u64::MAX, Width::B1), None);
}

#[test]
fn what_is_read_only_stays() {
    let rig = Rig::new(1);
    let page = page(&rig);
    for offset in [0, 8, 0xc, 0x10, 0x40, 0x50, 0x7f8, 0x81c, 0x858 + 8, 4088] {
        let before = rig.read(&page, offset, Width::B8);
        assert!(
            !rig.write(&page, offset, Width::B8, u64::MAX),
            "{offset:#x}"
        );
        assert_eq!(rig.read(&page, offset, Width::B8), before);
    }
    // The writable half of an access is written.
    assert!(rig.write(&page, 0x834, Width::B8, u64::MAX));
    assert_eq!(
        rig.read(&page, 0x834, Width::B8),
        Some(0xffff_ffff_0000_0000)
    );
    assert!(!rig.write(&page, 4092, Width::B8, 1));
    assert_eq!(stats(&page), PvinfoStats::default());
}

#[test]
fn address_spaces_of_both_kinds_come_and_go() {
    let rig = Rig::new(1);
    let page = page(&rig);
    rig.entry(0x10, 0, 0x1_1003);
    assert!(
        notify(&rig, &page, [0x1_0fff, 0xdead_0000, 0, 0], 4),
        "low bits are no address"
    );
    let l4 = Root::L4(Gfn(0x10));
    assert!(rig.shadow.find(l4).is_some());
    assert!(notify(&rig, &page, [0x2_0000, 0, 0x2_1000, 0], 2));
    let l3 = Root::L3([Some(Gfn(0x20)), None, Some(Gfn(0x21)), None]);
    assert!(rig.shadow.find(l3).is_some());
    assert_eq!(rig.shadow.stats().tables, 4);
    assert!(
        !notify(&rig, &page, [0x2_0000, 0, 0, 0], 3),
        "not with other directories"
    );
    assert!(notify(&rig, &page, [0x2_0000, 0, 0x2_1000, 0], 3));
    assert!(notify(&rig, &page, [0x1_0000, 0, 0, 0], 5));
    assert!(!notify(&rig, &page, [0x1_0000, 0, 0, 0], 5), "once");
    assert_eq!(rig.shadow.stats().tables, 0);
    let stats = stats(&page);
    assert_eq!((stats.created, stats.destroyed, stats.failed), (2, 2, 2));
}

#[test]
fn a_notification_in_parts_is_one() {
    let rig = Rig::new(1);
    let page = page(&rig);
    rig.write(&page, PDP, Width::B4, 0x1_0000);
    assert!(rig.write(&page, NOTIFY, Width::B2, 4));
    assert_eq!(stats(&page).created, 0, "half of it is none");
    assert!(rig.write(&page, NOTIFY + 2, Width::B2, 0));
    assert_eq!(stats(&page).created, 1);
    // The last byte gives it, whatever else the access covers.
    assert!(rig.write(&page, NOTIFY - 4, Width::B8, 4 << 32));
    assert_eq!(stats(&page).created, 2);
    assert_eq!(rig.shadow.stats().roots, 2);
}

#[test]
fn what_cannot_be_followed_is_refused_and_counted() {
    let rig = Rig::new(1);
    let page = page(&rig);
    for pointers in [[0; 4], [FRAMES << 12, 0, 0, 0], [u64::MAX, 0, 0, 0]] {
        assert!(!notify(&rig, &page, pointers, 4), "{pointers:x?}");
        assert!(!notify(&rig, &page, pointers, 2));
        assert!(!notify(&rig, &page, pointers, 5));
        assert!(!notify(&rig, &page, pointers, 3));
    }
    // One bad directory of four, and nothing is left of the others.
    assert!(!notify(
        &rig,
        &page,
        [0x1_0000, 0x1_1000, FRAMES << 12, 0],
        2
    ));
    assert_eq!(
        (rig.shadow.stats().tables, rig.shadow.stats().roots),
        (0, 0)
    );
    assert_eq!(stats(&page).failed, 13);
    for code in [0, 1, 8, 0xffff_ffff] {
        assert!(!rig.write(&page, NOTIFY, Width::B4, code));
    }
    assert_eq!((stats(&page).unknown, stats(&page).failed), (4, 13));
    assert!(rig.write(&page, 0x858, Width::B8, 0x1234));
    assert!(rig.write(&page, NOTIFY, Width::B4, 6) && rig.write(&page, NOTIFY, Width::B4, 7));
    assert_eq!(stats(&page).contexts, 2);
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        Just(Width::B1),
        Just(Width::B2),
        Just(Width::B4),
        Just(Width::B8)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of the registers that the driver writes are as it wrote them, all others as they were.
    #[test]
    fn the_page_is_its_writable_bytes(writes in prop::collection::vec((0x7f0_u32..0x870, width(), any::<u64>()), 1..40)) {
        let rig = Rig::new(1);
        let page = page(&rig);
        let writable = |at: u32| matches!(at, 0x804..0x808 | 0x818..0x81c | 0x838..0x860);
        let mut expected = [0_u8; 4096];
        for (offset, width, value) in writes {
            rig.write(&page, offset.into(), width, value);
            for (at, byte) in (offset..).zip(&value.to_le_bytes()[..width.size()]) {
                if writable(at) {
                    expected[at as usize] = *byte;
                }
            }
        }
        for at in 0x7f0_u32..0x880 {
            prop_assert_eq!(rig.read(&page, at.into(), Width::B1), Some(expected[at as usize].into()), "byte {:#x}", at);
        }
    }
}
