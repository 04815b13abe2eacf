// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a process that takes over the devices of one that died must know: what the guest has made of their registers.
//!
//! It is written at each change, before the access that made it is answered, so that the guest never relies on something that is not
//! kept. How far the queues are is not in it: guest memory says that. Nor is which pages are tracked: who took over has none.

use std::fmt;
use std::sync::{Arc, OnceLock};

use ioreq::backends::pci::SavedFunction;
use ioreq::snapshot::SavedState;
use serde::{Deserialize, Serialize};

use crate::virtio::QueueSetup;

/// Told after each change that has to be kept.
#[derive(Clone, Default)]
pub struct Changed(Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>);

impl Changed {
    /// Calls `keep` from now on, without a lock of any device held. Only the first call counts.
    pub fn set(&self, keep: impl Fn() + Send + Sync + 'static) {
        let _there_is_one_already = self.0.set(Box::new(keep));
    }

    pub(crate) fn tell(&self) {
        if let Some(keep) = self.0.get() {
            keep();
        }
    }
}

impl fmt::Debug for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Changed")
            .field(&self.0.get().is_some())
            .finish()
    }
}

/// The registers of a board's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBoard {
    pub(crate) console: SavedConsole,
    pub(crate) bridge: SavedFunction,
    pub(crate) disk: SavedPciTransport,
    pub(crate) entropy: SavedNegotiation,
}

impl SavedState for SavedBoard {
    const KIND: &'static str = "Linux board";
    const VERSION: u32 = 1;
}

/// A 16550's registers; what was typed and not read is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedConsole {
    pub(crate) divisor: (u8, u8),
    pub(crate) interrupt_enable: u8,
    pub(crate) line_control: u8,
    pub(crate) modem_control: u8,
    pub(crate) scratch: u8,
}

/// A virtio device's function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPciTransport {
    pub(crate) function: SavedFunction,
    pub(crate) negotiation: SavedNegotiation,
    /// Vectors: of configuration changes, and of each queue.
    pub(crate) config: u16,
    pub(crate) queues: Vec<u16>,
}

/// What a driver and a virtio device agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedNegotiation {
    pub(crate) status: u8,
    pub(crate) accepted: u64,
    pub(crate) selected: u16,
    pub(crate) queues: Vec<QueueSetup>,
}
