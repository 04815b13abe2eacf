// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: the ioctl by which the kernel does a device model's work.

use std::os::fd::RawFd;

use ioreq_core::DomId;
use ioreq_core::abi::dm_op::DmOpBytes;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{Errno, Privcmd, retry};
use crate::abi::*;

impl Privcmd {
    /// Has the kernel make `op` whenever the eventfd is written; or no longer.
    pub(crate) fn irqfd(
        &self,
        domid: DomId,
        op: &DmOpBytes,
        eventfd: RawFd,
        assign: bool,
    ) -> Result<(), Errno> {
        let arg = PrivcmdIrqfd {
            dm_op: op.as_ptr().expose_provenance() as u64,
            size: u32::try_from(op.len()).unwrap_or(u32::MAX),
            fd: u32::try_from(eventfd).map_err(|_| libc::EBADF)?,
            flags: if assign {
                0
            } else {
                PRIVCMD_IRQFD_FLAG_DEASSIGN
            },
            dom: domid.0,
            pad: [0; 2],
        };
        // SAFETY: IRQFD reads `arg` and `size` bytes at `dm_op`, during the call only: the kernel keeps a copy.
        retry(|| unsafe { ioctl_with_ref(self, IOCTL_PRIVCMD_IRQFD, &arg) }).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// The descriptor and the size are checked before any call.
    #[test]
    fn nonsense_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let privcmd = Privcmd::from_owned_fd(null.into());
        let irqfd = |fd| privcmd.irqfd(DomId(1), &[0; 32], fd, true);
        assert_eq!(irqfd(-1), Err(libc::EBADF));
        // A device that does not know the ioctl.
        assert_eq!(irqfd(privcmd.as_raw_fd()), Err(libc::ENOTTY));
    }
}
