// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The domain's life, for a server whose own handle cannot tell: one that gave up its privileges.
//!
//! A restricted handle on Xen still does every device-model operation, and a domain that has shut down answers all of them as one
//! that runs: that it shut down, and why, is in no answer (only its death is: its servers are gone). So somebody else has to say:
//! a process that kept the right to ask, through a socket.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Op, Result};
use crate::hypervisor::{DomainState, ShutdownReason, Transport};

/// Between two looks at the domain's state.
const TICK: Duration = Duration::from_millis(100);

const RUNNING: u8 = 0;
const SHUTDOWN: u8 = 1;
const GONE: u8 = 2;

/// A state as two bytes.
fn encode(state: DomainState) -> [u8; 2] {
    match state {
        DomainState::Running => [RUNNING, 0],
        DomainState::Shutdown(reason) => [SHUTDOWN, reason.raw()],
        DomainState::Gone => [GONE, 0],
    }
}

fn decode([kind, reason]: [u8; 2]) -> Option<DomainState> {
    match kind {
        RUNNING => Some(DomainState::Running),
        SHUTDOWN => Some(DomainState::Shutdown(ShutdownReason::from_raw(reason))),
        GONE => Some(DomainState::Gone),
        _ => None,
    }
}

/// The end that tells; stays with the process that may ask what has become of the domain.
///
/// ```
/// use ioreq_core::server::{DomainNotice, Exit, IoreqServer, life_line};
/// use ioreq_core::{DomainState, ShutdownReason};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let (watch, notice) = life_line()?;
/// // The privileged process, e.g. the parent: until the domain is gone, or nobody listens.
/// let privileged = domain.hypervisor();
/// let parent = std::thread::spawn(move || watch.run(&privileged));
///
/// // The other one, which gets the descriptor, restricts its handles and serves.
/// let notice = DomainNotice::from_owned_fd(notice.into())?;
/// let hv = domain.hypervisor();
/// hv.restrict();
/// let server = IoreqServer::builder(hv).domain_notice(notice).build()?;
/// let running = server.start()?;
/// domain.shutdown(ShutdownReason::Suspend);
/// assert_eq!(running.wait()?, Exit::Shutdown(ShutdownReason::Suspend));
/// domain.destroy();
/// assert_eq!(parent.join().unwrap()?, DomainState::Gone);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DomainWatch(UnixStream);

/// The end that is told; goes with the server ([`Builder::domain_notice`](super::Builder::domain_notice)).
///
/// ```
/// use ioreq_core::server::{DomainNotice, life_line};
/// use ioreq_core::DomainState;
/// let (watch, notice) = life_line()?;
/// assert_eq!(notice.state()?, DomainState::Running); // nothing else has been told
/// watch.tell(DomainState::Gone)?;
/// assert_eq!(notice.state()?, DomainState::Gone);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct DomainNotice {
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    stream: UnixStream,
    /// The first byte of a message whose second has not come.
    half: Option<u8>,
    state: DomainState,
    /// Nobody will tell more.
    ended: bool,
}

/// Both ends of a line by which one process tells another what has become of a domain.
///
/// ```
/// use ioreq_core::{DomainState, server::life_line};
/// let (watch, notice) = life_line()?;
/// drop(watch); // the process that tells is gone
/// assert_eq!(notice.state()?, DomainState::Running); // and what was told last stays
/// # Ok::<(), ioreq_core::Error>(())
/// ```
///
/// # Errors
/// When the kernel makes no sockets.
pub fn life_line() -> Result<(DomainWatch, DomainNotice)> {
    let (tells, told) = UnixStream::pair().map_err(|err| error(&err))?;
    Ok((DomainWatch(tells), DomainNotice::new(told)?))
}

fn error(err: &io::Error) -> Error {
    Error::from_io(Op::DomainState, err)
}

impl DomainWatch {
    /// Tells a state.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub fn tell(&self, state: DomainState) -> Result<()> {
        // A socket takes two bytes or none: its buffer is far larger than all that is ever told.
        (&self.0)
            .write_all(&encode(state))
            .map_err(|err| error(&err))
    }

    /// Tells every change, which it looks for ten times a second, until the domain is gone. Gives its last state.
    ///
    /// # Errors
    /// When nobody listens any more, or the state cannot be told: `hv` has to be a handle that is not restricted.
    pub fn run(&self, hv: &impl Transport) -> Result<DomainState> {
        let mut known = DomainState::Running;
        loop {
            let state = hv.domain_state()?;
            if state != known {
                self.tell(state)?;
                known = state;
            }
            if state == DomainState::Gone {
                return Ok(state);
            }
            std::thread::sleep(TICK);
        }
    }
}

impl AsFd for DomainWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl DomainNotice {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(true).map_err(|err| error(&err))?;
        Ok(DomainNotice {
            told: Mutex::new(Told {
                stream,
                half: None,
                state: DomainState::Running,
                ended: false,
            }),
        })
    }

    /// The end that another process handed over: what [`life_line`] made, as a descriptor.
    ///
    /// # Errors
    /// When it is no open file.
    pub fn from_owned_fd(fd: OwnedFd) -> Result<Self> {
        Self::new(fd.into())
    }

    /// What was told last; `Running` at first. Never waits. When nobody is there any more to tell, that is logged once, and what was
    /// told last stays.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn state(&self) -> Result<DomainState> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 64];
        while !told.ended {
            match told.stream.read(&mut bytes) {
                Ok(0) => {
                    told.ended = true;
                    if told.state != DomainState::Gone {
                        tracing::warn!("nobody tells any more what becomes of the domain");
                    }
                }
                Ok(count) => bytes.iter().take(count).for_each(|byte| told.take(*byte)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(error(&err)),
            }
        }
        Ok(told.state)
    }
}

impl Told {
    fn take(&mut self, byte: u8) {
        match self.half.take() {
            None => self.half = Some(byte),
            // What is no state tells nothing.
            Some(kind) => self.state = decode([kind, byte]).unwrap_or(self.state),
        }
    }
}

impl From<DomainNotice> for OwnedFd {
    fn from(notice: DomainNotice) -> Self {
        let told = notice.told.into_inner();
        told.unwrap_or_else(PoisonError::into_inner).stream.into()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_state_goes_through() {
        let (watch, notice) = life_line().unwrap();
        let reasons = (0..=u8::MAX).map(|raw| DomainState::Shutdown(ShutdownReason::from_raw(raw)));
        for state in reasons.chain([DomainState::Running, DomainState::Gone]) {
            watch.tell(state).unwrap();
            assert_eq!(notice.state().unwrap(), state);
            assert_eq!(notice.state().unwrap(), state, "it stays");
        }
    }

    #[test]
    fn of_many_the_last_counts_and_halves_are_put_together() {
        let (watch, notice) = life_line().unwrap();
        for _ in 0..100 {
            watch
                .tell(DomainState::Shutdown(ShutdownReason::Suspend))
                .unwrap();
            watch.tell(DomainState::Running).unwrap();
        }
        (&watch.0).write_all(&[SHUTDOWN]).unwrap();
        assert_eq!(notice.state().unwrap(), DomainState::Running);
        (&watch.0).write_all(&[1, 77, 0]).unwrap();
        let reboot = DomainState::Shutdown(ShutdownReason::Reboot);
        assert_eq!(notice.state().unwrap(), reboot, "77 is no state");
        drop(watch);
        assert_eq!(notice.state().unwrap(), reboot);
        let (watch, notice) = life_line().unwrap();
        drop(notice);
        watch.tell(DomainState::Gone).unwrap_err();
    }
}
