// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The hypercalls on servers and memory types, as `common/ioreq.c` and `x86/hvm/dm.c` do them, errno by errno.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioreq_core::abi::{
    HVM_IOREQSRV_BUFIOREQ_ATOMIC, HVMMEM_IOREQ_SERVER, HVMMEM_MMIO_DM, HVMMEM_RAM_RO,
    HVMMEM_RAM_RW, XEN_DMOP_IOREQ_MEM_ACCESS_WRITE, XENMEM_RESOURCE_FRAME_BUFIOREQ,
    XENMEM_RESOURCE_FRAME_IOREQ,
};
use ioreq_core::hypervisor::SharedPage;
use ioreq_core::{DomId, Gfn, P2mType, ServerId};
use libc::{EBUSY, EINVAL, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM};

use super::DomainInner;
use crate::fate::StuckReason;
use crate::memory;
use crate::servers::pages::{BufferedPage, IoreqPage};
use crate::servers::{Entry, MAX_SERVERS, Server};
use crate::version::XenVersion;

/// `XEN_DMOP_no_gfns`
const NO_GFNS: u16 = 1;
/// Pages that set_mem_type changes between two looks at whether it should give way.
const PREEMPT: u64 = 256;

type Errno<T> = Result<T, i32>;

impl DomainInner {
    /// The server, if it is there and the caller's.
    fn entry(&self, emulator: DomId, id: u16) -> Errno<Arc<Entry>> {
        let entry = self.servers.current().get(id).cloned().ok_or(ENOENT)?;
        if entry.server.emulator == emulator {
            Ok(entry)
        } else {
            Err(EPERM)
        }
    }

    pub(crate) fn create_server(&self, emulator: DomId, bufioreq: u8) -> Errno<u16> {
        if bufioreq > HVM_IOREQSRV_BUFIOREQ_ATOMIC {
            return Err(EINVAL);
        }
        let _control = self.lock_control();
        self.paused(|| {
            let table = self.servers.current();
            let free = table.entries.iter().position(Option::is_none);
            let slot = free.ok_or(ENOSPC)?;
            debug_assert!(slot < MAX_SERVERS);
            let id = u16::try_from(slot).map_err(|_| ENOSPC)?;
            let open = |v| self.open_channel(v, emulator);
            let channels: Vec<_> = self.vcpus.iter().map(open).collect();
            let ring = (bufioreq != 0)
                .then(|| self.vcpus.first().map(open))
                .flatten();
            let server = Server::new(ServerId(id), emulator, bufioreq, channels, ring);
            let entry = Entry {
                server: Arc::new(server),
                enabled: false,
                ranges: Default::default(),
            };
            self.servers
                .update(|t| t.entries[slot] = Some(Arc::new(entry)));
            Ok(id)
        })
    }

    pub(crate) fn destroy_server(&self, emulator: DomId, id: u16) -> Errno<()> {
        let _control = self.lock_control();
        let entry = self.entry(emulator, id)?;
        let server = &entry.server;
        self.paused(|| {
            self.servers.update(|table| {
                table.entries[usize::from(id)] = None;
                // The owner goes, its pages stay as they are.
                if table
                    .owner
                    .as_ref()
                    .is_some_and(|o| o.server.id == server.id)
                {
                    table.owner = None;
                }
            });
            server.destroy();
            self.close_channels(server);
            for vcpu in &self.vcpus {
                if vcpu.waiting_on() == Some(server.id) && vcpu.is_blocked() {
                    vcpu.set_stuck(Some(StuckReason::ServerDestroyed { server: server.id }));
                }
            }
        });
        Ok(())
    }

    pub(crate) fn set_server_state(&self, emulator: DomId, id: u16, enabled: bool) -> Errno<()> {
        let _control = self.lock_control();
        let entry = self.entry(emulator, id)?;
        self.paused(|| {
            if entry.enabled == enabled {
                return;
            }
            if enabled && let Some(page) = entry.server.page.get() {
                for (slot, channel) in page.slots.iter().zip(&entry.server.channels) {
                    // Relaxed: the domain is paused; whoever learns that the server is enabled sees it.
                    slot.vp_eport.store(channel.port.0, Ordering::Relaxed);
                }
            }
            self.servers
                .update(|t| t.change(id, |e| e.enabled = enabled));
        });
        Ok(())
    }

    pub(crate) fn server_info(
        &self,
        emulator: DomId,
        id: u16,
        flags: u16,
    ) -> Errno<(u64, u64, u32)> {
        if flags & !NO_GFNS != 0 {
            return Err(EINVAL);
        }
        let _control = self.lock_control();
        let server = Arc::clone(&self.entry(emulator, id)?.server);
        if flags & NO_GFNS == 0 {
            // Relaxed: changed under the control lock.
            if server.page.get().is_some() && !server.legacy.load(Ordering::Relaxed) {
                return Err(EPERM);
            }
            if self.machine.version > XenVersion::V4_17 {
                return Err(ENOMEM); // the HVM parameters are never set here
            }
            server.legacy.store(true, Ordering::Relaxed);
            Self::allocate(&server);
        }
        let port = server.buffered_channel.as_ref().map_or(0, |c| c.port.0);
        Ok((0, 0, port))
    }

    fn allocate(server: &Server) {
        server.page.get_or_init(IoreqPage::new);
        if server.has_ring() {
            server.buffered.get_or_init(BufferedPage::new);
        }
    }

    pub(crate) fn acquire(&self, emulator: DomId, id: u16, frame: u64) -> Errno<SharedPage> {
        let _control = self.lock_control();
        let server = Arc::clone(&self.entry(emulator, id)?.server);
        // Relaxed: changed under the control lock.
        if server.legacy.load(Ordering::Relaxed) {
            return Err(EPERM);
        }
        // Xen allocates both pages whichever is asked for, even for a frame that does not exist.
        Self::allocate(&server);
        match frame {
            XENMEM_RESOURCE_FRAME_BUFIOREQ => {
                server.buffered.get().map(memory::share).ok_or(ENOENT)
            }
            XENMEM_RESOURCE_FRAME_IOREQ => server.page.get().map(memory::share).ok_or(ENOENT),
            _ => Err(EINVAL),
        }
    }

    pub(crate) fn change_range(
        &self,
        emulator: DomId,
        add: bool,
        id: u16,
        kind: u32,
        (start, end): (u64, u64),
    ) -> Errno<()> {
        if start > end {
            return Err(EINVAL);
        }
        let _control = self.lock_control();
        let entry = self.entry(emulator, id)?;
        let kind = usize::try_from(kind).map_err(|_| EINVAL)?;
        let mut ranges = (**entry.ranges.get(kind).ok_or(EINVAL)?).clone();
        if add {
            ranges.add(start, end)?;
        } else {
            ranges.remove(start, end)?;
        }
        self.servers
            .update(|t| t.change(id, |e| e.ranges[kind] = Arc::new(ranges)));
        Ok(())
    }

    pub(crate) fn map_mem_type(
        &self,
        emulator: DomId,
        id: u16,
        (ty, flags): (u16, u32),
        opaque: u64,
    ) -> Errno<()> {
        if !self.config.hap {
            return Err(EOPNOTSUPP);
        }
        if opaque != 0 {
            return Ok(()); // taken for the continuation of a disclaim
        }
        if u32::from(ty) != HVMMEM_IOREQ_SERVER || flags & !XEN_DMOP_IOREQ_MEM_ACCESS_WRITE != 0 {
            return Err(EINVAL);
        }
        let control = self.lock_control();
        let entry = self.entry(emulator, id)?;
        let owner = self.servers.current().owner.clone();
        if flags == 0 {
            let owns = owner.is_some_and(|o| o.server.id == entry.server.id);
            if !owns {
                return Err(EINVAL);
            }
            self.servers.update(|t| t.owner = None);
            // Xen asks just after it has let go of the lock. There nobody gets two hypercalls in between, a claim and a mark; here it
            // would be enough that this thread is not running, and the next owner's pages would be reset.
            let outstanding = self.p2m.outstanding() > 0;
            drop(control);
            if outstanding {
                self.with_p2m_lock(|p2m| p2m.reset_all());
            }
        } else {
            if owner.is_some() || self.p2m.outstanding() > 0 {
                return Err(EBUSY);
            }
            self.servers.update(|t| t.owner = Some(entry));
        }
        self.types_changed();
        Ok(())
    }

    pub(crate) fn set_mem_type(&self, ty: u32, first: u64, nr: u32) -> Errno<()> {
        let nr = u64::from(nr);
        let last = first.wrapping_add(nr).wrapping_sub(1);
        if first > last || last > self.p2m.max_gfn() {
            return Err(EINVAL);
        }
        let new = match ty {
            HVMMEM_RAM_RW => P2mType::RamRw,
            HVMMEM_RAM_RO => P2mType::RamRo,
            HVMMEM_MMIO_DM => P2mType::MmioDm,
            HVMMEM_IOREQ_SERVER => P2mType::IoreqServer,
            _ => return Err(EINVAL),
        };
        if new == P2mType::IoreqServer {
            if !self.config.hap {
                return Err(EOPNOTSUPP);
            }
            if self.servers.current().owner.is_none() {
                return Err(EINVAL);
            }
        }
        let fails_at = self.faults.take_set_mem_type();
        let mut gfn = first;
        let result = loop {
            let end = last.min(gfn.saturating_add(PREEMPT - 1));
            let part = self.with_p2m_lock(|p2m| {
                for gfn in gfn..=end {
                    if fails_at == Some(gfn - first) {
                        return Err(ENOMEM);
                    }
                    p2m.change(gfn, new, self.is_log_dirty())?;
                }
                Ok(())
            });
            if part.is_err() || end == last {
                break part;
            }
            gfn = end + 1;
        };
        self.types_changed();
        result
    }

    pub(crate) fn modified_memory(&self, first: u64, nr: u32) -> Errno<()> {
        if !self.logs() {
            return Ok(());
        }
        let end = first.wrapping_add(u64::from(nr));
        // Xen compares the end, which is not included, with the highest gfn: the last page cannot be named.
        if end <= first || end > self.p2m.max_gfn() {
            return Err(EINVAL);
        }
        let mut dirty = self
            .dirty
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.is_log_dirty() {
            dirty.extend((first..end).filter(|&g| self.p2m.lookup(Gfn(g)).is_some()));
        }
        Ok(())
    }

    /// `paging_mode_log_dirty`: for all of memory, or for video memory.
    pub(crate) fn logs(&self) -> bool {
        self.is_log_dirty() || self.tracks_vram()
    }
}
