// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the framework asks of a hypervisor: four traits, each about *one domain*, and their union [`Hypervisor`].
//!
//! A value that implements them is a handle on one domain for one device-model process. `ioreq-sim` and `ioreq-xen`
//! implement all four; the framework above uses nothing else. Every method answers with the errors that Xen gives,
//! turned into an [`Error`](crate::Error) that keeps the errno.

mod events;
mod interrupts;
mod memory;
mod memtypes;
mod shared_page;
mod transport;

pub use events::EventChannels;
pub use interrupts::{InjectedEvent, Interrupts, Intx};
pub use memory::GuestMap;
pub use memtypes::{MarkAuthority, MemTypes, P2mType};
pub use shared_page::{PageError, SharedPage};
pub use transport::{BufIoreq, DomainState, ServerInfo, ShutdownReason, Transport};

/// All that a device model needs of a hypervisor, for one domain.
///
/// ```
/// use ioreq_core::handler::Handler;
/// use ioreq_core::server::{IoreqServer, Running};
/// use ioreq_core::{Hypervisor, PortRange, Result};
/// use ioreq_sim::{DomainConfig, Machine};
/// use std::sync::Arc;
///
/// /// The same device model for every hypervisor.
/// fn serve<H: Hypervisor>(hv: Arc<H>, device: impl Handler + 'static) -> Result<Running<H>> {
///     let server = IoreqServer::builder(hv).build()?;
///     server.route("device", PortRange::new(0x500, 0x50f)?, device)?;
///     server.start()
/// }
/// # use ioreq_core::handler::{Access, Context, ReadOutcome, WriteOutcome};
/// # struct Zero;
/// # impl Handler for Zero {
/// #     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome { 0.into() }
/// #     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome { WriteOutcome::Done }
/// # }
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// serve(domain.hypervisor().into(), Zero)?.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Hypervisor: Transport + GuestMap + MemTypes + Interrupts {}

impl<T: Transport + GuestMap + MemTypes + Interrupts> Hypervisor for T {}
