// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tables out of sync: who goes, who comes back, and that the shadow is right all the while.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use ioreq_core::{Gfn, GuestRam, Width};
use vm_memory::GuestAddress;

use super::super::*;
use super::world::{DISTANCE, World};

const L4: Root = Root::L4(Gfn(1));

fn policy(writes: u32) -> OutOfSync {
    OutOfSync::after(NonZeroU32::new(writes).unwrap())
}

/// One page table, 4, reached from the PML4 1; tables go out of sync after four writes an interval.
fn world() -> (World, RootId) {
    let world = World::with(64, |builder| builder.out_of_sync(policy(4)));
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(L4).unwrap();
    (world, root)
}

/// Writes `count` entries of a table, with a value that depends on `round`.
fn burst(world: &World, table: u64, count: u64, round: u64) {
    for index in 0..count {
        world.entry(table, index, ((round + index) % 60) << 12 | 3);
    }
}

/// Makes table 4 go out of sync.
fn let_go(world: &World, root: RootId) {
    for round in 0..2 {
        burst(world, 4, 8, round);
        assert!(world.is_tracked(4), "never in the middle of a burst");
        world.shadow.submit(root);
    }
    assert!(!world.is_tracked(4));
}

#[test]
fn a_table_that_is_hot_again_and_again_goes_and_comes_back_when_it_rests() {
    let (world, root) = world();
    let_go(&world, root);
    world.check(root, L4);
    let before = world.traps();
    for round in 2..10 {
        burst(&world, 4, 100, round);
        world.shadow.submit(root);
        world.check(root, L4);
    }
    assert_eq!(world.traps(), before, "none of them trapped");
    assert!(!world.is_tracked(4), "it stays out while it is written");
    for _ in 0..3 {
        world.shadow.submit(root);
    }
    assert!(!world.is_tracked(4));
    world.shadow.submit(root);
    assert!(world.is_tracked(4), "it has come to rest");
    let stats = world.shadow.stats();
    assert_eq!((stats.out_of_sync, stats.out_of_sync_now), (1, 0));
    assert_eq!((stats.protected_again, stats.out_of_sync_in_vain), (1, 0));
    assert_eq!(stats.rereads, 12);
    // The first look found it unmarked, so what had changed by then may have trapped.
    assert_eq!(stats.traps_avoided, 700);
    world.entry(4, 0, 0x3003);
    world.check(root, L4);
    assert_eq!(world.traps(), before + 1);
}

#[test]
fn a_write_between_the_last_look_and_the_mark_is_not_lost() {
    let (world, root) = world();
    let_go(&world, root);
    world.shadow.submit(root);
    let ram = Arc::clone(&world.ram);
    *world.tracker.on_track.lock().unwrap() = Some(Box::new(move |gfn| {
        assert_eq!(gfn, Gfn(4));
        ram.store(GuestAddress(0x4640), Width::B8, 0x9003).unwrap();
    }));
    // With the one before, four submissions that find nothing changed.
    for _ in 0..3 {
        assert!(!world.is_tracked(4));
        world.shadow.submit(root);
    }
    world.check(root, L4);
    let stats = world.shadow.stats();
    assert_eq!((stats.protected_again, stats.traps_avoided), (1, 1));
    assert_eq!(stats.out_of_sync_in_vain, 1, "one does not pay for it");
}

#[test]
fn a_table_that_address_spaces_share_goes_as_well() {
    let (world, root) = world();
    let second = Root::L4(Gfn(5));
    world.entry(5, 0, 0x2003);
    let other = world.shadow.create(second).unwrap();
    let_go(&world, root);
    for (round, id) in (2..).zip([root, other]) {
        burst(&world, 4, 8, round);
        world.shadow.submit(id);
        world.check(root, L4);
        world.check(other, second);
    }
}

#[test]
fn one_burst_or_a_trickle_changes_nothing() {
    let (world, root) = world();
    burst(&world, 4, 500, 0);
    for round in 0..40 {
        world.shadow.submit(root);
        burst(&world, 4, 2, round);
    }
    assert_eq!(world.shadow.stats().out_of_sync, 0);
    assert!(world.is_tracked(4));
    let off = World::new(64);
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        off.entry(table, 0, entry);
    }
    let root = off.shadow.create(L4).unwrap();
    for round in 0..10 {
        burst(&off, 4, 100, round);
        off.shadow.submit(root);
    }
    assert_eq!(off.shadow.stats().out_of_sync, 0, "off means off");
}

#[test]
fn whose_page_cannot_be_unmarked_comes_back_and_has_to_earn_longer() {
    let (world, root) = world();
    world.tracker.never_leaves.store(true, Ordering::Relaxed);
    let_go(&world, root);
    let mut rounds = 0;
    while !world.is_tracked(4) {
        burst(&world, 4, 8, 10 + rounds);
        world.shadow.submit(root);
        world.check(root, L4);
        rounds += 1;
        assert!(rounds < 100);
    }
    let stats = world.shadow.stats();
    assert_eq!((rounds, stats.traps_avoided), (4, 0));
    assert_eq!((stats.protected_again, stats.out_of_sync_in_vain), (1, 1));
    for round in 0..4 {
        assert!(world.is_tracked(4), "twice as many hot intervals");
        burst(&world, 4, 8, round);
        world.shadow.submit(root);
    }
    assert!(!world.is_tracked(4));
}

#[test]
fn only_the_address_spaces_that_reach_it_look_at_it() {
    let (world, root) = world();
    world.entry(11, 0, 0x1_2003);
    world.entry(0x12, 0, 0x1_3003);
    let other = world.shadow.create(Root::L4(Gfn(11))).unwrap();
    for round in 0..2 {
        burst(&world, 4, 8, round);
        world.shadow.submit(other);
    }
    assert!(world.is_tracked(4), "others' submissions are no intervals");
    let_go(&world, root);
    burst(&world, 4, 8, 20);
    (0..20).for_each(|_| world.shadow.submit(other));
    assert_eq!(world.shadow.stats().rereads, 0);
    assert!(!world.is_tracked(4));
    // The other one comes to share it: from now on its submissions read it as well, and show what is there.
    world.entry(0x13, 5, 0x4003);
    world.shadow.submit(other);
    assert_eq!(world.shadow.stats().rereads, 1);
    world.check(other, Root::L4(Gfn(11)));
    burst(&world, 4, 8, 30);
    world.shadow.submit(root);
    world.check(root, L4);
    // A directory, and all below it, shared with a 32-bit one.
    let l3 = Root::L3([None, Some(Gfn(3)), None, None]);
    let narrow = world.shadow.create(l3).unwrap();
    burst(&world, 4, 8, 40);
    world.shadow.submit(narrow);
    world.check(narrow, l3);
}

#[test]
fn a_table_that_ends_while_it_is_out_leaves_nothing_behind() {
    for never_leaves in [false, true] {
        let (world, root) = world();
        let_go(&world, root);
        let leaves = &world.tracker.never_leaves;
        leaves.store(never_leaves, Ordering::Relaxed);
        world.entry(3, 0, 0);
        assert_eq!(world.shadow.stats().out_of_sync_now, 0);
        world.entry(4, 0, 0xdead_beef);
        world.shadow.submit(root);
        world.check(root, L4);
        // It becomes a table again, and is one like any other.
        leaves.store(false, Ordering::Relaxed);
        world.entry(3, 1, 0x4003);
        world.check(root, L4);
        assert!(world.is_tracked(4));
        let_go(&world, root);
        world.shadow.destroy(root).unwrap();
        world.shadow.submit(root);
        assert!(world.tracker.tracked().is_empty());
        assert_eq!(world.shadow.stats().tables, 0);
        let structure = world.shadow.0.lock();
        assert!(structure.out.is_empty() && structure.hot.is_empty() && structure.heat.is_empty());
    }
}

/// The last write of a table that is gone by then says nothing of the one that has its number now.
#[test]
fn heat_is_not_inherited() {
    let (world, root) = world();
    world.entry(4, 0, 0x9003);
    let old = Arc::clone(world.shadow.0.lock().table_of(Gfn(4)).as_ref().unwrap());
    world.entry(3, 0, 0);
    world.entry(3, 0, 0x5003);
    let new = world.shadow.0.lock().table_of(Gfn(5)).unwrap();
    assert_eq!(new.id, old.id);
    for _ in 0..3 {
        world.shadow.0.warmed(&old);
        world.shadow.0.warmed(&old);
        world.shadow.submit(root);
    }
    assert!(world.shadow.0.lock().heat.is_empty());
    assert!(world.is_tracked(5));
}

#[test]
fn a_page_that_cannot_be_tracked_again_goes_on_being_read() {
    let (world, root) = world();
    let_go(&world, root);
    world.tracker.refuse.lock().unwrap().insert(4);
    (0..6).for_each(|_| world.shadow.submit(root));
    assert!(!world.is_tracked(4));
    assert_eq!(world.shadow.stats().track_failed, 3);
    burst(&world, 4, 8, 9);
    world.shadow.submit(root);
    world.check(root, L4);
    world.tracker.refuse.lock().unwrap().clear();
    (0..4).for_each(|_| world.shadow.submit(root));
    assert!(world.is_tracked(4));
}

#[test]
fn a_page_whose_tracking_cannot_be_ended_is_read_all_the_same() {
    let (world, root) = world();
    burst(&world, 4, 8, 0);
    world.shadow.submit(root);
    burst(&world, 4, 8, 1);
    world.tracker.keeps.store(true, Ordering::Relaxed);
    world.shadow.submit(root);
    let before = world.traps();
    burst(&world, 4, 8, 2);
    assert_eq!(world.traps(), before + 8, "it is tracked as before");
    world.shadow.submit(root);
    world.check(root, L4);
    let stats = world.shadow.stats();
    assert_eq!((stats.untracked_failed, stats.out_of_sync_now), (1, 1));
    assert_eq!(stats.traps_avoided, 0);
    world.entry(3, 0, 0);
    assert_eq!(world.shadow.stats().out_of_sync_now, 0);
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().untracked_failed, 1 + 3);
}

#[test]
fn no_more_than_the_bound_are_out() {
    let configure = |builder: ShadowBuilder| builder.out_of_sync(policy(4).at_most(1));
    let world = World::with(64, configure);
    for (table, index, entry) in [
        (1, 0, 0x2003),
        (2, 0, 0x3003),
        (3, 0, 0x4003),
        (3, 1, 0x5003),
    ] {
        world.entry(table, index, entry);
    }
    let root = world.shadow.create(L4).unwrap();
    for round in 0..8 {
        burst(&world, 4, 8, round);
        burst(&world, 5, 8, round);
        world.shadow.submit(root);
        world.check(root, L4);
    }
    assert_eq!(world.shadow.stats().out_of_sync_now, 1);
    assert_eq!(world.tracker.tracked().len(), 4);
}

/// A write that trapped before its table left, and is served while it leaves.
#[test]
fn a_write_while_its_table_leaves_is_not_lost() {
    let (world, root) = world();
    burst(&world, 4, 8, 0);
    world.shadow.submit(root);
    burst(&world, 4, 8, 1);
    let world = Arc::new(world);
    let (go, wait) = channel();
    let (done, finished) = channel();
    let writer = std::thread::spawn({
        let world = Arc::clone(&world);
        move || {
            wait.recv().unwrap();
            // One entry that has been read by now, and one that has not.
            world.entry(4, 0, 0x2_1003);
            let _nobody_waits = done.send(());
            world.entry(4, 300, 0x2_2003);
        }
    });
    *world.ram.1.lock().unwrap() = Some(Box::new(move |addr| {
        assert_eq!(addr, 0x4000, "the first entry is read as the table leaves");
        go.send(()).unwrap();
        let _in_time = finished.recv_timeout(Duration::from_millis(100));
    }));
    world.shadow.submit(root);
    assert_eq!(world.shadow.stats().out_of_sync, 1);
    writer.join().unwrap();
    world.shadow.submit(root);
    world.check(root, L4);
    let at = |addr| world.shadow.lookup(root, addr).unwrap().host.0 - DISTANCE;
    assert_eq!((at(0), at(300 << 12)), (0x2_1000, 0x2_2000));
}

#[test]
fn halves_are_made_whole_by_their_own_address_space_alone() {
    let (world, root) = world();
    let other = world.shadow.create(Root::L4(Gfn(11))).unwrap();
    world.entry(4, 0, 0x5003);
    world.write(0x4000, Width::B4, 0x6003);
    world.shadow.submit(other);
    let shown = world.shadow.lookup(root, 0).unwrap();
    assert!(shown.scratch, "its driver is between the two halves");
    world.shadow.submit(root);
    world.check(root, L4);
}
