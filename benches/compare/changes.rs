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

/// Changes that a turn makes.
pub(crate) const CHANGES: u32 = 3;

/// Adds a page's range where none is, removes it, and replaces a range of the layout: a *turn*.
pub(crate) trait Changing: Contender {
    fn turn(&self, layout: Layout, range: u64, turn: u64);
}

/// First address of the page behind a range, which nobody writes to.
fn gap(layout: Layout, range: u64) -> u64 {
    layout.behind(range)
}

/// As routes are added, retracted and replaced at the server.
impl Changing for Ranges {
    fn turn(&self, layout: Layout, range: u64, _: u64) {
        let route = |base: u64| {
            let handler = Device::new(layout.device(range));
            let addrs = MmioRange::sized(base, layout.len).expect("in the space");
            (addrs, Route { handler, base })
        };
        let (behind, new) = route(gap(layout, range));
        self.map.insert(behind, new).expect("nothing is there");
        assert!(self.map.remove(behind));
        self.grace.collect_in_batches();
        let (here, new) = route(layout.first(range));
        assert!(self.map.replace(here, new));
        self.grace.collect_in_batches();
    }
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
    fn turn(&self, layout: Layout, range: u64, turn: u64) {
        let [one, other] = Self::routes_in(&self.routes, layout, range);
        let page = self.pages.frames(layout, range, 1);
        let gap = Gfn::of(GuestAddress(gap(layout, range))).into();
        let map = &self.pages.map;
        map.insert(gap, one).expect("nothing is there");
        assert_eq!(map.remove(gap), 1);
        let route = if turn.is_multiple_of(2) { other } else { one };
        map.replace(page, route).expect("it is tracked");
        if turn.is_multiple_of(COLLECT_EVERY) {
            self.pages.grace.collect();
        }
    }
}

fn device(layout: Layout, range: u64) -> DynDevice {
    Device::new(layout.device(range))
}

impl Changing for RwVmDevice {
    fn turn(&self, layout: Layout, range: u64, _: u64) {
        let write = || self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (here, behind) = (bus_range(layout, range), gap(layout, range));
        let behind = bus_range_at(behind, layout.len);
        let added = write().register_mmio(behind, device(layout, range));
        added.expect("nothing is there");
        let base = behind.base();
        write().deregister_mmio(base).expect("it is there");
        let mut manager = write();
        manager.deregister_mmio(here.base()).expect("it is there");
        let renewed = manager.register_mmio(here, device(layout, range));
        renewed.expect("nothing is there");
    }
}

impl Changing for RwTree {
    fn turn(&self, layout: Layout, range: u64, _: u64) {
        let write = || self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (here, behind) = (layout.first(range), gap(layout, range));
        write().insert(behind, (layout.len, device(layout, range)));
        write().remove(&behind).expect("it is there");
        write().insert(here, (layout.len, device(layout, range)));
    }
}

impl Changing for RwHash {
    fn turn(&self, layout: Layout, range: u64, _: u64) {
        let write = || self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (here, behind) = (layout.first(range) >> 12, gap(layout, range) >> 12);
        write().insert(behind, device(layout, range));
        write().remove(&behind).expect("it is there");
        write().insert(here, device(layout, range));
    }
}

impl Changing for Papaya {
    fn turn(&self, layout: Layout, range: u64, _: u64) {
        let map = self.0.pin();
        let (here, behind) = (layout.first(range) >> 12, gap(layout, range) >> 12);
        map.insert(behind, device(layout, range));
        map.remove(&behind).expect("it is there");
        map.insert(here, device(layout, range));
    }
}
