// SPDX-License-Identifier: Apache-2.0 OR MIT

//! New tables are tracked many at a time, and one that cannot be tracked is nobody else's trouble.

use ioreq_core::{Gfn, Width};

use super::super::*;
use super::world::World;

const L4: Root = Root::L4(Gfn(1));

/// A PML4 with one PDP, whose `directories` are full of page tables, all there before anything is shadowed.
fn full(world: &World, directories: u64) {
    world.entry(1, 0, 0x2003);
    for n in 0..directories {
        world.entry(2, n, (0x10 + n) << 12 | 3);
        for index in 0..512 {
            let table = 0x20 + n * 512 + index;
            world.entry(0x10 + n, index, table << 12 | 3);
        }
        world.entry(0x20 + n * 512, 7, 0x9003);
    }
}

#[test]
fn a_full_address_space_takes_a_call_a_level_and_bounded_ones() {
    let world = World::new(0x20 + 5 * 512);
    full(&world, 5);
    let root = world.shadow.create(L4).unwrap();
    assert_eq!(world.shadow.stats().tables, 2 + 5 + 5 * 512);
    let batches = world.tracker.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 2 + 5 + 5 * 512);
    assert!(batches.iter().all(|pages| *pages <= 1024), "{batches:?}");
    assert!(batches.len() <= 3 + 3 + 1, "{batches:?}");
    world.check(root, L4);
    // One write that links many new tables.
    world.entry(2, 0, 0);
    world.tracker.batches.lock().unwrap().clear();
    world.entry(2, 0, 0x1_0003);
    assert_eq!(*world.tracker.batches.lock().unwrap(), [1, 512]);
    world.check(root, L4);
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn one_that_cannot_be_tracked_does_not_hold_up_its_neighbours() {
    let world = World::new(0x20 + 512);
    full(&world, 1);
    world.tracker.refuse.lock().unwrap().extend([0x40, 0x90]);
    let root = world.shadow.create(L4).unwrap();
    let stats = world.shadow.stats();
    assert_eq!((stats.tables, stats.track_failed), (1 + 1 + 1 + 510, 2));
    assert_eq!(stats.tables_freed, 0, "those were never tables");
    let scratch = |index: u64| {
        world
            .shadow
            .lookup(root, index << 21)
            .is_ok_and(|to| to.scratch)
    };
    for index in 0..512 {
        assert_eq!(scratch(index), matches!(index, 0x20 | 0x70), "{index:#x}");
    }
    world.entry(0x90, 3, 0x9003);
    world.shadow.submit(root);
    assert!(scratch(0x70), "still");
    world.tracker.refuse.lock().unwrap().remove(&0x90);
    world.shadow.submit(root);
    assert!(!scratch(0x70) && scratch(0x20));
    world.tracker.refuse.lock().unwrap().clear();
    world.shadow.submit(root);
    world.check(root, L4);
    world.entry(0x90, 3, 0xa003);
    world.check(root, L4);
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
}

#[test]
fn one_that_cannot_be_tracked_is_refused_to_those_that_are_read_later() {
    let world = World::new(0x20 + 4 * 512);
    full(&world, 4);
    // The last two fill a batch; the others are read when the table has failed already.
    for directory in 0..3 {
        world.entry(0x10 + directory, 9, 0x2_5003);
    }
    world.tracker.refuse.lock().unwrap().insert(0x25);
    let root = world.shadow.create(L4).unwrap();
    for directory in 0..3 {
        let shown = world.shadow.lookup(root, directory << 30 | 9 << 21);
        assert!(shown.unwrap().scratch, "directory {directory}");
    }
    world.entry(0x25, 3, 0x9003); // ordinary memory
    world.tracker.refuse.lock().unwrap().clear();
    world.shadow.submit(root);
    world.check(root, L4);
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
}

#[test]
fn every_entry_that_leads_to_one_that_cannot_be_tracked_is_tried_again() {
    let world = World::new(64);
    for (table, index, entry) in [
        (1, 0, 0x2003),
        (2, 0, 0x3003),
        (2, 1, 0x4003),
        (3, 0, 0x5003),
        (3, 9, 0x5001),
        (4, 0, 0x5003),
        (5, 0, 0x9003),
    ] {
        world.entry(table, index, entry);
    }
    world.tracker.refuse.lock().unwrap().insert(5);
    let root = world.shadow.create(L4).unwrap();
    let shown = world.shadow.mappings(root);
    assert_eq!(shown.len(), 3);
    assert!(shown.iter().all(|(_, to)| to.scratch), "{shown:?}");
    assert!(!shown[1].1.writable, "the guest's flags stay");
    assert_eq!(world.shadow.stats().tables, 4);
    world.write(0x5000, Width::B8, 0xb003); // ordinary memory
    world.tracker.refuse.lock().unwrap().clear();
    world.shadow.submit(root);
    world.check(root, L4);
    assert_eq!(world.shadow.stats().tables, 5);
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn a_table_that_is_gone_before_it_was_tracked_never_is() {
    let world = World::new(64);
    for (table, index, entry) in [(1, 0, 0x2003), (2, 0, 0x3003), (3, 0, 0x4003)] {
        world.entry(table, index, entry);
    }
    // The roots of a 32-bit address space: the second is no memory, so the first is made, and let go.
    let l3 = Root::L3([Some(Gfn(3)), Some(Gfn(64)), None, None]);
    assert!(world.shadow.create(l3).is_err());
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
    // A refused root leaves nothing of the others either.
    world.tracker.refuse.lock().unwrap().insert(2);
    let l3 = Root::L3([Some(Gfn(3)), Some(Gfn(2)), Some(Gfn(3)), None]);
    assert_eq!(
        world.shadow.create(l3).unwrap_err().kind(),
        ErrorKind::WrongState
    );
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
    let structure = world.shadow.0.lock();
    assert!(structure.to_track.is_empty() && structure.new_links.is_empty());
}

#[test]
fn what_is_noted_of_links_to_new_tables_is_bounded() {
    // 40 directories, all entries of which lead to one new table.
    let world = World::new(0x100);
    world.entry(1, 0, 0x2003);
    for directory in 0..40 {
        world.entry(2, directory, (0x10 + directory) << 12 | 3);
        for index in 0..512 {
            world.entry(0x10 + directory, index, 0x4003);
        }
    }
    let root = world.shadow.create(L4).unwrap();
    assert_eq!(world.shadow.stats().tables, 2 + 40 + 1);
    let noted = world.shadow.0.lock().new_links.capacity();
    assert!(noted <= 16 << 10, "room for {noted}");
    world.entry(4, 9, 0x9003);
    world.check(root, L4);
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
}
