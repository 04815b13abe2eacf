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
///
/// ```
/// use std::sync::Arc;
///
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::routes::Routes;
/// use ioreq_core::{MmioRange, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// struct Bar;
/// impl Handler for Bar {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         0.into()
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Done
///     }
/// }
///
/// /// A device moves its registers.
/// fn relocate(routes: &dyn Routes) -> ioreq_core::Result<()> {
///     let old = routes.add("bar", MmioRange::sized(0xe000_0000, 0x1000)?.into(), Arc::new(Bar))?;
///     routes.retract(old)?;
///     routes.add("bar", MmioRange::sized(0xf000_0000, 0x1000)?.into(), Arc::new(Bar))?;
///     Ok(())
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// relocate(&server.control())?;
/// assert_eq!(server.route_stats().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
