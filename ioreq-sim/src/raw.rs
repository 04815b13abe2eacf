// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The operations as plain numbers, for what the typed traits cannot express.

use std::sync::Arc;

use ioreq_core::hypervisor::SharedPage;
use ioreq_core::{DomId, ShutdownReason};
use libc::{E2BIG, EBADF, EINVAL, EIO, EOPNOTSUPP, EPERM, ESRCH};

use crate::domain::DomainInner;
use crate::process::Process;
use crate::schedule;

/// Device-model operations by raw numbers, as the ioctls take them; errors are bare errno values.
///
/// For suites that test a hypervisor: bad pads, unknown types, ranges that end before they start. Device models use the
/// typed traits. After a hypervisor panic everything is EIO; in a process that was killed, EBADF.
///
/// ```
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let raw = domain.hypervisor().raw();
/// assert_eq!(raw.create(3, 0), Err(22)); // no such bufioreq mode
/// assert_eq!(raw.create(0, 1), Err(22)); // pad
/// assert_eq!(raw.create(2, 0), Ok(0));
/// assert_eq!(raw.unknown(99), Err(95)); // EOPNOTSUPP
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct RawDmop {
    pub(crate) domid: DomId,
    pub(crate) domain: Option<Arc<DomainInner>>,
    pub(crate) process: Arc<Process>,
}

type Errno<T> = Result<T, i32>;

/// Largest buffer of an operation that the kernel passes on, in bytes.
pub(crate) const BUFFER_MAX: usize = 4096;

impl RawDmop {
    pub(crate) fn open(domid: DomId, domain: Option<Arc<DomainInner>>, emulator: DomId) -> Self {
        RawDmop {
            domid,
            domain,
            process: Arc::new(Process::new(emulator)),
        }
    }

    /// What every DMOP checks first. `op` is its number.
    pub(crate) fn target(&self, op: u32, pads: &[u32]) -> Errno<&Arc<DomainInner>> {
        schedule::yield_point(true);
        if self.process.is_killed() {
            return Err(EBADF);
        }
        if self.domid == DomId(0) {
            return Err(EPERM);
        }
        let domain = self.domain.as_ref().ok_or(ESRCH)?;
        domain.model_counts.count(op);
        if domain.machine.panic_reason().is_some() {
            return Err(EIO);
        }
        if domain.is_destroyed() {
            return Err(ESRCH);
        }
        if pads.iter().any(|&pad| pad != 0) {
            return Err(EINVAL);
        }
        Ok(domain)
    }

    /// `create_ioreq_server`: the new id.
    ///
    /// # Errors
    /// EINVAL for a mode above 2 or a pad, ENOSPC beyond 8 servers.
    pub fn create(&self, handle_bufioreq: u8, pad: u8) -> Errno<u16> {
        self.target(1, &[u32::from(pad)])?
            .create_server(self.process.emulator, handle_bufioreq)
    }

    /// `get_ioreq_server_info`: gfn of the ioreq page, gfn of the buffered page, port of the ring. Flag 1 is no_gfns.
    ///
    /// # Errors
    /// EINVAL for other flags, ENOENT; with gfns EPERM after acquire, ENOMEM where the version has none.
    pub fn get_info(&self, id: u16, flags: u16) -> Errno<(u64, u64, u32)> {
        self.target(2, &[])?
            .server_info(self.process.emulator, id, flags)
    }

    /// `map_io_range_to_ioreq_server`.
    ///
    /// # Errors
    /// EINVAL (start > end, type, pad), ENOENT, EEXIST, ENOMEM.
    pub fn map_range(&self, id: u16, kind: u32, start: u64, end: u64, pad: u16) -> Errno<()> {
        self.target(3, &[u32::from(pad)])?.change_range(
            self.process.emulator,
            true,
            id,
            kind,
            (start, end),
        )
    }

    /// `unmap_io_range_from_ioreq_server`.
    ///
    /// # Errors
    /// EINVAL (start > end, type, pad), ENOENT, ENOMEM when a split needs a range too many.
    pub fn unmap_range(&self, id: u16, kind: u32, start: u64, end: u64, pad: u16) -> Errno<()> {
        self.target(4, &[u32::from(pad)])?.change_range(
            self.process.emulator,
            false,
            id,
            kind,
            (start, end),
        )
    }

    /// `set_ioreq_server_state`.
    ///
    /// # Errors
    /// EINVAL for a pad, ENOENT.
    pub fn set_state(&self, id: u16, enabled: u8, pad: u8) -> Errno<()> {
        self.target(5, &[u32::from(pad)])?
            .set_server_state(self.process.emulator, id, enabled != 0)
    }

    /// `destroy_ioreq_server`.
    ///
    /// # Errors
    /// EINVAL for a pad, ENOENT.
    pub fn destroy(&self, id: u16, pad: u16) -> Errno<()> {
        self.target(6, &[u32::from(pad)])?
            .destroy_server(self.process.emulator, id)
    }

    /// `track_dirty_vram`: a bit a page, set for those that the guest wrote since the last call. The first call for a range sets all. A domain
    /// has one range; `nr` 0 ends it.
    ///
    /// # Errors
    /// E2BIG for a bitmap of more than 4096 bytes, which the kernel does not pass on; EINVAL (pad, one too small for `nr`).
    pub fn track_dirty_vram(&self, first: u64, nr: u32, pad: u32, bitmap: &mut [u8]) -> Errno<()> {
        if bitmap.len() > BUFFER_MAX {
            return Err(E2BIG);
        }
        self.target(7, &[pad])?.track_dirty_vram(first, nr, bitmap)
    }

    /// `pin_memory_cacheattr` of `first..=last`; type `u32::MAX` ends it.
    ///
    /// # Errors
    /// EINVAL (pad, type, a range that is backward or beyond the processor's frames), ENOENT for the end of a range that is not
    /// pinned, EBUSY for one that overlaps another, ENOSPC beyond 64.
    pub fn pin_memory_cacheattr(&self, first: u64, last: u64, ty: u32, pad: u32) -> Errno<()> {
        self.target(18, &[pad])?.pin_cacheattr(first, last, ty)
    }

    /// `set_mem_type`.
    ///
    /// # Errors
    /// EINVAL, EOPNOTSUPP without HAP; pages before a bad one stay changed.
    pub fn set_mem_type(&self, ty: u32, pad: u16, first: u64, nr: u32) -> Errno<()> {
        self.target(12, &[u32::from(pad)])?
            .set_mem_type(ty, first, nr)
    }

    /// `map_mem_type_to_ioreq_server`: claims with flag 2, disclaims with no flag.
    ///
    /// # Errors
    /// EOPNOTSUPP without HAP, EINVAL (type, flags, not the owner), ENOENT, EBUSY.
    pub fn map_mem_type(&self, id: u16, ty: u16, flags: u32, opaque: u64) -> Errno<()> {
        self.target(15, &[])?
            .map_mem_type(self.process.emulator, id, (ty, flags), opaque)
    }

    /// `remote_shutdown`.
    ///
    /// # Errors
    /// As every operation.
    pub fn remote_shutdown(&self, reason: u8) -> Errno<()> {
        self.target(16, &[])?
            .shut_down(ShutdownReason::from_raw(reason));
        Ok(())
    }

    /// `nr_vcpus`.
    ///
    /// # Errors
    /// As every operation.
    pub fn nr_vcpus(&self) -> Errno<u32> {
        Ok(self.target(20, &[])?.config.vcpus)
    }

    /// An operation with its outer pad set, which Xen refuses whatever the operation.
    ///
    /// # Errors
    /// EINVAL, EOPNOTSUPP for an unknown operation.
    pub fn padded(&self, op: u32, pad: u32) -> Errno<()> {
        if op >= 24 {
            return self.unknown(op);
        }
        self.target(op, &[pad]).map(drop)
    }

    /// An operation that does not exist.
    ///
    /// # Errors
    /// EOPNOTSUPP.
    pub fn unknown(&self, op: u32) -> Errno<()> {
        self.target(op, &[])?;
        Err(EOPNOTSUPP)
    }

    /// `XENMEM_acquire_resource` of type ioreq_server: frame 0 is the buffered page, 1 the ioreq page.
    ///
    /// # Errors
    /// ENOENT, EINVAL for another frame, EPERM after get_info with gfns.
    pub fn acquire(&self, id: u16, frame: u64) -> Errno<SharedPage> {
        self.target(u32::MAX, &[])?
            .acquire(self.process.emulator, id, frame)
    }
}
