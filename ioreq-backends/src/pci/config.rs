// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bytes of a configuration space, and which of their bits a guest can change.

use ioreq_core::{Error, ErrorKind, Op, Width};

/// Length of conventional configuration space.
pub(super) const CONVENTIONAL: usize = 0x100;
/// Length of extended (PCI Express) configuration space.
pub(super) const EXTENDED: usize = 0x1000;

#[derive(Debug, Clone, Copy, Default)]
struct Byte {
    value: u8,
    reset: u8,
    writable: u8,
    clearable: u8,
}

/// Bytes of configuration space. Everything that is not defined is 0 and read-only.
#[derive(Debug)]
pub(super) struct ConfigSpace {
    bytes: Vec<Byte>,
}

impl ConfigSpace {
    pub(super) fn new(len: usize) -> Self {
        ConfigSpace {
            bytes: vec![Byte::default(); len],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Defines bytes from `at` on: their reset value, the bits the guest can write, and those it clears by writing 1. Masks
    /// that are shorter than `reset` end in zeros. Bytes beyond the space are not there.
    pub(super) fn define(&mut self, at: usize, reset: &[u8], writable: &[u8], clearable: &[u8]) {
        let mask = |mask: &[u8], index: usize| mask.get(index).copied().unwrap_or(0);
        for (index, (byte, reset)) in self.bytes.iter_mut().skip(at).zip(reset).enumerate() {
            *byte = Byte {
                value: *reset,
                reset: *reset,
                writable: mask(writable, index),
                clearable: mask(clearable, index),
            };
        }
    }

    /// Whether all of an access is inside.
    pub(super) fn covers(&self, at: u64, width: Width) -> bool {
        at.checked_add(width.bytes())
            .is_some_and(|end| end <= self.bytes.len() as u64)
    }

    /// What the bytes hold. Bytes beyond the space are 0.
    pub(super) fn get(&self, at: usize, width: Width) -> u64 {
        let mut value = [0; 8];
        let bytes = self.bytes.iter().skip(at).take(width.size());
        for (to, from) in value.iter_mut().zip(bytes) {
            *to = from.value;
        }
        u64::from_le_bytes(value)
    }

    /// The low half of what [`get`](Self::get) gives.
    pub(super) fn get32(&self, at: usize) -> u32 {
        let [a, b, c, d, ..] = self.get(at, Width::B4).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    pub(super) fn get16(&self, at: usize) -> u16 {
        let [a, b, ..] = self.get(at, Width::B2).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// The function's own store: no mask applies.
    pub(super) fn set(&mut self, at: usize, width: Width, value: u64) {
        let bytes = self.bytes.iter_mut().skip(at).take(width.size());
        for (to, from) in bytes.zip(value.to_le_bytes()) {
            to.value = from;
        }
    }

    /// The guest's store.
    pub(super) fn guest_write(&mut self, at: usize, width: Width, value: u64) {
        let bytes = self.bytes.iter_mut().skip(at).take(width.size());
        for (byte, written) in bytes.zip(value.to_le_bytes()) {
            byte.value = (byte.value & !byte.writable) | (written & byte.writable);
            byte.value &= !(written & byte.clearable);
        }
    }

    /// All bytes.
    pub(super) fn values(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.value).collect()
    }

    /// The first byte of `values` that has another value in a bit that a guest cannot change, of those that are not `free`.
    pub(super) fn differs(&self, values: &[u8], free: impl Fn(usize) -> bool) -> Option<usize> {
        let mut bytes = (0..).zip(self.bytes.iter().zip(values));
        let differs = bytes.find(|(at, (byte, value))| {
            let fixed = !(byte.writable | byte.clearable);
            (byte.value ^ **value) & fixed != 0 && !free(*at)
        });
        differs.map(|(at, _)| at)
    }

    /// Takes the bits of `values` that a guest can change, and all bits of bytes that are the device's `own`.
    pub(super) fn take_values(&mut self, values: &[u8], own: impl Fn(usize) -> bool) {
        for (at, (byte, value)) in (0..).zip(self.bytes.iter_mut().zip(values)) {
            let taken = if own(at) {
                0xff
            } else {
                byte.writable | byte.clearable
            };
            byte.value = byte.value & !taken | value & taken;
        }
    }

    pub(super) fn reset(&mut self) {
        for byte in &mut self.bytes {
            byte.value = byte.reset;
        }
    }
}

/// A bad argument of a function's description.
pub(super) fn bad(what: String) -> Error {
    Error::new(Op::Configure, ErrorKind::InvalidArgument).about(what)
}
