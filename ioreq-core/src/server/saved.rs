// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the framework itself knows of a server, to be saved and given to another one.

use std::sync::Arc;

use super::core::Core;
use super::ioreq_server::IoreqServer;
use crate::error::{ErrorKind, Op, Result};
use crate::handler::Handler;
use crate::hypervisor::Hypervisor;
use crate::range::{GfnRange, IoRange};
use crate::routes::RouteId;
use crate::snapshot::SavedState;

/// A server's ranges and tracked pages, by the names of routes and trackers. Made by [`Quiesced::save`](super::Quiesced::save).
///
/// Handlers are code and are not in it: whoever restores it gives each name its handler again, and each handler its own saved
/// state ([`Snapshot`](crate::snapshot::Snapshot)). With the feature `serde` it can be written with
/// [`Versioned`](crate::snapshot::Versioned).
///
/// ```
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::{PortRange, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
/// use std::{sync::Arc, time::Duration};
///
/// struct Zero;
/// impl Handler for Zero {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         0.into()
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Done
///     }
/// }
///
/// let machine = Machine::new();
/// let (here, there) = (DomainConfig::new(1), DomainConfig::new(1));
/// let (here, there) = (machine.create_domain(here)?, machine.create_domain(there)?);
/// let source = IoreqServer::builder(here.hypervisor()).build()?;
/// source.route("zero", PortRange::new(0x500, 0x503)?, Zero)?;
/// let saved = source.quiesce(Duration::from_secs(1))?.save();
///
/// let target = IoreqServer::builder(there.hypervisor()).build()?;
/// saved.restore_routes(&target, |name, _| match name {
///     "zero" => Some(Arc::new(Zero)),
///     _ => None,
/// })?;
/// assert_eq!(target.quiesce(Duration::from_secs(1))?.save(), saved);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SavedServer {
    buffered: bool,
    claimed: bool,
    routes: Vec<(String, IoRange)>,
    trackers: Vec<SavedTracker>,
}

/// What one tracker, or several of one name, tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
struct SavedTracker {
    name: String,
    /// In runs with one handler each, in order.
    pages: Vec<GfnRange>,
}

impl SavedState for SavedServer {
    const KIND: &'static str = "server";
    const VERSION: u32 = 1;
}

impl SavedServer {
    pub(super) fn of<H: Hypervisor>(core: &Core<H>) -> Self {
        let owned = |name: &Arc<str>| String::from(&**name);
        let known = core.routes.lock();
        let routes = known.all().map(|(name, range)| (owned(name), range));
        let routes = routes.collect();
        drop(known);
        let ledger = core.ledger();
        let mut trackers: Vec<SavedTracker> = Vec::new();
        for (name, pages) in ledger.tracked() {
            match trackers.iter_mut().find(|known| *known.name == **name) {
                Some(known) => known.pages.push(pages),
                None => trackers.push(SavedTracker {
                    name: owned(name),
                    pages: vec![pages],
                }),
            }
        }
        SavedServer {
            buffered: core.ring.is_some(),
            claimed: ledger.is_claimed(),
            routes,
            trackers,
        }
    }

    /// Whether the server had a buffered ring.
    #[must_use]
    pub fn buffered(&self) -> bool {
        self.buffered
    }

    /// Whether it owned the write-tracking memory type.
    #[must_use]
    pub fn claimed(&self) -> bool {
        self.claimed
    }

    /// Every route's name and range, in the order in which they were added.
    pub fn routes(&self) -> impl Iterator<Item = (&str, IoRange)> {
        self.routes.iter().map(|(name, range)| (&**name, *range))
    }

    /// The names of trackers that had pages, each once.
    pub fn trackers(&self) -> impl Iterator<Item = &str> {
        self.trackers.iter().map(|tracker| &*tracker.name)
    }

    /// What the trackers of that name tracked, in runs with one handler each. To be tracked again, with handlers that read
    /// them.
    pub fn pages<'a>(&'a self, tracker: &'a str) -> impl Iterator<Item = GfnRange> + 'a {
        let of = self
            .trackers
            .iter()
            .filter(move |known| known.name == tracker);
        of.flat_map(|tracker| tracker.pages.iter().copied())
    }

    /// Routes every range again to the handler that `handler` gives its name; a route for which it gives none is left out, as
    /// those that a device makes itself (a PCI function its BARs).
    ///
    /// # Errors
    /// `InvalidArgument` if the saved server had a buffered ring and this one has none; otherwise as
    /// [`route`](IoreqServer::route): ranges before the bad one are routed then.
    pub fn restore_routes<H: Hypervisor>(
        &self,
        server: &IoreqServer<H>,
        mut handler: impl FnMut(&str, IoRange) -> Option<Arc<dyn Handler>>,
    ) -> Result<Vec<RouteId>> {
        server.check_ring(self.buffered)?;
        let mut restored = Vec::new();
        for (name, range) in self.routes() {
            if let Some(handler) = handler(name, range) {
                restored.push(server.route(name, range, handler)?);
            }
        }
        Ok(restored)
    }
}

impl<H: Hypervisor> IoreqServer<H> {
    fn check_ring(&self, wanted: bool) -> Result<()> {
        if wanted && self.core().ring.is_none() {
            let err = self.core().error(Op::Route, ErrorKind::InvalidArgument);
            let why = "what was saved had a buffered ring: build this server with one";
            return Err(err.about(why));
        }
        Ok(())
    }
}
