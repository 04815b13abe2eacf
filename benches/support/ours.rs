// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The framework's routing structures, used as its server does: a quiescent state after every request, whole-access checks.
//! (What the server adds around them, from the slot to the answer, is in the instruction counts.)

use std::fmt;
use std::sync::Arc;

use ioreq::dispatch::{Counted, Grace, Lead, PageMap, PortMap, RangeMap};
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, Space, TypedHandler, Verdict,
    WriteOutcome, WriteSource,
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

/// What tracked pages lead to, in the server's shape; what they have in common, if they have a handler each.
pub(crate) struct PageRoute {
    handler: Option<TypedHandler>,
    _fallback: Verdict,
    _tracker: Arc<str>,
}

impl PageRoute {
    fn to(handler: Option<Arc<dyn PageHandler>>) -> Self {
        PageRoute {
            handler: handler.map(TypedHandler::new),
            _fallback: Verdict::Apply,
            _tracker: "tracker".into(),
        }
    }
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
        pages.fill(layout);
        pages
    }

    /// Adds all pages of the layout, as the server's tracker does it: a page by itself leads to a handler of its own.
    pub(crate) fn fill(&self, layout: Layout) {
        let kind = self.map.kind(&*Device::new(0), PageRoute::to(None));
        let kind = kind.expect("the first");
        let mut first = 0;
        while first < layout.count {
            let device = layout.device(first);
            let same = (first..layout.count).take_while(|page| layout.device(*page) == device);
            let len = same.count() as u64;
            let own = || -> Arc<dyn PageHandler> { Device::new(device) };
            let route = match len {
                1 => kind.with(&own()).expect("of the type"),
                _ => Self::route(device),
            };
            self.map
                .insert(self.frames(layout, first, len), &route)
                .expect("pages are disjoint");
            first += len;
        }
    }

    /// Frames of `len` pages of the layout.
    pub(crate) fn frames(&self, layout: Layout, first: u64, len: u64) -> GfnRange {
        let gfn = Gfn::of(GuestAddress(layout.first(first)));
        GfnRange::sized(gfn.0, len).expect("in the space")
    }

    /// A route to a device that pages share.
    pub(crate) fn route(device: u64) -> Counted<PageRoute> {
        Counted::new(PageRoute::to(Some(Device::new(device))))
    }

    #[inline]
    fn write(&self, cx: &Context<'_>, lead: Lead<'_, PageRoute>, addr: u64, value: u32) {
        let shared = || lead.route.handler.as_ref().map(TypedHandler::get);
        let Some(handler) = lead.own.or_else(shared) else {
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
                && let Some(lead) = page.lead()
            {
                self.write(&cx, lead, addr, value);
                drop(order);
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
                && let Some(lead) = page.lead()
            {
                self.0.write(&cx, lead, addr, value);
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
