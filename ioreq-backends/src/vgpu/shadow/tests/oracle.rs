// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whatever a guest writes: the shadow is what a naive walk finds, and nothing is left behind.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use ioreq_core::{Gfn, Width};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::*;
use super::world::World;

/// The address spaces that come and go; they share tables below their roots.
const SPACES: [Root; 3] = [
    Root::L4(Gfn(1)),
    Root::L4(Gfn(13)),
    Root::L3([Some(Gfn(4)), None, Some(Gfn(5)), Some(Gfn(6))]),
];

#[derive(Debug, Clone)]
enum Deed {
    /// A write of the guest: table page, bytes of it, value.
    Write {
        table: u64,
        offset: u64,
        width: Width,
        value: u64,
    },
    /// Some entries of a last-level table, one after the other.
    Burst { table: u64, frame: u64 },
    /// Work is submitted in an address space.
    Submit(usize),
    /// An address space begins or ends.
    Toggle(usize),
    /// A page cannot be tracked from now on.
    Refuse(u64),
    /// All can be again.
    Relent,
    /// Pages that are to be unmarked stay marked from now on, or no longer.
    Stick(bool),
}

/// Tables have fixed levels (1, 13: PML4, 2–3: PDP, 4–6: PD, 7–10: PT, 11–12: PT of 64 KiB), so that there are no clashes.
fn entry_for(table: u64) -> BoxedStrategy<u64> {
    let flags = prop_oneof![4 => Just(3_u64), 1 => Just(1), 1 => Just(0)];
    let page = (0_u64..40).prop_map(|gfn| gfn << 12);
    match table {
        1 | 13 => ((2_u64..4), flags)
            .prop_map(|(to, flags)| to << 12 | flags)
            .boxed(),
        2..=3 => ((4_u64..7), flags)
            .prop_map(|(to, flags)| to << 12 | flags)
            .boxed(),
        4..=6 => prop_oneof![
            ((7_u64..11), flags.clone()).prop_map(|(to, flags)| to << 12 | flags),
            ((11_u64..13), flags.clone()).prop_map(|(to, flags)| to << 12 | flags | 0x800),
            flags.prop_map(|flags| flags | 0x80),
        ]
        .boxed(),
        _ => (page, flags).prop_map(|(page, flags)| page | flags).boxed(),
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    let write = (1_u64..14).prop_flat_map(|table| {
        let index = prop_oneof![0_u64..3, Just(16), Just(511)];
        (Just(table), index, entry_for(table), 0..6)
    });
    let write = write.prop_map(|(table, index, value, how)| {
        let (offset, width, value) = match how {
            0 => (0, Width::B4, value & 0xffff_ffff),
            1 => (4, Width::B4, 0),
            2 => (0, Width::B2, value & 0xffff),
            _ => (0, Width::B8, value),
        };
        Deed::Write {
            table,
            offset: index * 8 + offset,
            width,
            value,
        }
    });
    let table = prop_oneof![2 => Just(7_u64), 2 => Just(11), 1 => 7_u64..13];
    let burst = (table, 0_u64..40).prop_map(|(table, frame)| Deed::Burst { table, frame });
    prop_oneof![
        16 => write,
        8 => burst,
        6 => (0_usize..3).prop_map(Deed::Submit),
        2 => (0_usize..3).prop_map(Deed::Toggle),
        1 => any::<bool>().prop_map(Deed::Stick),
        1 => (1_u64..14).prop_map(Deed::Refuse),
        3 => Just(Deed::Relent),
    ]
}

fn act(world: &World, open: &mut [Option<RootId>; 3], deed: Deed) {
    match deed {
        Deed::Write {
            table,
            offset,
            width,
            value,
        } => world.write((table << 12) + offset, width, value),
        Deed::Burst { table, frame } => {
            for index in 0..4 {
                world.entry(table, index * 16, (frame + index) << 12 | 3);
            }
        }
        Deed::Submit(number) => {
            if let Some(id) = open[number] {
                world.shadow.submit(id);
                // With pages that cannot be tracked it shows less than is there.
                if world.tracker.refuse.lock().unwrap().is_empty() {
                    world.check(id, SPACES[number]);
                }
            }
        }
        Deed::Toggle(number) => match open[number].take() {
            Some(id) => world.shadow.destroy(id).unwrap(),
            None => {
                open[number] = world.shadow.create(SPACES[number]).ok();
                let refused = !world.tracker.refuse.lock().unwrap().is_empty();
                assert!(refused || open[number].is_some());
            }
        },
        Deed::Refuse(gfn) => {
            world.tracker.refuse.lock().unwrap().insert(gfn);
        }
        Deed::Relent => world.tracker.refuse.lock().unwrap().clear(),
        Deed::Stick(stick) => world.tracker.never_leaves.store(stick, Ordering::Relaxed),
    }
}

#[test]
fn the_shadow_is_what_a_naive_walk_finds() {
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let deeds = prop::collection::vec(deed(), 1..160);
    let (left, came_back) = (AtomicU64::new(0), AtomicU64::new(0));
    let result = TestRunner::new(config).run(&(deeds, any::<bool>()), |(deeds, hot)| {
        let policy = match hot {
            true => OutOfSync::after(NonZeroU32::new(2).unwrap()),
            false => OutOfSync::off(),
        };
        let world = World::with(1024, |builder| builder.out_of_sync(policy));
        let mut open = [None; 3];
        // They are there at first, or most deeds would be for nothing.
        (0..3).for_each(|number| act(&world, &mut open, Deed::Toggle(number)));
        for (table, entry) in [
            (1, 0x2003),
            (13, 0x3003),
            (2, 0x4003),
            (4, 0x7003),
            (5, 0xb803),
        ] {
            world.entry(table, 0, entry);
        }
        for deed in deeds {
            act(&world, &mut open, deed);
        }
        act(&world, &mut open, Deed::Relent);
        (0..3).for_each(|number| act(&world, &mut open, Deed::Submit(number)));
        let stats = world.shadow.stats();
        left.fetch_add(stats.out_of_sync, Ordering::Relaxed);
        came_back.fetch_add(stats.protected_again, Ordering::Relaxed);
        let tracked = world.tracker.tracked().len() as u64;
        prop_assert_eq!(
            tracked,
            stats.tables - stats.out_of_sync_now,
            "tracked is what is a table in sync"
        );
        for id in open.into_iter().flatten() {
            world.shadow.destroy(id).unwrap();
        }
        prop_assert_eq!(world.shadow.stats().tables, 0);
        prop_assert_eq!(world.shadow.stats().out_of_sync_now, 0);
        prop_assert!(world.tracker.tracked().is_empty());
        Ok(())
    });
    result.unwrap_or_else(|err| panic!("{err}"));
    let (left, came_back) = (left.into_inner(), came_back.into_inner());
    assert!(
        left > 10 && came_back > 0,
        "hardly any went out of sync: {left}, {came_back} came back"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Arbitrary bytes as tables: nothing is promised of what is shown, but that it ends, and that nothing is left behind.
    #[test]
    fn garbage_leaves_nothing_behind(words in prop::collection::vec((0_u64..16 * 512, any::<u64>(), 0_u64..20), 1..200)) {
        let policy = OutOfSync::after(NonZeroU32::MIN);
        let world = World::with(16, |builder| builder.out_of_sync(policy));
        let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
        let l3 = world.shadow.create(Root::L3([Some(Gfn(2)), Some(Gfn(3)), None, None])).unwrap();
        for (number, (word, value, gfn)) in words.into_iter().enumerate() {
            world.write(word * 8, Width::B8, value & !0x3fff_ffff_f000 | gfn << 12 | 1);
            if number % 16 == 0 {
                world.shadow.submit(root);
            }
        }
        world.shadow.submit(root);
        world.shadow.submit(l3);
        let _shown = (world.shadow.mappings(root), world.shadow.mappings(l3));
        world.shadow.destroy(root).unwrap();
        world.shadow.destroy(l3).unwrap();
        prop_assert_eq!(world.shadow.stats().tables, 0);
        prop_assert!(world.tracker.tracked().is_empty());
    }
}
