// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a guest cannot do, and what is refused.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use ioreq_core::{ErrorKind, Gfn, Width};

use super::super::*;
use super::world::World;
use crate::vgpu::LinearMap;

#[test]
fn nothing_waits_for_a_submission_on_behalf_of_tables_that_are_gone() {
    let hot =
        |builder: ShadowBuilder| builder.out_of_sync(OutOfSync::after(NonZeroU32::new(4).unwrap()));
    let world = World::with(64, hot);
    for (table, entry) in [(1, 0x2003), (2, 0x3003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    for _ in 0..3 {
        world.entry(3, 0, 0x4003);
        world.entry(3, 1, 0x1003); // a clash
        world.write(0x3010, Width::B4, 0x5003);
        world.write(0x4000, Width::B2, 0x9003);
        (1..8).for_each(|index| world.entry(4, index, 0x9003));
        assert_eq!(world.shadow.0.lock().pending.len(), 2);
        world.entry(2, 0, 0);
        assert_eq!(world.tracker.tracked(), BTreeSet::from([1, 2]));
        assert!(world.shadow.0.lock().pending.is_empty());
        world.entry(2, 0, 0x3003);
        world.entry(3, 1, 0);
        world.entry(3, 2, 0);
        world.shadow.submit(root);
        world.check(root, Root::L4(Gfn(1)));
        world.entry(2, 0, 0);
        (0..8).for_each(|index| world.entry(4, index, 0));
        world.entry(3, 0, 0);
        world.entry(2, 0, 0x3003);
    }
}

#[test]
fn tables_that_bite_their_own_tails_end_at_the_scratch_page() {
    let world = World::new(64);
    world.entry(1, 0, 0x1003); // the root as its own PDP
    world.entry(1, 1, 0x2003);
    world.entry(2, 0, 0x2003); // a PDP as its own PD
    world.entry(2, 1, 0x3003);
    world.entry(3, 0, 0x1003); // the root as a PT
    world.entry(3, 1, 0xffff_ffff_f003); // no memory
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    // Whatever lies in such a span lies in the one scratch page.
    let shown = world
        .shadow
        .lookup(root, 1 << 39 | 1 << 30 | 1 << 21 | 0x1234)
        .unwrap();
    assert!(shown.scratch);
    assert_eq!(shown.host, HostAddr(SCRATCH.0 + 0x234));
    assert_eq!(world.shadow.stats().tables, 3);
    assert_eq!(
        (
            world.shadow.stats().clashes,
            world.shadow.stats().bad_frames
        ),
        (3, 1)
    );
    assert!(world.shadow.mappings(root).iter().all(|(_, to)| to.scratch));
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().tables, 0);
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn a_clash_is_resolved_once_the_other_use_is_gone() {
    let world = World::new(64);
    world.entry(1, 0, 0x2003);
    world.entry(2, 0, 0x3003);
    world.entry(3, 0, 0x4003); // 4 as a PT
    world.entry(4, 0, 0x9003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(2, 1, 0x4003); // 4 as a PD as well
    world.entry(3, 0, 0);
    world.shadow.submit(root);
    world.check(root, Root::L4(Gfn(1)));
}

#[test]
fn the_bound_on_tables_degrades_and_recovers() {
    let world = World::with(64, |builder| builder.most_tables(3));
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(2, 0, 0x3003);
    world.entry(2, 1, 0x4003);
    assert_eq!(
        (world.shadow.stats().tables, world.shadow.stats().over_bound),
        (3, 1)
    );
    assert!(world.shadow.create(Root::L4(Gfn(9))).unwrap_err().kind() == ErrorKind::OutOfMemory);
    world.entry(2, 0, 0);
    world.entry(4, 0, 0x83);
    world.shadow.submit(root);
    assert_eq!(world.shadow.stats().tables, 3, "there is room now");
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().tables, 0);
}

#[test]
fn a_page_that_cannot_be_tracked_is_not_shadowed() {
    let world = World::new(64);
    world.tracker.refuse.lock().unwrap().extend([2, 9]);
    assert_eq!(
        world.shadow.create(Root::L4(Gfn(9))).unwrap_err().kind(),
        ErrorKind::WrongState
    );
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert!(world.shadow.mappings(root)[0].1.scratch);
    world.tracker.refuse.lock().unwrap().clear();
    world.shadow.submit(root);
    world.check(root, Root::L4(Gfn(1)));
}

#[test]
fn bad_options_and_roots_are_refused() {
    let world = World::new(4);
    assert_eq!(
        world.shadow.create(Root::L4(Gfn(4))).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        world
            .shadow
            .create(Root::L4(Gfn(u64::MAX)))
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidArgument
    );
    let frames = Arc::new(LinearMap::new(world.ram.clone(), 0));
    let builder = || Shadow::builder(world.tracker.clone(), world.ram.clone(), frames.clone());
    for bad in [
        builder().most_tables(0),
        builder().most_tables(1 << 32),
        builder().most_roots(0),
    ] {
        assert_eq!(bad.build().unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

/// Frames may lie anywhere below the shadow tables: none is taken for the scratch page.
#[test]
fn every_host_address_is_told_from_the_scratch_page() {
    for shift in 16..45 {
        let host = 1_u64 << shift;
        let world = World::new(16);
        let frames = Arc::new(LinearMap::new(world.ram.clone(), host.wrapping_sub(0x9000)));
        let builder = Shadow::builder(world.tracker.clone(), world.ram.clone(), frames);
        let shadow = builder.out_of_sync(OutOfSync::off()).build().unwrap();
        for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003), (4, 0x9003)] {
            world.entry(table, 0, entry);
        }
        let root = shadow.create(Root::L4(Gfn(1))).unwrap();
        let shown = shadow.lookup(root, 0).unwrap();
        assert_eq!((shown.host, shown.scratch), (HostAddr(host), false));
    }
}
