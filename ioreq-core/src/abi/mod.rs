// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The shared structures and constants of Xen's public headers (`xen/include/public/hvm/{ioreq,dm_op}.h`), bit by bit.
//!
//! Layouts only: nothing here touches shared memory. The accessors are in [`crate::slot`] and [`crate::ring`]. Sizes and
//! offsets are pinned at compile time, and against the C compiler and the headers by `tests/abi_headers.rs`.

mod buffered;
pub mod dm_op;
mod dmop;
mod ioreq;

pub use buffered::*;
pub use dmop::*;
pub use ioreq::*;
