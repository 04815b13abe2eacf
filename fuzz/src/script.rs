// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads an input as a script: small numbers one after the other, zeros once it is over. So a mutated byte changes one step, and an
//! inserted one moves those that follow.

use arbitrary::{Arbitrary, Unstructured};
use ioreq_core::Width;

/// An input under way.
#[derive(Debug)]
pub struct Script {
    data: Box<[u8]>,
    at: usize,
}

impl Script {
    /// From its first byte on.
    #[must_use]
    pub fn new(data: &[u8]) -> Self {
        Script {
            data: data.into(),
            at: 0,
        }
    }

    fn left(&self) -> &[u8] {
        self.data.get(self.at..).unwrap_or_default()
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.left().is_empty()
    }

    /// The next value of a plain type.
    pub fn take<T: for<'a> Arbitrary<'a> + Default>(&mut self) -> T {
        let mut left = Unstructured::new(self.left());
        let value = left.arbitrary().unwrap_or_default();
        self.at = self.data.len() - left.len();
        value
    }

    /// A number below `end`, from one byte or two.
    pub fn below(&mut self, end: u64) -> u64 {
        let raw = if end <= 0x100 {
            u64::from(self.take::<u8>())
        } else {
            u64::from(self.take::<u16>())
        };
        raw % end.max(1)
    }

    /// The same, as an index.
    pub fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap_or(0)
    }

    /// One of some values.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.index(values.len())]
    }

    /// A width.
    pub fn width(&mut self) -> Width {
        self.one_of(&[Width::B4, Width::B8, Width::B1, Width::B2])
    }

    /// A number that is likely to be at an edge.
    pub fn edgy(&mut self) -> u64 {
        let near = u64::from(self.take::<u8>());
        match self.below(8) {
            0 => near,
            1 => near.wrapping_neg(),
            2 => (1 << 32) - 128 + near,
            3 => (1 << 16) - 128 + near,
            4 => (1 << 63) - 128 + near,
            5 => u64::from(self.take::<u32>()),
            6 => 1 << (near % 64),
            _ => self.take(),
        }
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &[u8] {
        let from = self.at;
        self.at = self.data.len().min(from.saturating_add(len));
        self.data.get(from..self.at).unwrap_or_default()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &[u8] {
        self.bytes(usize::MAX)
    }
}
