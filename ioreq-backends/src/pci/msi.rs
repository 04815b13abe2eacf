// SPDX-License-Identifier: Apache-2.0 OR MIT

//! MSI (PCI Local Bus 3.0, section 6.8.1): up to 32 messages to one address, the number in the data's low bits.

use std::fmt;
use std::sync::{Arc, Mutex};

use ioreq_core::hypervisor::Interrupts;
use ioreq_core::{Error, Result, Width};

use super::capability::{Capability, ID_MSI};
use super::config::{ConfigSpace, bad};
use super::interrupts::Delivery;
use super::lock::lock;

const ENABLE: u16 = 1 << 0;
const ADDRESS_64: u16 = 1 << 7;
const MASKING: u16 = 1 << 8;
/// Bits of the control register that the guest can write: enable, and the number of messages it allows.
const CONTROL_WRITABLE: u16 = ENABLE | 0x7 << 4;

/// What a function offers as MSI. By default with a 64-bit address and without masking.
///
/// ```
/// use ioreq_backends::pci::{Msi, Signals};
/// let signals = Signals::new().msi(Msi::new(4).per_vector_masking());
/// # let _ = signals;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Msi {
    vectors: u8,
    address_64: bool,
    masking: bool,
}

impl Msi {
    /// So many messages: 1, 2, 4, 8, 16 or 32. The guest may allow fewer.
    pub const fn new(vectors: u8) -> Self {
        Msi {
            vectors,
            address_64: true,
            masking: false,
        }
    }

    /// With a 32-bit address only.
    pub const fn address_32(mut self) -> Self {
        self.address_64 = false;
        self
    }

    /// The guest can mask each message; the function says which are pending.
    pub const fn per_vector_masking(mut self) -> Self {
        self.masking = true;
        self
    }

    pub(super) fn vectors(self) -> u16 {
        self.vectors.into()
    }

    pub(super) fn check(self) -> Result<()> {
        if !self.vectors.is_power_of_two() || self.vectors > 32 {
            return Err(bad(format!(
                "MSI with {} vectors: 1, 2, 4, 8, 16 or 32 are possible",
                self.vectors
            )));
        }
        Ok(())
    }

    /// Where the data register is in the capability.
    fn data_at(self) -> usize {
        if self.address_64 { 0xc } else { 0x8 }
    }

    /// Where the pending bits are in the capability, if there are any.
    pub(super) fn pending_at(self) -> Option<usize> {
        self.masking.then(|| self.data_at() + 8)
    }

    /// The mask of all messages' bits.
    pub(super) fn all(self) -> u32 {
        u32::MAX >> (32 - u32::from(self.vectors.clamp(1, 32)))
    }

    pub(super) fn capability(self) -> Capability {
        let flag = |on, bit| if on { bit } else { 0 };
        let offered = u16::try_from(self.vectors.trailing_zeros()).unwrap_or(0) << 1;
        let control = offered | flag(self.address_64, ADDRESS_64) | flag(self.masking, MASKING);
        let mut body = control.to_le_bytes().to_vec();
        let mut writable = CONTROL_WRITABLE.to_le_bytes().to_vec();
        writable.extend_from_slice(&(!3_u32).to_le_bytes()); // a message is an aligned store of 4 bytes
        if self.address_64 {
            writable.extend_from_slice(&[0xff; 4]);
        }
        writable.extend_from_slice(&[0xff, 0xff]); // data
        if self.masking {
            writable.extend_from_slice(&[0, 0]); // reserved
            writable.extend_from_slice(&self.all().to_le_bytes());
            writable.extend_from_slice(&[0; 4]); // pending
        }
        body.resize(writable.len(), 0);
        Capability::new(ID_MSI, body).writable(writable)
    }

    /// The registers as they stand in a configuration space whose capability is at `at`.
    pub(super) fn registers(self, config: &ConfigSpace, at: usize) -> Registers {
        let control = config.get16(at + 2);
        let allowed = u32::from(control >> 4 & 0x7).min(self.vectors.trailing_zeros());
        let address = if self.address_64 {
            Width::B8
        } else {
            Width::B4
        };
        Registers {
            enabled: control & ENABLE != 0,
            messages: 1 << allowed,
            address: config.get(at + 4, address),
            data: config.get16(at + self.data_at()),
            mask: if self.masking {
                config.get32(at + self.data_at() + 4)
            } else {
                0
            },
        }
    }
}

/// What the guest has programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) enabled: bool,
    /// Messages that the guest allows: a power of two, up to 32.
    messages: u32,
    address: u64,
    data: u16,
    mask: u32,
}

#[derive(Debug)]
struct State {
    registers: Registers,
    /// The function may master the bus: without that a message stays pending.
    master: bool,
    pending: u32,
}

/// The messages of one function.
pub(super) struct Messages {
    hypervisor: Arc<dyn Interrupts>,
    state: Mutex<State>,
}

impl Messages {
    pub(super) fn new(hypervisor: Arc<dyn Interrupts>) -> Self {
        let registers = Registers {
            enabled: false,
            messages: 1,
            address: 0,
            data: 0,
            mask: 0,
        };
        let state = State {
            registers,
            master: false,
            pending: 0,
        };
        Messages {
            hypervisor,
            state: Mutex::new(state),
        }
    }

    /// The guest has programmed something: what was masked may go out. Disabling forgets what is pending. The last error, if
    /// the hypervisor refused something.
    pub(super) fn program(&self, registers: Registers, master: bool) -> Result<()> {
        let mut state = lock(&self.state);
        state.registers = registers;
        state.master = master;
        let mut result = Ok(());
        if registers.enabled {
            for number in 0..registers.messages {
                if let Err(err) = self.send(&mut state, number) {
                    result = Err(err);
                }
            }
        } else {
            state.pending = 0;
        }
        result
    }

    /// Message `vector`, or the one that stands for it where the guest allows fewer.
    pub(super) fn trigger(&self, vector: u16) -> Result<Delivery> {
        let mut state = lock(&self.state);
        if !state.registers.enabled {
            return Ok(Delivery::Disabled);
        }
        let number = u32::from(vector) % state.registers.messages;
        state.pending |= bit(number);
        self.send(&mut state, number)?;
        Ok(if state.pending & bit(number) == 0 {
            Delivery::Sent
        } else {
            Delivery::Pending
        })
    }

    pub(super) fn withdraw(&self, vector: u16) {
        let mut state = lock(&self.state);
        let number = u32::from(vector) % state.registers.messages;
        state.pending &= !bit(number);
    }

    /// Pending messages, before the registers are programmed.
    pub(super) fn restore(&self, pending: u32) {
        lock(&self.state).pending = pending;
    }

    pub(super) fn pending(&self) -> u32 {
        lock(&self.state).pending
    }

    /// Sends a message if it is pending and may go out; under the lock, so that none comes after it was masked.
    fn send(&self, state: &mut State, number: u32) -> Result<(), Error> {
        let State {
            registers, master, ..
        } = *state;
        if !master || registers.mask & bit(number) != 0 || state.pending & bit(number) == 0 {
            return Ok(());
        }
        let data = u32::from(registers.data) & !(registers.messages - 1) | number;
        self.hypervisor.inject_msi(registers.address, data)?;
        state.pending &= !bit(number);
        Ok(())
    }
}

/// A message's bit in mask and pending; numbers are below 32.
fn bit(number: u32) -> u32 {
    1 << (number % 32)
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.state).fmt(f)
    }
}
