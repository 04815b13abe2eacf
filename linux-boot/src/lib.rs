// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Boots Linux in a Xen HVM domain, without firmware and without a toolstack. For the workspace's own tests and examples.
//!
//! What firmware and a toolstack would do, in the order in which [`Machine::build`](domain) and [`Boot::load`] do it:
//!
//! 1. [`domain`]: a domain with everything that Xen emulates itself (interrupt controllers, timers, the ACPI timer and the power
//!    management events), memory without the VGA window, and a few parameters. By hypercalls alone.
//! 2. [`Boot::load`]: kernel (ELF or bzImage, by rust-vmm's `linux-loader`), initial RAM disk, command line, boot parameters with the
//!    map of memory, page tables, and the [`acpi`] tables that say what is there. Into any `vm-memory` memory: on a real Xen the
//!    framework's own, in a unit test the model's.
//! 3. The first vCPU starts at the kernel's 64-bit entry ([`domain::LinuxDomain::enter`]).
//!
//! Sources: Linux' `Documentation/arch/x86/boot.rst` (64-bit boot protocol) and `zero-page.rst`, the ACPI specification 6.5, Xen's
//! `public/hvm/params.h`.

pub mod acpi;
mod boot;
pub mod domain;
pub mod layout;
mod tables;

pub use boot::{Boot, LoadError, Loaded};
