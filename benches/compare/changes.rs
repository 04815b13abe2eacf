// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Contenders whose ranges change while they serve. What changes is never what a write of the layout needs: a page between two
//! ranges comes and goes, and a range is replaced by one of the same device. So every answer is known all the time.

use std::sync::PoisonError;

use ioreq::dispatch::Counted;
use ioreq::{Gfn, MmioRange};
use vm_device::device_manager::MmioManager;
use vm_memory::GuestAddress;

use crate::support::contender::Contender;
use crate::support::device::Device;
use crate::support::layout::Layout;
use crate::support::ours::{PageRoute, Pages, Ranges, Route};
use crate::support::peers::{
    DynDevice, Papaya, RwHash, RwTree, RwVmDevice, bus_range, bus_range_at,
};
use crate::support::walk::Walk;

/// Turns between two collections of what tracked pages left behind: the server collects once a batch of pages.
const COLLECT_EVERY: u64 = 64;

/// What can be changed.
pub(crate) trait Changing: Contender {
    /// Adds a page's range where none is, behind that range of the layout, and removes it.
    fn come_and_go(&self, layout: Layout, range: u64);

    /// Replaces that range of the layout.
    fn replace(&self, layout: Layout, range: u64, turn: u64);

    /// After each turn.
    fn tidy(&self, _turn: u64) {}
}

/// What an updater does in a turn.
#[derive(Clone, Copy)]
pub(crate) enum Turn {
    /// A range comes and goes: two changes.
    ComeAndGo,
    /// And one that the dispatcher uses is replaced.
    Replacing,
}

impl Turn {
    pub(crate) fn make(self, of: &dyn Changing, layout: Layout, range: u64, turn: u64) {
        of.come_and_go(layout, range);
        if let Turn::Replacing = self {
            of.replace(layout, range, turn);
        }
        of.tidy(turn);
    }

    pub(crate) fn changes(self) -> u32 {
        match self {
            Turn::ComeAndGo => 2,
            Turn::Replacing => 3,
        }
    }
}

/// First address of the page behind a range, which nobody writes to.
fn gap(layout: Layout, range: u64) -> u64 {
    layout.behind(range)
}

/// As routes are added, retracted and replaced at the server.
impl Changing for Ranges {
    fn come_and_go(&self, layout: Layout, range: u64) {
        let (behind, new) = new_route(layout, range, gap(layout, range));
        self.map.insert(behind, new).expect("nothing is there");
        assert!(self.map.remove(behind));
        self.grace.collect_in_batches();
    }

    fn replace(&self, layout: Layout, range: u64, _: u64) {
        let (here, new) = new_route(layout, range, layout.first(range));
        assert!(self.map.replace(here, new));
        self.grace.collect_in_batches();
    }
}

/// A route at `base` to the device of that range.
fn new_route(layout: Layout, range: u64, base: u64) -> (MmioRange, Route) {
    let handler = Device::new(layout.device(range));
    let addrs = MmioRange::sized(base, layout.len).expect("in the space");
    (addrs, Route { handler, base })
}

/// Tracked pages, and two routes to each device, between which pages are moved.
pub(crate) struct ChangingPages {
    pages: Pages,
    routes: Vec<[Counted<PageRoute>; 2]>,
}

impl ChangingPages {
    pub(crate) fn new(layout: Layout) -> Self {
        let pages = Pages::empty(layout);
        let routes: Vec<_> = (0..layout.devices)
            .map(|device| [Pages::route(device), Pages::route(device)])
            .collect();
        for page in 0..layout.count {
            let [route, _] = Self::routes_in(&routes, layout, page);
            let frame = pages.frames(layout, page, 1);
            pages.map.insert(frame, route).expect("pages are disjoint");
        }
        ChangingPages { pages, routes }
    }

    fn routes_in(
        routes: &[[Counted<PageRoute>; 2]],
        layout: Layout,
        page: u64,
    ) -> &[Counted<PageRoute>; 2] {
        let device = usize::try_from(layout.device(page)).unwrap_or(usize::MAX);
        &routes[device]
    }
}

impl Contender for ChangingPages {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        self.pages.serve(walk, writes);
    }
    fn serve_one(&self, addr: u64) {
        self.pages.serve_one(addr);
    }
}

impl Changing for ChangingPages {
    fn come_and_go(&self, layout: Layout, range: u64) {
        let [route, _] = Self::routes_in(&self.routes, layout, range);
        let gap = Gfn::of(GuestAddress(gap(layout, range))).into();
        let map = &self.pages.map;
        map.insert(gap, route).expect("nothing is there");
        assert_eq!(map.remove(gap), 1);
    }

    fn replace(&self, layout: Layout, range: u64, turn: u64) {
        let [one, other] = Self::routes_in(&self.routes, layout, range);
        let page = self.pages.frames(layout, range, 1);
        let route = if turn.is_multiple_of(2) { other } else { one };
        self.pages.map.replace(page, route).expect("it is tracked");
    }

    fn tidy(&self, turn: u64) {
        if turn.is_multiple_of(COLLECT_EVERY) {
            self.pages.grace.collect();
        }
    }
}

fn device(layout: Layout, range: u64) -> DynDevice {
    Device::new(layout.device(range))
}

impl Changing for RwVmDevice {
    fn come_and_go(&self, layout: Layout, range: u64) {
        let write = || self.0.write().unwrap_or_else(PoisonError::into_inner);
        let behind = bus_range_at(gap(layout, range), layout.len);
        let added = write().register_mmio(behind, device(layout, range));
        added.expect("nothing is there");
        let base = behind.base();
        write().deregister_mmio(base).expect("it is there");
    }

    fn replace(&self, layout: Layout, range: u64, _: u64) {
        let here = bus_range(layout, range);
        let mut manager = self.0.write().unwrap_or_else(PoisonError::into_inner);
        manager.deregister_mmio(here.base()).expect("it is there");
        let renewed = manager.register_mmio(here, device(layout, range));
        renewed.expect("nothing is there");
    }
}

impl Changing for RwTree {
    fn come_and_go(&self, layout: Layout, range: u64) {
        let write = || self.0.write().unwrap_or_else(PoisonError::into_inner);
        let behind = gap(layout, range);
        write().insert(behind, (layout.len, device(layout, range)));
        write().remove(&behind).expect("it is there");
    }

    fn replace(&self, layout: Layout, range: u64, _: u64) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(layout.first(range), (layout.len, device(layout, range)));
    }
}

impl Changing for RwHash {
    fn come_and_go(&self, layout: Layout, range: u64) {
        let write = || self.0.write().unwrap_or_else(PoisonError::into_inner);
        let behind = gap(layout, range) >> 12;
        write().insert(behind, device(layout, range));
        write().remove(&behind).expect("it is there");
    }

    fn replace(&self, layout: Layout, range: u64, _: u64) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(layout.first(range) >> 12, device(layout, range));
    }
}

impl Changing for Papaya {
    fn come_and_go(&self, layout: Layout, range: u64) {
        let (map, behind) = (self.0.pin(), gap(layout, range) >> 12);
        map.insert(behind, device(layout, range));
        map.remove(&behind).expect("it is there");
    }

    fn replace(&self, layout: Layout, range: u64, _: u64) {
        let here = layout.first(range) >> 12;
        self.0.pin().insert(here, device(layout, range));
    }
}
