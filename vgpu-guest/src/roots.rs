// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What contexts start from: 48-bit and 32-bit roots.

use alloc::vec::Vec;

use crate::arena::Arena;
use crate::pen::Pen;
use crate::vcpu::Vcpu;

/// What a context is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// 32-bit (L3) rather than 48-bit (L4).
    pub(crate) narrow: bool,
    /// It has a window.
    pub(crate) streams: bool,
}

impl Shape {
    /// Every second one is narrow; one in four streams, of either kind.
    pub(crate) fn of(number: u64) -> Self {
        Shape {
            narrow: number % 2 == 1,
            streams: matches!(number % 8, 2 | 5),
        }
    }
}

/// The tables that a context starts from, as frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// A PML4: 48-bit addresses.
    L4(u64),
    /// A page directory for each GiB of 32-bit addresses, 0 where there is none. The first is always there.
    L3([u64; 4]),
}

impl Root {
    pub(crate) fn new<V: Vcpu>(
        narrow: bool,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
    ) -> Result<Self, V::Fault> {
        let mut table = |pen: &mut Pen<'_, V>| {
            let frame = arena.table();
            pen.clear(frame).map(|()| frame)
        };
        if !narrow {
            return table(pen).map(Root::L4);
        }
        let mut directories = [table(pen)?, 0, 0, 0];
        for directory in &mut directories[1..] {
            if pen.random.u8(..4) > 0 {
                *directory = table(pen)?;
            }
        }
        Ok(Root::L3(directories))
    }

    /// What goes into PVINFO's pdp registers: guest-physical addresses, 0 for none.
    pub(crate) fn pointers(self) -> [u64; 4] {
        match self {
            Root::L4(pml4) => [pml4 << 12, 0, 0, 0],
            Root::L3(directories) => directories.map(|frame| frame << 12),
        }
    }

    /// The frame of its table of `level` for `addr`; None for levels below.
    pub(crate) fn table(self, addr: u64, level: u32) -> Option<u64> {
        match self {
            Root::L4(pml4) => (level == 4).then_some(pml4),
            Root::L3(directories) => (level == 2).then(|| directories[(addr >> 30) as usize % 4]),
        }
    }

    /// GiB of addresses where buffers go.
    pub(crate) fn gibs(self) -> Vec<u64> {
        match self {
            Root::L4(_) => (0..400).collect(),
            Root::L3(directories) => (0..4)
                .zip(directories)
                .filter(|(_, frame)| *frame != 0)
                .map(|(gib, _)| gib)
                .collect(),
        }
    }

    pub(crate) fn frames(self) -> impl Iterator<Item = u64> {
        let frames = match self {
            Root::L4(pml4) => [pml4, 0, 0, 0],
            Root::L3(directories) => directories,
        };
        frames.into_iter().filter(|frame| *frame != 0)
    }
}
