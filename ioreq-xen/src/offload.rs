// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Work that the kernel does in a device model's place, where it can (Linux 6.7 or later with CONFIG_XEN_PRIVCMD_EVENTFD).
//!
//! Its counterpart for requests, the kernel's ioeventfd, is encoded ([`PrivcmdIoeventfd`](crate::abi::PrivcmdIoeventfd)) and
//! not offered: the kernel's interrupt handler takes slots with plain loads and stores, so that nobody else may look for
//! requests in the same slots, as every server here does; and a kernel whose dom0 is PV takes the page's address for
//! something else.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use ioreq_core::abi::dm_op::{DmOp, DmOpBytes};
use ioreq_core::{DomId, Error, Op, Result};
use vmm_sys_util::eventfd::EventFd;

use crate::sys::Privcmd;

fn error(domid: DomId, errno: i32) -> Error {
    Error::from_errno(Op::KernelOffload, errno).domain(domid)
}

/// An eventfd whose every write makes the kernel perform a DMOP: an interrupt without this process waking up. Ends when dropped.
///
/// ```no_run
/// use std::sync::Arc;
/// use ioreq_core::DomId;
/// use ioreq_core::abi::dm_op::InjectMsi;
/// use ioreq_xen::{IrqFd, Privcmd};
///
/// let privcmd = Arc::new(Privcmd::open()?);
/// let msi = InjectMsi { addr: 0xfee0_0000, data: 0x31, ..InjectMsi::default() };
/// let irq = IrqFd::new(privcmd, DomId(1), &msi)?;
/// irq.eventfd().write(1).expect("an eventfd takes it"); // or hand it to a vhost back end
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct IrqFd {
    privcmd: Arc<Privcmd>,
    domid: DomId,
    op: DmOpBytes,
    eventfd: EventFd,
}

impl IrqFd {
    /// Makes the eventfd, and has the kernel perform `op` on domain `domid` at each write.
    ///
    /// # Errors
    /// `NotSupported` where the kernel cannot.
    pub fn new(privcmd: Arc<Privcmd>, domid: DomId, op: &impl DmOp) -> Result<Self> {
        let eventfd =
            EventFd::new(0).map_err(|err| Error::from_io(Op::KernelOffload, &err).domain(domid))?;
        let op = op.encode();
        privcmd
            .irqfd(domid, &op, eventfd.as_raw_fd(), true)
            .map_err(|errno| error(domid, errno))?;
        Ok(IrqFd {
            privcmd,
            domid,
            op,
            eventfd,
        })
    }

    /// The eventfd.
    #[must_use]
    pub fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        let fd = self.eventfd.as_raw_fd();
        if let Err(errno) = self.privcmd.irqfd(self.domid, &self.op, fd, false) {
            tracing::warn!(domid = %self.domid, errno, "an irqfd could not be given up");
        }
    }
}

#[cfg(test)]
mod tests {
    use ioreq_core::ErrorKind;
    use ioreq_core::abi::dm_op::InjectMsi;

    use super::*;

    #[test]
    fn a_kernel_without_it_says_not_supported() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let privcmd = Arc::new(Privcmd::from_owned_fd(null.into()));
        let err = IrqFd::new(privcmd, DomId(1), &InjectMsi::default()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotSupported);
        assert_eq!(err.errno(), Some(libc::ENOTTY));
    }
}
