// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: ioctls of `/dev/xen/privcmd`, which read and write through pointers, and mappings of it.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, Weak};

use ioreq_core::abi::dm_op::DmOpBytes;
use ioreq_core::hypervisor::SharedPage;
use ioreq_core::{DomId, Error, Op, Result};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::hypercall::ArgPage;
use super::place::{Place, Reservation};
use super::{Errno, retry};
use crate::abi::*;

/// An open `/dev/xen/privcmd`: DMOPs, resource and foreign mappings, and hypercalls, for any domain unless restricted.
///
/// Errors are bare errno values; [`DeviceModel`](crate::DeviceModel) and [`XenHypervisor`](crate::XenHypervisor) turn them
/// into the framework's.
///
/// ```no_run
/// use ioreq_core::DomId;
/// use ioreq_core::abi::dm_op::{DmOp, NrVcpus};
/// use ioreq_xen::Privcmd;
///
/// let privcmd = Privcmd::open()?;
/// let mut op = NrVcpus::default().encode();
/// privcmd.dm_op(DomId(1), &mut op, &mut []).expect("domain 1 exists");
/// println!("{} vCPUs", NrVcpus::decode(&op).vcpus);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Privcmd {
    fd: OwnedFd,
    /// The domctl version of the running Xen, once known; 0 before.
    pub(super) domctl_version: AtomicU32,
    /// For arguments of hypercalls that are no DMOPs; made by the first.
    pub(super) arg_page: Mutex<Option<ArgPage>>,
}

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// `NotSupported` where there is none, `NotPermitted`.
    pub fn open() -> Result<Self> {
        super::open::device("/dev/xen/privcmd", "xen-privcmd", 0)
            .map(|file| Self::from_owned_fd(file.into()))
    }

    /// A handle that somebody else opened, e.g. before this process gave up its privileges.
    #[must_use]
    pub fn from_owned_fd(fd: OwnedFd) -> Self {
        Privcmd {
            fd,
            domctl_version: AtomicU32::new(0),
            arg_page: Mutex::new(None),
        }
    }

    /// A DMOP, with its second buffer where it has one. Answers are written into both.
    ///
    /// # Errors
    /// Xen's errno; E2BIG for a buffer of more than [`DM_OP_BUF_MAX_SIZE`] bytes; EPERM if the handle is restricted to
    /// another domain.
    pub fn dm_op(&self, domid: DomId, op: &mut DmOpBytes, buffer: &mut [u8]) -> Result<(), Errno> {
        let second = !buffer.is_empty();
        let buffers = [
            PrivcmdDmOpBuf {
                uptr: op.as_mut_ptr().cast(),
                size: op.len(),
            },
            PrivcmdDmOpBuf {
                uptr: buffer.as_mut_ptr().cast(),
                size: buffer.len(),
            },
        ];
        let arg = PrivcmdDmOp {
            dom: domid.0,
            num: 1 + u16::from(second),
            ubufs: buffers.as_ptr(),
        };
        retry(|| {
            // SAFETY: DM_OP reads `arg` and `num` elements of `ubufs`, and reads and writes the memory that those name, during
            // the call only: `op` and `buffer`, which we hold exclusively, with their own lengths.
            unsafe { ioctl_with_ref(self, IOCTL_PRIVCMD_DM_OP, &arg) }
        })
        .map(drop)
    }

    /// One frame of an ioreq server's resource (`XENMEM_acquire_resource`): frame 0 is the buffered page, 1 the ioreq page.
    ///
    /// # Errors
    /// ENOENT for an unknown server or a buffered page that it does not have, EINVAL for another frame, EPERM after the
    /// legacy way of `get_ioreq_server_info`.
    pub fn acquire(&self, domid: DomId, server: u16, frame: u32) -> Result<SharedPage, Errno> {
        let space = self.acquire_space(domid, server, frame)?;
        // SAFETY: one page that is mapped readable and writable until `space` is dropped, which the value keeps; nothing else
        // in this process accesses it.
        unsafe { SharedPage::new(space.addr(), space) }.map_err(|_| libc::EFAULT)
    }

    /// The same as the address space it is mapped in.
    fn acquire_space(
        &self,
        domid: DomId,
        server: u16,
        frame: u32,
    ) -> Result<Arc<Reservation>, Errno> {
        let space =
            Reservation::new(1).map_err(|err| err.raw_os_error().unwrap_or(libc::ENOMEM))?;
        let place = space.place(0, 1).ok_or(libc::EINVAL)?;
        // SAFETY: the reservation was just made, so nobody uses its memory.
        unsafe { place.map(self.as_raw_fd()) }?;
        let mut arg = PrivcmdMmapResource {
            dom: domid.0,
            kind: XENMEM_RESOURCE_IOREQ_SERVER,
            id: server.into(),
            idx: frame,
            num: 1,
            addr: place.addr().as_ptr().expose_provenance() as u64,
        };
        retry(|| {
            // SAFETY: MMAP_RESOURCE reads and writes `arg`, and populates one page at `addr`: the mapping of this file that was
            // just made there, one page long.
            unsafe { ioctl_with_mut_ref(self, IOCTL_PRIVCMD_MMAP_RESOURCE, &mut arg) }
        })?;
        Ok(Arc::new(space))
    }

    /// The same, as a page that can be taken back.
    pub(crate) fn acquire_revocable(
        &self,
        domid: DomId,
        server: u16,
        frame: u32,
    ) -> Result<(SharedPage, AcquiredPage), Errno> {
        let space = self.acquire_space(domid, server, frame)?;
        let acquired = AcquiredPage(Arc::downgrade(&space));
        // SAFETY: as in `acquire`; `AcquiredPage::revoke` leaves a page there that is as readable and writable.
        let page = unsafe { SharedPage::new(space.addr(), space) }.map_err(|_| libc::EFAULT)?;
        Ok((page, acquired))
    }

    /// Maps frames `first…` of the domain at `place`, a fresh mapping of this file or holes of one. Writes each page's error
    /// (0, or a positive errno) into `errors`, whose length is the number of pages.
    ///
    /// A first call on a mapping must cover it all; later calls may fill holes only.
    pub(crate) fn map_frames(
        &self,
        domid: DomId,
        place: &Place<'_>,
        first: u64,
        errors: &mut [Errno],
    ) -> Result<(), Errno> {
        let pages = errors.len().min(place.pages());
        let frames: Vec<u64> = (first..).take(pages).collect();
        let arg = PrivcmdMmapBatchV2 {
            num: u32::try_from(pages).map_err(|_| libc::E2BIG)?,
            dom: domid.0,
            addr: place.addr().as_ptr().expose_provenance() as u64,
            arr: frames.as_ptr(),
            err: errors.as_mut_ptr().cast::<c_int>(),
        };
        let result = retry(|| {
            // SAFETY: MMAPBATCH_V2 reads `arg` and `num` elements of `arr`, writes `num` elements of `err` (both are at least that
            // long), and populates pages of `place`, where nothing is mapped yet: the kernel refuses anything else (EINVAL).
            unsafe { ioctl_with_ref(self, IOCTL_PRIVCMD_MMAPBATCH_V2, &arg) }
        });
        for error in errors.iter_mut() {
            *error = error.saturating_neg();
        }
        match result {
            // Says no more than that some page's error is ENOENT: it is paged out.
            Ok(_) | Err(libc::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Gives up every right of this open file but DMOPs and mappings of one domain. For good: restricting it again to
    /// another domain is EINVAL.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn restrict(&self, domid: DomId) -> Result<(), Errno> {
        retry(|| {
            // SAFETY: RESTRICT reads a domid_t.
            unsafe { ioctl_with_ref(self, IOCTL_PRIVCMD_RESTRICT, &domid.0) }
        })
        .map(drop)
    }

    /// The same, in the framework's errors.
    pub(crate) fn restrict_to(&self, domid: DomId) -> Result<()> {
        self.restrict(domid).map_err(|errno| {
            Error::from_errno(Op::Restrict, errno)
                .domain(domid)
                .about("/dev/xen/privcmd")
        })
    }
}

/// An acquired page whose users may keep it longer than Xen's side lives.
#[derive(Debug)]
pub(crate) struct AcquiredPage(Weak<Reservation>);

impl AcquiredPage {
    /// Whether anybody still uses it.
    pub(crate) fn is_used(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Gives the page back to Xen. Users go on with a page of zeros: empty slots, an empty ring.
    pub(crate) fn revoke(&self) -> Result<(), Errno> {
        let Some(space) = self.0.upgrade() else {
            return Ok(());
        };
        space.place(0, 1).ok_or(libc::EINVAL)?.blank()
    }
}

impl AsRawFd for Privcmd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
