// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI function: type 0 configuration space, BARs that take their routes along when the guest moves them, capabilities, and
//! interrupts by pin, MSI and MSI-X.
//!
//! A device is made in two steps, because its own code needs the interrupts and the function needs its code:
//!
//! 1. [`FunctionInterrupts`]: what the device raises interrupts with, from any thread.
//! 2. [`PciFunction`]: a [`Header`], [`Bar`]s with the device's handlers, [`Capability`]s. Route it at its [`Sbdf`], for
//!    0xcf8/0xcfc; and, if the platform has ECAM, at the function's 4 KiB of that window, which Xen delivers as MMIO. The same
//!    handler serves both.
//!
//! ```
//! use std::sync::Arc;
//! use ioreq_backends::pci::{Bar, FunctionInterrupts, Header, Msix, PciFunction, Signals};
//! use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
//! use ioreq_core::hypervisor::{Interrupts, Intx};
//! use ioreq_core::routes::Routes;
//! use ioreq_core::{Result, Sbdf};
//!
//! /// Writing its only register raises interrupt 0.
//! struct Doorbell(Arc<FunctionInterrupts>);
//!
//! impl Handler for Doorbell {
//!     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
//!         ReadOutcome::Value(0)
//!     }
//!     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
//!         match self.0.trigger(0) {
//!             Ok(_) => WriteOutcome::Done,
//!             Err(_) => WriteOutcome::Refused("the hypervisor took no interrupt"),
//!         }
//!     }
//! }
//!
//! // `routes` is `server.control()`, `hypervisor` is `server.hypervisor()`.
//! fn plug(at: Sbdf, routes: Arc<dyn Routes>, hypervisor: Arc<dyn Interrupts>) -> Result<Arc<PciFunction>> {
//!     let signals = Signals::new().intx(Intx::A).msix(Msix::new(2, (0, 0x800), (0, 0xc00)));
//!     let interrupts = FunctionInterrupts::new(at, hypervisor, signals)?;
//!     PciFunction::builder(Header::new(0x1af4, 0x10f0).class(0xff, 0, 0), Arc::clone(&interrupts))
//!         .bar(0, Bar::mem32(0x1000).served_by(Doorbell(interrupts)))
//!         .build(routes)
//! }
//! ```
//!
//! # What the guest can do
//! All accesses of 1, 2, 4 or 8 bytes at any offset are served byte by byte, as one step. A BAR whose range overlaps another
//! route, or that the hypervisor refuses, is not decoded: the guest reads back what it wrote, its accesses there go to nobody,
//! [`PciFunction::bars`] tells, and the next change of the function's BARs or command register tries again. So a
//! guest can disable its device, and nothing else.
//!
//! [`Sbdf`]: ioreq_core::Sbdf

mod bar;
mod builder;
mod capability;
mod config;
mod failures;
mod function;
mod header;
mod interrupts;
mod intx;
mod lock;
mod msi;
mod msix;
mod msix_bar;
mod routing;
mod saved;

pub use bar::{Bar, BarKind};
pub use builder::Builder;
pub use capability::{Capability, ExtendedCapability};
pub use function::{ConfigWrite, PciFunction};
pub use header::Header;
pub use interrupts::{Delivery, FunctionInterrupts, Signals};
pub use msi::Msi;
pub use msix::Msix;
pub use routing::BarStatus;
pub use saved::SavedFunction;
