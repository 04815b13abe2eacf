// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory: the region type that backends map guests with, and the framework's own access to guest RAM.

mod ram;
mod region;

pub use ram::{GuestRam, RamError, Width};
pub use region::MappedRegion;
