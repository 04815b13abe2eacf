// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device is to its transport, and a transport to its device.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How a driver set a queue up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueSetup {
    /// The most descriptors that it may have.
    pub most: u16,
    /// The number that the driver chose.
    pub size: u16,
    /// Whether it is to be used.
    pub ready: bool,
    /// Guest-physical addresses of the descriptor table, the available ring and the used ring.
    pub descriptors: u64,
    /// See `descriptors`.
    pub available: u64,
    /// See `descriptors`.
    pub used: u64,
}

/// Why a device cannot be started as its driver wants it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A queue that is not all in guest memory, or has an impossible size.
    #[error("queue {0} is not set up as a queue can be")]
    Queue(u16),
}

/// Called when a device that was told to stop uses no queue any more.
pub type Stopped = Box<dyn FnOnce() + Send>;

/// A virtio device without a transport.
pub trait Device: Send + Sync {
    /// What it is: `VIRTIO_ID_*`.
    fn kind(&self) -> u32;

    /// The features that it offers, beside that it is one of virtio 1.
    fn features(&self) -> u64;

    /// The most descriptors of each of its queues.
    fn queues(&self) -> &[u16];

    /// Its configuration space, which never changes.
    fn config(&self) -> &[u8];

    /// The driver is ready: queues may be used from now on, with interrupts by `signal`. With `resumed` another process used them before,
    /// and guest memory says how far it was.
    ///
    /// # Errors
    /// When a queue cannot be used as it is set up: the device needs a reset then.
    fn start(
        &self,
        queues: &[QueueSetup],
        signal: Arc<dyn Signal>,
        resumed: bool,
    ) -> Result<(), DeviceError>;

    /// There is something in a queue. Never waits.
    fn notify(&self, queue: u16);

    /// The driver resets the device: no queue is to be used any more. Does not wait; `stopped` is called, here or by another thread,
    /// when it is so.
    fn stop(&self, stopped: Stopped);
}

/// How a device tells its driver something.
pub trait Signal: Send + Sync {
    /// Buffers of this queue have been used.
    fn used(&self, queue: u16);
}
