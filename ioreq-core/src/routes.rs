// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Adding and retracting routes, as backends ask for it: object-safe, so that a device that moves its own ranges (PCI BARs)
//! needs to know neither the hypervisor nor the server.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::handler::Handler;
use crate::range::IoRange;

/// Names one route of one server.
///
/// ```
/// use ioreq_core::routes::RouteId;
/// assert_eq!(RouteId::from_raw(3).to_string(), "route3");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(u64);

impl RouteId {
    /// From a number: for implementors of [`Routes`], who hand them out.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        RouteId(raw)
    }
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route{}", self.0)
    }
}

/// The routes of one server. Callable from any thread, handlers included; requests flow meanwhile.
pub trait Routes: Send + Sync {
    /// Registers `range` with the hypervisor and routes its accesses to `handler`. `name` is for errors and statistics.
    ///
    /// # Errors
    /// `RouteConflict`, naming both, if it overlaps a route of this server; or as the hypervisor says.
    fn add(&self, name: &str, range: IoRange, handler: Arc<dyn Handler>) -> Result<RouteId>;

    /// Gives the route another handler. Calls of the old one may still run; see
    /// [`synchronize`](crate::server::IoreqServer::synchronize).
    ///
    /// # Errors
    /// `NoSuchRoute`.
    fn replace(&self, route: RouteId, handler: Arc<dyn Handler>) -> Result<()>;

    /// Removes the route and its registration. When it returns no new call of the handler starts. Never waits.
    ///
    /// # Errors
    /// `NoSuchRoute`.
    fn retract(&self, route: RouteId) -> Result<()>;
}
