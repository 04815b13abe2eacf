// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Write Xen device models (*ioreq servers*) in Rust.
//!
//! Xen forwards a guest's I/O to user-space device models. With this framework such a model is a value that implements
//! [`Handler`](handler::Handler): it is given ports, MMIO ranges or PCI functions, or, through
//! [`MemTypeClaim`](claim::MemTypeClaim), guest RAM pages of which every write traps. The framework does the rest: the
//! shared pages, event channels, repeated instructions, dispatch without locks, deferred answers, and unmarking pages in the
//! one way that a guest survives.
//!
//! # A device on the model
//! The [`sim`] is a strict in-process model of Xen's side: device models are developed and tested on it, without Xen.
//!
//! ```
//! use std::sync::Mutex;
//! use ioreq::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};
//! use ioreq::server::IoreqServer;
//! use ioreq::sim::{DomainConfig, Machine};
//! use ioreq::{MmioRange, VcpuId};
//!
//! /// A register that adds up what is written to it.
//! struct Adder(u64);
//!
//! impl MutHandler for Adder {
//!     fn read(&mut self, _: &Context<'_>, _: Access) -> ReadOutcome {
//!         self.0.into()
//!     }
//!     fn write(&mut self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
//!         self.0 += value;
//!         WriteOutcome::Done
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let domain = Machine::new().create_domain(DomainConfig::new(1))?;
//! let server = IoreqServer::builder(domain.hypervisor()).build()?;
//! server.route("adder", MmioRange::sized(0xe000_0000, 8)?, Mutex::new(Adder(0)))?;
//! let running = server.start()?;
//!
//! let guest = domain.spawn(VcpuId(0), |cpu| {
//!     cpu.store32(0xe000_0000, 40)?;
//!     cpu.store32(0xe000_0000, 2)?;
//!     cpu.load32(0xe000_0000)
//! })?;
//! assert_eq!(guest.join()?, 42);
//! running.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! The [guide] goes on from here: to a PCI device with an interrupt and a page of which every write traps, on the model, on a real
//! Xen, and over the death of its process.
//!
//! # Features
//! `sim` (default): the hypervisor model. `backends` (default): ready-made devices. `xen`: the real hypervisor. `replay`: recordings of
//! what a device model is asked, and their replay. `serde`: saved state can be
//! written and read. `audit`: for
//! tests of the framework itself.

#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

pub use ioreq_core::*;

#[cfg(feature = "backends")]
pub use ioreq_backends as backends;
#[cfg(feature = "replay")]
pub use ioreq_replay as replay;
#[cfg(feature = "sim")]
pub use ioreq_sim as sim;
#[cfg(feature = "xen")]
pub use ioreq_xen as xen;
