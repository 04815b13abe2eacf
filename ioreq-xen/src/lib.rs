// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Xen backend of the `ioreq` framework: device models on a real Xen, over `/dev/xen/privcmd` and `/dev/xen/evtchn`.
//!
//! [`XenHypervisor`] is the entry: it implements all of [`ioreq_core::Hypervisor`], so
//! [`IoreqServer::builder`](ioreq_core::server::IoreqServer::builder) takes it as it takes the model. [`DeviceModel`] has
//! every device-model operation. No Xen library is needed, at build or at run time.
//!
//! # Limits
//! * x86 domains with at most 128 vCPUs: one ioreq page. `IoreqServer`'s builder says so for a larger one.
//! * A domain's shutdown (not its death) goes unnoticed through a restricted handle.
//! * [`IrqFd`] is made by the header of newer Linux and has never met a kernel that has it: those that the tests run on have
//!   not. The kernel's ioeventfd is encoded and not offered ([`abi::PrivcmdIoeventfd`] says why).
//! * INVALIDATE requests drop all mappings, not those of the frames that changed: Xen does not say which.

pub mod abi;

mod builder;
mod dm;
mod events;
mod handles;
mod hypervisor;
mod leftovers;
mod memory;
mod offload;
mod state;
mod sys;

pub use builder::Builder;
pub use dm::{CacheAttr, DeviceModel, DirtyPages, DmOpCarrier};
pub use events::XenEvents;
pub use handles::Handles;
pub use hypervisor::XenHypervisor;
pub use memory::{ForeignRegion, XenMemory};
pub use offload::IrqFd;
pub use sys::Privcmd;
