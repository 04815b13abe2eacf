// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One GPU context as the guest's driver keeps it: page tables written entry by entry, and buffers mapped in them.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::arena::Arena;
use crate::common::{COMMON_AT, Common};
use crate::pen::{LARGE, PRESENT, Pen, WIDE, WRITABLE};
use crate::roots::{Root, Shape};
use crate::vcpu::Vcpu;

/// How a buffer is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Single frames, 4 KiB entries.
    Small,
    /// Runs of 16 frames, 64 KiB entries.
    Medium,
    /// 512 frames, one 2 MiB entry.
    Large,
    /// The aperture: 1 GiB of memory that all contexts share, one 1 GiB entry.
    Huge,
    /// A window: a whole page table of 4 KiB entries, led elsewhere before every submission of its context.
    Window,
    /// Pages that all contexts of a driver read, mapped by one page table that they share.
    Common,
}

/// Memory that the GPU can reach.
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    pub(crate) kind: Kind,
    /// GPU address.
    pub(crate) at: u64,
    /// Frames in order; for `Large` and `Huge` the first of the run.
    pub(crate) frames: Vec<u64>,
    /// What the guest believes to be in it.
    pub(crate) bytes: Vec<u8>,
}

/// A context: its root and what hangs below it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) shape: Shape,
    pub(crate) root: Root,
    /// Tables by level (3: PDP, 2: PD, 1: PT) and first GPU address: frame and number of entries in use.
    tables: BTreeMap<(u32, u64), (u64, u32)>,
    pub(crate) buffers: Vec<Buffer>,
    /// Its slice of the aperture.
    pub(crate) slice: u64,
    /// The next free 2 MiB of GPU addresses, and those that came free.
    next: u64,
}

/// Bits of GPU address below the entries of a level.
fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

fn index(addr: u64, level: u32) -> u64 {
    addr >> shift(level) & 511
}

/// First GPU address of the table of `level` that maps `addr`.
fn base(addr: u64, level: u32) -> u64 {
    addr >> shift(level + 1) << shift(level + 1)
}

impl Context {
    /// A context whose root is empty.
    pub(crate) fn new<V: Vcpu>(
        shape: Shape,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        slice: u64,
    ) -> Result<Self, V::Fault> {
        Ok(Context {
            shape,
            root: Root::new(shape.narrow, pen, arena)?,
            tables: BTreeMap::new(),
            buffers: Vec::new(),
            slice,
            next: 0,
        })
    }

    /// A place for a buffer, spread over directories, where none is now.
    pub(crate) fn place(&mut self, kind: Kind) -> u64 {
        if kind == Kind::Huge {
            return 1 << 39;
        }
        let gibs = self.root.gibs();
        loop {
            self.next += 1;
            // Every fourth one starts a new GiB, so that directories come and go as well.
            let gib = gibs[(self.next / 4) as usize % gibs.len()];
            let at = gib << 30 | (self.next % 400) << 21;
            if self.buffers.iter().all(|buffer| buffer.at != at) {
                return at;
            }
        }
    }

    /// The table of `level` for `addr`, made and linked if need be.
    fn table<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        addr: u64,
        level: u32,
        wide: bool,
    ) -> Result<u64, V::Fault> {
        if let Some(frame) = self.root.table(addr, level) {
            return Ok(frame);
        }
        if let Some((frame, _)) = self.tables.get(&(level, base(addr, level))) {
            return Ok(*frame);
        }
        let frame = arena.table();
        pen.clear(frame)?;
        self.tables.insert((level, base(addr, level)), (frame, 0));
        let flags = PRESENT | WRITABLE | if wide { WIDE } else { 0 };
        self.set(pen, arena, addr, level + 1, frame << 12 | flags, false)?;
        Ok(frame)
    }

    /// Writes the entry of `level` for `addr`.
    fn set<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        addr: u64,
        level: u32,
        entry: u64,
        wide: bool,
    ) -> Result<(), V::Fault> {
        let table = self.table(pen, arena, addr, level, wide)?;
        if let Some((_, used)) = self.tables.get_mut(&(level, base(addr, level))) {
            *used += 1;
        }
        pen.entry(table, index(addr, level), entry)
    }

    /// Clears it; a table that is empty then is unlinked and freed.
    fn unset<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        addr: u64,
        level: u32,
    ) -> Result<(), V::Fault> {
        let key = (level, base(addr, level));
        let table = self.root.table(addr, level);
        let table = table.unwrap_or_else(|| self.tables[&key].0);
        pen.entry(table, index(addr, level), 0)?;
        let Some((frame, used)) = self.tables.get_mut(&key) else {
            return Ok(());
        };
        *used -= 1;
        if *used == 0 {
            let frame = *frame;
            self.tables.remove(&key);
            self.unset(pen, arena, addr, level + 1)?;
            arena.free_table(frame);
        }
        Ok(())
    }

    /// The entries of a buffer: GPU address, level, entry.
    fn entries(buffer: &Buffer) -> Vec<(u64, u32, u64)> {
        let flags = PRESENT | WRITABLE;
        match buffer.kind {
            Kind::Small | Kind::Window | Kind::Common => (buffer.at..)
                .step_by(4096)
                .zip(&buffer.frames)
                .map(|(addr, frame)| (addr, 1, frame << 12 | flags))
                .collect(),
            Kind::Medium => (buffer.at..)
                .step_by(1 << 16)
                .zip(buffer.frames.iter().step_by(16))
                .map(|(addr, frame)| (addr, 1, frame << 12 | flags))
                .collect(),
            Kind::Large => vec![(buffer.at, 2, buffer.frames[0] << 12 | flags | LARGE)],
            Kind::Huge => vec![(buffer.at, 3, buffer.frames[0] << 12 | flags | LARGE)],
        }
    }

    /// Links the page table that the driver's contexts share.
    pub(crate) fn link_common<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        common: &Common,
    ) -> Result<(), V::Fault> {
        let entry = common.table << 12 | PRESENT | WRITABLE;
        self.set(pen, arena, COMMON_AT, 2, entry, false)?;
        self.buffers.push(common.buffer.clone());
        Ok(())
    }

    /// Maps a buffer at its address.
    pub(crate) fn map<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        buffer: &Buffer,
    ) -> Result<(), V::Fault> {
        for (addr, level, entry) in Self::entries(buffer) {
            self.set(pen, arena, addr, level, entry, buffer.kind == Kind::Medium)?;
        }
        Ok(())
    }

    /// Unmaps it.
    pub(crate) fn unmap<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        buffer: &Buffer,
    ) -> Result<(), V::Fault> {
        Self::entries(buffer)
            .into_iter()
            .try_for_each(|(addr, level, _)| self.unset(pen, arena, addr, level))
    }

    /// Writes the upper half of a small buffer's page table twice over, as a driver does that binds and unbinds in a hurry: a hot
    /// table. It is as before in the end.
    pub(crate) fn storm<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        buffer: &Buffer,
    ) -> Result<(), V::Fault> {
        let Some((table, _)) = self.tables.get(&(1, base(buffer.at, 1))) else {
            return Ok(());
        };
        for pass in 0..2 {
            for (index, frame) in (256..512).zip(buffer.frames.iter().cycle()) {
                let entry = if pass == 0 { frame << 12 | PRESENT } else { 0 };
                pen.entry(*table, index, entry)?;
            }
        }
        Ok(())
    }

    /// Leads the window elsewhere: every entry of its table is written. The frames behind it, and with them the bytes, move on by
    /// `by` pages. Returns how many entries were written.
    pub(crate) fn slide<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        by: usize,
    ) -> Result<u64, V::Fault> {
        let window = self.buffers.iter_mut().find(|b| b.kind == Kind::Window);
        let Some(window) = window else { return Ok(0) };
        let (table, _) = self.tables[&(1, base(window.at, 1))];
        window.frames.rotate_left(by);
        window.bytes.rotate_left(by * 4096);
        for (index, frame) in (0..).zip(&window.frames) {
            pen.entry(table, index, frame << 12 | PRESENT | WRITABLE)?;
        }
        Ok(window.frames.len() as u64)
    }

    /// Gives every table back. The context's shadow is gone already.
    pub(crate) fn release(self, arena: &mut Arena) -> Vec<Buffer> {
        for (frame, _) in self.tables.into_values() {
            arena.free_table(frame);
        }
        self.root.frames().for_each(|frame| arena.free_table(frame));
        self.buffers
    }
}
