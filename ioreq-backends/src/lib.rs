// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ready-made device backends for the `ioreq` framework. Each knows only the core's object-safe traits, so it runs on any
//! hypervisor, and in a unit test on none.
//!
//! * [`pci`]: a PCI function: configuration space, BARs, capabilities, interrupts.
//! * [`register_bank`]: device registers, declared rather than programmed.
//! * [`vgpu`]: shadow page tables of a mediated GPU.
//! * [`write_log`]: who writes what to tracked pages, in which order.

pub mod pci;
pub mod register_bank;
pub mod vgpu;
pub mod write_log;
