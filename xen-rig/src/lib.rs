// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Test domains for a real Xen, without a toolstack.
//!
//! For the workspace's own tests only. It runs in dom0, as root, with `/dev/xen/privcmd`. A [`Guest`] is an HVM domain with
//! hardware-assisted paging and a small agent in it: each vCPU sleeps until it is given a program, a list of [`Instr`]s, executes it
//! and says what came of each. The agent needs no ioreq server of its own, so whatever is tested has the domain for itself.
//!
//! [`Guest::boot`] makes a domain that runs a program of its own instead, an [`Image`]; [`Guest::empty`] one for an operating
//! system, which somebody else loads.
//!
//! Facts of the interface: `domctl.h`, `memory.h`, `hvm_op.h` and `hvm/save.h` of Xen's public headers, `xen/privcmd.h` of Linux.

mod agent;
pub mod checks;
mod context;
mod domctl;
mod guest;
mod hypercall;
mod image;
mod leaks;
mod memory;
mod mortal;
mod param;
mod probe;
mod trace;

pub use agent::{Done, Instr};
pub use context::Place;
pub use domctl::{Fate, Kind};
pub use guest::{Entry, Guest, Program};
pub use hypercall::Privcmd;
pub use image::Image;
pub use leaks::{Leak, Leaks};
pub use mortal::{Fuse, KillPoint, Life, Mortal, MortalDevice, MortalEvents, Sigkill};
pub use probe::Reserved;
pub use trace::{Calls, count as count_calls};
