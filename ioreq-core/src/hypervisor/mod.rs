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
pub trait Hypervisor: Transport + GuestMap + MemTypes + Interrupts {}

impl<T: Transport + GuestMap + MemTypes + Interrupts> Hypervisor for T {}
