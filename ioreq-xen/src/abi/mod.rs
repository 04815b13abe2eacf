// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What Linux and Xen call things: ioctl numbers and the structs behind them.
//!
//! Sizes are pinned here at compile time, and against the C headers by `tests/abi_headers.rs`. DMOPs are in
//! [`ioreq_core::abi::dm_op`].

mod evtchn;
mod hypercall;
mod privcmd;

pub use evtchn::*;
pub use hypercall::*;
pub use privcmd::*;
