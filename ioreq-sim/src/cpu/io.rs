// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One I/O access: who gets it, how it is sent, what comes back (`hvmemul_do_io`, `ioreq_send`, `ioreq_server_select`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use ioreq_core::abi::{
    BufIoreqEntry, IOREQ_DATA_IS_PTR, IOREQ_DF, IOREQ_DIR_READ, IOREQ_TYPE_COPY,
    IOREQ_TYPE_INVALIDATE, IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_PIO, IOREQ_TYPE_TIMEOFFSET, Ioreq,
    STATE_IOREQ_NONE, STATE_IOREQ_READY, XEN_DMOP_IO_RANGE_MEMORY, XEN_DMOP_IO_RANGE_PCI,
    XEN_DMOP_IO_RANGE_PORT,
};
use ioreq_core::{Gfn, P2mType};

use super::execute::posted;
use super::{Cpu, Emul, LatchState};
use crate::counts;
use crate::fate::{CpuFault, CrashReason, StuckReason};
use crate::gate::Pass;
use crate::servers::Entry;

/// The window of emulated VGA.
const VGA: std::ops::RangeInclusive<u64> = 0xa_0000..=0xb_ffff;
const PAGE: u64 = 4096;

/// An access as the emulator asks for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) mmio: bool,
    pub(super) addr: u64,
    /// Bytes of one repetition: 1, 2, 4 or 8.
    pub(super) size: u32,
    pub(super) read: bool,
    pub(super) df: bool,
}

/// Its data: the value itself (ignored for reads), or the guest-physical address of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    Inline(u64),
    Ptr(u64),
}

impl Access {
    fn request(&self, reps: u64, operand: Operand) -> Ioreq {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let (data, ptr) = match operand {
            Operand::Inline(_) if self.read => (0, false),
            Operand::Inline(data) => (data, false),
            Operand::Ptr(addr) => (addr, true),
        };
        Ioreq {
            addr: self.addr,
            data,
            count: u32::try_from(reps).unwrap_or(u32::MAX),
            size: self.size,
            flags: flag(self.read, IOREQ_DIR_READ)
                | flag(self.df, IOREQ_DF)
                | flag(ptr, IOREQ_DATA_IS_PTR),
            kind: if self.mmio {
                IOREQ_TYPE_COPY
            } else {
                IOREQ_TYPE_PIO
            },
            ..Ioreq::default()
        }
    }
}

/// All-ones of an access's size.
fn ones(size: u32) -> u64 {
    u64::MAX >> (64 - 8 * size.clamp(1, 8))
}

impl Cpu {
    /// `hvmemul_do_io`. `reps` is cut to the repetitions that this access carries. Gives the data of an inline read.
    pub(super) fn do_io(
        &mut self,
        access: Access,
        reps: &mut u64,
        operand: Operand,
    ) -> Result<u64, Emul> {
        match self.emu.latch.state {
            LatchState::Idle => {}
            LatchState::Sent => return Err(Emul::Unhandleable),
            LatchState::Answered => return self.consume(&access, reps, operand),
        }
        counts::bump(&self.vcpu.counts.exits);
        let mut req = access.request(*reps, operand);
        if access.mmio && req.count > 1 {
            // Repetitions end with the page, so that each page finds its own device model.
            let offset = req.addr % PAGE;
            let size = u64::from(req.size);
            let span = if access.df {
                offset + size
            } else {
                PAGE - offset
            };
            let fits = if PAGE - offset < size { 1 } else { span / size };
            req.count = req.count.min(u32::try_from(fits).unwrap_or(1));
        }
        self.emu.latch.req = req;
        if self.intercept(&access, &mut req, operand) {
            *reps = u64::from(req.count);
            return Ok(0);
        }
        *reps = u64::from(req.count);
        self.emu.latch.req.count = req.count;

        let tracked =
            access.mmio && self.domain.p2m.access_type(access.addr) == P2mType::IoreqServer;
        let target = if tracked {
            let owner = self.table.get(&self.domain.servers).owner.clone();
            if owner.is_none() {
                let gfn = Gfn(access.addr / PAGE);
                self.emu.stuck = Some(StuckReason::NoOwner { gfn });
                return Err(Emul::Retry);
            }
            if access.read {
                // The read half of a read-modify-write instruction.
                return self
                    .ram_load(access.addr, access.size)
                    .ok_or(Emul::Unhandleable);
            }
            owner
        } else {
            self.select(&mut req)
        };
        let Some(entry) = target else {
            return Ok(self.nobody(&access, &req, operand));
        };
        self.send(entry, &req)?;
        self.emu.latch.state = LatchState::Sent;
        // `ioreq_needs_completion`, of the request as the emulator knows it.
        let done =
            matches!(operand, Operand::Ptr(_)) || posted(self.emu.latch.req.kind, access.read);
        if done { Ok(0) } else { Err(Emul::Retry) }
    }

    /// The answer is there: it must be for this very access.
    fn consume(&mut self, access: &Access, reps: &mut u64, operand: Operand) -> Result<u64, Emul> {
        let latch = &mut self.emu.latch;
        latch.state = LatchState::Idle;
        let req = latch.req;
        let ptr = matches!(operand, Operand::Ptr(_));
        let same = req.kind
            == if access.mmio {
                IOREQ_TYPE_COPY
            } else {
                IOREQ_TYPE_PIO
            }
            && req.addr == access.addr
            && req.size == access.size
            && u64::from(req.count) <= *reps
            && req.is_read() == access.read
            && req.df() == access.df
            && req.data_is_ptr() == ptr;
        if !same {
            return Err(Emul::Stop(self.crash(CrashReason::AnswerNotConsumed {
                vcpu: self.vcpu.id,
                latched: req.addr,
                came: access.addr,
            })));
        }
        if ptr {
            return Err(Emul::Unhandleable);
        }
        *reps = u64::from(req.count);
        Ok(req.data & ones(access.size))
    }

    /// What Xen takes itself (`hvm_io_intercept`): buffered writes to VGA memory. True if that was all.
    fn intercept(&mut self, access: &Access, req: &mut Ioreq, operand: Operand) -> bool {
        if !access.mmio {
            let end = access.addr + u64::from(access.size);
            if access.addr >= 0xcf8 && end <= 0xcfc {
                if !access.read && access.size == 4 {
                    let value = match operand {
                        Operand::Inline(value) => Some(value),
                        Operand::Ptr(addr) => self.ram_load(addr, 4),
                    };
                    let value = value.and_then(|v| u32::try_from(v & 0xffff_ffff).ok());
                    // Relaxed: two vCPUs that both use 0xcf8 must take turns by their own means.
                    self.domain
                        .cf8
                        .store(value.unwrap_or(u32::MAX), Ordering::Relaxed);
                }
                // Watched, and passed on one by one.
                req.count = 1;
            }
            return false;
        }
        let vga = self.domain.config.vga
            && !access.read
            && req.count == 1
            && matches!(operand, Operand::Inline(_))
            && VGA.contains(&req.addr)
            && VGA.contains(&(req.addr + u64::from(req.size) - 1));
        if !vga {
            return false;
        }
        let mut found = *req;
        match self.select(&mut found) {
            Some(entry) => self.send_buffered(&entry, req),
            None => false,
        }
    }

    /// `ioreq_server_select`: the newest enabled server with the whole access in one range. Turns a port access to PCI
    /// configuration space into what it means.
    fn select(&mut self, req: &mut Ioreq) -> Option<Arc<Entry>> {
        // Relaxed: see `intercept`.
        let cf8 = self.domain.cf8.load(Ordering::Relaxed);
        let pci = req.kind == IOREQ_TYPE_PIO && req.addr & !3 == 0xcfc && cf8 >> 31 != 0;
        let size = u64::from(req.size);
        let (kind, first, last) = if pci {
            let sbdf = u64::from(cf8 >> 8 & 0xffff);
            (XEN_DMOP_IO_RANGE_PCI, sbdf, sbdf)
        } else if req.kind == IOREQ_TYPE_PIO {
            (XEN_DMOP_IO_RANGE_PORT, req.addr, req.addr + size - 1)
        } else {
            let all = size * u64::from(req.count);
            let (first, last) = if req.df() {
                (
                    req.addr.wrapping_sub(all - size),
                    req.addr.wrapping_add(size - 1),
                )
            } else {
                (req.addr, req.addr.wrapping_add(all - 1))
            };
            (XEN_DMOP_IO_RANGE_MEMORY, first, last)
        };
        let table = self.table.get(&self.domain.servers);
        let found = table
            .newest_first()
            .find(|e| e.enabled && first <= last && e.contains(kind, first, last))?;
        if pci {
            req.kind = IOREQ_TYPE_PCI_CONFIG;
            req.addr = first << 32 | u64::from(cf8 & 0xfc) | req.addr & 3;
        }
        Some(Arc::clone(found))
    }

    /// Nobody has the access: reads give all-ones, writes are dropped.
    fn nobody(&mut self, access: &Access, req: &Ioreq, operand: Operand) -> u64 {
        if let (true, Operand::Ptr(to)) = (access.read, operand) {
            for n in 0..u64::from(req.count) {
                let step = n * u64::from(access.size);
                let to = if access.df {
                    to.wrapping_sub(step)
                } else {
                    to.wrapping_add(step)
                };
                self.copy_to(to, &ones(access.size).to_le_bytes()[..access.size as usize]);
            }
        }
        ones(access.size)
    }

    /// `ioreq_send`, synchronous: fills the slot, makes it READY, sends the event.
    pub(super) fn send(&mut self, entry: Arc<Entry>, req: &Ioreq) -> Result<(), Emul> {
        let server = &entry.server;
        let at = self.vcpu.id.0 as usize;
        let Some(page) = server.page.get() else {
            self.domain.machine.panic(format!(
                "ioreq_send: {} of {} has no ioreq page: it was never acquired ({}, {:#x})",
                server.id, self.domain.domid, self.vcpu.id, req.addr
            ));
            return Err(Emul::Stop(self.domain.stop_reason()));
        };
        let (Some(slot), Some(channel)) = (page.slots.get(at), server.channels.get(at)) else {
            return Err(Emul::Unhandleable);
        };
        if slot.state() != STATE_IOREQ_NONE {
            return Err(Emul::Unhandleable);
        }
        // Relaxed: Xen's side wrote it while this vCPU was paused; a device model that overwrites it gets what it asks for.
        if slot.vp_eport.load(Ordering::Relaxed) != channel.port.0 {
            return Err(Emul::Unhandleable);
        }
        // The slot last, and in one go: a device model that polls takes its line away with each look.
        self.vcpu.set_waiting_on(Some(server.id));
        self.vcpu.block();
        slot.fill(req, channel.port.0);
        slot.set_state(STATE_IOREQ_READY);
        self.vcpu.counts.sent(req.kind);
        self.domain.faults.deliver(channel);
        self.emu.pending.push(entry);
        Ok(())
    }

    /// `ioreq_send_buffered`. False if it cannot be buffered, or not now.
    pub(super) fn send_buffered(&mut self, entry: &Entry, req: &Ioreq) -> bool {
        let server = &entry.server;
        let (Some(page), Some(channel)) = (server.buffered.get(), &server.buffered_channel) else {
            return false;
        };
        if req.addr > 0xf_ffff || req.data_is_ptr() || req.count != 1 || !req.size.is_power_of_two()
        {
            return false;
        }
        let width = u8::try_from(req.size.trailing_zeros()).unwrap_or(0);
        let addr = u32::try_from(req.addr).unwrap_or(0);
        let half = |data: u64| {
            let data = u32::try_from(data & 0xffff_ffff).unwrap_or(0);
            BufIoreqEntry::new(req.kind, req.is_read(), width, addr, data)
        };
        let second = (req.size == 8).then(|| half(req.data >> 32));
        let _ring = server
            .ring_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let put = page.push(half(req.data), second, server.rewinds());
        if put {
            counts::bump(&self.vcpu.counts.buffered);
            self.domain.faults.deliver(channel);
        }
        put
    }

    // Broadcasts.

    /// The guest sets its real-time clock, `offset` seconds off: a TIMEOFFSET request to every enabled server with a ring. An
    /// offset of 0 sends nothing.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn rtc_set(&mut self, offset: i64) -> Result<(), CpuFault> {
        self.instruction(Pass::Run, 0x71, |cpu| {
            let req = Ioreq {
                data: offset.cast_unsigned(),
                count: 1,
                size: 8,
                kind: IOREQ_TYPE_TIMEOFFSET,
                ..Ioreq::default()
            };
            if offset != 0 {
                for entry in cpu.enabled() {
                    if entry.server.has_ring() && cpu.send_buffered(&entry, &req) {
                        cpu.vcpu.counts.sent(IOREQ_TYPE_TIMEOFFSET);
                    }
                }
            }
            Ok(())
        })
    }

    /// Gives a page back to Xen (`XENMEM_decrease_reservation`): nothing is populated there any more, and every enabled server
    /// gets an INVALIDATE. Who has the page mapped keeps what it mapped.
    ///
    /// ```
    /// use ioreq_core::{Gfn, VcpuId};
    /// use ioreq_sim::{DomainConfig, Machine};
    /// use vm_memory::{Bytes, GuestAddress};
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let mut cpu = domain.cpu(VcpuId(0))?;
    /// cpu.store32(0x5000, 7).unwrap();
    /// cpu.give_back(Gfn(5)).unwrap();
    /// assert_eq!(cpu.load32(0x5000), Ok(u32::MAX)); // the guest finds nothing there
    /// assert_eq!(domain.memory().read_obj::<u32>(GuestAddress(0x5000))?, 7); // a mapping has the old frame
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn give_back(&mut self, gfn: Gfn) -> Result<(), CpuFault> {
        self.domain.with_p2m_lock(|p2m| p2m.remove(gfn));
        self.domain.types_changed();
        self.change_memory_layout()
    }

    /// The guest changes its memory layout (gives a page back, for one): an INVALIDATE request to every enabled server, all at
    /// once, and the wait for all of their answers.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn change_memory_layout(&mut self) -> Result<(), CpuFault> {
        self.instruction(Pass::Run, 0, |cpu| {
            let req = Ioreq {
                data: u64::MAX,
                size: 4,
                kind: IOREQ_TYPE_INVALIDATE,
                ..Ioreq::default()
            };
            for entry in cpu.enabled() {
                match cpu.send(entry, &req) {
                    // Xen logs the failure and goes on.
                    Ok(()) | Err(Emul::Unhandleable | Emul::Retry) => {}
                    Err(stop) => return Err(stop),
                }
            }
            Ok(())
        })
    }

    fn enabled(&mut self) -> Vec<Arc<Entry>> {
        let table = self.table.get(&self.domain.servers);
        table
            .newest_first()
            .filter(|e| e.enabled)
            .cloned()
            .collect()
    }
}
