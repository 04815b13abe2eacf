// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Driver and device agree: status, features, queues (virtio 1.2, 2.1 to 2.3 and 3.1). The same on every transport.

use std::fmt;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

use super::device::{Device, QueueSetup, Signal, Stopped};
use super::{lock, low_byte};
use crate::saved::SavedNegotiation;

/// No transitional device: a driver must accept this.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const FEATURES_OK: u8 = low_byte(VIRTIO_CONFIG_S_FEATURES_OK);
const DRIVER_OK: u8 = low_byte(VIRTIO_CONFIG_S_DRIVER_OK);
const NEEDS_RESET: u8 = low_byte(VIRTIO_CONFIG_S_NEEDS_RESET);

/// What was agreed so far.
pub struct Negotiation {
    device: Arc<dyn Device>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    status: u8,
    /// Which 32 of the features are read, and written.
    offered_half: u32,
    accepted_half: u32,
    accepted: u64,
    selected: u16,
    queues: Vec<QueueSetup>,
}

impl Negotiation {
    /// Nothing is agreed.
    #[must_use]
    pub fn new(device: Arc<dyn Device>) -> Self {
        let state = State {
            queues: fresh(&*device),
            ..State::default()
        };
        Negotiation {
            device,
            state: Mutex::new(state),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    pub(crate) fn save(&self) -> SavedNegotiation {
        let state = lock(&self.state);
        SavedNegotiation {
            status: state.status,
            accepted: state.accepted,
            selected: state.selected,
            queues: state.queues.clone(),
        }
    }

    /// As it was; a device that ran goes on.
    pub(crate) fn restore(&self, saved: SavedNegotiation, signal: &Arc<dyn Signal>) {
        let mut state = lock(&self.state);
        let sizes = |queues: &[QueueSetup]| queues.iter().map(|queue| queue.most).collect();
        let (own, other): (Vec<u16>, Vec<u16>) = (sizes(&state.queues), sizes(&saved.queues));
        if own != other {
            tracing::warn!(
                ?own,
                ?other,
                "a saved virtio device with other queues: it needs a reset"
            );
            state.status |= NEEDS_RESET;
            return;
        }
        *state = State {
            status: saved.status,
            accepted: saved.accepted,
            selected: saved.selected,
            queues: saved.queues,
            ..State::default()
        };
        if state.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK {
            let started = self.device.start(&state.queues, Arc::clone(signal), true);
            if let Err(err) = started {
                tracing::warn!(%err, "a virtio device cannot go on");
                state.status |= NEEDS_RESET;
            }
        }
    }

    /// The device status.
    #[must_use]
    pub fn status(&self) -> u8 {
        lock(&self.state).status
    }

    /// The driver writes the device status, and 0 resets the device: `stopped` is called when that is done, for every other
    /// value at once.
    pub fn set_status(&self, status: u8, signal: &Arc<dyn Signal>, stopped: Stopped) {
        let mut state = lock(&self.state);
        if status == 0 {
            *state = State {
                queues: fresh(&*self.device),
                ..State::default()
            };
            drop(state);
            return self.device.stop(stopped);
        }
        let new = status & !state.status;
        state.status = status | (state.status & NEEDS_RESET);
        let features = self.device.features() | VERSION_1;
        let acceptable = state.accepted & !features == 0 && state.accepted & VERSION_1 != 0;
        if new & FEATURES_OK != 0 && !acceptable {
            state.status &= !FEATURES_OK;
        }
        if new & DRIVER_OK != 0 && state.status & FEATURES_OK != 0 {
            let started = self.device.start(&state.queues, Arc::clone(signal), false);
            if let Err(err) = started {
                tracing::warn!(%err, "a virtio device cannot be started");
                state.status |= NEEDS_RESET;
            }
        }
        drop(state);
        stopped();
    }

    /// Which 32 bits [`offered`](Self::offered) tells.
    pub fn select_offered(&self, half: u32) {
        lock(&self.state).offered_half = half;
    }

    /// 32 bits of the features that the device offers.
    #[must_use]
    pub fn offered(&self) -> u32 {
        let half = lock(&self.state).offered_half;
        half_of(self.device.features() | VERSION_1, half)
    }

    /// Which 32 bits [`accept`](Self::accept) writes.
    pub fn select_accepted(&self, half: u32) {
        lock(&self.state).accepted_half = half;
    }

    /// 32 bits of the features that the driver accepts. Not once they are agreed.
    pub fn accept(&self, bits: u32) {
        let mut state = lock(&self.state);
        if state.status & FEATURES_OK != 0 {
            return;
        }
        let bits = u64::from(bits);
        match state.accepted_half {
            0 => state.accepted = state.accepted & !0xffff_ffff | bits,
            1 => state.accepted = state.accepted & 0xffff_ffff | bits << 32,
            _ => {}
        }
    }

    /// What the driver accepted, in the 32 bits selected.
    #[must_use]
    pub fn accepted(&self) -> u32 {
        let state = lock(&self.state);
        half_of(state.accepted, state.accepted_half)
    }

    /// Which queue the registers of a queue are about.
    pub fn select_queue(&self, queue: u16) {
        lock(&self.state).selected = queue;
    }

    /// The number of the selected queue.
    #[must_use]
    pub fn selected(&self) -> u16 {
        lock(&self.state).selected
    }

    /// The selected queue; all zeros for one that does not exist.
    #[must_use]
    pub fn queue(&self) -> QueueSetup {
        let state = lock(&self.state);
        let queue = state.queues.get(usize::from(state.selected));
        queue.copied().unwrap_or_default()
    }

    /// The driver changes the selected queue. Not while the device uses it.
    pub fn set_queue(&self, change: impl FnOnce(&mut QueueSetup)) {
        let mut state = lock(&self.state);
        if state.status & DRIVER_OK != 0 {
            return;
        }
        let selected = usize::from(state.selected);
        if let Some(queue) = state.queues.get_mut(selected) {
            change(queue);
        }
    }
}

fn fresh(device: &dyn Device) -> Vec<QueueSetup> {
    let queue = |most: &u16| QueueSetup {
        most: *most,
        size: *most,
        ..QueueSetup::default()
    };
    device.queues().iter().map(queue).collect()
}

/// 32 of 64 bits; there are no others.
fn half_of(bits: u64, half: u32) -> u32 {
    let bits = match half {
        0 => bits & 0xffff_ffff,
        1 => bits >> 32,
        _ => 0,
    };
    u32::try_from(bits).unwrap_or(0)
}

/// Bytes of a device's configuration space; zeros beyond it.
pub(super) fn config_word(config: &[u8], offset: u64, bytes: usize) -> u64 {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut word = [0; 8];
    let part = config.iter().skip(at).take(bytes);
    for (to, from) in word.iter_mut().zip(part) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

impl fmt::Debug for Negotiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Negotiation")
            .field("state", &*lock(&self.state))
            .finish_non_exhaustive()
    }
}
