// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The order of a tracked page: kept from one write to the next, and for nobody to wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioreq_core::dispatch::{Counted, Grace, PageMap, PortMap, RangeMap, ReadGuard};
use ioreq_core::{Gfn, GfnRange, MmioRange, PortRange};

const PAGE: Gfn = Gfn(0x10);
const OTHER: Gfn = Gfn(0x11);

type Pages = PageMap<&'static str>;

fn tracked() -> (Arc<Grace>, Pages) {
    let grace = Grace::new();
    let pages = PageMap::new(Gfn(0xffff), grace.clone()).unwrap();
    let both = GfnRange::sized(PAGE.0, 2).unwrap();
    pages.insert(both, &Counted::new("route")).unwrap();
    (grace, pages)
}

/// A write that leaves the order to the next one.
fn write(pages: &Pages, gfn: Gfn, guard: &ReadGuard<'_>) {
    let page = pages.find(gfn, guard).expect("tracked");
    page.lock().expect("not parked").keep();
}

/// Writes until the order is kept.
fn keep(pages: &Pages, gfn: Gfn, guard: &ReadGuard<'_>) {
    write(pages, gfn, guard);
    write(pages, gfn, guard);
}

/// Whether nobody has the order. Tells its keeper, if there is one.
fn is_free(pages: &Pages, gfn: Gfn) -> bool {
    let parked = pages.park(gfn);
    pages.unpark(gfn);
    parked
}

#[test]
fn an_order_is_kept_from_the_second_write_on() {
    let (grace, pages) = tracked();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    write(&pages, PAGE, &guard);
    assert!(is_free(&pages, PAGE), "written to once");
    for _ in 0..3 {
        write(&pages, OTHER, &guard);
        write(&pages, PAGE, &guard);
        guard.quiesce();
        assert!(is_free(&pages, PAGE), "now this page, now that");
    }
    write(&pages, PAGE, &guard);
    guard.quiesce();
    assert!(!is_free(&pages, PAGE), "kept");
    guard.quiesce();
    assert!(is_free(&pages, PAGE), "and given up, because it was wanted");
    write(&pages, PAGE, &guard);
    assert!(!is_free(&pages, PAGE));
    let page = pages.find(PAGE, &guard).unwrap();
    drop(page.lock().unwrap());
    assert!(
        is_free(&pages, PAGE),
        "a dropped order is free, kept or not"
    );
}

#[test]
fn nothing_else_is_done_with_an_order_kept() {
    let (grace, pages) = tracked();
    let ranges = RangeMap::new(grace.clone());
    ranges
        .insert(MmioRange::sized(0x1000, 8).unwrap(), ())
        .unwrap();
    let ports = PortMap::new(grace.clone());
    ports
        .insert(PortRange::sized(0x60, 1).unwrap(), ())
        .unwrap();
    let mut reader = grace.reader();
    {
        let guard = reader.enter();
        let other = |act: &dyn Fn()| {
            keep(&pages, PAGE, &guard);
            act();
            assert!(is_free(&pages, PAGE));
        };
        other(&|| drop(pages.find(OTHER, &guard).unwrap().lock().unwrap()));
        other(&|| assert!(ranges.find(0x1000, 8, &guard).is_some()));
        // The second time it is what was found last.
        other(&|| assert!(ranges.find(0x1000, 8, &guard).is_some()));
        other(&|| assert!(ports.find(0x60, 1, &guard).is_some()));
        other(&|| guard.let_go());
        keep(&pages, PAGE, &guard);
    }
    assert!(is_free(&pages, PAGE), "its guard has ended");
    let guard = reader.enter();
    keep(&pages, PAGE, &guard);
    std::mem::forget(guard);
    drop(reader.enter());
    assert!(is_free(&pages, PAGE), "the one before was forgotten");
    let guard = reader.enter();
    keep(&pages, PAGE, &guard);
    std::mem::forget(guard);
    drop(reader);
    assert!(is_free(&pages, PAGE), "with its reader");
}

#[test]
fn orders_taken_one_within_the_other_are_both_let_go() {
    let (grace, pages) = tracked();
    let mut reader = grace.reader();
    let guard = reader.enter();
    for first in [PAGE, OTHER] {
        keep(&pages, PAGE, &guard);
        let outer = pages.find(PAGE, &guard).unwrap().lock().unwrap();
        keep(&pages, OTHER, &guard);
        if first == PAGE {
            outer.keep();
        } else {
            drop(outer);
        }
    }
    drop(guard);
    assert!(is_free(&pages, PAGE) && is_free(&pages, OTHER));
}

#[test]
fn another_worker_waits_for_a_look_and_no_longer() {
    let (grace, pages) = tracked();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    keep(&pages, PAGE, &guard);
    let through = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = grace.reader();
            let guard = reader.enter();
            write(&pages, PAGE, &guard);
            through.store(true, Ordering::Release);
        });
        while !through.load(Ordering::Acquire) {
            // A worker that polls, and finds nothing.
            guard.quiesce();
            std::thread::yield_now();
        }
    });
}

#[test]
fn workers_that_write_one_page_exclude_each_other_and_take_turns() {
    let (grace, pages) = tracked();
    let halves = (AtomicU64::new(0), AtomicU64::new(0));
    let writes: u64 = if cfg!(miri) { 50 } else { 20_000 };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut reader = grace.reader();
                let mut guard = reader.enter();
                for at in 0..writes {
                    let page = pages.find(PAGE, &guard).unwrap();
                    let order = page.lock().unwrap();
                    let before = halves.0.load(Ordering::Relaxed);
                    halves.0.store(before + 1, Ordering::Relaxed);
                    assert_eq!(halves.1.swap(before + 1, Ordering::Relaxed), before);
                    if at % 64 == 0 {
                        drop(order);
                    } else {
                        order.keep();
                    }
                    guard.quiesce();
                }
            });
        }
    });
    assert_eq!(halves.0.into_inner(), 3 * writes);
}

#[test]
fn a_page_that_goes_and_comes_back_has_the_order_that_is_kept() {
    let (grace, pages) = tracked();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    keep(&pages, PAGE, &guard);
    let both = GfnRange::sized(PAGE.0, 2).unwrap();
    pages.replace(both, &Counted::new("another")).unwrap();
    write(&pages, PAGE, &guard);
    assert!(!is_free(&pages, PAGE), "kept over the replacement");
    write(&pages, PAGE, &guard);
    pages.remove(both);
    grace.collect();
    assert!(pages.leaf_bytes() > 0, "a kept order keeps its leaf");
    pages.insert(both, &Counted::new("again")).unwrap();
    assert!(!is_free(&pages, PAGE), "the same order");
    guard.quiesce();
    assert!(
        is_free(&pages, PAGE),
        "its keeper was told when the page went"
    );

    keep(&pages, PAGE, &guard);
    pages.remove(both);
    guard.quiesce();
    pages.remove(both);
    assert_eq!(pages.leaf_bytes(), 0, "collected with the next removal");
}

#[test]
fn an_order_of_a_page_that_left_is_not_kept() {
    let (grace, pages) = tracked();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    keep(&pages, PAGE, &guard);
    guard.let_go();
    let page = pages.find(PAGE, &guard).unwrap();
    pages.clear();
    // Unlinked: it is freed when we quiesce, so nothing may be left that leads there.
    page.lock().unwrap().keep();
    grace.collect();
    guard.quiesce();
    grace.collect();
    assert_eq!(grace.backlog(), 0);
    guard.quiesce();
}

#[test]
fn a_map_that_ends_takes_kept_orders_along_in_time() {
    let (grace, pages) = tracked();
    let mut reader = grace.reader();
    let mut guard = reader.enter();
    keep(&pages, PAGE, &guard);
    drop(pages);
    assert!(grace.backlog() > 0, "the leaf is there yet");
    guard.quiesce();
    grace.collect();
    assert_eq!(grace.backlog(), 0);
    guard.quiesce();
    guard.let_go();
}
