// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The open devices that a hypervisor handle is made of.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use ioreq_core::{Error, ErrorKind, Op, Result};

use crate::sys::{Evtchn, Privcmd};

/// Open devices: `/dev/xen/privcmd`, and where they are handed in, one `/dev/xen/evtchn` for each worker to be.
///
/// A process that gives up its privileges has them opened before: by itself, [`in_advance`](Self::in_advance), or by a parent:
///
/// ```no_run
/// use std::fs::File;
/// use std::os::fd::OwnedFd;
/// use ioreq_core::DomId;
/// use ioreq_xen::{Handles, XenHypervisor};
///
/// # fn device(path: &str) -> std::io::Result<OwnedFd> {
/// #     Ok(File::options().read(true).write(true).open(path)?.into())
/// # }
/// let privcmd = device("/dev/xen/privcmd")?;
/// let evtchns = vec![device("/dev/xen/evtchn")?, device("/dev/xen/evtchn")?]; // two workers
/// // setuid, chroot, seccomp …
/// let handles = Handles::from_owned_fds(privcmd, evtchns)?;
/// let hv = XenHypervisor::builder(DomId(1)).handles(handles).restrict().build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Handles {
    pub(crate) privcmd: Arc<Privcmd>,
    pub(crate) events: EventHandles,
}

impl Handles {
    /// Opens the devices; event channels as workers need them.
    ///
    /// # Errors
    /// `NotSupported` where there is no `/dev/xen/privcmd`, `NotPermitted`.
    pub fn open() -> Result<Self> {
        Ok(Handles {
            privcmd: Arc::new(Privcmd::open()?),
            events: EventHandles::Device,
        })
    }

    /// Opens the devices now, with event-channel handles for so many workers of all servers that are built on them. Nothing is
    /// opened later, so the process may give up the right to.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn in_advance(workers: usize) -> Result<Self> {
        let privcmd = Arc::new(Privcmd::open()?);
        let evtchns: Result<Vec<_>> = (0..workers).map(|_| Evtchn::open()).collect();
        Ok(Handles {
            privcmd,
            events: EventHandles::Given(Mutex::new(evtchns?)),
        })
    }

    /// Open devices from elsewhere. There must be an event-channel handle for each worker of each server that is built on
    /// them: nothing more is opened. They are made not to block.
    ///
    /// # Errors
    /// When a descriptor is no open file.
    pub fn from_owned_fds(
        privcmd: OwnedFd,
        evtchns: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Self> {
        let evtchns = evtchns
            .into_iter()
            .map(|fd| Evtchn::from_owned_fd(fd).map_err(|errno| Error::from_errno(Op::Open, errno)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Handles {
            privcmd: Arc::new(Privcmd::from_owned_fd(privcmd)),
            events: EventHandles::Given(Mutex::new(evtchns)),
        })
    }

    /// Another privcmd handle, e.g. shared between domains. Not to be restricted then.
    #[must_use]
    pub fn privcmd(mut self, privcmd: Arc<Privcmd>) -> Self {
        self.privcmd = privcmd;
        self
    }
}

/// Where event-channel handles come from.
#[derive(Debug)]
pub(crate) enum EventHandles {
    /// Opened as they are needed.
    Device,
    /// Those that were handed in and are not in use yet.
    Given(Mutex<Vec<Evtchn>>),
}

impl EventHandles {
    pub(crate) fn take(&self) -> Result<Evtchn> {
        match self {
            EventHandles::Device => Evtchn::open(),
            EventHandles::Given(left) => {
                let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                left.pop().ok_or_else(|| {
                    Error::new(Op::EventChannel, ErrorKind::NotPermitted).about(
                        "every event-channel handle that was handed in is in use: hand in one for each worker",
                    )
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_that_were_handed_in_run_out() {
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        let handles = Handles::from_owned_fds(file(), [file()]).unwrap();
        handles.events.take().unwrap();
        let err = handles.events.take().unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotPermitted);
    }

    /// A handle of another device is refused by the kernel, with its errno.
    #[test]
    fn what_is_no_event_channel_says_enotty() {
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        let handles = Handles::from_owned_fds(file(), [file()]).unwrap();
        let evtchn = handles.events.take().unwrap();
        let port = ioreq_core::EvtchnPort(1);
        assert_eq!(evtchn.bind(ioreq_core::DomId(1), port), Err(libc::ENOTTY));
    }
}
