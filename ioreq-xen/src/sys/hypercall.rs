// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: hypercalls that are no DMOPs. Xen reads and writes their arguments through this process's page tables.

use std::io;
use std::ptr::NonNull;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use ioreq_core::{DomId, Gfn};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{Errno, Privcmd, retry};
use crate::abi::*;

/// Tries of a hypercall whose argument the kernel was moving in that moment.
const FAULTS: u32 = 8;

/// Versions of the domctl interface that are worth a try: 4.12 had 0x11, 4.17 0x15, 4.20 0x17.
const DOMCTL_VERSIONS: std::ops::RangeInclusive<u32> = 0x10..=0x40;

/// A page that stays in memory, for an argument.
#[derive(Debug)]
pub(super) struct ArgPage(NonNull<u8>);

impl ArgPage {
    const SIZE: usize = 4096;

    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping touches no memory that exists. Locked: Xen does not fault pages in.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        NonNull::new(addr.cast::<u8>())
            .filter(|addr| addr.as_ptr().cast() != libc::MAP_FAILED)
            .map(ArgPage)
            .ok_or_else(io::Error::last_os_error)
    }
}

impl Drop for ArgPage {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made, whose address nobody else keeps.
        let rc = unsafe { libc::munmap(self.0.as_ptr().cast(), Self::SIZE) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping");
    }
}

// SAFETY: owns its mapping, which is valid from every thread.
unsafe impl Send for ArgPage {}

/// Plain numbers that Xen may read and write.
///
/// # Safety
/// The type is `repr(C)`, has no padding, any bits are a value of it, and it fits an [`ArgPage`].
unsafe trait Argument: Copy {}

// SAFETY: 16 bytes of integers without padding (asserted beside it).
unsafe impl Argument for HvmGetMemType {}
// SAFETY: 144 bytes of integers without padding (asserted beside it).
unsafe impl Argument for DomctlGetDomainInfo {}
// SAFETY: two bytes.
unsafe impl Argument for u16 {}

/// What the toolstack's interface says of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DomainInfo {
    pub(crate) domid: DomId,
    pub(crate) flags: u32,
    pub(crate) handle: [u8; 16],
}

impl Privcmd {
    /// Calls Xen with the address of a copy of `value` as argument number `at`. Gives what Xen returned and left in it.
    fn hypercall<T: Argument>(
        &self,
        op: u64,
        mut arg: [u64; 5],
        at: usize,
        value: T,
    ) -> Result<(u32, T), Errno> {
        // Kept, because locking a page in memory takes longer than the call. One call at a time: none is on a request's way.
        let mut kept = self.arg_page.lock().unwrap_or_else(PoisonError::into_inner);
        let page = match kept.as_ref() {
            Some(page) => page,
            None => {
                let page = ArgPage::new();
                kept.insert(page.map_err(|err| err.raw_os_error().unwrap_or(libc::ENOMEM))?)
            }
        };
        let target = page.0.cast::<T>();
        if let Some(slot) = arg.get_mut(at) {
            *slot = target.as_ptr().expose_provenance() as u64;
        }
        let call = PrivcmdHypercall { op, arg };
        let mut faults = 0;
        loop {
            // SAFETY: the page is ours alone while the lock is held, aligned, and long enough for a `T` (the trait's contract).
            unsafe { target.write_volatile(value) };
            // SAFETY: HYPERCALL reads `call`. The operations used here access no memory but the `T` that the argument points to.
            let result = retry(|| unsafe { ioctl_with_ref(self, IOCTL_PRIVCMD_HYPERCALL, &call) });
            match result {
                Ok(result) => {
                    // SAFETY: as above; any bits are a `T`.
                    let value = unsafe { target.read_volatile() };
                    return Ok((result.cast_unsigned(), value));
                }
                // The kernel was moving the page. All operations here may be asked twice.
                Err(libc::EFAULT) if faults < FAULTS => faults += 1,
                Err(errno) => return Err(errno),
            }
        }
    }

    /// `HVMOP_get_mem_type`: the `hvmmem_type_t` of a page. No DMOP: needs an unrestricted handle.
    ///
    /// # Errors
    /// Xen's errno; EPERM with a restricted handle.
    pub fn mem_type(&self, domid: DomId, gfn: Gfn) -> Result<u16, Errno> {
        let value = HvmGetMemType {
            domid: domid.0,
            pfn: gfn.0,
            ..HvmGetMemType::default()
        };
        let arg = [HVMOP_GET_MEM_TYPE, 0, 0, 0, 0];
        let (_, value) = self.hypercall(HYPERVISOR_HVM_OP, arg, 1, value)?;
        Ok(value.mem_type)
    }

    /// `XENMEM_maximum_gpfn`: the highest frame that the domain has, or ever had. Needs an unrestricted handle.
    ///
    /// # Errors
    /// Xen's errno; EPERM with a restricted handle.
    pub fn maximum_gfn(&self, domid: DomId) -> Result<Gfn, Errno> {
        let arg = [XENMEM_MAXIMUM_GPFN, 0, 0, 0, 0];
        let (highest, _) = self.hypercall(HYPERVISOR_MEMORY_OP, arg, 1, domid.0)?;
        Ok(Gfn(highest.into()))
    }

    /// `XEN_DOMCTL_getdomaininfo`. Needs an unrestricted handle.
    pub(crate) fn domain_info(&self, domid: DomId) -> Result<DomainInfo, Errno> {
        // Relaxed: the number stands for itself.
        let known = self.domctl_version.load(Ordering::Relaxed);
        if known != 0 {
            return self.domain_info_by(domid, known);
        }
        for version in DOMCTL_VERSIONS {
            match self.domain_info_by(domid, version) {
                // "Not my version", checked before everything else.
                Err(libc::EACCES) => {}
                result => {
                    if !matches!(result, Err(libc::EPERM | libc::ENOSYS)) {
                        // Relaxed: as above.
                        self.domctl_version.store(version, Ordering::Relaxed);
                    }
                    return result;
                }
            }
        }
        Err(libc::EOPNOTSUPP)
    }

    fn domain_info_by(&self, domid: DomId, version: u32) -> Result<DomainInfo, Errno> {
        let value = DomctlGetDomainInfo {
            cmd: XEN_DOMCTL_GETDOMAININFO,
            interface_version: version,
            domain: domid.0,
            pad: [0; 3],
            info_domain: 0,
            info_pad: 0,
            info_flags: 0,
            info_numbers: [0; 7],
            info_more: [0; 3],
            info_handle: [0; 16],
            rest: [0; 9],
        };
        let (_, value) = self.hypercall(HYPERVISOR_DOMCTL, [0; 5], 0, value)?;
        Ok(DomainInfo {
            domid: DomId(value.info_domain),
            flags: value.info_flags,
            handle: value.info_handle,
        })
    }
}
