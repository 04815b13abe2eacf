// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The map of tracked pages against a naive oracle, and against readers that look while it changes.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioreq_core::dispatch::{Counted, Grace, PageMap};
use ioreq_core::{ErrorKind, Gfn, GfnRange};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Change {
    Insert(u64, u64),
    Replace(u64, u64),
    Remove(u64, u64),
}

fn change(space: u64, longest: u64) -> impl Strategy<Value = Change> {
    (0..3, 0..space, 1..=longest).prop_map(move |(what, first, len)| {
        let len = len.min(space - first);
        match what {
            0 => Change::Insert(first, len),
            1 => Change::Replace(first, len),
            _ => Change::Remove(first, len),
        }
    })
}

fn pages(first: u64, len: u64) -> GfnRange {
    GfnRange::sized(first, len).unwrap()
}

proptest! {
    /// Frames of three leaves, with ranges across their ends.
    #[test]
    fn page_map_is_a_map(changes in prop::collection::vec(change(1300, 700), 1..40)) {
        let grace = Grace::new();
        let map = PageMap::new(Gfn(1299), grace.clone()).unwrap();
        let mut reader = grace.reader();
        let mut oracle: BTreeMap<u64, usize> = BTreeMap::new();
        for (number, change) in changes.into_iter().enumerate() {
            let route = Counted::new(number);
            match change {
                Change::Insert(first, len) => {
                    let taken = oracle.range(first..first + len).next().is_some();
                    let result = map.insert(pages(first, len), &route);
                    prop_assert_eq!(result.is_err(), taken);
                    if let Err(err) = result {
                        prop_assert_eq!(err.kind(), ErrorKind::RouteConflict);
                    } else {
                        oracle.extend((first..first + len).map(|gfn| (gfn, number)));
                    }
                }
                Change::Replace(first, len) => {
                    let whole = oracle.range(first..first + len).count() as u64 == len;
                    let result = map.replace(pages(first, len), &route);
                    prop_assert_eq!(result.is_ok(), whole);
                    if let Err(err) = result {
                        prop_assert_eq!(err.kind(), ErrorKind::NoSuchRoute);
                    } else {
                        oracle.extend((first..first + len).map(|gfn| (gfn, number)));
                    }
                }
                Change::Remove(first, len) => {
                    let before = oracle.len();
                    oracle.retain(|gfn, _| !(first..first + len).contains(gfn));
                    prop_assert_eq!(map.remove(pages(first, len)), (before - oracle.len()) as u64);
                }
            }
            prop_assert_eq!(map.len(), oracle.len() as u64);
            let guard = reader.enter();
            for gfn in 0..1310 {
                let found = map.find(Gfn(gfn), &guard).and_then(|page| page.route().copied());
                prop_assert_eq!(found, oracle.get(&gfn).copied());
            }
            let listed: Vec<u64> = map.ranges().iter().flat_map(GfnRange::iter).map(|gfn| gfn.0).collect();
            prop_assert_eq!(listed, oracle.keys().copied().collect::<Vec<_>>());
        }
        map.clear();
        prop_assert_eq!((map.len(), map.leaf_bytes()), (0, 0));
    }
}

/// What is done to the pages of a few routes: one page or some, and which route.
fn few_routes() -> impl Strategy<Value = (Change, usize)> {
    (change(600, 4), 0..3_usize)
}

proptest! {
    /// Pages of three routes come, move and go, mostly one at a time. A route is freed with its last page, and not before, whichever
    /// route's pages changed in between.
    #[test]
    fn a_route_lives_as_long_as_pages_lead_to_it(
        changes in prop::collection::vec(few_routes(), 1..80),
        order in Just((0..600_u64).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let grace = Grace::new();
        let map = PageMap::new(Gfn(599), grace.clone()).unwrap();
        let drops: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
        let routes: Vec<_> = drops.iter().map(|drops| Counted::new(Dropped(drops.clone()))).collect();
        let mut oracle: BTreeMap<u64, usize> = BTreeMap::new();
        for (change, which) in changes {
            match change {
                Change::Insert(first, len) if map.insert(pages(first, len), &routes[which]).is_ok() => {
                    oracle.extend((first..first + len).map(|gfn| (gfn, which)));
                }
                Change::Replace(first, len) if map.replace(pages(first, len), &routes[which]).is_ok() => {
                    oracle.extend((first..first + len).map(|gfn| (gfn, which)));
                }
                Change::Remove(first, len) => {
                    map.remove(pages(first, len));
                    oracle.retain(|gfn, _| !(first..first + len).contains(gfn));
                }
                _ => {}
            }
        }
        drop(routes);
        for gfn in order {
            map.remove(pages(gfn, 1));
            oracle.remove(&gfn);
            grace.collect();
            for (which, drops) in drops.iter().enumerate() {
                let lives = oracle.values().any(|route| *route == which);
                prop_assert_eq!(drops.load(Ordering::Relaxed), u64::from(!lives));
            }
        }
        prop_assert_eq!(map.leaf_bytes(), 0);
    }
}

#[test]
fn frames_beyond_the_map_are_an_error_that_says_so() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(0xff), grace.clone()).unwrap();
    let err = map.insert(pages(0xff, 2), &Counted::new(())).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    assert!(err.to_string().contains("last_gfn"), "{err}");
    assert_eq!(map.len(), 0);
    let mut reader = grace.reader();
    let guard = reader.enter();
    assert!(map.find(Gfn(u64::MAX), &guard).is_none());
    let too_big = PageMap::<()>::new(Gfn(1 << 40), grace.clone()).unwrap_err();
    assert_eq!(too_big.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_page_costs_nine_bytes_and_a_lone_one_a_leaf() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn((1 << 28) - 1), grace).unwrap();
    map.insert(pages(1 << 27, 1), &Counted::new(())).unwrap();
    assert_eq!(map.leaf_bytes(), 4608);
    map.insert(pages(0, 1 << 20), &Counted::new(())).unwrap();
    assert_eq!(map.leaf_bytes(), 4608 + 9 * (1 << 20));
}

/// Counts how often it has been dropped.
struct Dropped(Arc<AtomicU64>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_route_is_freed_once_when_its_last_page_and_last_reader_go() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(2047), grace.clone()).unwrap();
    let drops = Arc::new(AtomicU64::new(0));
    map.insert(pages(0, 1500), &Counted::new(Dropped(drops.clone())))
        .unwrap();
    map.remove(pages(0, 1499));
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 0, "a page still leads there");
    let mut reader = grace.reader();
    let guard = reader.enter();
    let found = map.find(Gfn(1499), &guard).unwrap();
    assert!(found.route().is_some());
    map.replace(pages(1499, 1), &Counted::new(Dropped(drops.clone())))
        .unwrap();
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 0, "a reader holds it");
    drop(guard);
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    drop(map);
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn a_leaf_that_leads_nowhere_stays_while_a_reader_may_look_at_it() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(2047), grace.clone()).unwrap();
    map.insert(pages(0, 1024), &Counted::new(7)).unwrap();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    assert_eq!(map.remove(pages(1024, 1024)), 0);
    assert_eq!(grace.backlog(), 0, "nothing was there");
    assert_eq!(map.remove(pages(0, 512)), 512);
    grace.collect();
    assert_eq!(grace.backlog(), 1, "the leaf; its route goes on");
    guard.quiesce();
    grace.collect();
    assert_eq!(grace.backlog(), 0);
    assert_eq!(
        map.find(Gfn(512), &guard).and_then(|page| page.route()),
        Some(&7)
    );
}

#[test]
fn the_peak_is_the_most_there_ever_was() {
    let map = PageMap::new(Gfn(2047), Grace::new()).unwrap();
    let route = Counted::new(());
    let mut seen = Vec::new();
    assert!(map.is_empty());
    for (insert, first, len) in [
        (true, 0, 3),
        (false, 0, 2),
        (true, 100, 1),
        (true, 200, 1),
        (true, 600, 2),
        (false, 0, 2048),
        (true, 0, 1),
    ] {
        if insert {
            map.insert(pages(first, len), &route).unwrap();
        } else {
            map.remove(pages(first, len));
        }
        let len = map.len();
        assert_eq!(map.is_empty(), len == 0);
        seen.push((len, map.peak()));
    }
    assert_eq!(
        seen,
        [(3, 3), (1, 3), (2, 3), (3, 3), (5, 5), (0, 5), (1, 5)]
    );
}

#[test]
fn neighbours_are_one_range_whatever_they_lead_to_and_whichever_leaf_they_are_in() {
    let map = PageMap::new(Gfn(4095), Grace::new()).unwrap();
    for (first, len) in [
        (510, 1),
        (511, 1),
        (512, 512),
        (1024, 3),
        (1028, 1),
        (4095, 1),
    ] {
        map.insert(pages(first, len), &Counted::new(first)).unwrap();
    }
    let all = [pages(510, 517), pages(1028, 1), pages(4095, 1)];
    assert_eq!(map.ranges(), all);
    assert_eq!(map.ranges_in(pages(0, 4096)), all);
    assert_eq!(map.ranges_in(pages(511, 2)), [pages(511, 2)]);
    assert_eq!(
        map.ranges_in(pages(1026, 3)),
        [pages(1026, 1), pages(1028, 1)]
    );
    assert_eq!(map.ranges_in(pages(2000, 100)), []);
}

#[test]
fn parking_ends_with_the_page_whoever_else_is_parked() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(0xfff), Arc::clone(&grace)).unwrap();
    let route = Counted::new("route");
    // Two leaves; the first has a page of which nobody says that it is parked.
    let (alone, neighbours) = (Gfn(3), GfnRange::sized(0x200, 4).unwrap());
    for pages in [alone.into(), Gfn(4).into(), neighbours] {
        map.insert(pages, &route).unwrap();
    }
    let is_free = |gfn: Gfn| {
        let mut reader = grace.reader();
        let guard = reader.enter();
        let page = map.find(gfn, &guard).unwrap();
        page.lock().is_ok()
    };
    assert!(map.park(alone) && map.park(Gfn(0x201)) && map.park(Gfn(0x202)));
    // One by one: each but the last goes while others are parked.
    assert_eq!(map.remove(Gfn(0x201).into()), 1);
    assert_eq!(map.remove(alone.into()), 1);
    assert!(!is_free(Gfn(0x202)), "not removed");
    assert_eq!(map.remove(Gfn(0x202).into()), 1);
    for gfn in [alone, Gfn(0x201), Gfn(0x202)] {
        map.insert(gfn.into(), &route).unwrap();
        assert!(is_free(gfn), "{gfn}");
    }
    // With nobody parked, pages come, go and are parked again.
    assert_eq!(map.remove(neighbours), 4);
    map.insert(neighbours, &route).unwrap();
    assert!(map.park(Gfn(0x200)) && !is_free(Gfn(0x200)));
    map.unpark(Gfn(0x200));
    map.unpark(Gfn(0x200));
    assert!(is_free(Gfn(0x200)));
    assert!(map.park(Gfn(0x203)));
    map.clear();
    map.insert(neighbours, &route).unwrap();
    assert!(is_free(Gfn(0x203)));
}

#[test]
fn a_page_is_parked_only_between_park_and_unpark() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(2047), grace.clone()).unwrap();
    map.insert(pages(5, 2), &Counted::new(())).unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    let page = map.find(Gfn(5), &guard).unwrap();
    assert!(!map.is_parked(Gfn(5), &guard));
    assert!(!map.park(Gfn(4)), "not tracked");
    let order = page.lock().unwrap();
    assert!(!map.park(Gfn(5)), "a write is being served");
    assert!(!map.is_parked(Gfn(5), &guard));
    drop(order);
    assert!(map.park(Gfn(5)));
    assert!(map.is_parked(Gfn(5), &guard));
    assert!(page.lock().is_err());
    assert!(!map.is_parked(Gfn(6), &guard) && !map.is_parked(Gfn(4), &guard));
    map.unpark(Gfn(5));
    assert!(!map.is_parked(Gfn(5), &guard));
    assert!(page.lock().is_ok());
}

#[test]
fn a_route_that_gets_more_pages_later_is_freed_with_its_last() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(2047), grace.clone()).unwrap();
    let drops = Arc::new(AtomicU64::new(0));
    let route = Counted::new(Dropped(drops.clone()));
    for first in [0, 700, 3] {
        map.insert(pages(first, 2), &route).unwrap();
    }
    map.replace(pages(3, 1), &route).unwrap();
    drop(route);
    assert_eq!(map.remove(pages(0, 5)), 4);
    grace.collect();
    assert_eq!(
        drops.load(Ordering::Relaxed),
        0,
        "two pages still lead there"
    );
    assert_eq!(map.remove(pages(0, 2048)), 2);
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn a_leaf_with_a_held_order_stays_so_that_a_page_never_has_two_orders() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(511), grace.clone()).unwrap();
    map.insert(pages(7, 1), &Counted::new(1)).unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    let page = map.find(Gfn(7), &guard).unwrap();
    let order = page.lock().unwrap();
    map.remove(pages(7, 1));
    assert_eq!(page.route(), None, "gone while its order is held");
    map.insert(pages(7, 1), &Counted::new(2)).unwrap();
    assert!(!map.park(Gfn(7)), "the same order, still held");
    assert_eq!(page.route(), Some(&2));
    drop(order);
    assert!(map.park(Gfn(7)));
    assert!(map.find(Gfn(7), &guard).unwrap().lock().is_err(), "parked");
    map.unpark(Gfn(7));
    drop(map.find(Gfn(7), &guard).unwrap().lock().unwrap());
    assert!(!map.park(Gfn(8)), "not tracked");
}

#[test]
fn a_leaf_that_could_not_go_goes_with_a_later_change() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(2047), grace.clone()).unwrap();
    map.insert(pages(519, 1), &Counted::new(1)).unwrap();
    map.insert(pages(1024, 1), &Counted::new(2)).unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    let order = map.find(Gfn(519), &guard).unwrap().lock().unwrap();
    assert_eq!(map.remove(pages(512, 512)), 1);
    assert_eq!(map.leaf_bytes(), 2 * 4608, "an order in it is held");
    drop(order);
    assert_eq!(map.remove(pages(1024, 1)), 1);
    assert_eq!(map.leaf_bytes(), 0);
}

#[test]
fn a_route_belongs_to_one_map() {
    let grace = Grace::new();
    let first = PageMap::new(Gfn(7), grace.clone()).unwrap();
    let second = PageMap::new(Gfn(7), Grace::new()).unwrap();
    let route = Counted::new(());
    first.insert(pages(0, 1), &route).unwrap();
    let err = second.insert(pages(0, 1), &route).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    second.insert(pages(0, 1), &Counted::new(())).unwrap();
    let err = second.replace(pages(0, 1), &route).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    first.clear();
    first.insert(pages(0, 1), &route).unwrap();
}

#[test]
fn a_refused_insertion_or_replacement_changes_nothing() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(2047), grace.clone()).unwrap();
    let drops = Arc::new(AtomicU64::new(0));
    let route = |name| Counted::new((name, Dropped(drops.clone())));
    let (old, new) = (route("old"), route("new"));
    map.insert(pages(1000, 1), &old).unwrap();
    let err = map.insert(pages(0, 2048), &new).unwrap_err();
    assert!(err.to_string().contains("0x3e8"), "names the page: {err}");
    let err = map.replace(pages(1000, 2), &new).unwrap_err();
    assert!(err.to_string().contains("0x3e9"), "names the page: {err}");
    assert_eq!(map.ranges(), [pages(1000, 1)]);
    assert_eq!(map.route_of(Gfn(1000)).unwrap().0, "old");
    drop(new);
    assert_eq!(drops.load(Ordering::Relaxed), 1, "nothing holds it");
}

#[test]
#[should_panic(expected = "another registry")]
fn a_guard_of_another_registry_finds_nothing() {
    let map = PageMap::<()>::new(Gfn(0), Grace::new()).unwrap();
    let other = Grace::new();
    let mut reader = other.reader();
    let guard = reader.enter();
    let _found = map.find(Gfn(0), &guard);
}

#[test]
fn the_order_is_released_by_a_panic() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(0), grace.clone()).unwrap();
    map.insert(pages(0, 1), &Counted::new(())).unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    let page = map.find(Gfn(0), &guard).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _order = page.lock().unwrap();
        panic!("handler");
    }));
    assert!(result.is_err());
    drop(page.lock().unwrap());
}

/// Readers look while one thread adds, replaces and removes: what they find is whole, alive and of the right page.
#[test]
fn readers_see_whole_routes_while_they_change() {
    struct Marked {
        number: u64,
        check: u64,
    }
    impl Drop for Marked {
        fn drop(&mut self) {
            self.check = 0;
        }
    }
    let route = |number: u64| {
        Counted::new(Marked {
            number,
            check: !number,
        })
    };
    let grace = Grace::new();
    let map: PageMap<Marked> = PageMap::new(Gfn(1023), grace.clone()).unwrap();
    let stop = AtomicBool::new(false);
    let found = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2_u64 {
            let (map, stop, found) = (&map, &stop, &found);
            let mut reader = grace.reader();
            scope.spawn(move || {
                let mut random = seed + 1;
                while !stop.load(Ordering::Relaxed) {
                    let mut guard = reader.enter();
                    for _ in 0..64 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        let gfn = Gfn(random >> 54);
                        if let Some(route) = map.find(gfn, &guard).and_then(|page| page.route()) {
                            assert_eq!(route.check, !route.number, "freed under a reader");
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        guard.quiesce();
                    }
                }
            });
        }
        for round in 0..2000_u64 {
            let range = pages(round * 37 % 700, 1 + round % 300);
            map.remove(range);
            map.insert(range, &route(round)).unwrap();
            map.replace(range, &route(round + 1)).unwrap();
            grace.collect();
        }
        while found.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    grace.synchronize().unwrap();
}
