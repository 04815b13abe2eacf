// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Read-modify-write instructions.
//!
//! On RAM they are atomic. Where they leave the guest Xen reads, computes and sends the final value: nothing keeps another
//! vCPU out between, so an update can be lost, and the value that the instruction returns is what was read.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use ioreq_core::memory::Width;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::linear::Mapped;
use super::{Cpu, Emul};
use crate::fate::CpuFault;
use crate::gate::Pass;

impl Cpu {
    /// `lock xadd`: adds, and gives what was there before.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn lock_add(&mut self, addr: u64, width: Width, value: u64) -> Result<u64, CpuFault> {
        self.modify(addr, width, |old| old.wrapping_add(value))
    }

    /// `lock or`: gives what was there before.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn lock_or(&mut self, addr: u64, width: Width, value: u64) -> Result<u64, CpuFault> {
        self.modify(addr, width, |old| old | value)
    }

    /// `lock and`: gives what was there before.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn lock_and(&mut self, addr: u64, width: Width, value: u64) -> Result<u64, CpuFault> {
        self.modify(addr, width, |old| old & value)
    }

    /// `xchg`: gives what was there before.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn xchg(&mut self, addr: u64, width: Width, value: u64) -> Result<u64, CpuFault> {
        self.modify(addr, width, |_| value)
    }

    /// `lock cmpxchg`: stores `new` if `expected` is there; gives what was there. A width of 8 is also `cmpxchg8b`.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn cmpxchg(
        &mut self,
        addr: u64,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, CpuFault> {
        let expected = width.cut(expected);
        self.instruction(Pass::Fault, addr, |cpu| {
            if !cpu.known_page(addr, width.size(), true)
                && cpu.map_write(addr, width.size()) == Mapped::Ram
            {
                return cpu.ram_modify(addr, width, |old| (old == expected).then_some(new));
            }
            let old = cpu.read(addr, u32::from(width as u8))?;
            if old == expected {
                // Not by `linear_write`: Xen does not look for RAM here.
                let mut bytes = new.to_le_bytes();
                cpu.mmio_access(addr, addr, false, &mut bytes[..width.size()])?;
            }
            Ok(old)
        })
    }

    /// A read-modify-write instruction (`hvmemul_rmw`).
    fn modify(
        &mut self,
        addr: u64,
        width: Width,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, CpuFault> {
        self.instruction(Pass::Fault, addr, |cpu| {
            if !cpu.known_page(addr, width.size(), true) {
                match cpu.map_write(addr, width.size()) {
                    Mapped::Ram => {
                        return cpu.ram_modify(addr, width, |old| Some(width.cut(change(old))));
                    }
                    Mapped::Discard => return cpu.read(addr, u32::from(width as u8)),
                    Mapped::No => {}
                }
            }
            let old = cpu.read(addr, u32::from(width as u8))?;
            let new = width.cut(change(old)).to_le_bytes();
            cpu.linear_write(addr, &new[..width.size()])?;
            Ok(old)
        })
    }

    /// The same on RAM: atomic, and as on hardware also where it is not aligned, if not against plain stores.
    fn ram_modify(
        &self,
        addr: u64,
        width: Width,
        change: impl Fn(u64) -> Option<u64>,
    ) -> Result<u64, Emul> {
        if !addr.is_multiple_of(width.bytes()) {
            let _turn = self.split_lock();
            let size = u32::from(width as u8);
            let old = self.ram_load(addr, size).ok_or(Emul::Unhandleable)?;
            if let Some(new) = change(old) {
                self.ram_store(addr, &new.to_le_bytes()[..width.size()]);
            }
            return Ok(old);
        }
        let slice = self
            .domain
            .memory
            .get_slice(GuestAddress(addr), width.size())
            .map_err(|_| Emul::Unhandleable)?;
        macro_rules! update {
            ($atomic:ty, $ty:ty) => {{
                let cell = slice
                    .get_atomic_ref::<$atomic>(0)
                    .map_err(|_| Emul::Unhandleable)?;
                // SeqCst: a locked instruction is a full barrier on x86.
                let old = cell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                    #[allow(clippy::cast_possible_truncation, reason = "cut to the width")]
                    change(u64::from(old)).map(|new| new as $ty)
                });
                Ok(u64::from(old.unwrap_or_else(|old| old)))
            }};
        }
        match width {
            Width::B1 => update!(AtomicU8, u8),
            Width::B2 => update!(AtomicU16, u16),
            Width::B4 => update!(AtomicU32, u32),
            Width::B8 => update!(AtomicU64, u64),
        }
    }
}
