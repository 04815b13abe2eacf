// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main job's judge: its walk of the guest's tables, written down by hand here, and that it sees what is wrong.

#[path = "../examples/vgpu/checker.rs"]
mod checker;

use std::sync::atomic::Ordering;

use checker::{Page, Tally, walk, walk_directories};
use ioreq::GuestRam;
use ioreq::Width;
use ioreq::sim::{DomainConfig, Machine, SimMemory};
use vm_memory::GuestAddress;

fn memory() -> std::sync::Arc<SimMemory> {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    domain.memory()
}

fn write(ram: &dyn GuestRam, table: u64, index: u64, entry: u64) {
    ram.store(GuestAddress((table << 12) + index * 8), Width::B8, entry)
        .unwrap();
}

fn page(gpu: u64, guest: u64, bytes: u64, writable: bool) -> Page {
    Page {
        gpu,
        guest,
        bytes,
        writable,
    }
}

/// PD 3 with a page of 2 MiB, a PT of 4 KiB entries and one of 64 KiB entries; what they map from `base` on.
fn directory(ram: &dyn GuestRam, base: u64) -> Vec<Page> {
    write(ram, 3, 0, 0x20_1083); // below 2 MiB it is no address
    write(ram, 3, 1, 0x4003);
    write(ram, 3, 511, 0x5803);
    write(ram, 4, 0, 0x2_3001);
    write(ram, 4, 511, 0xfff0_0000_0002_4083); // PAT, and bits above 45
    write(ram, 5, 16, 0x23_4003);
    write(ram, 5, 17, 0x23_4003); // not used
    vec![
        page(base, 0x20_0000, 2 << 20, true),
        page(base + (1 << 21), 0x2_3000, 4096, false),
        page(base + (1 << 21) + (511 << 12), 0x2_4000, 4096, true),
        page(base + (511 << 21) + (16 << 12), 0x23_0000, 1 << 16, true),
    ]
}

#[test]
fn every_kind_of_entry_is_read_as_the_hardware_would() {
    let ram = memory();
    let mut expected = vec![page((5 << 39) + (1 << 30), 3 << 30, 1 << 30, false)];
    write(&*ram, 1, 5, 0x2083); // bit 7 means nothing in a PML4
    write(&*ram, 2, 1, 0xc123_4081);
    write(&*ram, 2, 2, 0x3003);
    write(&*ram, 2, 3, 0x3002); // not present
    expected.extend(directory(&*ram, (5 << 39) + (2 << 30)));
    assert_eq!(walk(&*ram, 0x1000), expected);
    write(&*ram, 2, 4, 0x3fff_ffff_f003); // a table that is no memory maps nothing
    assert_eq!(walk(&*ram, 0x1000), expected);
}

#[test]
fn directories_of_a_32_bit_space_are_a_gib_each() {
    let ram = memory();
    let mut expected = directory(&*ram, 0);
    assert_eq!(walk_directories(&*ram, [0x3000, 0, 0, 0]), expected);
    expected = directory(&*ram, 3 << 30);
    assert_eq!(walk_directories(&*ram, [0, 0x6000, 0, 0x3000]), expected);
    assert_eq!(walk_directories(&*ram, [0; 4]), []);
}

#[test]
fn whatever_differs_is_seen() {
    let good = [
        page(0, 0x1000, 4096, true),
        page(0x1000, 0x2000, 4096, true),
    ];
    let [one, two] = good;
    let bad: [&[Page]; 7] = [
        &[],
        &good[..1],
        &[two, one],
        &[one, two, two],
        &[one, page(0x1000, 0x3000, 4096, true)],
        &[one, page(0x1000, 0x2000, 4096, false)],
        &[one, page(0x1000, 0x2000, 1 << 16, true)],
    ];
    let tally = Tally::default();
    tally.compare(&good, &good);
    tally.bytes(3, 0);
    assert_eq!(tally.mismatches(), 0);
    assert_eq!(tally.entries.load(Ordering::Relaxed), 2);
    assert_eq!(tally.sizes[0].load(Ordering::Relaxed), 2);
    assert_eq!(tally.narrow.load(Ordering::Relaxed), 0);
    for shown in bad {
        let tally = Tally::default();
        tally.compare(&good, shown);
        assert!(tally.mismatches() > 0, "{shown:x?}");
    }
    tally.bytes(3, 1);
    tally.bytes(3, 1);
    tally.wrong("on purpose");
    assert_eq!(tally.mismatches(), 3);
}
