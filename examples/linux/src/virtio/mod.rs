// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Virtio 1.2 devices: two transports, and what every device has in common. Queues are rust-vmm's `virtio-queue`, on the framework's
//! guest memory as it is.
//!
//! A [`Device`] knows what it is and serves queues; a transport ([`MmioTransport`], [`PciTransport`]) has the registers by which a
//! driver finds and sets it up, and is the device's [`Signal`]. Between them is the [`Negotiation`], which both transports share.
//! Queues are served by a [`Worker`], a thread of the device's own: a notification is a flag and a wake-up, and the vCPU goes on.

mod block;
mod device;
mod entropy;
mod fuse;
mod mmio;
mod negotiation;
mod pci;
mod request;
mod worker;

pub use block::Block;
pub use device::{Device, DeviceError, QueueSetup, Signal, Stopped};
pub use entropy::Entropy;
pub use fuse::Fuse;
pub use mmio::MmioTransport;
pub use negotiation::Negotiation;
pub use pci::PciTransport;
pub use request::{BadRequest, Request};
pub use worker::{Backend, Worker, WorkerStats};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose holder panicked is taken all the same: a guest must not be able to turn one panic into a device that is gone.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A constant that is a byte, as the bindings do not have it.
const fn low_byte(constant: u32) -> u8 {
    constant.to_le_bytes()[0]
}
