// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Emulated reads and writes of memory, page by page and chunk by chunk, with the cache by which a re-executed instruction
//! finds what it did in earlier passes (`linear_read`, `linear_write`, `hvmemul_phys_mmio_access`).
//!
//! The two versions differ here. 4.17 keeps a cache entry for each part of an access that crosses a page, and an access with
//! an entry is MMIO whatever the page has become. Since 672894a11f there is one entry an access, and memory is tried first
//! unless that very part has already been done: a page that became RAM takes the store, and the answer stays behind.

use std::sync::{MutexGuard, PoisonError};

use ioreq_core::memory::{GuestRam, Width};
use ioreq_core::{Gfn, P2mType};
use vm_memory::GuestAddress;

use super::io::{Access, Operand};
use super::{Cpu, Emul};
use crate::fate::CrashReason;

const PAGE: u64 = 4096;
/// Distinct memory accesses that one instruction may make through device models.
const MMIO_CACHES: usize = 3;
/// Bytes of the widest access.
const WIDEST: usize = 16;

/// `struct hvm_mmio_cache`: what has been done of one access.
#[derive(Debug)]
pub(super) struct MmioCache {
    /// Where the access (4.17: the part) starts.
    start: u64,
    /// Bytes before the first that was MMIO.
    skip: usize,
    /// Bytes done, with those skipped.
    size: usize,
    read: bool,
    buffer: [u8; WIDEST],
}

/// What a write of plain memory meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapped {
    /// Ordinary RAM, all of it.
    Ram,
    /// Read-only memory: the write is dropped.
    Discard,
    /// Something else.
    No,
}

fn crosses(addr: u64, len: usize) -> bool {
    addr % PAGE + len as u64 > PAGE
}

impl Cpu {
    // Plain memory.

    /// Loads `size` bytes of RAM, whatever the page's type.
    pub(super) fn ram_load(&self, addr: u64, size: u32) -> Option<u64> {
        let width = Width::from_bytes(size)?;
        self.domain
            .memory
            .as_ref()
            .load(GuestAddress(addr), width)
            .ok()
    }

    /// Stores bytes to RAM, in single stores of the access's width where there is one.
    pub(super) fn ram_store(&self, addr: u64, bytes: &[u8]) {
        let memory = self.domain.memory.as_ref();
        let width = u32::try_from(bytes.len()).ok().and_then(Width::from_bytes);
        // The caller found RAM at the address: it cannot fail.
        let _ = match width {
            Some(width) => memory.store(GuestAddress(addr), width, value(bytes)),
            None => bytes.chunks(8).enumerate().try_for_each(|(n, part)| {
                let at = GuestAddress(addr.wrapping_add(8 * n as u64));
                match u32::try_from(part.len()).ok().and_then(Width::from_bytes) {
                    Some(width) => memory.store(at, width, value(part)),
                    None => memory.write(at, part),
                }
            }),
        };
    }

    /// Whether a write of this much memory goes to RAM (`hvmemul_map_linear_addr`).
    pub(super) fn map_write(&self, addr: u64, len: usize) -> Mapped {
        match self.map_page(addr) {
            Mapped::Ram if crosses(addr, len) => self.map_page(addr.wrapping_add(len as u64 - 1)),
            mapped => mapped,
        }
    }

    /// The same for what is within a page.
    fn map_page(&self, addr: u64) -> Mapped {
        match self.domain.p2m.store_type(addr) {
            (P2mType::RamRw, false) => Mapped::Ram,
            (P2mType::RamRw, true) => {
                self.domain.log_store(Gfn(addr / PAGE));
                Mapped::Ram
            }
            (P2mType::RamRo, _) => Mapped::Discard,
            (P2mType::MmioDm | P2mType::IoreqServer, _) => Mapped::No,
        }
    }

    /// `hvm_copy_to_guest_*` within a page: false where the page takes no store.
    pub(super) fn copy_to(&self, addr: u64, bytes: &[u8]) -> bool {
        match self.map_write(addr, bytes.len()) {
            Mapped::Ram => {
                self.ram_store(addr, bytes);
                true
            }
            Mapped::Discard => true,
            Mapped::No => false,
        }
    }

    /// Whether reads of the page go to RAM.
    pub(super) fn readable(&self, addr: u64) -> bool {
        self.domain.p2m.access_type(addr) != P2mType::MmioDm
    }

    /// `hvm_copy_from_guest_linear` within a page, through the cache that gives a re-executed instruction what it read
    /// before.
    fn copy_from(&mut self, addr: u64, bytes: &mut [u8]) -> bool {
        if !self.readable(addr) {
            return false;
        }
        for (n, part) in bytes.chunks_mut(8).enumerate() {
            let at = addr + 8 * n as u64;
            let cached = self.emu.reads.iter().find(|r| r.0 == at).map(|r| r.1);
            let value = cached.unwrap_or_else(|| {
                let width = u32::try_from(part.len()).unwrap_or(8);
                let value = self.ram_load(at, width).unwrap_or_else(|| {
                    let mut odd = [0; 8];
                    // The page is RAM, so it cannot fail; a zero would be read otherwise.
                    let _ = self
                        .domain
                        .memory
                        .as_ref()
                        .read(GuestAddress(at), &mut odd[..part.len()]);
                    u64::from_le_bytes(odd)
                });
                self.emu.reads.push((at, value));
                value
            });
            part.copy_from_slice(&value.to_le_bytes()[..part.len()]);
        }
        true
    }

    // Emulated accesses.

    /// Whether the page of this access is the one that the instruction's first MMIO access went to.
    pub(super) fn known_page(&self, addr: u64, len: usize, write: bool) -> bool {
        self.emu
            .known_page
            .is_some_and(|(page, wrote)| page == addr / PAGE && (wrote || !write))
            && !crosses(addr, len)
    }

    /// `hvmemul_write`: to RAM where all of it is RAM and this is no replay, by parts otherwise.
    pub(super) fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<(), Emul> {
        if !self.known_page(addr, bytes.len(), true) {
            match self.map_write(addr, bytes.len()) {
                Mapped::Ram => {
                    self.ram_store(addr, bytes);
                    return Ok(());
                }
                Mapped::Discard => return Ok(()),
                Mapped::No => {}
            }
        }
        self.linear_write(addr, bytes)
    }

    /// Reads `size` bytes (1, 2, 4, 8), remembering what came from RAM.
    pub(super) fn read(&mut self, addr: u64, size: u32) -> Result<u64, Emul> {
        let mut bytes = [0; 8];
        self.linear_read(addr, &mut bytes[..size as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// `linear_write`.
    pub(super) fn linear_write(&mut self, addr: u64, bytes: &[u8]) -> Result<(), Emul> {
        let mut part = bytes;
        let mut at = addr;
        if crosses(addr, bytes.len()) {
            let (head, tail) = bytes.split_at(usize::try_from(PAGE - addr % PAGE).unwrap_or(0));
            self.linear_write(addr, head)?;
            at = at.wrapping_add(head.len() as u64);
            part = tail;
        }
        let start = self.cache_start(addr, at);
        if self.tries_memory(start, at, part.len(), false) && self.copy_to(at, part) {
            return Ok(());
        }
        let mut buffer = [0; WIDEST];
        let buffer = &mut buffer[..part.len()];
        buffer.copy_from_slice(part);
        self.mmio_access(start, at, false, buffer)
    }

    /// `linear_read`.
    pub(super) fn linear_read(&mut self, addr: u64, bytes: &mut [u8]) -> Result<(), Emul> {
        let mut part = bytes;
        let mut at = addr;
        if crosses(addr, part.len()) {
            let (head, tail) = part.split_at_mut(usize::try_from(PAGE - addr % PAGE).unwrap_or(0));
            self.linear_read(addr, head)?;
            at = at.wrapping_add(head.len() as u64);
            part = tail;
        }
        let start = self.cache_start(addr, at);
        if self.tries_memory(start, at, part.len(), true) && self.copy_from(at, part) {
            return Ok(());
        }
        self.mmio_access(start, at, true, part)
    }

    /// What the cache entry of a part is known by.
    fn cache_start(&self, access: u64, part: u64) -> u64 {
        if self.domain.machine.version.rechecks_type() {
            access
        } else {
            part
        }
    }

    /// Whether this part is tried as plain memory: always when it has no cache entry; with one, see the module's text.
    fn tries_memory(&self, start: u64, at: u64, len: usize, read: bool) -> bool {
        let Some(cache) = self
            .find_cache(start, read)
            .and_then(|i| self.emu.mmio.get(i))
        else {
            return true;
        };
        let offset = usize::try_from(at.wrapping_sub(start)).unwrap_or(0);
        self.domain.machine.version.rechecks_type()
            && (offset + len <= cache.skip || offset >= cache.size)
    }

    fn find_cache(&self, start: u64, read: bool) -> Option<usize> {
        self.emu
            .mmio
            .iter()
            .position(|c| c.start == start && c.read == read)
    }

    /// `hvmemul_linear_mmio_access`: hands what is not done yet to device models, chunk by chunk.
    pub(super) fn mmio_access(
        &mut self,
        start: u64,
        at: u64,
        read: bool,
        bytes: &mut [u8],
    ) -> Result<(), Emul> {
        let offset = usize::try_from(at.wrapping_sub(start)).unwrap_or(0);
        let cache = match self.find_cache(start, read) {
            Some(cache) => cache,
            None if self.emu.mmio.len() == MMIO_CACHES || offset >= WIDEST => {
                return Err(Emul::Unhandleable);
            }
            None => {
                self.emu.mmio.push(MmioCache {
                    start,
                    skip: offset,
                    size: offset,
                    read,
                    buffer: [0; WIDEST],
                });
                self.emu.mmio.len() - 1
            }
        };
        self.latch_page(at, !read);
        let mut done = 0;
        while done < bytes.len() {
            let gpa = at.wrapping_add(done as u64);
            let page_left = usize::try_from(PAGE - gpa % PAGE).unwrap_or(1);
            let left = (bytes.len() - done).min(page_left);
            // The largest power of two that fits, at most 8.
            let chunk = 1 << left.min(8).ilog2();
            self.chunk(
                cache,
                gpa,
                offset + done,
                read,
                &mut bytes[done..done + chunk],
            )?;
            done += chunk;
        }
        Ok(())
    }

    /// `latch_linear_to_phys`
    pub(super) fn latch_page(&mut self, addr: u64, write: bool) {
        self.emu.known_page.get_or_insert((addr / PAGE, write));
    }

    /// One chunk: from the cache if an earlier pass did it, else by an I/O.
    fn chunk(
        &mut self,
        cache: usize,
        gpa: u64,
        offset: usize,
        read: bool,
        bytes: &mut [u8],
    ) -> Result<(), Emul> {
        let end = offset + bytes.len();
        let operand = Operand::Inline(value(bytes));
        let entry = self.emu.mmio.get(cache).ok_or(Emul::Unhandleable)?;
        if offset < entry.size {
            let before = entry.buffer.get(offset..end).ok_or(Emul::Unhandleable)?;
            if read {
                bytes.copy_from_slice(before);
            } else if before != bytes {
                return Err(Emul::Stop(self.crash(CrashReason::OperandChanged {
                    vcpu: self.vcpu.id,
                    addr: gpa,
                })));
            }
            return Ok(());
        }
        let access = Access {
            mmio: true,
            addr: gpa,
            size: u32::try_from(bytes.len()).map_err(|_| Emul::Unhandleable)?,
            read,
            df: false,
        };
        let data = self.do_io(access, &mut 1, operand)?;
        if read {
            bytes.copy_from_slice(&data.to_le_bytes()[..bytes.len()]);
        }
        let entry = self.emu.mmio.get_mut(cache).ok_or(Emul::Unhandleable)?;
        let to = entry
            .buffer
            .get_mut(offset..end)
            .ok_or(Emul::Unhandleable)?;
        to.copy_from_slice(bytes);
        entry.size = end;
        Ok(())
    }

    /// Locked accesses that are not aligned take turns, as on hardware with its bus lock.
    pub(super) fn split_lock(&self) -> MutexGuard<'_, ()> {
        let lock = &self.domain.split_lock;
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Up to 8 bytes as a little-endian number.
pub(super) fn value(bytes: &[u8]) -> u64 {
    // The usual widths, for speed.
    if let Ok(all) = bytes.try_into() {
        return u64::from_le_bytes(all);
    }
    if let Ok(all) = bytes.try_into() {
        return u32::from_le_bytes(all).into();
    }
    let mut all = [0; 8];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(all)
}
