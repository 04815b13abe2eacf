// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The framework's routing structures, used as its server does: a quiescent state after every request, whole-access checks.
//! (What the server adds around them, from the slot to the answer, is in the instruction counts.)

use std::fmt;
use std::sync::Arc;

use ioreq::dispatch::{Counted, Grace, PageMap, PortMap, RangeMap};
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, Space, Verdict, WriteOutcome,
    WriteSource,
};
use ioreq::memory::MappedRegion;
use ioreq::{DomId, Gfn, GfnRange, MmioRange, PortRange, VcpuId, Width};
use vm_memory::{GuestAddress, GuestRegionCollection};

use super::contender::Contender;
use super::device::Device;
use super::layout::Layout;
use super::walk::Walk;

/// No guest memory: handlers here store nothing.
type NoRam = GuestRegionCollection<MappedRegion>;

/// The server has more to do then; here it is a mistake.
#[cold]
fn refused(outcome: impl fmt::Debug) {
    panic!("the device takes everything: {outcome:?}");
}

/// What a range leads to.
pub(crate) struct Route {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) base: u64,
}

/// MMIO ranges.
pub(crate) struct Ranges {
    pub(crate) map: RangeMap<Route>,
    pub(crate) grace: Arc<Grace>,
    ram: NoRam,
}

impl Ranges {
    pub(crate) fn new(layout: Layout) -> Self {
        let grace = Grace::new();
        let ranges = Ranges {
            map: RangeMap::new(Arc::clone(&grace)),
            grace,
            ram: NoRam::new(),
        };
        for range in 0..layout.count {
            ranges.add(layout, range);
        }
        ranges
    }

    /// Adds a range of the layout.
    pub(crate) fn add(&self, layout: Layout, range: u64) {
        let base = layout.first(range);
        let handler = Device::new(layout.device(range));
        let route = Route { handler, base };
        let addrs = MmioRange::sized(base, layout.len).expect("in the space");
        self.map.insert(addrs, route).expect("ranges are disjoint");
    }
}

impl Contender for Ranges {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        let mut reader = self.grace.reader();
        let mut guard = reader.enter();
        let cx = Context::detached(DomId(1), VcpuId(0), &self.ram);
        walk.each(writes, |addr, value| {
            if let Some(route) = self.map.find(addr, 4, &guard) {
                let access = Access {
                    space: Space::Mmio,
                    addr,
                    offset: addr - route.base,
                    width: Width::B4,
                };
                let outcome = route.handler.write(&cx, access, value.into());
                match outcome {
                    // Nothing to drop, which a compiler does not see.
                    done @ WriteOutcome::Done => std::mem::forget(done),
                    other => refused(other),
                }
            }
            guard.quiesce();
        });
    }

    fn serve_one(&self, addr: u64) {
        let mut reader = self.grace.reader();
        let guard = reader.enter();
        assert!(self.map.find(addr, 4, &guard).is_none());
    }
}

/// Ports.
pub(crate) struct Ports {
    map: PortMap<Route>,
    grace: Arc<Grace>,
    ram: NoRam,
}

fn port(addr: u64) -> u16 {
    u16::try_from(addr).expect("a port")
}

impl Ports {
    pub(crate) fn new(layout: Layout) -> Self {
        let grace = Grace::new();
        let map = PortMap::new(Arc::clone(&grace));
        for range in 0..layout.count {
            let base = layout.first(range);
            let handler = Device::new(layout.device(range));
            let ports = PortRange::sized(port(base), layout.len).expect("in the space");
            map.insert(ports, Route { handler, base })
                .expect("ranges are disjoint");
        }
        let ram = NoRam::new();
        Ports { map, grace, ram }
    }
}

impl Contender for Ports {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        let mut reader = self.grace.reader();
        let mut guard = reader.enter();
        let cx = Context::detached(DomId(1), VcpuId(0), &self.ram);
        walk.each(writes, |addr, value| {
            #[allow(clippy::cast_possible_truncation, reason = "the layout is of ports")]
            if let Some(route) = self.map.find(addr as u16, 4, &guard) {
                let access = Access {
                    space: Space::Port,
                    addr,
                    offset: addr - route.base,
                    width: Width::B4,
                };
                let outcome = route.handler.write(&cx, access, value.into());
                match outcome {
                    // Nothing to drop, which a compiler does not see.
                    done @ WriteOutcome::Done => std::mem::forget(done),
                    other => refused(other),
                }
            }
            guard.quiesce();
        });
    }

    fn serve_one(&self, addr: u64) {
        let mut reader = self.grace.reader();
        let guard = reader.enter();
        assert!(self.map.find(port(addr), 4, &guard).is_none());
    }
}

/// What a tracked page leads to, in the server's shape.
pub(crate) struct PageRoute {
    handler: Option<Arc<dyn PageHandler>>,
    _fallback: Verdict,
    _tracker: Arc<str>,
}

/// Tracked pages.
pub(crate) struct Pages {
    pub(crate) map: PageMap<PageRoute>,
    pub(crate) grace: Arc<Grace>,
    ram: NoRam,
}

impl Pages {
    /// An empty map with room for the layout.
    pub(crate) fn empty(layout: Layout) -> Self {
        let grace = Grace::new();
        let last = Gfn::of(GuestAddress(layout.end() + 0x2000));
        Pages {
            map: PageMap::new(last, Arc::clone(&grace)).expect("a small guest"),
            grace,
            ram: NoRam::new(),
        }
    }

    pub(crate) fn new(layout: Layout) -> Self {
        let pages = Self::empty(layout);
        let mut first = 0;
        while first < layout.count {
            let device = layout.device(first);
            let same = (first..layout.count).take_while(|page| layout.device(*page) == device);
            let len = same.count() as u64;
            pages
                .map
                .insert(pages.frames(layout, first, len), &Self::route(device))
                .expect("pages are disjoint");
            first += len;
        }
        pages
    }

    /// Frames of `len` pages of the layout.
    pub(crate) fn frames(&self, layout: Layout, first: u64, len: u64) -> GfnRange {
        let gfn = Gfn::of(GuestAddress(layout.first(first)));
        GfnRange::sized(gfn.0, len).expect("in the space")
    }

    /// A route of its own to a device.
    pub(crate) fn route(device: u64) -> Arc<Counted<PageRoute>> {
        Self::route_of(device, &"tracker".into())
    }

    /// The same, by a tracker that has others.
    pub(crate) fn route_of(device: u64, tracker: &Arc<str>) -> Arc<Counted<PageRoute>> {
        Counted::new(PageRoute {
            handler: Some(Device::new(device)),
            _fallback: Verdict::Apply,
            _tracker: Arc::clone(tracker),
        })
    }

    #[inline]
    fn write(&self, cx: &Context<'_>, route: &PageRoute, addr: u64, value: u32) {
        let Some(handler) = &route.handler else {
            return;
        };
        let write = PageWrite::new(
            GuestAddress(addr),
            Width::B4,
            value.into(),
            WriteSource::Trapped,
            &self.ram,
        );
        let outcome = write.map(|write| handler.write(cx, &write));
        match outcome {
            Some(drop @ PageOutcome::Drop) => std::mem::forget(drop),
            other => refused(other),
        }
    }

    fn finds(&self, addr: u64) -> bool {
        let mut reader = self.grace.reader();
        let guard = reader.enter();
        self.map.find(Gfn::of(GuestAddress(addr)), &guard).is_some()
    }
}

/// With the page's order and a quiescent state for every write, as the server does it.
impl Contender for Pages {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        let mut reader = self.grace.reader();
        let mut guard = reader.enter();
        let cx = Context::detached(DomId(1), VcpuId(0), &self.ram);
        walk.each(writes, |addr, value| {
            if let Some(page) = self.map.find(Gfn::of(GuestAddress(addr)), &guard)
                && let Ok(order) = page.lock()
                && let Some(route) = page.route()
            {
                self.write(&cx, route, addr, value);
                order.keep();
            }
            guard.quiesce();
        });
    }

    fn serve_one(&self, addr: u64) {
        assert!(!self.finds(addr));
    }
}

/// The look-up alone: no order, one guard for all.
pub(crate) struct BarePages(pub(crate) Arc<Pages>);

impl Contender for BarePages {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        let mut reader = self.0.grace.reader();
        let guard = reader.enter();
        let cx = Context::detached(DomId(1), VcpuId(0), &self.0.ram);
        walk.each(writes, |addr, value| {
            if let Some(page) = self.0.map.find(Gfn::of(GuestAddress(addr)), &guard)
                && let Some(route) = page.route()
            {
                self.0.write(&cx, route, addr, value);
            }
        });
    }

    fn serve_one(&self, addr: u64) {
        self.0.serve_one(addr);
    }
}

impl Contender for Arc<Pages> {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        (**self).serve(walk, writes);
    }

    fn serve_one(&self, addr: u64) {
        (**self).serve_one(addr);
    }
}
