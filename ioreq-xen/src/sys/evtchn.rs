// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: ioctls of `/dev/xen/evtchn`, and ports as the bytes that it is read and written in.
//!
//! The three calls of a request, to read, to unmask and to notify, are made by rustix, whose calls are inlined: libc's are functions
//! in pages of their own, and of them those that a thread can be cancelled in note that before and after.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ioreq_core::{DomId, EvtchnPort, LocalPort, Result};
use rustix::io::retry_on_intr;
use rustix::ioctl::Setter;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};

use super::{Errno, retry};
use crate::abi::*;

/// Most ports that one read or write moves here. The kernel's limit is a page of them.
const PORTS: usize = 64;

/// As rustix wants it.
#[allow(
    clippy::cast_possible_truncation,
    reason = "an ioctl's number has 32 bits"
)]
const NOTIFY: rustix::ioctl::Opcode = IOCTL_EVTCHN_NOTIFY as rustix::ioctl::Opcode;

/// `DOMID_SELF`
pub(crate) const DOMID_SELF: u16 = 0x7ff0;

/// An open `/dev/xen/evtchn`, which does not block unless told to.
#[derive(Debug)]
pub(crate) struct Evtchn {
    file: OwnedFd,
}

impl Evtchn {
    pub(crate) fn open() -> Result<Self> {
        super::open::device("/dev/xen/evtchn", "xen-evtchn", libc::O_NONBLOCK)
            .map(|file| Evtchn { file: file.into() })
    }

    /// A handle that somebody else opened; made not to block.
    pub(crate) fn from_owned_fd(fd: OwnedFd) -> Result<Self, Errno> {
        let evtchn = Evtchn { file: fd };
        evtchn.set_blocking(false)?;
        Ok(evtchn)
    }

    /// Whether [`read`](Self::read) waits for a port.
    pub(crate) fn set_blocking(&self, on: bool) -> Result<(), Errno> {
        let raw = self.as_raw_fd();
        // SAFETY: F_GETFL takes no argument, and touches no memory.
        let flags = retry(|| unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
        let flags = match on {
            true => flags & !libc::O_NONBLOCK,
            false => flags | libc::O_NONBLOCK,
        };
        // SAFETY: F_SETFL takes a number, and touches no memory.
        retry(|| unsafe { libc::fcntl(raw, libc::F_SETFL, flags) }).map(drop)
    }

    /// A port of this domain's for this very domain to bind.
    pub(crate) fn bind_unbound(&self) -> Result<LocalPort, Errno> {
        let arg = EvtchnBindUnboundPort {
            remote_domain: DOMID_SELF.into(),
        };
        // SAFETY: BIND_UNBOUND_PORT reads `arg`.
        let port = retry(|| unsafe { ioctl_with_ref(self, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &arg) })?;
        Ok(LocalPort(port.cast_unsigned()))
    }

    pub(crate) fn bind(&self, domid: DomId, remote: EvtchnPort) -> Result<LocalPort, Errno> {
        let arg = EvtchnBindInterdomain {
            remote_domain: domid.0.into(),
            remote_port: remote.0,
        };
        // SAFETY: BIND_INTERDOMAIN reads `arg`.
        let port = retry(|| unsafe { ioctl_with_ref(self, IOCTL_EVTCHN_BIND_INTERDOMAIN, &arg) })?;
        Ok(LocalPort(port.cast_unsigned()))
    }

    pub(crate) fn unbind(&self, port: LocalPort) -> Result<(), Errno> {
        let arg = EvtchnPortArg { port: port.0 };
        // SAFETY: UNBIND reads `arg`.
        retry(|| unsafe { ioctl_with_ref(self, IOCTL_EVTCHN_UNBIND, &arg) }).map(drop)
    }

    #[inline(always)]
    pub(crate) fn notify(&self, port: LocalPort) -> Result<(), Errno> {
        let notify = || {
            // SAFETY: NOTIFY is the number of an ioctl that reads an `EvtchnPortArg`.
            let call = unsafe { Setter::<NOTIFY, _>::new(EvtchnPortArg { port: port.0 }) };
            // SAFETY: what it reads is `call`'s own, and it stores nothing.
            unsafe { rustix::ioctl::ioctl(&self.file, call) }
        };
        retry_on_intr(notify).map_err(|errno| errno.raw_os_error())
    }

    /// Empties the ring of ports that fired.
    pub(crate) fn reset(&self) -> Result<(), Errno> {
        // SAFETY: RESET takes no argument.
        retry(|| unsafe { ioctl(self, IOCTL_EVTCHN_RESET) }).map(drop)
    }

    pub(crate) fn restrict(&self, domid: DomId) -> Result<(), Errno> {
        let arg = EvtchnRestrictDomid { domid: domid.0 };
        // SAFETY: RESTRICT_DOMID reads `arg`.
        retry(|| unsafe { ioctl_with_ref(self, IOCTL_EVTCHN_RESTRICT_DOMID, &arg) }).map(drop)
    }

    /// Ports that fired, at most as many as `ports` has room for. Waits only if [told to](Self::set_blocking). They are read where
    /// they belong: a buffer in between would have to be cleared, at every wake-up of a worker.
    #[inline(always)]
    pub(crate) fn read(&self, ports: &mut [LocalPort]) -> Result<usize, Errno> {
        let room = ports.len().min(PORTS);
        let Some(ports) = ports.get_mut(..room).filter(|ports| !ports.is_empty()) else {
            return Ok(0);
        };
        // SAFETY: the bytes of `ports`, which is borrowed mutably for as long as this is used; a `LocalPort` is a `u32` and
        // nothing else (`repr(transparent)`), so any bytes make one.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(ports.as_mut_ptr().cast::<u8>(), size_of_val(ports))
        };
        match retry_on_intr(|| rustix::io::read(&self.file, &mut *bytes)) {
            // The kernel tells of whole ports.
            Ok(read) => Ok(read / size_of::<LocalPort>()),
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            Err(errno) => Err(errno.raw_os_error()),
        }
    }

    /// Lets ports fire again. The kernel passes over numbers that are not bound here.
    #[inline(always)]
    pub(crate) fn unmask(&self, mut ports: &[LocalPort]) -> Result<(), Errno> {
        while !ports.is_empty() {
            let some = &ports[..ports.len().min(PORTS)];
            // SAFETY: the bytes of `some`, which is borrowed for as long as this is used; a `LocalPort` is a `u32` and nothing
            // else (`repr(transparent)`).
            let bytes = unsafe {
                std::slice::from_raw_parts(some.as_ptr().cast::<u8>(), size_of_val(some))
            };
            let written = retry_on_intr(|| rustix::io::write(&self.file, bytes));
            // The kernel takes whole ports, and all of them; none would be taken for ever.
            match written.map(|written| written / size_of::<LocalPort>()) {
                Ok(0) => return Err(libc::EIO),
                Ok(taken) => ports = ports.get(taken..).unwrap_or_default(),
                Err(errno) => return Err(errno.raw_os_error()),
            }
        }
        Ok(())
    }
}

impl AsRawFd for Evtchn {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
