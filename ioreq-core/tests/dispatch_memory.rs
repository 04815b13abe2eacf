// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the routing structures take they give back, and what readers may look at they keep till then.
#![cfg(not(loom))]

mod counting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioreq_core::claim::PageTracker;
use ioreq_core::dispatch::{Counted, Grace, PageMap, PortMap, RangeMap};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq_core::server::{IoreqServer, PanicPolicy};
use ioreq_core::{Gfn, GfnRange, MmioRange, PortRange};
use ioreq_sim::{DomainConfig, Machine};

use counting::held_by;

/// Bytes that this thread still holds of what it allocated in `work`.
fn kept_by(work: impl FnOnce()) -> isize {
    // What is made once per thread.
    Grace::new().reader().enter().quiesce();
    held_by(work).0
}

/// So much of a route's own: that it is not freed shows.
type Heavy = Box<[u8; 1000]>;

fn heavy() -> Heavy {
    Box::new([0; 1000])
}

fn mmio(first: u64, len: u64) -> MmioRange {
    MmioRange::sized(first, len).unwrap()
}

/// Ranges that need tables of every kind, and a list: alone in a region, neighbours in a region, in a page, in a line, and far up.
fn ranges() -> Vec<MmioRange> {
    let near = [
        (0x40_0000, 0x1000),
        (0x80_0000, 0x1000),
        (0x80_5000, 0x1800),
        (0x80_7000, 0x40),
        (0x80_7041, 2),
        (0x80_7043, 1),
        (0x80_70ff, 0x10),
    ];
    let far = [(1 << 50, 0x1000), (1 << 51, 0x100), (1 << 52, 8)];
    near.into_iter()
        .chain(far)
        .map(|(first, len)| mmio(first, len))
        .collect()
}

#[test]
fn ranges_give_back_all_they_took() {
    for all_go_before_the_map in [true, false] {
        let kept = kept_by(|| {
            let grace = Grace::new();
            let map = RangeMap::new(grace.clone());
            for range in ranges() {
                map.insert(range, heavy()).unwrap();
                assert!(map.replace(range, heavy()));
            }
            for range in ranges().into_iter().filter(|_| all_go_before_the_map) {
                assert!(map.remove(range));
            }
            drop(map);
            assert_eq!(grace.backlog(), 0, "nobody reads");
        });
        assert_eq!(kept, 0);
    }
}

#[test]
fn tables_go_with_the_last_range_that_needs_them() {
    let grace = Grace::new();
    let map = RangeMap::new(grace.clone());
    let lone = mmio(0x40_0000, 0x1000);
    map.insert(lone, heavy()).unwrap();
    let come_and_go = |map: &RangeMap<_>| {
        for range in ranges() {
            if range != lone {
                map.insert(range, heavy()).unwrap();
            }
        }
        for range in ranges() {
            if range != lone {
                assert!(map.remove(range));
            }
        }
        grace.collect();
    };
    // The backlog has its room from then on.
    come_and_go(&RangeMap::new(grace.clone()));
    let kept = kept_by(|| come_and_go(&map));
    // The list of ranges may keep a node; no table (512 bytes and more) and no route.
    assert!(kept < 512, "{kept} bytes are still held");
}

#[test]
fn a_list_stays_while_a_reader_may_look_at_it() {
    let grace = Grace::new();
    let map = RangeMap::new(grace.clone());
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    let far = |number: u64| mmio((1 << 50) + number * 0x1000, 0x1000);
    map.insert(mmio(0x1000, 0x1000), 0).unwrap();
    map.insert(far(0), 0).unwrap();
    assert_eq!(
        grace.backlog(),
        0,
        "no reader can have seen anything that is gone"
    );
    map.insert(far(1), 1).unwrap(); // from one range to a list of two
    assert_eq!(grace.backlog(), 0);
    map.insert(far(2), 2).unwrap(); // another list
    grace.collect();
    assert_eq!(grace.backlog(), 1, "a reader may look at the list of two");
    assert_eq!(map.find(far(1).first(), 8, &guard), Some(&1));
    guard.quiesce();
    grace.collect();
    assert_eq!(grace.backlog(), 0);
}

#[test]
fn ports_give_back_all_they_took() {
    for all_go_before_the_map in [true, false] {
        let kept = kept_by(|| {
            let grace = Grace::new();
            let map = PortMap::new(grace.clone());
            for first in [0, 0x60, 0xfff8] {
                let range = PortRange::sized(first, 8).unwrap();
                map.insert(range, heavy()).unwrap();
                assert!(map.replace(range, heavy()));
                assert!(!all_go_before_the_map || map.remove(range));
            }
            drop(map);
            assert_eq!(grace.backlog(), 0, "nobody reads");
        });
        assert_eq!(kept, 0);
    }
}

struct Table(#[allow(dead_code, reason = "a handler has a size")] u64);

impl PageHandler for Table {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

struct Dropped(Arc<AtomicU64>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_was_found_outlives_its_map() {
    let (grace, drops) = (Grace::new(), Arc::new(AtomicU64::new(0)));
    let route = || Dropped(drops.clone());
    let (range, ports) = (mmio(0x1000, 8), PortRange::sized(0x60, 1).unwrap());
    let (ranges_map, ports_map) = (RangeMap::new(grace.clone()), PortMap::new(grace.clone()));
    let pages = PageMap::new(Gfn(0xfff), grace.clone()).unwrap();
    ranges_map.insert(range, route()).unwrap();
    ports_map.insert(ports, route()).unwrap();
    pages
        .insert(GfnRange::sized(1, 2).unwrap(), &Counted::new(route()))
        .unwrap();
    let mut reader = grace.reader();
    let guard = reader.enter();
    let found = (
        ranges_map.find(0x1000, 8, &guard).unwrap(),
        ports_map.find(0x60, 1, &guard).unwrap(),
        pages.find(Gfn(1), &guard).unwrap().route().unwrap(),
    );
    drop((ranges_map, ports_map, pages));
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 0, "a reader holds them");
    assert_eq!(
        [&found.0.0, &found.1.0, &found.2.0].map(Arc::strong_count),
        [4; 3]
    );
    drop(guard);
    grace.collect();
    assert_eq!(drops.load(Ordering::Relaxed), 3);
}

/// Of the tracker's way, with its statistics and its guard against panics: nothing for a page but its place in a leaf.
#[test]
fn pages_with_a_handler_each_take_nine_bytes() {
    for policy in [PanicPolicy::KeepServing, PanicPolicy::BreakRoute] {
        let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
        let server = IoreqServer::builder(domain.hypervisor()).on_panic(policy);
        let server = server.build().unwrap();
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("tables");
        let (first, last) = (0x200, 0xbff);
        let handler = |number| -> Arc<dyn PageHandler> { Arc::new(Table(number)) };
        let handlers: Vec<_> = (first..=last).map(handler).collect();
        let each = || {
            let each = (first..=last).map(Gfn).zip(handlers.iter().cloned());
            tracker.track_each(each.collect()).unwrap();
        };
        let (bytes, ()) = held_by(each);
        // Besides: the kind, and the room of a list or two.
        let (leaves, most) = (5 * 512 * 9, 1000);
        assert!((leaves..leaves + most).contains(&bytes), "{bytes} bytes");
    }
}

#[test]
fn pages_give_back_all_they_took() {
    let kept = kept_by(|| {
        let grace = Grace::new();
        let map = PageMap::new(Gfn(0xf_ffff), grace.clone()).unwrap();
        let route = Counted::new(heavy());
        for first in [0, 0x1ff, 0x8_0000] {
            map.insert(GfnRange::sized(first, 0x100).unwrap(), &route)
                .unwrap();
        }
        let mut reader = grace.reader();
        let guard = reader.enter();
        let page = map.find(Gfn(0x8_0000), &guard).unwrap();
        let order = page.lock().expect("not parked");
        // Its leaf has to stay till the order is free: the map's end is the last occasion.
        map.remove(GfnRange::sized(0x8_0000, 0x100).unwrap());
        drop(order);
        drop(guard);
        drop(map);
    });
    assert_eq!(kept, 0);
}

/// The map knows the route that changed last by its address, which may be another's when its last page has gone.
#[test]
fn a_route_without_pages_is_left_alone() {
    let grace = Grace::new();
    let map = PageMap::new(Gfn(0xfff), grace.clone()).unwrap();
    let other = Counted::new([1_u8; 1000]);
    map.insert(Gfn(5).into(), &Counted::new([0_u8; 1000]))
        .unwrap();
    assert_eq!(map.remove(Gfn(5).into()), 1);
    grace.collect();
    // Allocators give out again what came back last: some of this is where the route was.
    let mut others: Vec<Vec<u8>> = (1000..1200).step_by(8).map(|len| vec![0xaa; len]).collect();
    map.insert(Gfn(6).into(), &other).unwrap();
    let whole = |memory: &Vec<u8>| memory.iter().all(|byte| *byte == 0xaa);
    assert!(others.iter().all(whole), "written to after it was freed");
    others.clear();
    assert_eq!(map.remove(Gfn(6).into()), 1);
}
