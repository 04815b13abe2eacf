// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The maps of ranges against a naive list of intervals, and against readers that look while they change.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioreq_core::dispatch::{Grace, PortMap, RangeMap};
use ioreq_core::{MmioRange, PortRange};
use proptest::prelude::*;

/// Where something changes in the map's index, and the ends of the space.
const PLACES: [u64; 6] = [
    0,
    0x1000,
    0xe000_0000,
    0xe020_0000,
    1 << 40,
    u64::MAX - 0x7fff,
];

/// Lengths of ranges: within a page, of pages, of whole regions of 2 MiB and more.
fn len() -> impl Strategy<Value = u64> {
    prop_oneof![
        1_u64..64,
        1_u64..0x2000,
        (1_u64..5).prop_map(|pages| pages * 0x1000),
        (1_u64..4).prop_map(|regions| regions * 0x20_0000),
        0x1f_0000_u64..0x41_0000,
    ]
}

/// Addresses from 32 KiB below one of [`PLACES`] to 32 KiB above, near edges of pages more often than not.
fn addr() -> impl Strategy<Value = u64> {
    let offset = prop_oneof![
        0_u64..0x1_0000,
        (0_u64..16, 0_u64..16).prop_map(|(page, offset)| page * 0x1000 + offset),
    ];
    (prop::sample::select(&PLACES[..]), offset)
        .prop_map(|(place, offset)| place.saturating_add(offset).saturating_sub(0x8000))
}

fn range() -> impl Strategy<Value = MmioRange> {
    (addr(), len())
        .prop_map(|(first, len)| MmioRange::new(first, first.saturating_add(len - 1)).unwrap())
}

/// Accesses at the edges of everything that was ever there.
fn edges(seen: &[MmioRange]) -> Vec<(u64, u64)> {
    let mut probes = Vec::new();
    for range in seen {
        let (first, last) = (range.first(), range.last());
        for addr in [first, first | 0xfff, first | 0x1f_ffff, last & !0xfff, last] {
            for addr in [addr.saturating_sub(3), addr, addr.saturating_add(1)] {
                probes.extend([(addr, 1), (addr, 4)]);
            }
        }
        probes.push((first, (last - first).saturating_add(1)));
        probes.push((first, 0));
    }
    probes
}

proptest! {
    #[test]
    fn range_map_matches_whole_accesses(
        changes in prop::collection::vec((0..4, range(), any::<prop::sample::Index>()), 1..24),
        probes in prop::collection::vec((addr(), 1_u64..10), 32),
    ) {
        let grace = Grace::new();
        let map = RangeMap::new(grace.clone());
        let mut reader = grace.reader();
        let mut oracle: Vec<(MmioRange, usize)> = Vec::new();
        let mut seen = Vec::new();
        for (number, (what, range, which)) in changes.into_iter().enumerate() {
            let there = (!oracle.is_empty()).then(|| which.index(oracle.len()));
            match (what, there) {
                (0, Some(at)) => {
                    let gone = oracle.swap_remove(at).0;
                    prop_assert!(map.remove(gone));
                    prop_assert!(!map.remove(gone));
                }
                (1, Some(at)) => {
                    let (range, value) = &mut oracle[at];
                    *value = number;
                    prop_assert!(map.replace(*range, number));
                }
                _ => {
                    let conflict = oracle.iter().find(|(other, _)| other.overlaps(&range));
                    match map.insert(range, number) {
                        Ok(()) => {
                            prop_assert_eq!(conflict, None);
                            oracle.push((range, number));
                            seen.push(range);
                        }
                        Err(err) => {
                            let there = (err.existing().range(), **err.existing());
                            prop_assert!(there.0.overlaps(&range) && oracle.contains(&there));
                        }
                    }
                }
            }
            // A part of a range, or more than it, is not a range.
            if let Some((range, _)) = oracle.first()
                && let Ok(part) = MmioRange::new(range.first(), range.last().wrapping_sub(1))
            {
                prop_assert!(!map.remove(part) && !map.replace(part, 0));
            }
            let guard = reader.enter();
            for (addr, len) in probes.iter().copied().chain(edges(&seen)) {
                let expected = oracle.iter().find(|(range, _)| range.covers(addr, len));
                let found = map.find(addr, len, &guard);
                prop_assert_eq!(found, expected.map(|(_, value)| value), "{:#x}+{}", addr, len);
            }
        }
    }

    #[test]
    fn port_map_matches_whole_accesses(
        changes in prop::collection::vec((0..4, 0_u16..=u16::MAX, 1_u64..64, any::<prop::sample::Index>()), 1..40),
        probes in prop::collection::vec((0_u16..=u16::MAX, 1_u64..=8), 32),
    ) {
        let grace = Grace::new();
        let map = PortMap::new(grace.clone());
        let mut reader = grace.reader();
        let mut oracle: Vec<(PortRange, usize)> = Vec::new();
        for (number, (what, first, len, which)) in changes.into_iter().enumerate() {
            let there = (!oracle.is_empty()).then(|| which.index(oracle.len()));
            match (what, there) {
                (0, Some(at)) => {
                    let gone = oracle.swap_remove(at).0;
                    prop_assert!(map.remove(gone) && !map.remove(gone));
                }
                (1, Some(at)) => {
                    let (range, value) = &mut oracle[at];
                    *value = number;
                    prop_assert!(map.replace(*range, number));
                }
                _ => {
                    let len = len.min(0x1_0000 - u64::from(first));
                    let range = PortRange::sized(first, len).unwrap();
                    let free = !oracle.iter().any(|(other, _)| other.overlaps(&range));
                    prop_assert_eq!(map.insert(range, number).is_ok(), free);
                    if free {
                        oracle.push((range, number));
                    }
                }
            }
            let guard = reader.enter();
            let edges = oracle.iter().flat_map(|(range, _)| {
                let (first, last) = (range.first(), range.last());
                [first, last, first.wrapping_sub(1), last.wrapping_add(1), last.wrapping_sub(3)]
            });
            for (port, len) in probes.iter().copied().chain(edges.map(|port| (port, 4))) {
                let expected = oracle.iter().find(|(range, _)| range.covers(port, len));
                prop_assert_eq!(map.find(port, len, &guard), expected.map(|(_, value)| value));
            }
        }
    }
}

#[test]
fn the_ends_of_the_space_belong_to_it() {
    let grace = Grace::new();
    let map = RangeMap::new(grace.clone());
    let one = |addr| MmioRange::new(addr, addr).unwrap();
    map.insert(one(u64::MAX), "top").unwrap();
    map.insert(one(0), "bottom").unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    assert_eq!(map.find(u64::MAX, 1, &guard), Some(&"top"));
    assert_eq!(map.find(u64::MAX, 2, &guard), None);
    assert_eq!(map.find(0, 1, &guard), Some(&"bottom"));
    assert_eq!(map.find(0, 2, &guard), None);
    assert!(
        map.insert(MmioRange::new(0, u64::MAX).unwrap(), "all")
            .is_err()
    );
}

#[test]
fn one_range_may_be_all_of_the_space() {
    let grace = Grace::new();
    let map = RangeMap::new(grace.clone());
    let all = MmioRange::new(0, u64::MAX).unwrap();
    map.insert(all, "all").unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    for addr in [0, 0x1f_fffd, (1 << 40) - 2, 1 << 40, u64::MAX - 3] {
        assert_eq!(map.find(addr, 4, &guard), Some(&"all"));
    }
    assert_eq!(map.find(u64::MAX - 2, 4, &guard), None);
    assert!(map.remove(all));
    assert_eq!(map.find(1 << 40, 1, &guard), None);
    map.insert(MmioRange::new(1, u64::MAX - 1).unwrap(), "most")
        .unwrap();
    assert_eq!(map.find(0, 1, &guard), None);
    assert_eq!(map.find(1, 1, &guard), Some(&"most"));
    assert_eq!(map.find(u64::MAX, 1, &guard), None);
}

/// Two ranges with equal routes side by side are still two: an access that lies in neither is nobody's.
/// Below 2^40 an index leads to ranges, above a list.
#[test]
fn ranges_at_the_border_of_the_index_hide_nobody() {
    const BORDER: u64 = 1 << 40;
    let others = [BORDER - 0x100, BORDER + 0x100, BORDER << 1];
    for last in BORDER - 2..BORDER + 3 {
        for len in [1, 2, 4] {
            let grace = Grace::new();
            let map = RangeMap::new(grace.clone());
            let mut reader = grace.reader();
            let guard = reader.enter();
            for other in others {
                map.insert(MmioRange::sized(other, 8).unwrap(), other)
                    .unwrap();
            }
            let first = last + 1 - len;
            let range = MmioRange::sized(first, len).unwrap();
            let found = |addr| map.find(addr, 1, &guard).copied();
            map.insert(range, first).unwrap();
            for addr in BORDER - 8..BORDER + 8 {
                let here = (first..=last).contains(&addr).then_some(first);
                assert_eq!(found(addr), here, "{addr:#x} with {range}");
            }
            assert_eq!(map.find(first, len, &guard), Some(&first));
            assert_eq!(others.map(found), others.map(Some), "with {range}");
            assert!(map.remove(range));
            assert_eq!(found(first).or(found(last)), None);
            assert_eq!(others.map(found), others.map(Some), "without {range}");
        }
    }
}

#[test]
fn neighbours_do_not_merge() {
    let grace = Grace::new();
    let map = RangeMap::new(grace.clone());
    map.insert(MmioRange::sized(0x1000, 0x1000).unwrap(), ())
        .unwrap();
    map.insert(MmioRange::sized(0x2000, 0x1000).unwrap(), ())
        .unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    assert!(map.find(0x1ffe, 2, &guard).is_some());
    assert!(map.find(0x1ffe, 4, &guard).is_none());
}

/// A part of a range is not a range: the rest of its ports would lead to what was freed.
#[test]
fn part_of_a_port_range_cannot_be_removed_or_replaced() {
    let grace = Grace::new();
    let map = PortMap::new(grace.clone());
    let whole = PortRange::new(0x100, 0x107).unwrap();
    map.insert(whole, "whole").unwrap();
    map.insert(PortRange::new(0x108, 0x108).unwrap(), "neighbour")
        .unwrap();
    for other in [PortRange::new(0x100, 0x103), PortRange::new(0x100, 0x108)] {
        assert!(!map.remove(other.unwrap()));
        assert!(!map.replace(other.unwrap(), "other"));
    }
    grace.synchronize().unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    assert_eq!(map.find(0x104, 4, &guard), Some(&"whole"));
    assert_eq!(map.find(0x108, 1, &guard), Some(&"neighbour"));
}

/// Says if it is looked at after it was dropped, and counts drops.
struct Marked {
    number: u64,
    check: u64,
    drops: Arc<AtomicU64>,
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.check = 0;
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn routes_are_freed_once_and_not_before_their_readers_are_done() {
    let (grace, drops) = (Grace::new(), Arc::new(AtomicU64::new(0)));
    let route = || Marked {
        number: 1,
        check: !1,
        drops: drops.clone(),
    };
    let (map, ports) = (RangeMap::new(grace.clone()), PortMap::new(grace.clone()));
    let range = MmioRange::sized(0xfff, 2).unwrap();
    let port = PortRange::new(7, 9).unwrap();
    map.insert(range, route()).unwrap();
    ports.insert(port, route()).unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    let found = (
        map.find(0xfff, 2, &guard).unwrap(),
        ports.find(8, 2, &guard).unwrap(),
    );
    assert!(map.remove(range) && ports.remove(port));
    drop((map, ports));
    grace.collect();
    assert_eq!((found.0.check, found.1.check), (!1, !1));
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    drop(guard);
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    assert_eq!(grace.backlog(), 0);
}

/// What a reader found last is remembered by the reader: it goes with its route, and belongs to no other map.
#[test]
fn what_was_found_last_goes_with_its_route() {
    let grace = Grace::new();
    let (map, other) = (RangeMap::new(grace.clone()), RangeMap::new(grace.clone()));
    let (range, beside) = (
        MmioRange::sized(0x1000, 0x1000).unwrap(),
        MmioRange::sized(0x2000, 0x1000).unwrap(),
    );
    map.insert(range, 1).unwrap();
    other.insert(range, 2).unwrap();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    for _ in 0..2 {
        assert_eq!(map.find(0x1ffc, 4, &guard), Some(&1));
        assert_eq!(map.find(0x1ffd, 4, &guard), None, "not wholly inside");
        assert_eq!(map.find(0xffc, 4, &guard), None, "below");
        assert_eq!(other.find(0x1ffc, 4, &guard), Some(&2));
        guard.quiesce();
    }
    assert_eq!(map.find(0x1000, 4, &guard), Some(&1));
    map.insert(beside, 3).unwrap();
    assert_eq!(map.find(0x1000, 4, &guard), Some(&1));
    assert_eq!(map.find(0x2000, 4, &guard), Some(&3));
    assert_eq!(map.find(0x1000, 4, &guard), Some(&1));
    assert!(map.replace(range, 4));
    assert_eq!(map.find(0x1000, 4, &guard), Some(&4));
    assert!(map.remove(range));
    assert_eq!(map.find(0x1000, 4, &guard), None);
    assert_eq!(other.find(0x1000, 4, &guard), Some(&2));
    drop(other);
    // Where the other was, perhaps.
    let other = RangeMap::new(grace.clone());
    assert_eq!(other.find(0x1000, 4, &guard), None);
    other.insert(range, 5).unwrap();
    assert_eq!(other.find(0x1000, 4, &guard), Some(&5));
    // A reader that was off line while a route went.
    let mut sleeper = grace.reader();
    assert_eq!(map.find(0x2000, 4, &sleeper.enter()), Some(&3));
    assert!(map.remove(beside));
    assert_eq!(map.find(0x2000, 4, &sleeper.enter()), None);
}

/// A shorter route comes to the place, in the space and in memory, of the one that a reader found last; and the map itself moves.
#[test]
fn what_was_found_last_has_the_bounds_of_what_is_there_now() {
    let grace = Grace::new();
    let mut map = RangeMap::new(grace.clone());
    let mut reader = grace.reader();
    // In a table; by itself; far up, where there is but one link.
    for (base, neighbour) in [(0x1000, true), (0x4000_0000, false), (1 << 50, false)] {
        let (long, short) = (
            MmioRange::sized(base, 0x1000).unwrap(),
            MmioRange::sized(base, 0x100).unwrap(),
        );
        if neighbour {
            map.insert(MmioRange::sized(base + 0x1000, 1).unwrap(), 0)
                .unwrap();
        }
        for _ in 0..8 {
            map.insert(long, 1).unwrap();
            assert_eq!(map.find(base + 0xffc, 4, &reader.enter()), Some(&1));
            map = *std::hint::black_box(Box::new(map));
            assert_eq!(map.find(base + 0xffc, 4, &reader.enter()), Some(&1));
            assert!(map.remove(long));
            grace.collect();
            map.insert(short, 2).unwrap();
            let guard = reader.enter();
            assert_eq!(map.find(base + 0xffc, 4, &guard), None);
            assert_eq!(map.find(base + 0xfe, 4, &guard), None, "not wholly inside");
            assert_eq!(map.find(base + 0xfc, 4, &guard), Some(&2));
            assert!(map.remove(short));
        }
    }
}

/// Readers look while one thread adds, replaces and removes neighbours in shared pages: what they find is alive, and of the
/// range that was asked for.
#[test]
fn readers_see_whole_routes_while_ranges_change() {
    let (grace, drops) = (Grace::new(), Arc::new(AtomicU64::new(0)));
    let route = |number: u64| Marked {
        number,
        check: !number,
        drops: drops.clone(),
    };
    let map = RangeMap::new(grace.clone());
    let ports = PortMap::new(grace.clone());
    let (stop, found) = (AtomicBool::new(false), AtomicU64::new(0));
    const STEP: u64 = 0x700;
    let range = |number: u64| MmioRange::sized(0x1f_0000 + number * STEP, STEP - 8).unwrap();
    let port = |number: u64| PortRange::sized(u16::try_from(number * 8).unwrap(), 8).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..2_u64 {
            let (map, ports, stop, found) = (&map, &ports, &stop, &found);
            let mut reader = grace.reader();
            scope.spawn(move || {
                let mut random = seed + 1;
                while !stop.load(Ordering::Relaxed) {
                    let mut guard = reader.enter();
                    for _ in 0..64 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        let number = random >> 58;
                        let here: [Option<&Marked>; 2] = [
                            map.find(range(number).first() + 4, 4, &guard),
                            ports.find(port(number).first() + 4, 4, &guard),
                        ];
                        for route in here.into_iter().flatten() {
                            assert_eq!(route.check, !route.number, "freed under a reader");
                            assert_eq!(route.number % 64, number, "another range's route");
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        guard.quiesce();
                    }
                }
            });
        }
        for round in 0..20_000_u64 {
            let number = round * 37 % 64;
            if !map.remove(range(number)) {
                map.insert(range(number), route(number)).unwrap();
                ports.insert(port(number), route(number)).unwrap();
                map.replace(range(number), route(number + 64));
                ports.replace(port(number), route(number + 64));
            } else {
                assert!(ports.remove(port(number)));
            }
            grace.collect();
        }
        while found.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop((map, ports));
    grace.synchronize().unwrap();
    assert_eq!(grace.backlog(), 0);
}
