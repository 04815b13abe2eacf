// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Routes and their registration with the hypervisor, kept in step.

use std::sync::Arc;

use super::core::Core;
use crate::error::{ErrorKind, Result};
use crate::handler::Handler;
use crate::hypervisor::Hypervisor;
use crate::range::IoRange;
use crate::routes::RouteId;
use crate::stats::RouteStats;

impl<H: Hypervisor> Core<H> {
    /// The route first, then the registration: the first request finds its handler.
    pub(super) fn add_route(
        &self,
        name: &str,
        range: IoRange,
        handler: Arc<dyn Handler>,
    ) -> Result<RouteId> {
        let mut known = self.routes.lock();
        let slots = self.worker_slots();
        let handler = self.panics.guard(name, handler);
        let id = self.routes.add(&mut known, name, range, handler, slots);
        let id = id.map_err(|err| err.domain(self.hv.domid()).server(self.id))?;
        if let Err(err) = self.hv.map_range(self.id, range)
            // Taken over with the server.
            && !(self.inherited && err.kind() == ErrorKind::RangeExists)
        {
            // Never registered, so nothing was routed by it.
            self.routes.retract(&mut known, id)?;
            return Err(err);
        }
        Ok(id)
    }

    pub(super) fn replace_route(&self, id: RouteId, handler: Arc<dyn Handler>) -> Result<()> {
        let mut known = self.routes.lock();
        let result = known.name(id).cloned().and_then(|name| {
            let handler = self.panics.guard(&name, handler);
            self.routes.replace(&mut known, id, handler)
        });
        drop(known);
        self.grace.collect_in_batches();
        result.map_err(|err| err.domain(self.hv.domid()).server(self.id))
    }

    /// The registration first: requests that were on their way find no route then, and are answered as nobody's.
    pub(super) fn retract_route(&self, id: RouteId) -> Result<()> {
        let mut known = self.routes.lock();
        let range = known
            .range(id)
            .map_err(|err| err.domain(self.hv.domid()).server(self.id))?;
        let unmapped = self.hv.unmap_range(self.id, range);
        self.routes.retract(&mut known, id)?;
        drop(known);
        self.grace.collect_in_batches();
        unmapped
    }

    pub(super) fn route_stats(&self) -> Vec<(Arc<str>, RouteStats)> {
        self.routes.stats()
    }
}
