// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ACPI tables: how a guest that has no firmware learns what is there.

mod namespace;
mod pages;

pub use namespace::{Devices, PciHost, VirtioMmio, gsi_of_slot};
pub(crate) use pages::tables;
