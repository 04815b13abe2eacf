// SPDX-License-Identifier: Apache-2.0 OR MIT

//! MSI-X (PCI Local Bus 3.0, section 6.8.2): a table of messages in a BAR, each with its own mask.
//!
//! Each entry has a lock of its own, so that devices raise different interrupts in parallel. The function's controls (enabled,
//! function mask, bus master) are one atomic: whoever changes it stores it, then goes through all entries, taking each one's
//! lock. An interrupt that was raised under the old controls is over by then, and one raised later sees the new ones.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use ioreq_core::handler::Access;
use ioreq_core::hypervisor::Interrupts;
use ioreq_core::{Result, Width};

use super::capability::{Capability, ID_MSIX};
use super::config::{ConfigSpace, bad};
use super::interrupts::Delivery;
use super::lock::lock;
use super::saved::SavedMessage;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// A table entry's masked bit, in vector control.
const MASKED: u32 = 1;

/// What a function offers as MSI-X: how many messages, and where its structures are.
///
/// ```
/// use ioreq_backends::pci::{Msix, Signals};
/// // 16 messages; the table at the start of BAR 4, the pending bits after it.
/// let signals = Signals::new().msix(Msix::new(16, (4, 0), (4, 0x800)));
/// # let _ = signals;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Msix {
    vectors: u16,
    table: (u8, u32),
    pending: (u8, u32),
}

impl Msix {
    /// `vectors` messages, 1 to 2048; the table and the pending bits, each in a memory BAR at an offset that is a multiple of
    /// 8. The table takes 16 bytes a message, the pending bits 8 bytes for every 64 messages begun.
    pub const fn new(vectors: u16, table: (u8, u32), pending: (u8, u32)) -> Self {
        Msix {
            vectors,
            table,
            pending,
        }
    }

    pub(super) fn vectors(self) -> u16 {
        self.vectors
    }

    pub(super) fn table(self) -> Window {
        Window {
            bar: self.table.0,
            first: self.table.1.into(),
            len: ENTRY * u64::from(self.vectors),
        }
    }

    pub(super) fn pending(self) -> Window {
        Window {
            bar: self.pending.0,
            first: self.pending.1.into(),
            len: 8 * u64::from(self.vectors.div_ceil(64)),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        if self.vectors == 0 || self.vectors > 2048 {
            return Err(bad(format!(
                "MSI-X with {} vectors: 1 to 2048 are possible",
                self.vectors
            )));
        }
        let (table, pending) = (self.table(), self.pending());
        for (what, window) in [("table", table), ("pending bits", pending)] {
            if window.bar > 5 || !window.first.is_multiple_of(8) {
                return Err(bad(format!(
                    "MSI-X {what} at BAR {} + {:#x}: a BAR from 0 to 5, and a multiple of 8",
                    window.bar, window.first
                )));
            }
        }
        if table.bar == pending.bar && table.overlaps(pending.first, pending.len) {
            return Err(bad(format!(
                "MSI-X table at {:#x} overlaps the pending bits at {:#x} of BAR {}",
                table.first, pending.first, table.bar
            )));
        }
        Ok(())
    }

    pub(super) fn capability(self) -> Capability {
        let mut body = self.vectors.saturating_sub(1).to_le_bytes().to_vec();
        for (bar, offset) in [self.table, self.pending] {
            body.extend_from_slice(&(offset | u32::from(bar)).to_le_bytes());
        }
        Capability::new(ID_MSIX, body).writable((ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    pub(super) fn controls(self, config: &ConfigSpace, at: usize, master: bool) -> Controls {
        let control = config.get16(at + 2);
        Controls {
            enabled: control & ENABLE != 0,
            open: control & FUNCTION_MASK == 0 && master,
        }
    }
}

/// Part of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) bar: u8,
    pub(super) first: u64,
    pub(super) len: u64,
}

impl Window {
    pub(super) fn overlaps(self, first: u64, len: u64) -> bool {
        first < self.first.saturating_add(self.len) && self.first < first.saturating_add(len)
    }

    pub(super) fn covers(self, first: u64, len: u64) -> bool {
        first
            .checked_sub(self.first)
            .is_some_and(|start| start <= self.len && len <= self.len - start)
    }
}

/// The function's controls over all messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Controls {
    /// MSI-X is enabled.
    pub(super) enabled: bool,
    /// The function is not masked, and may master the bus.
    open: bool,
}

impl Controls {
    const ENABLED: u8 = 1;
    const OPEN: u8 = 2;

    fn to_bits(self) -> u8 {
        let flag = |on, bit| if on { bit } else { 0 };
        flag(self.enabled, Self::ENABLED) | flag(self.open, Self::OPEN)
    }

    fn from_bits(bits: u8) -> Self {
        Controls {
            enabled: bits & Self::ENABLED != 0,
            open: bits & Self::OPEN != 0,
        }
    }
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

const RESET: Entry = Entry {
    address: 0,
    data: 0,
    masked: true,
    pending: false,
};

impl Entry {
    fn word(&self, index: u64) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        match index {
            0 => u32::from_le_bytes([a, b, c, d]),
            1 => u32::from_le_bytes([e, f, g, h]),
            2 => self.data,
            _ => u32::from(self.masked) * MASKED,
        }
    }

    fn set_word(&mut self, index: u64, value: u32) {
        let low = self.address & u64::from(u32::MAX);
        match index {
            // A message is an aligned store of 4 bytes.
            0 => self.address = (self.address - low) | u64::from(value & !3),
            1 => self.address = low | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.masked = value & MASKED != 0,
        }
    }
}

/// The messages of one function: table, pending bits, controls.
pub(super) struct Table {
    hypervisor: Arc<dyn Interrupts>,
    entries: Vec<Mutex<Entry>>,
    controls: AtomicU8,
}

impl Table {
    pub(super) fn new(spec: Msix, hypervisor: Arc<dyn Interrupts>) -> Self {
        let entries = (0..spec.vectors).map(|_| Mutex::new(RESET)).collect();
        Table {
            hypervisor,
            entries,
            controls: AtomicU8::new(0),
        }
    }

    fn controls(&self) -> Controls {
        // Acquire: pairs with the Release in `control`. That a control is not missed is the entry's lock's doing.
        Controls::from_bits(self.controls.load(Ordering::Acquire))
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.controls().enabled
    }

    /// The guest has set the controls: what was masked may go out. Disabling forgets what is pending. The last error, if the
    /// hypervisor refused something. One caller at a time.
    pub(super) fn control(&self, controls: Controls) -> Result<()> {
        if controls == self.controls() {
            return Ok(());
        }
        // Release: pairs with the Acquire in `controls`.
        self.controls.store(controls.to_bits(), Ordering::Release);
        let mut result = Ok(());
        for entry in &self.entries {
            let mut entry = lock(entry);
            if !controls.enabled {
                entry.pending = false;
            } else if let Err(err) = self.send(&mut entry) {
                result = Err(err);
            }
        }
        result
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn save(&self) -> Vec<SavedMessage> {
        let saved = |entry: &Mutex<Entry>| {
            let Entry {
                address,
                data,
                masked,
                pending,
            } = *lock(entry);
            SavedMessage {
                address,
                data,
                masked,
                pending,
            }
        };
        self.entries.iter().map(saved).collect()
    }

    /// As the guest would have set them, and what is pending stays so until the controls say more.
    pub(super) fn restore(&self, messages: &[SavedMessage]) {
        // Release: as in `control`; off until the registers are programmed, which sends what may go out.
        self.controls.store(0, Ordering::Release);
        for (entry, saved) in self.entries.iter().zip(messages) {
            let SavedMessage {
                address,
                data,
                masked,
                pending,
            } = *saved;
            *lock(entry) = Entry {
                address: address & !3,
                data,
                masked,
                pending,
            };
        }
    }

    /// All entries as after reset.
    pub(super) fn reset(&self) {
        for entry in &self.entries {
            *lock(entry) = RESET;
        }
    }

    /// None if there is no such vector.
    pub(super) fn trigger(&self, vector: u16) -> Option<Result<Delivery>> {
        let mut entry = lock(self.entries.get(usize::from(vector))?);
        if !self.controls().enabled {
            return Some(Ok(Delivery::Disabled));
        }
        entry.pending = true;
        let sent = self.send(&mut entry).map(|()| match entry.pending {
            false => Delivery::Sent,
            true => Delivery::Pending,
        });
        Some(sent)
    }

    pub(super) fn withdraw(&self, vector: u16) {
        if let Some(entry) = self.entries.get(usize::from(vector)) {
            lock(entry).pending = false;
        }
    }

    pub(super) fn is_pending(&self, vector: u16) -> bool {
        let entry = self.entries.get(usize::from(vector));
        entry.is_some_and(|entry| lock(entry).pending)
    }

    /// Sends a message if it is pending and may go out; under the entry's lock, so that none comes after it was masked.
    fn send(&self, entry: &mut Entry) -> Result<()> {
        let controls = self.controls();
        if entry.pending && !entry.masked && controls.enabled && controls.open {
            self.hypervisor.inject_msi(entry.address, entry.data)?;
            entry.pending = false;
        }
        Ok(())
    }

    /// The entry and the word in it that an access to the table starts at, and how many words it has.
    fn place(&self, offset: u64, width: Width) -> Option<(&Mutex<Entry>, u64, u64)> {
        let words = match width {
            Width::B4 => 1,
            Width::B8 => 2,
            Width::B1 | Width::B2 => return None,
        };
        if !offset.is_multiple_of(width.bytes()) {
            return None;
        }
        let entry = self.entries.get(usize::try_from(offset / ENTRY).ok()?)?;
        Some((entry, offset % ENTRY / 4, words))
    }

    /// Reads the table at `access.offset`; none for other than aligned accesses of 4 or 8 bytes, which are undefined.
    pub(super) fn read(&self, access: Access) -> Option<u64> {
        let (entry, word, words) = self.place(access.offset, access.width)?;
        let entry = *lock(entry);
        let low = u64::from(entry.word(word));
        Some(match words {
            1 => low,
            _ => low | u64::from(entry.word(word + 1)) << 32,
        })
    }

    /// Writes the table at `access.offset`; none as for [`read`](Self::read). Unmasking sends what is pending.
    pub(super) fn write(&self, access: Access, value: u64) -> Option<Result<()>> {
        let (entry, word, words) = self.place(access.offset, access.width)?;
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        let mut entry = lock(entry);
        entry.set_word(word, u32::from_le_bytes([a, b, c, d]));
        if words == 2 {
            entry.set_word(word + 1, u32::from_le_bytes([e, f, g, h]));
        }
        Some(self.send(&mut entry))
    }

    /// Reads the pending bits at `access.offset`; none for other than aligned accesses of 4 or 8 bytes.
    pub(super) fn read_pending(&self, access: Access) -> Option<u64> {
        let aligned = access.offset.is_multiple_of(access.width.bytes());
        if !aligned || access.width < Width::B4 {
            return None;
        }
        let first = usize::try_from(access.offset).ok()?.checked_mul(8)?;
        let bits = self
            .entries
            .iter()
            .skip(first)
            .take(8 * access.width.size());
        Some(bits.enumerate().fold(0, |word, (bit, entry)| {
            word | u64::from(lock(entry).pending) << bit
        }))
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("vectors", &self.entries.len())
            .field("controls", &self.controls())
            .finish_non_exhaustive()
    }
}
