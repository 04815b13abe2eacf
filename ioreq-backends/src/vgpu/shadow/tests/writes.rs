// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Writes in parts, in the middle of things, and from several vCPUs.

use std::sync::Arc;

use ioreq_core::{Gfn, GuestRam, Width};
use vm_memory::GuestAddress;

use super::super::*;
use super::world::{DISTANCE, World};

#[test]
fn a_half_written_entry_is_not_shown_as_if_meant() {
    for (first, second) in [(0, 4), (4, 0)] {
        let world = World::new(64);
        let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
        world.entry(1, 0, 0x2003);
        world.entry(2, 0, 0x3003);
        let half = |offset: u64, value: u64| {
            let part = if offset == 0 {
                value & 0xffff_ffff
            } else {
                value >> 32
            };
            world.write(0x3000 + offset, Width::B4, part);
        };
        half(first, 0x1_0000_9083 & !0x1_0000_0000);
        assert!(
            !world
                .shadow
                .mappings(root)
                .iter()
                .any(|(_, to)| !to.scratch),
            "half an entry was shown"
        );
        half(second, 0x9083);
        world.check(root, Root::L4(Gfn(1)));
        // Only one half changes: made whole at submission.
        world.write(0x3000, Width::B4, 0x20_0083);
        assert!(world.shadow.mappings(root)[0].1.scratch);
        world.shadow.submit(root);
        world.check(root, Root::L4(Gfn(1)));
        // The half before the submission does not count for the next entry.
        half(first, 0);
        assert!(world.shadow.mappings(root).iter().all(|(_, to)| to.scratch));
        assert_eq!(world.shadow.stats().split_writes, 4);
    }
}

#[test]
fn a_write_counts_for_the_entries_that_it_touches_and_the_halves_it_covers() {
    let world = World::new(0x1000);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(1, 0, 0x2003);
    world.entry(2, 0, 0x3003);
    let shown = || -> Vec<(u64, bool)> {
        let all = world.shadow.mappings(root);
        all.iter()
            .map(|(addr, to)| (addr >> 21, to.scratch))
            .collect()
    };
    // The low half of an entry that is not the first.
    world.write(0x3028, Width::B4, 0x20_0083);
    assert_eq!(shown(), [(5, true)]);
    world.write(0x302c, Width::B4, 0);
    assert_eq!(shown(), [(5, false)]);
    // The high half of one and the low half of the next.
    world.write(0x302c, Width::B8, 0x40_0083 << 32);
    assert_eq!(shown(), [(5, true), (6, true)]);
    world.write(0x3028, Width::B4, 0x60_0083);
    assert_eq!(shown(), [(5, false), (6, true)]);
    world.write(0x3034, Width::B4, 0);
    assert_eq!(shown(), [(5, false), (6, false)]);
    world.check(root, Root::L4(Gfn(1)));
    assert_eq!(world.shadow.stats().split_writes, 6);
}

#[test]
fn a_whole_write_ends_what_a_half_began() {
    let world = World::new(0x600);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(1, 0, 0x2003);
    world.entry(2, 0, 0x3003);
    world.write(0x3004, Width::B4, 0);
    world.entry(3, 0, 0x20_0083);
    world.check(root, Root::L4(Gfn(1)));
    world.write(0x3000, Width::B4, 0x40_0083);
    assert!(
        world.shadow.mappings(root)[0].1.scratch,
        "the other half belongs to the entry before"
    );
    world.write(0x3004, Width::B4, 0);
    world.check(root, Root::L4(Gfn(1)));
    assert_eq!(world.shadow.stats().split_writes, 3);
}

#[test]
fn an_update_is_a_shadow_entry_that_changed() {
    let world = World::new(64);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(1, 0, 0x2003);
    world.entry(2, 0, 0x3003);
    world.entry(3, 0, 0x4003);
    let updates = |table: u64, entry: u64| {
        let before = world.shadow.stats().updates;
        world.entry(table, 5, entry);
        world.shadow.stats().updates - before
    };
    let directory = [0x83, 0x83, 0x81, 0, 0].map(|entry| updates(3, entry));
    assert_eq!(directory, [1, 0, 1, 1, 0]);
    // Last-level tables take every whole write for one: comparing costs as much.
    assert_eq!([0x9003, 0x9001, 0].map(|entry| updates(4, entry)), [1; 3]);
    let all = world.shadow.stats().updates;
    world.shadow.destroy(root).unwrap();
    let stats = world.shadow.stats();
    assert_eq!(stats.updates, all, "they stay counted");
    assert_eq!((stats.tables, stats.tables_freed), (0, 4));
}

#[test]
fn a_write_in_the_middle_of_a_submission_is_not_lost() {
    let world = Arc::new(World::new(64));
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003), (4, 0x9003)] {
        world.entry(table, 0, entry);
    }
    world.write(0x4000, Width::B4, 0xa003);
    // The submission reads the entry; before it makes use of what it read, another vCPU writes it whole.
    let (go, wait) = std::sync::mpsc::channel();
    let (done, finished) = std::sync::mpsc::channel();
    let writer = std::thread::spawn({
        let world = Arc::clone(&world);
        move || {
            wait.recv().unwrap();
            world.entry(4, 0, 0xb003);
            let _nobody_waits = done.send(());
        }
    });
    *world.ram.1.lock().unwrap() = Some(Box::new(move |addr| {
        assert_eq!(addr, 0x4000);
        go.send(()).unwrap();
        // A writer that waits for the submission never comes here in time, as it should.
        let _in_time = finished.recv_timeout(std::time::Duration::from_millis(100));
    }));
    world.shadow.submit(root);
    // Without the hook nobody would ever wake the writer.
    assert!(world.ram.1.lock().unwrap().take().is_none(), "it was read");
    writer.join().unwrap();
    world.check(root, Root::L4(Gfn(1)));
    assert_eq!(
        world.shadow.lookup(root, 0).unwrap().host,
        HostAddr(DISTANCE + 0xb000)
    );
}

#[test]
fn an_entry_that_is_made_whole_may_lead_to_others_that_are_to_be() {
    let world = World::new(64);
    let (first, second) = (Root::L4(Gfn(1)), Root::L4(Gfn(5)));
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        world.entry(table, 0, entry);
    }
    world.shadow.create(first).unwrap();
    let root = world.shadow.create(second).unwrap();
    world.write(0x4000, Width::B4, 0x9003); // half an entry, which the second one does not reach
    world.entry(5, 0, 0x6003);
    world.write(0x6000, Width::B4, 0x3003); // but will, once this half is made an entry
    world.shadow.submit(root);
    world.check(root, second);
}

#[test]
fn a_write_between_tracking_and_reading_is_not_lost() {
    let world = World::new(64);
    let ram = Arc::clone(&world.ram);
    *world.tracker.on_track.lock().unwrap() = Some(Box::new(move |gfn| {
        if gfn == Gfn(2) {
            ram.store(GuestAddress(0x2000), Width::B8, 0x3003).unwrap();
        }
    }));
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.check(root, Root::L4(Gfn(1)));
    assert_eq!(world.shadow.stats().tables, 3);
}

#[test]
fn two_vcpus_on_one_table_and_one_that_moves_it() {
    let world = World::new(64);
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    let rounds = 3000;
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..rounds {
                    let index = round % 8;
                    if (round + writer) % 5 == 0 {
                        let addr = 0x4000 + index * 8;
                        world.write(addr + 4, Width::B4, 0);
                        world.write(addr, Width::B4, (round % 50) << 12 | 3);
                    } else {
                        world.entry(4, index, (round % 50) << 12 | 1 | writer << 1);
                    }
                }
            });
        }
        let world = &world;
        scope.spawn(move || {
            for round in 0..rounds / 4 {
                world.entry(3, 0, if round % 2 == 0 { 0 } else { 0x4003 });
                world.entry(2, round % 3, 0x3003);
            }
            world.entry(3, 0, 0x4003);
        });
    });
    world.shadow.submit(root);
    world.check(root, Root::L4(Gfn(1)));
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().tables, 0);
}
