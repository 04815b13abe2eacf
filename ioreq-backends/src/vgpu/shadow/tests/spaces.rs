// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Address spaces of both kinds: made, shared, ended.

use std::collections::BTreeSet;

use ioreq_core::{ErrorKind, Gfn};

use super::super::*;
use super::world::{DISTANCE, World};
use crate::vgpu::{Level, PageSize};

#[test]
fn a_whole_address_space_is_there_when_it_is_created() {
    let world = World::new(64);
    world.entry(1, 0, 0x2003); // PML4 → PDP
    world.entry(2, 511, 0x3003); // → PD
    world.entry(3, 1, 0x4003); // → PT
    world.entry(3, 2, 0x5803); // → PT of 64 KiB entries
    world.entry(4, 7, 0x20001);
    world.entry(5, 16, 0x10003);
    world.entry(5, 17, 0x10003); // not used
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert_eq!(world.traps(), 0);
    world.check(root, Root::L4(Gfn(1)));
    assert_eq!(world.tracker.tracked(), BTreeSet::from([1, 2, 3, 4, 5]));
    let addr = 511 << 30 | 1 << 21 | 7 << 12 | 5;
    let found = world.shadow.lookup(root, addr).unwrap();
    assert_eq!(
        (found.host, found.size, found.writable),
        (HostAddr(DISTANCE + 0x20005), PageSize::Small, false)
    );
    assert_eq!(
        world.shadow.lookup(root, 0).unwrap_err().step,
        Step::Table(Level::Pdp)
    );
    assert_eq!(
        world.shadow.lookup(root, 1 << 48).unwrap_err().step,
        Step::Root
    );
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
    assert_eq!(
        world.shadow.destroy(root).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn pages_of_every_size_follow_their_entries() {
    let world = World::new(1 << 18 | 1); // a little over 1 GiB
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(2, 3, 0x83); // 1 GiB
    world.entry(2, 4, 0x3003);
    world.entry(3, 0, 0x20_0083); // 2 MiB
    world.entry(3, 1, 0x4803);
    world.entry(4, 32, 0x7_0003); // 64 KiB
    world.entry(3, 2, 0x5003);
    world.entry(5, 1, 0x7_1003); // 4 KiB
    world.check(root, Root::L4(Gfn(1)));
    let sizes: Vec<_> = world
        .shadow
        .mappings(root)
        .iter()
        .map(|(_, to)| to.size)
        .collect();
    assert_eq!(
        sizes,
        [
            PageSize::Huge,
            PageSize::Large,
            PageSize::Medium,
            PageSize::Small
        ]
    );
    world.entry(2, 3, 0x4000_0083); // not wholly memory
    assert!(world.shadow.mappings(root)[0].1.scratch);
    assert_eq!(world.shadow.stats().bad_frames, 1);
    world.entry(2, 3, 0);
    world.check(root, Root::L4(Gfn(1)));
}

#[test]
fn a_shared_table_lives_until_its_last_parent_lets_go() {
    let world = World::new(64);
    for (table, index, entry) in [
        (1, 0, 0x2003),
        (2, 0, 0x3003),
        (2, 1, 0x3003),
        (3, 0, 0x4003),
        (4, 0, 0x9003),
    ] {
        world.entry(table, index, entry);
    }
    let first = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    let second = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert_eq!(world.shadow.stats().tables, 4);
    world.shadow.destroy(first).unwrap();
    world.check(second, Root::L4(Gfn(1)));
    world.entry(2, 0, 0);
    assert!(
        world.tracker.tracked().contains(&4),
        "reached by the other entry"
    );
    world.entry(2, 1, 0);
    assert_eq!(world.tracker.tracked(), BTreeSet::from([1, 2]));
    world.entry(4, 0, 0xdead_beef); // ordinary memory now
    world.check(second, Root::L4(Gfn(1)));
}

#[test]
fn a_32_bit_address_space_has_four_directories() {
    let world = World::new(64);
    world.entry(2, 0, 0x4003);
    world.entry(4, 1, 0x9003);
    let l3 = Root::L3([None, Some(Gfn(2)), None, Some(Gfn(3))]);
    let root = world.shadow.create(l3).unwrap();
    assert_eq!(world.shadow.find(l3), Some(root));
    assert_eq!(
        world.shadow.lookup(root, (1 << 30) + 0x1234).unwrap().host,
        HostAddr(DISTANCE + 0x9234)
    );
    assert_eq!(
        world.shadow.lookup(root, 0x1234).unwrap_err().step,
        Step::Root
    );
    world.entry(3, 511, 0x20_0083 & !0x20_0000);
    assert!(
        world.shadow.lookup(root, 0xffff_f000).unwrap().scratch,
        "2 MiB are not wholly memory"
    );
    assert!(world.shadow.lookup(root, 1 << 32).is_err());
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn the_bound_on_address_spaces_holds() {
    let world = World::with(64, |builder| builder.most_roots(2));
    let (l4, l3) = (
        Root::L4(Gfn(1)),
        Root::L3([Some(Gfn(2)), None, None, Some(Gfn(2))]),
    );
    let first = world.shadow.create(l4).unwrap();
    let directories = world.shadow.create(l3).unwrap();
    assert_eq!(
        world.shadow.create(l4).unwrap_err().kind(),
        ErrorKind::OutOfMemory
    );
    world.shadow.destroy(directories).unwrap();
    let second = world.shadow.create(l4).unwrap();
    assert_eq!(
        world.shadow.find(l4),
        Some(second),
        "the newest of the same root"
    );
    world.shadow.destroy(second).unwrap();
    assert_eq!(world.shadow.find(l4), Some(first));
    assert_eq!(
        world.shadow.destroy(second).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let directories = world.shadow.create(l3).unwrap();
    assert_eq!(world.shadow.find_l3(Gfn(2)), Some((directories, l3)));
    assert_eq!(world.shadow.find_l3(Gfn(1)), None, "that is no 32-bit one");
    assert_eq!(
        world
            .shadow
            .find(Root::L3([Some(Gfn(2)), None, None, None])),
        None
    );
    world.shadow.destroy(directories).unwrap();
    world.shadow.destroy(first).unwrap();
    assert_eq!(world.shadow.find(l4), None);
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn all_address_spaces_are_listed_oldest_first_and_end_together() {
    let world = World::new(64);
    assert_eq!(world.shadow.roots(), []);
    let roots = [
        Root::L4(Gfn(9)),
        Root::L3([Some(Gfn(2)), None, None, None]),
        Root::L4(Gfn(1)),
        Root::L4(Gfn(9)),
    ];
    for root in roots {
        world.shadow.create(root).unwrap();
    }
    assert_eq!(world.shadow.roots(), roots);
    world.shadow.destroy_all();
    assert_eq!(world.shadow.roots(), []);
    assert_eq!(world.shadow.stats().tables, 0);
    assert!(world.tracker.tracked().is_empty());
}
