// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver as a program for the vCPUs of a real domain, with nothing below it but the vCPU.
//!
//! `cargo xtask xen run` builds it (`--cfg freestanding`, linked statically, without a C library) and has the rig put it into an HVM
//! domain. Every vCPU starts at `_start` in 64-bit mode, memory mapped at its own addresses, interrupts off, with a stack, its
//! number in rdi and the number of vCPUs in rsi. What it is to do it learns as `vgpu_guest::control` says.

#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]

#[cfg(freestanding)]
extern crate alloc;

#[cfg(freestanding)]
mod cpu;
#[cfg(freestanding)]
mod heap;
#[cfg(freestanding)]
mod interrupts;
#[cfg(freestanding)]
mod libc;
#[cfg(freestanding)]
mod start;

#[cfg(not(freestanding))]
fn main() -> std::process::ExitCode {
    eprintln!("vgpu-guest runs in a domain: `cargo xtask xen run --example vgpu` puts it there");
    std::process::ExitCode::FAILURE
}
