// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Walking the shadow, as the GPU does.

use super::structure::{RootState, Structure};
use super::table::{Table, TableId};
use super::{HostAddr, Inner, Root, RootId, SCRATCH};
use crate::vgpu::entry::{Entry, Kind, Level, PageSize};

/// Where an address leads.
///
/// ```
/// use ioreq_backends::vgpu::{HostAddr, PageSize, Target};
/// let target = Target { host: HostAddr(0x1000), size: PageSize::Small, writable: true, scratch: false };
/// assert!(target.writable);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// For a look-up, the byte; for a mapping, the page's first byte. Of the scratch page: its address.
    pub host: HostAddr,
    /// Size of the page that maps it.
    pub size: PageSize,
    /// Bit 1 of the entry.
    pub writable: bool,
    /// The scratch page stands in for what cannot be mapped.
    pub scratch: bool,
}

/// A walk that ended at nothing.
///
/// ```
/// use ioreq_backends::vgpu::{Fault, Step};
/// assert!(Fault { addr: 0x1000, step: Step::Root }.to_string().contains("0x1000"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("GPU address {addr:#x} is not mapped: the walk ended at {step:?}")]
pub struct Fault {
    /// The address.
    pub addr: u64,
    /// How far the walk came.
    pub step: Step,
}

/// How far a walk came.
///
/// ```
/// use ioreq_backends::vgpu::{Level, Step};
/// assert_ne!(Step::Root, Step::Table(Level::Pt));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No such address space, or an address beyond it.
    Root,
    /// An absent entry of a table of that level.
    Table(Level),
}

impl RootState {
    /// The table where a walk for `addr` starts.
    fn start(&self, addr: u64) -> Option<TableId> {
        match self.root {
            Root::L4(_) if addr >> 48 == 0 => self.tables[0],
            Root::L3(_) if addr >> 32 == 0 => self
                .tables
                .get(usize::try_from(addr >> 30).ok()?)
                .copied()?,
            _ => None,
        }
    }
}

fn target(entry: Entry, size: PageSize, addr: u64) -> Target {
    let scratch = entry.address() == SCRATCH.0;
    let within = if scratch {
        addr & 0xfff
    } else {
        addr & (size.bytes() - 1)
    };
    Target {
        host: HostAddr(entry.address() + within),
        size,
        writable: entry.is_writable(),
        scratch,
    }
}

/// The span that one entry of the level maps, as a page size; for a scratch page in a directory.
fn span(level: Level) -> PageSize {
    match level {
        Level::Pt => PageSize::Small,
        Level::Pt64 => PageSize::Medium,
        Level::Pd => PageSize::Large,
        Level::Pdp | Level::Pml4 => PageSize::Huge,
    }
}

impl Inner {
    pub(super) fn lookup(&self, root: RootId, addr: u64) -> Result<Target, Fault> {
        let structure = self.lock();
        let at_root = Fault {
            addr,
            step: Step::Root,
        };
        let mut id = structure
            .root(root)
            .and_then(|r| r.start(addr))
            .ok_or(at_root)?;
        // Levels strictly descend, so this ends.
        while let Some(table) = structure.table(id) {
            let index = table.level.index(addr);
            let entry = table.get(index);
            match table.level.read(index, entry) {
                Kind::Absent => {
                    return Err(Fault {
                        addr,
                        step: Step::Table(table.level),
                    });
                }
                Kind::Page(size) => return Ok(target(entry, size, addr)),
                Kind::Table(_) => match table.child_of(entry) {
                    Some(child) => id = child,
                    None => return Ok(target(entry, span(table.level), addr)),
                },
            }
        }
        Err(at_root)
    }

    pub(super) fn mappings(&self, root: RootId) -> Vec<(u64, Target)> {
        let structure = self.lock();
        let mut found = Vec::new();
        let Some(state) = structure.root(root) else {
            return found;
        };
        for (base, id) in (0..).map(|n: u64| n << 30).zip(state.tables) {
            if let Some(table) = id.and_then(|id| structure.table(id)) {
                visit(&structure, table, base, &mut found);
            }
        }
        found
    }
}

/// At most four levels deep.
fn visit(structure: &Structure, table: &Table, base: u64, found: &mut Vec<(u64, Target)>) {
    for index in 0..crate::vgpu::entry::ENTRIES {
        let addr = base + ((index as u64) << table.level.shift());
        let entry = table.get(index);
        match table.level.read(index, entry) {
            Kind::Absent => {}
            Kind::Page(size) => found.push((addr, target(entry, size, addr))),
            Kind::Table(_) => match table.child_of(entry).and_then(|id| structure.table(id)) {
                Some(child) => visit(structure, child, addr, found),
                None => found.push((addr, target(entry, span(table.level), addr))),
            },
        }
    }
}
