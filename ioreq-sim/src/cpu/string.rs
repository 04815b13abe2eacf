// SPDX-License-Identifier: Apache-2.0 OR MIT

//! String instructions: `rep stos`, `rep movs`, `rep ins`, `rep outs`.
//!
//! On RAM the CPU does the repetitions itself. The one that leaves the guest is emulated with all that are left: as one
//! request where Xen can (MMIO, ports), element by element where it cannot (tracked pages, MMIO to MMIO). An instruction
//! that is executed again tries its fast way again, by what the page is *then*.

use ioreq_core::P2mType;
use ioreq_core::memory::Width;

use super::io::{Access, Operand};
use super::linear::Mapped;
use super::{Cpu, Emul};
use crate::fate::{CpuFault, CrashReason};
use crate::gate::Pass;

const PAGE: u64 = 4096;
/// Repetitions that Xen takes at a time.
const CLIP: u64 = 4096;

impl Cpu {
    /// `rep stos`: stores `value` `count` times, from `addr` on, downward with the direction flag set.
    ///
    /// # Errors
    /// See [`store`](Self::store); elements before the failing one are done.
    pub fn rep_stos(
        &mut self,
        addr: u64,
        width: Width,
        value: u64,
        count: u64,
    ) -> Result<(), CpuFault> {
        let (mut addr, mut left) = (addr, count);
        while left > 0 {
            let done = self.instruction(Pass::Fault, addr, |cpu| {
                cpu.stos(addr, width, value, left.min(CLIP))
            })?;
            addr = self.step(addr, width, done);
            left -= done;
        }
        Ok(())
    }

    /// `rep movs`: copies `count` elements from `src` to `dst`, downward with the direction flag set.
    ///
    /// # Errors
    /// See [`store`](Self::store); elements before the failing one are done.
    pub fn rep_movs(
        &mut self,
        dst: u64,
        src: u64,
        width: Width,
        count: u64,
    ) -> Result<(), CpuFault> {
        let (mut dst, mut src, mut left) = (dst, src, count);
        while left > 0 {
            let done = self.instruction(Pass::Fault, dst, |cpu| {
                cpu.movs(dst, src, width, left.min(CLIP))
            })?;
            dst = self.step(dst, width, done);
            src = self.step(src, width, done);
            left -= done;
        }
        Ok(())
    }

    /// `rep ins`: reads `count` elements from a port to memory. Ports take 1, 2 or 4 bytes; 8 counts as 4.
    ///
    /// # Errors
    /// See [`store`](Self::store); elements before the failing one are done.
    pub fn rep_ins(
        &mut self,
        port: u16,
        dst: u64,
        width: Width,
        count: u64,
    ) -> Result<(), CpuFault> {
        let width = width.min(Width::B4);
        let (mut dst, mut left) = (dst, count);
        while left > 0 {
            let done = self.instruction(Pass::Run, dst, |cpu| {
                cpu.ins(port, dst, width, left.min(CLIP))
            })?;
            dst = self.step(dst, width, done);
            left -= done;
        }
        Ok(())
    }

    /// `rep outs`: writes `count` elements from memory to a port. Ports take 1, 2 or 4 bytes; 8 counts as 4.
    ///
    /// # Errors
    /// See [`load`](Self::load); elements before the failing one are done.
    pub fn rep_outs(
        &mut self,
        port: u16,
        src: u64,
        width: Width,
        count: u64,
    ) -> Result<(), CpuFault> {
        let width = width.min(Width::B4);
        let (mut src, mut left) = (src, count);
        while left > 0 {
            let done = self.instruction(Pass::Run, src, |cpu| {
                cpu.outs(port, src, width, left.min(CLIP))
            })?;
            src = self.step(src, width, done);
            left -= done;
        }
        Ok(())
    }

    /// `addr` after `n` elements, in the flag's direction.
    fn step(&self, addr: u64, width: Width, n: u64) -> u64 {
        let bytes = n * width.bytes();
        if self.df {
            addr.wrapping_sub(bytes)
        } else {
            addr.wrapping_add(bytes)
        }
    }

    /// Elements that fit the page from `addr` on, at least 1.
    fn in_page(&self, addr: u64, width: Width) -> u64 {
        let offset = addr % PAGE;
        let room = if self.df {
            offset + width.bytes()
        } else {
            PAGE - offset
        };
        (room / width.bytes()).max(1)
    }

    /// Whether the CPU stores an element at `addr` itself.
    fn native(&self, addr: u64, width: Width) -> bool {
        !self.emu.again && self.map_write(addr, width.size()) == Mapped::Ram
    }

    /// Elements of `rep stos` done in one go.
    fn stos(&mut self, addr: u64, width: Width, value: u64, reps: u64) -> Result<u64, Emul> {
        let bytes = value.to_le_bytes();
        let element = &bytes[..width.size()];
        if self.native(addr, width) {
            let n = reps.min(self.in_page(addr, width));
            (0..n).for_each(|i| self.ram_store(self.step(addr, width, i), element));
            return Ok(n);
        }
        if reps > 1 {
            match self.bulk_stos(addr, width, value, reps) {
                Err(Emul::Unhandleable) => {}
                done => return done,
            }
        }
        self.write(addr, element)?;
        Ok(1)
    }

    /// `hvmemul_rep_stos`
    fn bulk_stos(&mut self, addr: u64, width: Width, value: u64, reps: u64) -> Result<u64, Emul> {
        let mut reps = reps;
        if self.domain.p2m.access_type(addr) == P2mType::MmioDm {
            self.latch_page(addr, true);
            let access = Access {
                mmio: true,
                addr,
                size: u32::from(width as u8),
                read: false,
                df: self.df,
            };
            self.do_io(access, &mut reps, Operand::Inline(width.cut(value)))?;
            return Ok(reps);
        }
        let element = &value.to_le_bytes()[..width.size()];
        self.copy_elements(addr, width, reps, |_| Some(element.to_vec()))
    }

    /// Copies elements to RAM from the lowest address up, until one page takes none.
    fn copy_elements(
        &self,
        addr: u64,
        width: Width,
        reps: u64,
        element: impl Fn(u64) -> Option<Vec<u8>>,
    ) -> Result<u64, Emul> {
        for i in 0..reps {
            let n = if self.df { reps - 1 - i } else { i };
            let to = self.step(addr, width, n);
            let bytes = element(n).ok_or(Emul::Unhandleable)?;
            if !self.copy_to(to, &bytes) {
                return Err(Emul::Unhandleable);
            }
        }
        Ok(reps)
    }

    /// Elements of `rep movs` done in one go.
    fn movs(&mut self, dst: u64, src: u64, width: Width, reps: u64) -> Result<u64, Emul> {
        let size = u32::from(width as u8);
        let last = src.wrapping_add(width.bytes() - 1);
        if self.native(dst, width) && self.readable(src) && self.readable(last) {
            let n = reps
                .min(self.in_page(dst, width))
                .min(self.in_page(src, width));
            for i in 0..n {
                let value = self
                    .ram_load(self.step(src, width, i), size)
                    .ok_or(Emul::Unhandleable)?;
                self.ram_store(
                    self.step(dst, width, i),
                    &value.to_le_bytes()[..width.size()],
                );
            }
            return Ok(n);
        }
        if reps > 1 {
            match self.bulk_movs(dst, src, width, reps) {
                Err(Emul::Unhandleable) => {}
                done => return done,
            }
        }
        let value = self.read(src, size)?;
        self.write(dst, &value.to_le_bytes()[..width.size()])?;
        Ok(1)
    }

    /// `hvmemul_rep_movs`
    fn bulk_movs(&mut self, dst: u64, src: u64, width: Width, reps: u64) -> Result<u64, Emul> {
        let mmio = |addr| self.domain.p2m.access_type(addr) == P2mType::MmioDm;
        let (from, to) = (mmio(src), mmio(dst));
        match (from, to) {
            (true, true) => return Err(Emul::Unhandleable),
            (true, false) => {
                self.latch_page(src, false);
                return self.io_addr(true, src, width, true, reps, dst);
            }
            (false, true) => {
                self.latch_page(dst, true);
                return self.io_addr(true, dst, width, false, reps, src);
            }
            (false, false) => {}
        }
        let bytes = reps * width.bytes();
        let low = if self.df {
            src.wrapping_sub(bytes - width.bytes())
        } else {
            src
        };
        if dst + width.bytes() > low && dst < low + bytes {
            return Err(Emul::Unhandleable); // the copy would meet itself
        }
        let size = u32::from(width as u8);
        let source: Option<Vec<_>> = (0..reps)
            .map(|n| self.step(src, width, n))
            .map(|at| {
                let last = at.wrapping_add(width.bytes() - 1);
                let readable = self.readable(at) && self.readable(last);
                readable.then(|| self.ram_load(at, size)).flatten()
            })
            .collect();
        let source = source.ok_or(Emul::Unhandleable)?;
        self.copy_elements(dst, width, reps, |n| {
            let value = usize::try_from(n).ok().and_then(|n| source.get(n))?;
            Some(value.to_le_bytes()[..width.size()].to_vec())
        })
    }

    /// Elements of `rep ins` done in one go.
    fn ins(&mut self, port: u16, dst: u64, width: Width, reps: u64) -> Result<u64, Emul> {
        let size = u32::from(width as u8);
        let mut value = None;
        if reps == 1 {
            match self.port_access(port, size, None) {
                Err(Emul::Unhandleable) => {}
                read => value = Some(read?),
            }
        }
        if value.is_none() {
            let mmio = self.domain.p2m.access_type(dst) == P2mType::MmioDm;
            let bulk = if mmio {
                Err(Emul::Unhandleable)
            } else {
                self.io_addr(false, u64::from(port), width, true, reps, dst)
            };
            match bulk {
                Err(Emul::Unhandleable) => {}
                done => return done,
            }
        }
        let value = match value {
            Some(value) => value,
            None => self.port_access(port, size, None)?,
        };
        self.write(dst, &value.to_le_bytes()[..width.size()])?;
        Ok(1)
    }

    /// Elements of `rep outs` done in one go.
    fn outs(&mut self, port: u16, src: u64, width: Width, reps: u64) -> Result<u64, Emul> {
        let size = u32::from(width as u8);
        if reps > 1 {
            let mmio = self.domain.p2m.access_type(src) == P2mType::MmioDm;
            let bulk = if mmio {
                Err(Emul::Unhandleable)
            } else {
                self.io_addr(false, u64::from(port), width, false, reps, src)
            };
            match bulk {
                Err(Emul::Unhandleable) => {}
                done => return done,
            }
        }
        let value = self.read(src, size)?;
        self.port_access(port, size, Some(value))?;
        Ok(1)
    }

    /// `hvmemul_do_io_addr`: repetitions between an address and guest RAM, as many as the RAM's page holds.
    fn io_addr(
        &mut self,
        mmio: bool,
        addr: u64,
        width: Width,
        read: bool,
        reps: u64,
        ram: u64,
    ) -> Result<u64, Emul> {
        self.acquire_page(ram)?;
        let (offset, size) = (ram % PAGE, width.bytes());
        let fits = if self.df {
            (offset + size - 1) % PAGE / size
        } else {
            (PAGE - offset) / size
        };
        let mut count = reps.min(fits);
        if count == 0 {
            // One element across two pages.
            let other = if self.df {
                ram.wrapping_sub(PAGE)
            } else {
                ram.wrapping_add(PAGE)
            };
            self.acquire_page(other)?;
            count = 1;
        }
        let access = Access {
            mmio,
            addr,
            size: u32::from(width as u8),
            read,
            df: self.df,
        };
        self.do_io(access, &mut count, Operand::Ptr(ram))?;
        Ok(count)
    }

    /// `hvmemul_acquire_page`: a string instruction's memory operand must be populated, and not MMIO by type.
    fn acquire_page(&self, addr: u64) -> Result<(), Emul> {
        match self.domain.p2m.lookup(ioreq_core::Gfn(addr / PAGE)) {
            None => Err(Emul::Unhandleable),
            Some(P2mType::MmioDm) => Err(Emul::Stop(self.crash(CrashReason::OperandNotRam {
                vcpu: self.vcpu.id,
                addr,
            }))),
            Some(_) => Ok(()),
        }
    }
}
