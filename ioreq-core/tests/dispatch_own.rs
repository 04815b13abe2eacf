// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages with a handler each: an entry leads to the handler itself, whose type and the rest of the route are its kind's.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioreq_core::dispatch::{Counted, Grace, Kind, Lead, PageMap};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, Verdict};
use ioreq_core::{ErrorKind, Gfn, GfnRange};
use proptest::prelude::*;

/// Says its number as its fallback, and counts itself while it lives.
struct Small(u64, Arc<AtomicU64>);

/// The same of another type, whose values lie elsewhere in their allocation.
#[repr(align(64))]
struct Big([u64; 9], Small);

impl Small {
    fn new(number: u64, alive: &Arc<AtomicU64>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Small(number, Arc::clone(alive))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.0 = u64::MAX;
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PageHandler for Small {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
    fn fallback(&self) -> Verdict {
        Verdict::Replace(self.0)
    }
}

impl PageHandler for Big {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
    fn fallback(&self) -> Verdict {
        assert_eq!(self.0, [7; 9]);
        Verdict::Replace(self.1.0)
    }
}

fn small(number: u64, alive: &Arc<AtomicU64>) -> Arc<dyn PageHandler> {
    Arc::new(Small::new(number, alive))
}

fn big(number: u64, alive: &Arc<AtomicU64>) -> Arc<dyn PageHandler> {
    Arc::new(Big([7; 9], Small::new(number, alive)))
}

fn alive() -> Arc<AtomicU64> {
    Arc::default()
}

fn pages(first: u64, len: u64) -> GfnRange {
    GfnRange::sized(first, len).unwrap()
}

fn number(handler: &dyn PageHandler) -> u64 {
    match handler.fallback() {
        Verdict::Replace(number) => number,
        other => panic!("no number: {other:?}"),
    }
}

/// Kinds of a map by what they have in common: the type of their handlers.
type Kinds = [Kind<&'static str>; 2];

fn kinds(map: &PageMap<&'static str>) -> Kinds {
    let none = alive();
    let kind = |handler: Arc<dyn PageHandler>, name| map.kind(&*handler, name).unwrap();
    [kind(small(0, &none), "small"), kind(big(0, &none), "big")]
}

/// One of three routes for a page with this number: a handler of its own of either type, or one that is shared.
fn route(kinds: &Kinds, which: u64, alive: &Arc<AtomicU64>) -> Counted<&'static str> {
    match which % 3 {
        0 => kinds[0].with(&small(which, alive)).unwrap(),
        1 => kinds[1].with(&big(which, alive)).unwrap(),
        _ => Counted::new("shared"),
    }
}

fn check(lead: Lead<'_, &'static str>, which: u64) {
    let expected = match which % 3 {
        0 => ("small", Some(which)),
        1 => ("big", Some(which)),
        _ => ("shared", None),
    };
    assert_eq!(
        (*lead.route, lead.own.map(|own| number(own.get()))),
        expected
    );
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Insert,
    Replace,
    Remove,
}

fn change() -> impl Strategy<Value = (Change, u64, u64)> {
    let what = prop_oneof![
        Just(Change::Insert),
        Just(Change::Replace),
        Just(Change::Remove)
    ];
    (what, 0..1100_u64, prop_oneof![Just(1_u64), 1..30_u64])
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is done to pages of all sorts, each leads where it was led last, and handlers live as long as pages lead to them.
    #[test]
    fn pages_of_all_sorts_are_a_map(changes in prop::collection::vec(change(), 1..60)) {
        let (grace, alive) = (Grace::new(), alive());
        let map = PageMap::new(Gfn(1200), grace.clone()).unwrap();
        let kinds = kinds(&map);
        let mut reader = grace.reader();
        let mut oracle: BTreeMap<u64, u64> = BTreeMap::new();
        for (which, (change, first, len)) in (0..).zip(changes) {
            let (range, all) = (pages(first, len), first..first + len);
            let there = oracle.range(all.clone()).count() as u64;
            let done = match change {
                Change::Insert => map.insert(range, &route(&kinds, which, &alive)).is_ok(),
                Change::Replace => map.replace(range, &route(&kinds, which, &alive)).is_ok(),
                Change::Remove => {
                    prop_assert_eq!(map.remove(range), there);
                    oracle.retain(|gfn, _| !all.contains(gfn));
                    false
                }
            };
            let expected = match change {
                Change::Insert => there == 0,
                Change::Replace => there == len,
                Change::Remove => false,
            };
            prop_assert_eq!(done, expected);
            if done {
                oracle.extend(all.map(|gfn| (gfn, which)));
            }
            grace.collect();
            let guard = reader.enter();
            for gfn in (0..1200).step_by(if cfg!(miri) { 7 } else { 1 }) {
                let lead = map.find(Gfn(gfn), &guard).and_then(|page| page.lead());
                prop_assert_eq!(lead.is_some(), oracle.contains_key(&gfn));
                if let (Some(lead), Some(which)) = (lead, oracle.get(&gfn)) {
                    check(lead, *which);
                }
            }
            let mut own: Vec<u64> = oracle.values().copied().filter(|which| which % 3 < 2).collect();
            own.dedup();
            own.sort_unstable();
            own.dedup();
            prop_assert_eq!(alive.load(Ordering::Relaxed), own.len() as u64);
        }
        drop(map);
        prop_assert_eq!(alive.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_handler_lives_as_long_as_a_page_or_a_reader_has_it() {
    let (grace, alive) = (Grace::new(), alive());
    let map = PageMap::new(Gfn(600), grace.clone()).unwrap();
    let [kind, _] = kinds(&map);
    let handler = small(3, &alive);
    map.insert(pages(500, 20), &kind.with(&handler).unwrap())
        .unwrap();
    assert_eq!(Arc::strong_count(&handler), 21, "one for each page");
    assert_eq!(map.remove(pages(500, 19)), 19);
    grace.collect();
    assert_eq!(Arc::strong_count(&handler), 2);
    drop(handler);
    let mut reader = grace.reader();
    let guard = reader.enter();
    let lead = map.find(Gfn(519), &guard).unwrap().lead().unwrap();
    assert_eq!(map.remove(pages(519, 1)), 1);
    drop(map);
    grace.collect();
    check(lead, 3);
    assert_eq!(alive.load(Ordering::Relaxed), 1, "a reader has it");
    drop(guard);
    grace.collect();
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn what_a_page_leads_to_is_kept_by_who_asks() {
    let (grace, alive) = (Grace::new(), alive());
    let map = PageMap::new(Gfn(7), grace.clone()).unwrap();
    let kinds = kinds(&map);
    map.insert(pages(1, 1), &route(&kinds, 1, &alive)).unwrap();
    map.insert(pages(2, 1), &route(&kinds, 2, &alive)).unwrap();
    let (own, shared) = (map.route_of(Gfn(1)).unwrap(), map.route_of(Gfn(2)).unwrap());
    assert_eq!(
        format!("{own:?} {shared:?}"),
        "Counted(\"big\", own) Counted(\"shared\")"
    );
    assert!(own.is(&own.clone()) && shared.is(&shared.clone()));
    assert!(!own.is(&shared) && !shared.is(&own));
    assert!(!own.is(&route(&kinds, 1, &alive)), "another of the kind");
    map.clear();
    grace.collect();
    assert_eq!(number(&**own.handler().unwrap()), 1);
    assert!(shared.handler().is_none());
    drop(own);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn a_page_is_led_elsewhere_only_if_it_leads_where_expected() {
    let (grace, alive) = (Grace::new(), alive());
    let map = PageMap::new(Gfn(1000), grace.clone()).unwrap();
    let kinds = kinds(&map);
    let [one, other, third] = [0, 3, 6].map(|which| route(&kinds, which, &alive));
    map.insert(pages(1, 1), &one).unwrap();
    let replaced = |gfn, old, new| map.replace_if(Gfn(gfn), old, new).unwrap();
    assert!(!replaced(1, &other, &third));
    assert!(!replaced(2, &one, &third) && !replaced(999, &one, &third));
    assert!(replaced(1, &one, &other) && !replaced(1, &one, &third));
    let shared = Counted::new("shared");
    assert!(replaced(1, &other, &shared) && replaced(1, &shared, &one));
    assert!(map.route_of(Gfn(1)).unwrap().is(&one));
    let foreign = PageMap::new(Gfn(7), Grace::new()).unwrap();
    foreign.insert(pages(0, 1), &shared).unwrap_err();
    let err = foreign.replace_if(Gfn(0), &one, &one).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_kind_takes_handlers_of_its_type_for_its_map() {
    let (grace, alive) = (Grace::new(), alive());
    let map = PageMap::new(Gfn(7), grace.clone()).unwrap();
    let [smalls, bigs] = kinds(&map);
    assert_eq!(
        (*smalls, *bigs, format!("{bigs:?}")),
        ("small", "big", "Kind(\"big\")".into())
    );
    assert!(smalls.is_of(&*small(0, &alive)) && !smalls.is_of(&*big(0, &alive)));
    assert!(smalls.with(&big(0, &alive)).is_none());
    // An `Arc` of a handler is a handler of another type.
    let wrapped: Arc<dyn PageHandler> = Arc::new(small(0, &alive));
    assert!(smalls.with(&wrapped).is_none());
    let other = PageMap::new(Gfn(7), Grace::new()).unwrap();
    let err = other.insert(pages(0, 1), &bigs.with(&big(0, &alive)).unwrap());
    assert_eq!(err.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_number_is_free_again_when_no_reader_can_have_an_entry_with_it() {
    let (grace, alive) = (Grace::new(), alive());
    let map = PageMap::new(Gfn(7), grace.clone()).unwrap();
    let kind = || map.kind(&*small(0, &alive), "small");
    let mut all: Vec<_> = std::iter::from_fn(kind).collect();
    assert_eq!(all.len(), 1023);
    let last = all.pop().unwrap();
    map.insert(pages(0, 1), &last.with(&small(9, &alive)).unwrap())
        .unwrap();
    drop(last);
    assert!(kind().is_none(), "a page leads to it");
    let mut reader = grace.reader();
    let guard = reader.enter();
    let lead = map.find(Gfn(0), &guard).unwrap().lead().unwrap();
    map.clear();
    grace.collect();
    assert!(kind().is_none(), "a reader may have an entry of it");
    assert_eq!(lead.own.map(|own| number(own.get())), Some(9));
    drop(guard);
    grace.collect();
    assert!(kind().is_some());
}

/// Readers look while kinds and their handlers come and go: what they find is whole, alive and of one kind.
#[test]
fn readers_see_whole_handlers_while_they_change() {
    let (grace, alive) = (Grace::new(), alive());
    let map: PageMap<&'static str> = PageMap::new(Gfn(1023), grace.clone()).unwrap();
    let (stop, found) = (AtomicBool::new(false), AtomicU64::new(0));
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
                        let page = map.find(Gfn(random >> 54), &guard);
                        if let Some(lead) = page.and_then(|page| page.lead()) {
                            let number = lead.own.map_or(2, |own| number(own.get()));
                            check(lead, number);
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        guard.quiesce();
                    }
                    std::thread::yield_now();
                }
            });
        }
        for round in 0..if cfg!(miri) { 30 } else { 2000_u64 } {
            let kinds = kinds(&map);
            let range = pages(round * 37 % 700, 1 + round % 300);
            map.remove(range);
            map.insert(range, &route(&kinds, round, &alive)).unwrap();
            map.replace(range, &route(&kinds, round + 1, &alive))
                .unwrap();
            grace.collect();
        }
        while found.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(map);
    grace.synchronize().unwrap();
    grace.collect();
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}
