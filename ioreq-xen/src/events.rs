// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Event channels over `/dev/xen/evtchn`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ioreq_core::{DomId, Error, ErrorKind, EventChannels, EvtchnPort, LocalPort, Op, Result};

use crate::sys::{DOMID_SELF, Evtchn};

/// A handle on event channels: one open `/dev/xen/evtchn`, for one worker. Made by
/// [`XenHypervisor::open_events`](ioreq_core::Transport::open_events). Closing it unbinds its ports.
///
/// ```no_run
/// use std::os::fd::AsRawFd;
/// use ioreq_core::{BufIoreq, DomId, EventChannels, LocalPort, Transport};
/// use ioreq_xen::XenHypervisor;
///
/// let hv = XenHypervisor::open(DomId(1))?;
/// let id = hv.create_server(BufIoreq::Atomic)?;
/// let events = hv.open_events()?;
/// assert!(events.as_raw_fd() >= 0); // for epoll
/// let port = events.bind(hv.server_info(id)?.bufioreq_port.unwrap())?;
/// let mut fired = [LocalPort(0); 4];
/// assert_eq!(events.pending(&mut fired)?, 1); // binding makes a port pending
/// events.unmask(&[port])?;
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct XenEvents {
    evtchn: Evtchn,
    domid: DomId,
    /// What is bound, for [`EventChannels::recover`] and to tell strangers. Not touched by `notify`.
    ports: RwLock<Vec<LocalPort>>,
    /// An event channel from this handle to itself: notifying the port wakes who waits here.
    waking: OnceLock<LocalPort>,
}

impl XenEvents {
    pub(crate) fn new(evtchn: Evtchn, domid: DomId) -> Self {
        XenEvents {
            evtchn,
            domid,
            ports: RwLock::default(),
            waking: OnceLock::new(),
        }
    }

    /// Binds both ends of a channel to this handle: the one that is notified, and the one that fires.
    fn bind_to_itself(&self) -> Result<(LocalPort, LocalPort), i32> {
        let notified = self.evtchn.bind_unbound()?;
        let fires = self
            .evtchn
            .bind(DomId(DOMID_SELF), EvtchnPort(notified.0))
            .inspect_err(|_| {
                let _unbound = self.evtchn.unbind(notified);
            })?;
        Ok((notified, fires))
    }

    #[cold]
    #[inline(never)]
    fn not_notified(&self, port: LocalPort, errno: i32) -> Error {
        self.error(errno).about(port.to_string())
    }

    #[cold]
    #[inline(never)]
    fn stranger(&self, port: LocalPort) -> Error {
        Error::new(Op::EventChannel, ErrorKind::InvalidArgument)
            .domain(self.domid)
            .about(format!("{port} is not bound here"))
    }

    #[cold]
    #[inline(never)]
    fn error(&self, errno: i32) -> Error {
        Error::from_errno(Op::EventChannel, errno).domain(self.domid)
    }

    #[inline]
    fn read(&self) -> RwLockReadGuard<'_, Vec<LocalPort>> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<LocalPort>> {
        self.ports.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventChannels for XenEvents {
    fn bind(&self, remote: EvtchnPort) -> Result<LocalPort> {
        let port = self
            .evtchn
            .bind(self.domid, remote)
            .map_err(|errno| self.error(errno).about(remote.to_string()))?;
        self.write().push(port);
        Ok(port)
    }

    fn unbind(&self, port: LocalPort) -> Result<()> {
        self.evtchn
            .unbind(port)
            .map_err(|errno| self.error(errno).about(port.to_string()))?;
        self.write().retain(|bound| *bound != port);
        Ok(())
    }

    #[inline(always)]
    fn pending(&self, ports: &mut [LocalPort]) -> Result<usize> {
        loop {
            let count = self.evtchn.read(ports).map_err(|errno| self.error(errno))?;
            if count == 0 {
                return Ok(0);
            }
            // A port that was unbound since it fired is nobody's business any more.
            let bound = self.read();
            let mut kept = 0;
            for at in 0..count {
                if let Some(port) = ports.get(at).copied().filter(|port| bound.contains(port))
                    && let Some(slot) = ports.get_mut(kept)
                {
                    *slot = port;
                    kept += 1;
                }
            }
            if kept > 0 {
                return Ok(kept);
            }
        }
    }

    #[inline(always)]
    fn unmask(&self, ports: &[LocalPort]) -> Result<()> {
        {
            let bound = self.read();
            if let Some(stranger) = ports.iter().find(|port| !bound.contains(port)) {
                return Err(self.stranger(*stranger));
            }
        }
        self.evtchn.unmask(ports).map_err(|errno| self.error(errno))
    }

    #[inline(always)]
    fn notify(&self, port: LocalPort) -> Result<()> {
        self.evtchn
            .notify(port)
            .map_err(|errno| self.not_notified(port, errno))
    }

    fn recover(&self) -> Result<()> {
        self.evtchn.reset().map_err(|errno| self.error(errno))?;
        // The reset forgets which ports were masked, and leaves them so.
        self.evtchn
            .unmask(&self.read())
            .map_err(|errno| self.error(errno))
    }

    /// Not with a file that was restricted before: it may bind one domain's ports only.
    fn prepare_to_wait(&self) -> bool {
        match self.bind_to_itself() {
            Ok((notified, fires)) => {
                self.write().push(fires);
                self.waking.set(notified).is_ok()
            }
            Err(_) => false,
        }
    }

    fn set_waiting(&self, on: bool) -> Result<()> {
        self.evtchn
            .set_blocking(on && self.waking.get().is_some())
            .map_err(|errno| self.error(errno))
    }

    fn wake(&self) -> Result<()> {
        self.waking.get().map_or(Ok(()), |port| self.notify(*port))
    }
}

impl AsRawFd for XenEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.evtchn.as_raw_fd()
    }
}
