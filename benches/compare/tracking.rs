// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What changes of the tracked pages cost. No hypercalls: the maps alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use vm_device::DeviceMmio;

use crate::calm::{Patience, Watch};
use crate::clock::{each, pin};
use crate::row::Row;
use crate::slices::{Figure, figure, median};
use crate::support::device::Device;
use crate::support::layout::Layout;
use crate::support::ours::Pages;

/// Pages of the big maps.
const MANY: u64 = 1_000_000;
/// Pages that leave and come back under one lock, and with one pin; garbage is collected after them. The server marks up to 1024 at a time.
const BATCH: usize = 64;
/// Batches of a slice.
const BATCHES: usize = 6;

type DynDevice = Arc<dyn DeviceMmio + Send + Sync>;

/// Removes each of the pages and adds it again, before the next one leaves.
trait Churn {
    fn again(&self, pages: &[u64]);
}

struct Ours {
    pages: Pages,
    layout: Layout,
    route: ioreq::dispatch::Counted<crate::support::ours::PageRoute>,
}

impl Ours {
    fn full() -> Self {
        let layout = Layout::pages(MANY, 1);
        let pages = Pages::empty(layout);
        let route = Pages::route(0);
        let all = pages.frames(layout, 0, MANY);
        pages.map.insert(all, &route).expect("an empty map");
        Ours {
            pages,
            layout,
            route,
        }
    }
}

impl Churn for Ours {
    fn again(&self, pages: &[u64]) {
        let mut map = self.pages.map.edit();
        for page in pages {
            let page = self.pages.frames(self.layout, *page, 1);
            assert_eq!(map.remove(page), 1);
            map.insert(page, &self.route).expect("just removed");
        }
        drop(map);
        self.pages.grace.collect();
    }
}

struct Tree(RwLock<BTreeMap<u64, DynDevice>>);

impl Churn for Tree {
    fn again(&self, pages: &[u64]) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for page in pages {
            let device = map.remove(page).expect("there");
            map.insert(*page, device);
        }
    }
}

struct Hash(RwLock<HashMap<u64, DynDevice>>);

impl Churn for Hash {
    fn again(&self, pages: &[u64]) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for page in pages {
            let device = map.remove(page).expect("there");
            map.insert(*page, device);
        }
    }
}

struct Papaya(papaya::HashMap<u64, DynDevice>);

impl Churn for Papaya {
    fn again(&self, pages: &[u64]) {
        let map = self.0.pin();
        for page in pages {
            let device = map.remove(page).map(Arc::clone).expect("there");
            map.insert(*page, device);
        }
    }
}

/// One atomic exchange of a page's word: what has to be fetched from memory whoever looks after the pages.
struct Swap(Vec<AtomicU64>);

impl Churn for Swap {
    fn again(&self, pages: &[u64]) {
        for page in pages {
            let word = usize::try_from(*page).ok().and_then(|at| self.0.get(at));
            // SeqCst, as whatever x86 exchanges.
            let _before = word.expect("below the count").swap(*page, Ordering::SeqCst);
        }
    }
}

/// Pages 0 to `MANY`, all of one device.
fn entries() -> impl Iterator<Item = (u64, DynDevice)> {
    let device: DynDevice = Device::new(0);
    (0..MANY).map(move |page| (page, Arc::clone(&device)))
}

/// One page leaves and comes back, any of a million.
fn churn(rounds: u32) -> Vec<Row> {
    let papaya = papaya::HashMap::new();
    entries().for_each(|(page, device)| {
        papaya.pin().insert(page, device);
    });
    let words = (0..MANY).map(AtomicU64::new).collect();
    let contenders: [(&str, Box<dyn Churn>); 5] = [
        ("ours", Box::new(Ours::full())),
        ("one exchange", Box::new(Swap(words))),
        (
            "RwLock<BTreeMap>",
            Box::new(Tree(RwLock::new(entries().collect()))),
        ),
        (
            "RwLock<HashMap>",
            Box::new(Hash(RwLock::new(entries().collect()))),
        ),
        ("papaya", Box::new(Papaya(papaya))),
    ];
    pin(0);
    let mut figures: Vec<Vec<Figure>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..rounds {
        for ((_, contender), figures) in contenders.iter().zip(&mut figures) {
            let mut draw = |count| -> Vec<u64> { (0..count).map(|_| random.u64(..MANY)).collect() };
            draw(50_000)
                .chunks(BATCH)
                .for_each(|pages| contender.again(pages));
            let mut patience = Patience::much();
            figures.push(figure(|| {
                let pages = draw(BATCH * BATCHES);
                patience.wait();
                let (watch, started) = (Watch::begin(), Instant::now());
                pages.chunks(BATCH).for_each(|pages| contender.again(pages));
                let elapsed = started.elapsed();
                let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
                (each(elapsed, count), watch.end())
            }));
        }
    }
    let named = contenders.iter().zip(figures);
    named
        .map(|((name, _), figures)| {
            Row::new(
                "a tracked page leaves and comes back",
                MANY,
                "random",
                name,
                &figures,
            )
        })
        .collect()
}

/// Gives what the allocator holds free back to the system, which has to find it anew then.
fn give_back() {
    // SAFETY: glibc's; it needs nothing, and gives back what nobody has.
    unsafe { libc::malloc_trim(0) };
}

/// A million pages side by side are added at once; per page. Cold: the tables' memory comes from the system; warm: from the
/// allocator, which has had it before.
fn bulk(rounds: u32) -> Vec<Row> {
    let layout = Layout::pages(MANY, 1);
    let (mut cold, mut warm, mut tree) = (Vec::new(), Vec::new(), Vec::new());
    let count = u32::try_from(MANY).unwrap_or(u32::MAX);
    let time = |work: &mut dyn FnMut()| {
        let started = Instant::now();
        work();
        Figure {
            ns: each(started.elapsed(), count),
            disturbed: false,
        }
    };
    for _ in 0..rounds {
        let (pages, route) = (Pages::empty(layout), Pages::route(0));
        let all = pages.frames(layout, 0, MANY);
        give_back();
        let mut add = || pages.map.insert(all, &route).expect("an empty map");
        cold.push(time(&mut add));
        let again = (0..5).map(|_| {
            assert_eq!(pages.map.remove(all), MANY);
            pages.grace.collect();
            time(&mut add).ns
        });
        let again: Vec<f64> = again.collect();
        let ns = median(again);
        warm.push(Figure {
            ns,
            disturbed: false,
        });
        drop(pages);
        give_back();
        let mut map = BTreeMap::new();
        // Under one lock, were there one.
        tree.push(time(&mut || map.extend(entries())));
    }
    let name = "adding a million pages, per page";
    vec![
        Row::new(name, MANY, "cold", "ours", &cold),
        Row::new(name, MANY, "cold", "RwLock<BTreeMap>", &tree),
        Row::new(name, MANY, "warm", "ours", &warm),
        Row::new(name, MANY, "warm", "RwLock<BTreeMap>", &tree),
    ]
}

/// All of it.
pub(crate) fn rows(rounds: u32) -> Vec<Row> {
    let mut rows = churn(rounds);
    rows.extend(bulk(rounds));
    rows
}
