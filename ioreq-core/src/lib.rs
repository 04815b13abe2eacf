// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Hypervisor-neutral core of the `ioreq` framework.
//!
//! Data goes one way: `hypervisor` transport → `request` → `dispatch` → `handler` → completion in the vCPU's `slot`. A
//! device model author writes handlers and hands them to an `IoreqServer`; whoever ports the framework to another
//! hypervisor implements the traits of [`hypervisor`].

pub mod abi;
#[cfg(any(feature = "audit", feature = "callgrind"))]
pub mod audit;
#[cfg(not(any(feature = "audit", feature = "callgrind")))]
mod audit;
pub mod claim;
pub mod dispatch;
pub mod error;
pub mod handler;
pub mod hypervisor;
pub mod ids;
pub mod journal;
pub mod memory;
pub mod range;
pub mod request;
pub mod ring;
pub mod routes;
pub mod server;
pub mod slot;
pub mod snapshot;
pub mod stats;

mod sync;

// Their types are in the interfaces here: whoever has no other use for these crates needs no dependency on the same versions.
pub use event_manager;
pub use vm_memory;

pub use error::{Error, ErrorKind, Op, Result};
pub use hypervisor::{
    BufIoreq, DomainState, EventChannels, GuestMap, Hypervisor, Interrupts, MarkAuthority,
    MemTypes, P2mType, ServerInfo, ShutdownReason, Transport,
};
pub use ids::{DomId, EvtchnPort, Gfn, LocalPort, Sbdf, ServerId, VcpuId};
pub use memory::{GuestRam, Width};
pub use range::{GfnRange, IoRange, MmioRange, PortRange, RangeError, SbdfRange};
