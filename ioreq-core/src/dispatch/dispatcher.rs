// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The routes of one server: ports, MMIO and PCI functions. (Tracked pages have a [`PageMap`](super::PageMap) of their own.)

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::{Grace, PortMap, RangeMap, ReadGuard, Route};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::handler::Handler;
use crate::ids::Sbdf;
use crate::memory::Width;
use crate::range::{IoRange, MmioRange, SbdfRange};
use crate::routes::RouteId;
use crate::stats::{PerWorker, RouteStats};
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
    routes: BTreeMap<RouteId, Arc<Route>>,
    next: u64,
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
    pub(crate) fn port<'g>(
        &self,
        port: u16,
        width: Width,
        guard: &'g ReadGuard<'_>,
    ) -> Option<&'g Route> {
        self.ports.find(port, width.bytes(), guard)
    }

    /// The route that covers all of an MMIO access.
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
        self.pci.find(sbdf.bits().into(), 1, guard)
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
        let id = RouteId::from_raw(known.next);
        let base = match range {
            IoRange::Port(ports) => ports.first().into(),
            IoRange::Mmio(addrs) => addrs.first(),
            IoRange::Pci(_) => 0,
        };
        let counters = Arc::new(PerWorker::new(workers));
        let route = Arc::new(Route {
            handler,
            base,
            counters,
            range,
            name: name.into(),
        });
        self.publish(&route)?;
        known.next += 1;
        known.routes.insert(id, route);
        Ok(id)
    }

    fn publish(&self, route: &Arc<Route>) -> Result<()> {
        let result = match route.range {
            IoRange::Port(ports) => self.ports.insert(ports, route),
            IoRange::Mmio(addrs) => self.mmio.insert(addrs, route),
            IoRange::Pci(sbdf) => self.pci.insert(function(sbdf), route),
        };
        result.map_err(|conflict| {
            let existing = conflict.existing();
            Error::new(Op::Route, ErrorKind::RouteConflict).conflict(
                format!("{} of {:?}", route.range, route.name),
                format!("{} of {:?}", existing.range, existing.name),
            )
        })
    }

    /// Gives a route another handler, in one step: every access finds the old or the new one.
    pub(crate) fn replace(
        &self,
        known: &mut Known,
        id: RouteId,
        handler: Arc<dyn Handler>,
    ) -> Result<()> {
        let old = known.routes.get_mut(&id).ok_or_else(|| gone(id))?;
        let new = Arc::new(Route {
            handler,
            base: old.base,
            counters: Arc::clone(&old.counters),
            range: old.range,
            name: Arc::clone(&old.name),
        });
        match old.range {
            IoRange::Port(ports) => self.ports.replace(ports, &new),
            IoRange::Mmio(addrs) => self.mmio.replace(addrs, &new),
            IoRange::Pci(sbdf) => self.pci.replace(function(sbdf), &new),
        };
        *old = new;
        Ok(())
    }

    /// Removes a route; returns what it was.
    pub(crate) fn retract(&self, known: &mut Known, id: RouteId) -> Result<Arc<Route>> {
        let route = known.routes.remove(&id).ok_or_else(|| gone(id))?;
        match route.range {
            IoRange::Port(ports) => self.ports.remove(ports),
            IoRange::Mmio(addrs) => self.mmio.remove(addrs),
            IoRange::Pci(sbdf) => self.pci.remove(function(sbdf)),
        };
        Ok(route)
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

/// A PCI function as a range of one key.
fn function(sbdf: Sbdf) -> MmioRange {
    let key = SbdfRange::from(sbdf).first().into();
    MmioRange::new(key, key).expect("one key is a range")
}
