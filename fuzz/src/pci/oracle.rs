// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The function as the PCI specification has it: bytes with masks, what the BARs decode, and the messages that are due.

use ioreq_core::{IoRange, MmioRange, PortRange};

/// One byte of configuration space.
#[derive(Debug, Clone, Copy, Default)]
struct Byte {
    value: u8,
    reset: u8,
    writable: u8,
    clearable: u8,
}

/// What a BAR is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    pub(super) index: u8,
    /// 0: 32-bit memory, 1: 64-bit memory, 2: ports.
    pub(super) kind: u8,
    pub(super) shift: u32,
}

/// MSI's shape, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Msi {
    pub(super) at: usize,
    pub(super) log2: u32,
    pub(super) long: bool,
    pub(super) masks: bool,
}

/// An entry of MSI-X's table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) words: [u32; 4],
    pub(super) pending: bool,
}

/// The world as it should be.
#[derive(Debug)]
pub(super) struct Oracle {
    bytes: Vec<Byte>,
    pub(super) bars: Vec<Bar>,
    pub(super) msi: Option<Msi>,
    pub(super) msi_pending: u32,
    pub(super) msix: Option<usize>,
    pub(super) table: Vec<Entry>,
    /// MSI-X's controls as they were last looked at.
    were: (bool, bool),
    pub(super) pin: bool,
    pub(super) asserted: bool,
    /// The level of the pin's line.
    pub(super) line: bool,
    /// Messages that are due.
    pub(super) sent: Vec<(u64, u32)>,
    /// The hypervisor takes none.
    pub(super) refuses: bool,
}

const COMMAND: usize = 4;
const STATUS: usize = 6;

impl Oracle {
    pub(super) fn new(len: usize) -> Self {
        Oracle {
            bytes: vec![Byte::default(); len],
            bars: Vec::new(),
            msi: None,
            msi_pending: 0,
            msix: None,
            table: Vec::new(),
            were: (false, false),
            pin: false,
            asserted: false,
            line: false,
            sent: Vec::new(),
            refuses: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn define(&mut self, at: usize, reset: &[u8], writable: &[u8], clearable: &[u8]) {
        for (index, reset) in reset.iter().enumerate() {
            let mask = |mask: &[u8]| mask.get(index).copied().unwrap_or_default();
            self.bytes[at + index] = Byte {
                value: *reset,
                reset: *reset,
                writable: mask(writable),
                clearable: mask(clearable),
            };
        }
    }

    /// What the guest reads; None if it is not all inside.
    pub(super) fn read(&self, at: usize, bytes: usize) -> Option<u64> {
        let shown = |at: usize| {
            let byte = self.bytes[at].value;
            let pending = self
                .msi
                .filter(|msi| msi.masks)
                .map(|msi| msi.at + msi.data() + 8);
            match pending
                .and_then(|pending| at.checked_sub(pending))
                .filter(|byte| *byte < 4)
            {
                Some(nth) => self.msi_pending.to_le_bytes()[nth],
                None if at == STATUS => byte & !8 | u8::from(self.asserted) << 3,
                None => byte,
            }
        };
        let all = at..at.checked_add(bytes)?;
        (all.end <= self.len()).then(|| {
            all.rev()
                .fold(0, |word, at| word << 8 | u64::from(shown(at)))
        })
    }

    fn raw(&self, at: usize, bytes: usize) -> u64 {
        let part = &self.bytes[at..at + bytes];
        part.iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(byte.value))
    }

    /// Whether it was all inside.
    pub(super) fn write(&mut self, at: usize, bytes: usize, value: u64) -> bool {
        let end = at.saturating_add(bytes);
        if end > self.len() {
            return false;
        }
        for (byte, written) in self.bytes[at..end].iter_mut().zip(value.to_le_bytes()) {
            byte.value = byte.value & !byte.writable | written & byte.writable;
            byte.value &= !(written & byte.clearable);
        }
        self.deliver();
        true
    }

    /// The device's own store.
    pub(super) fn set(&mut self, at: usize, bytes: usize, value: u64) {
        for (byte, written) in self.bytes[at..at + bytes]
            .iter_mut()
            .zip(value.to_le_bytes())
        {
            byte.value = written;
        }
    }

    pub(super) fn raise_status(&mut self, errors: u16) {
        let status = self.raw(STATUS, 2) | u64::from(errors & 0xf900);
        self.set(STATUS, 2, status);
    }

    pub(super) fn reset(&mut self) {
        for byte in &mut self.bytes {
            byte.value = byte.reset;
        }
        self.deliver();
        for entry in &mut self.table {
            *entry = Entry {
                words: [0, 0, 0, 1],
                pending: false,
            };
        }
        self.asserted = false;
        self.drive();
    }

    /// What each BAR decodes, by its register.
    pub(super) fn decoded(&self) -> Vec<(u8, Option<IoRange>)> {
        let command = self.raw(COMMAND, 2);
        let bars = self.bars.iter().map(|bar| {
            let ports = bar.kind == 2;
            let enabled = command & if ports { 1 } else { 2 } != 0;
            let wide = if bar.kind == 1 { 8 } else { 4 };
            let first = self.raw(0x10 + 4 * usize::from(bar.index), wide) >> bar.shift << bar.shift;
            let last = u128::from(first) + (1 << bar.shift) - 1;
            // Nothing is decoded at 0, nor where the register is while it is being sized.
            let placed = first != 0 && last != u128::from(u32::MAX) && last < u128::from(u64::MAX);
            let range = (enabled && placed).then(|| {
                if ports {
                    let first = u16::try_from(first).ok()?;
                    let last = u16::try_from(last).ok()?;
                    return PortRange::new(first, last).ok().map(IoRange::from);
                }
                MmioRange::new(first, last as u64).ok().map(IoRange::from)
            });
            (bar.index, range.flatten())
        });
        bars.collect()
    }

    fn master(&self) -> bool {
        self.raw(COMMAND, 2) & 4 != 0
    }

    pub(super) fn msix_enabled(&self) -> bool {
        self.msix
            .is_some_and(|at| self.raw(at + 2, 2) & 0x8000 != 0)
    }

    fn msi_control(&self) -> u64 {
        self.msi.map_or(0, |msi| self.raw(msi.at + 2, 2))
    }

    /// MSI-X as its controls have it: enabled, and neither masked nor without the bus.
    fn controls(&self) -> (bool, bool) {
        let control = self.msix.map_or(0, |at| self.raw(at + 2, 2));
        (
            control & 0x8000 != 0,
            control & 0x4000 == 0 && self.master(),
        )
    }

    /// The registers have changed: what is pending may go out, or is forgotten.
    pub(super) fn deliver(&mut self) {
        let controls = self.controls();
        if self.msix.is_some() && self.were != controls {
            self.were = controls;
            for index in 0..self.table.len() {
                match controls.0 {
                    true => self.deliver_entry(index),
                    false => self.table[index].pending = false,
                }
            }
        }
        self.drive();
        let Some(msi) = self.msi else { return };
        if self.msi_control() & 1 == 0 {
            self.msi_pending = 0;
            return;
        }
        (0..1 << self.allowed(msi)).for_each(|number| self.deliver_msi(msi, number));
    }

    pub(super) fn deliver_entry(&mut self, index: usize) {
        let entry = &mut self.table[index];
        if entry.pending && self.were == (true, true) && entry.words[3] & 1 == 0 && !self.refuses {
            let addr = u64::from(entry.words[1]) << 32 | u64::from(entry.words[0]);
            self.sent.push((addr, entry.words[2]));
            entry.pending = false;
        }
    }

    fn deliver_msi(&mut self, msi: Msi, number: u32) {
        let masked = msi.masks && self.raw(msi.at + msi.data() + 4, 4) >> number & 1 != 0;
        if self.msi_pending >> number & 1 != 0 && !masked && self.master() && !self.refuses {
            let addr = self.raw(msi.at + 4, if msi.long { 8 } else { 4 });
            let data = self.raw(msi.at + msi.data(), 2) >> self.allowed(msi) << self.allowed(msi);
            self.sent.push((addr, data as u32 | number));
            self.msi_pending &= !(1 << number);
        }
    }

    /// The state was restored: MSI-X's controls are taken anew.
    pub(super) fn restored(&mut self) {
        self.were = (false, false);
        self.deliver();
    }

    /// The pin follows its level, if the hypervisor lets it.
    pub(super) fn drive(&mut self) {
        let off =
            self.raw(COMMAND, 2) & 0x400 != 0 || self.msix_enabled() || self.msi_control() & 1 != 0;
        if self.pin && !self.refuses {
            self.line = self.asserted && !off;
        }
    }

    fn allowed(&self, msi: Msi) -> u32 {
        ((self.msi_control() >> 4 & 7) as u32).min(msi.log2)
    }

    /// The device has an interrupt. Some(true): sent; Some(false): pending; None: disabled, or no such vector.
    pub(super) fn trigger(&mut self, vector: u16) -> Option<bool> {
        let number = usize::from(vector);
        if self.msix_enabled() {
            self.table.get_mut(number)?.pending = true;
            self.deliver_entry(number);
            return Some(!self.table[number].pending);
        }
        let msi = self.msi?;
        if self.msi_control() & 1 == 0 {
            return None;
        }
        let number = u32::from(vector) % (1 << self.allowed(msi));
        self.msi_pending |= 1 << number;
        self.deliver_msi(msi, number);
        Some(self.msi_pending >> number & 1 == 0)
    }

    pub(super) fn withdraw(&mut self, vector: u16) {
        if let Some(entry) = self.table.get_mut(usize::from(vector)) {
            entry.pending = false;
        }
        if let Some(msi) = self.msi {
            self.msi_pending &= !(1 << (u32::from(vector) % (1 << self.allowed(msi))));
        }
    }
}

impl Msi {
    /// Where its data is, from the capability on.
    fn data(self) -> usize {
        if self.long { 12 } else { 8 }
    }
}
