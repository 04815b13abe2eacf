// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The routes of one server: ports, MMIO and PCI functions. (Tracked pages have a [`PageMap`](super::PageMap) of their own.)

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::{Conflict, Grace, PortMap, RangeMap, ReadGuard, Route};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::handler::Handler;
use crate::ids::Sbdf;
use crate::memory::Width;
use crate::range::{IoRange, MmioRange};
use crate::routes::RouteId;
use crate::stats::{PerWorker, RouteCounters, RouteStats};
use crate::sync::{Mutex, MutexGuard};

/// Finds routes without a lock; changes them under one.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    ports: PortMap<Route>,
    mmio: RangeMap<Route>,
    pci: RangeMap<Route>,
    known: Mutex<Known>,
}

/// The control side's list of routes.
#[derive(Debug, Default)]
pub(crate) struct Known {
    routes: BTreeMap<RouteId, Registered>,
    next: u64,
}

/// What stays of a route when its handler is replaced.
#[derive(Debug)]
struct Registered {
    range: IoRange,
    name: Arc<str>,
    counters: Arc<PerWorker<RouteCounters>>,
}

impl Registered {
    fn route(&self, handler: Arc<dyn Handler>) -> Route {
        let base = match self.range {
            IoRange::Port(ports) => ports.first().into(),
            IoRange::Mmio(addrs) => addrs.first(),
            IoRange::Pci(_) => 0,
        };
        Route {
            handler,
            base,
            counters: Arc::clone(&self.counters),
            range: self.range,
            name: Arc::clone(&self.name),
        }
    }
}

impl Dispatcher {
    pub(crate) fn new(grace: &Arc<Grace>) -> Self {
        Dispatcher {
            ports: PortMap::new(Arc::clone(grace)),
            mmio: RangeMap::new(Arc::clone(grace)),
            pci: RangeMap::new(Arc::clone(grace)),
            known: Mutex::new(Known::default()),
        }
    }

    /// The route that covers all of a port access.
    #[inline(always)]
    pub(crate) fn port<'g>(
        &self,
        port: u16,
        width: Width,
        guard: &'g ReadGuard<'_>,
    ) -> Option<&'g Route> {
        self.ports.find(port, width.bytes(), guard)
    }

    /// The route that covers all of an MMIO access.
    #[inline(always)]
    pub(crate) fn mmio<'g>(
        &self,
        addr: u64,
        len: u64,
        guard: &'g ReadGuard<'_>,
    ) -> Option<&'g Route> {
        self.mmio.find(addr, len, guard)
    }

    /// The route of a PCI function.
    pub(crate) fn pci<'g>(&self, sbdf: Sbdf, guard: &'g ReadGuard<'_>) -> Option<&'g Route> {
        self.pci.find(ecam(sbdf).first(), 1, guard)
    }

    /// The lock under which routes are changed, also across the hypercalls that go with it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a new route.
    pub(crate) fn add(
        &self,
        known: &mut Known,
        name: &str,
        range: IoRange,
        handler: Arc<dyn Handler>,
        workers: usize,
    ) -> Result<RouteId> {
        let registered = Registered {
            range,
            name: name.into(),
            counters: Arc::new(PerWorker::new(workers)),
        };
        self.publish(range, registered.route(handler))?;
        let id = RouteId::from_raw(known.next);
        known.next += 1;
        known.routes.insert(id, registered);
        Ok(id)
    }

    fn publish(&self, range: IoRange, route: Route) -> Result<()> {
        let new = format!("{range} of {:?}", route.name);
        let existing = match range {
            IoRange::Port(ports) => self.ports.insert(ports, route).map_err(describe),
            IoRange::Mmio(addrs) => self.mmio.insert(addrs, route).map_err(describe),
            IoRange::Pci(sbdf) => self.pci.insert(ecam(sbdf), route).map_err(describe),
        };
        existing.map_err(|existing| {
            Error::new(Op::Route, ErrorKind::RouteConflict).conflict(new, existing)
        })
    }

    /// Gives a route another handler: every access finds the old or the new one.
    pub(crate) fn replace(
        &self,
        known: &mut Known,
        id: RouteId,
        handler: Arc<dyn Handler>,
    ) -> Result<()> {
        let registered = known.routes.get(&id).ok_or_else(|| gone(id))?;
        let route = registered.route(handler);
        match registered.range {
            IoRange::Port(ports) => self.ports.replace(ports, route),
            IoRange::Mmio(addrs) => self.mmio.replace(addrs, route),
            IoRange::Pci(sbdf) => self.pci.replace(ecam(sbdf), route),
        };
        Ok(())
    }

    /// Removes a route. Its handler is freed later, by [`Grace::collect`].
    pub(crate) fn retract(&self, known: &mut Known, id: RouteId) -> Result<()> {
        let registered = known.routes.remove(&id).ok_or_else(|| gone(id))?;
        match registered.range {
            IoRange::Port(ports) => self.ports.remove(ports),
            IoRange::Mmio(addrs) => self.mmio.remove(addrs),
            IoRange::Pci(sbdf) => self.pci.remove(ecam(sbdf)),
        };
        Ok(())
    }

    /// Every route's name and statistics.
    pub(crate) fn stats(&self) -> Vec<(Arc<str>, RouteStats)> {
        let known = self.lock();
        let all = known.routes.values();
        all.map(|route| (Arc::clone(&route.name), RouteStats::sum(&route.counters)))
            .collect()
    }
}

impl Known {
    /// Every route's name and range, in the order in which they were added.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Arc<str>, IoRange)> {
        self.routes.values().map(|route| (&route.name, route.range))
    }

    /// The name of a route.
    pub(crate) fn name(&self, id: RouteId) -> Result<&Arc<str>> {
        let route = self.routes.get(&id).ok_or_else(|| gone(id))?;
        Ok(&route.name)
    }

    /// The range of a route.
    pub(crate) fn range(&self, id: RouteId) -> Result<IoRange> {
        self.routes
            .get(&id)
            .map(|route| route.range)
            .ok_or_else(|| gone(id))
    }
}

fn gone(id: RouteId) -> Error {
    Error::new(Op::Route, ErrorKind::NoSuchRoute).about(id.to_string())
}

fn describe<S>(conflict: Conflict<S, Route>) -> String {
    let existing = conflict.existing();
    format!("{} of {:?}", existing.route.range, existing.route.name)
}

/// Where a PCI function would lie in an ECAM window of all segments: 4 KiB each, which the map finds without searching.
fn ecam(sbdf: Sbdf) -> MmioRange {
    let first = u64::from(sbdf.bits()) << 12;
    MmioRange::new(first, first + 0xfff).expect("44 bits")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::handler::{Access, Context, ReadOutcome, WriteOutcome};
    use crate::range::PortRange;

    struct Device;

    impl Handler for Device {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            ReadOutcome::Value(0)
        }

        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            WriteOutcome::Done
        }
    }

    /// One range of each kind.
    fn ranges() -> [IoRange; 3] {
        [
            IoRange::Port(PortRange::sized(0x3f8, 8).unwrap()),
            IoRange::Mmio(MmioRange::sized(0xfee0_1000, 0x20).unwrap()),
            IoRange::Pci(Sbdf::new(1, 2, 3, 4).unwrap()),
        ]
    }

    /// The handler that the first address of `range` leads to.
    fn handler(
        dispatcher: &Dispatcher,
        range: IoRange,
        guard: &ReadGuard<'_>,
    ) -> Option<Arc<dyn Handler>> {
        let route = match range {
            IoRange::Port(ports) => dispatcher.port(ports.first(), Width::B1, guard),
            IoRange::Mmio(addrs) => dispatcher.mmio(addrs.first(), 1, guard),
            IoRange::Pci(sbdf) => dispatcher.pci(sbdf, guard),
        };
        route.map(|route| Arc::clone(&route.handler))
    }

    #[test]
    fn a_route_is_found_from_its_publication_to_its_retraction() {
        for range in ranges() {
            let grace = Grace::new();
            let dispatcher = Dispatcher::new(&grace);
            let mut reader = grace.reader();
            let handlers: [Arc<dyn Handler>; 2] = [Arc::new(Device), Arc::new(Device)];
            let mut known = dispatcher.lock();
            let id = dispatcher
                .add(&mut known, "device", range, Arc::clone(&handlers[0]), 1)
                .unwrap();
            let found = handler(&dispatcher, range, &reader.enter()).expect("published");
            assert!(std::ptr::addr_eq(
                Arc::as_ptr(&found),
                Arc::as_ptr(&handlers[0])
            ));
            assert_eq!(known.range(id).unwrap(), range);
            dispatcher
                .replace(&mut known, id, Arc::clone(&handlers[1]))
                .unwrap();
            drop(found);
            grace.collect();
            assert_eq!(Arc::strong_count(&handlers[0]), 1, "replaced, and freed");
            assert!(handler(&dispatcher, range, &reader.enter()).is_some());
            assert_eq!(Arc::strong_count(&handlers[1]), 2);
            dispatcher.retract(&mut known, id).unwrap();
            assert!(handler(&dispatcher, range, &reader.enter()).is_none());
            let again = dispatcher.retract(&mut known, id).unwrap_err();
            assert_eq!(again.kind(), ErrorKind::NoSuchRoute);
            let replaced = dispatcher.replace(&mut known, id, Arc::clone(&handlers[0]));
            assert_eq!(replaced.unwrap_err().kind(), ErrorKind::NoSuchRoute);
            assert!(known.range(id).is_err());
        }
    }

    #[test]
    fn a_conflict_names_both_routes_and_registers_nothing() {
        let grace = Grace::new();
        let dispatcher = Dispatcher::new(&grace);
        let mut known = dispatcher.lock();
        for range in ranges() {
            let first = dispatcher.add(&mut known, "first", range, Arc::new(Device), 1);
            let err = dispatcher
                .add(&mut known, "second", range, Arc::new(Device), 1)
                .unwrap_err();
            assert_eq!(err.kind(), ErrorKind::RouteConflict);
            let text = err.to_string();
            for part in ["\"first\"", "\"second\"", &range.to_string()] {
                assert!(text.contains(part), "{part} is missing: {text}");
            }
            assert!(first.is_ok());
        }
        drop(known);
        let stats = dispatcher.stats();
        let names: Vec<&str> = stats.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["first"; 3]);
    }

    #[test]
    fn no_two_routes_have_one_id() {
        let grace = Grace::new();
        let dispatcher = Dispatcher::new(&grace);
        let mut known = dispatcher.lock();
        let ids: Vec<RouteId> = ranges()
            .into_iter()
            .map(|range| {
                let added = dispatcher.add(&mut known, "device", range, Arc::new(Device), 1);
                added.unwrap()
            })
            .collect();
        assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
    }

    #[test]
    fn every_function_has_a_page_of_its_own_in_the_window() {
        for bits in [0, 1, u32::from(u16::MAX), u32::MAX] {
            let range = ecam(Sbdf::from_bits(bits));
            assert_eq!(range.first(), u64::from(bits) * 0x1000);
            assert_eq!(range.last() - range.first(), 0xfff);
        }
    }
}
