// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bringing a server to rest, for a moment when its state can be saved: nothing is in flight and no page is marked.
//!
//! Who serves a group holds its lock. So: the flag is set, then every lock is taken once. Whoever takes one later sees the flag, and
//! leaves what is in the slots where it is.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, unserved};
use super::saved::SavedServer;
use crate::claim::{MarkError, Step};
use crate::error::{ErrorKind, Op, Result};
use crate::handler::scope;
use crate::hypervisor::Hypervisor;
use crate::sync::atomic::Ordering;

/// How long somebody may go on serving once the server is to come to rest: an event loop ends its turn, workers do not.
const TURN: Duration = Duration::from_millis(500);

/// A server at rest, made by [`IoreqServer::quiesce`](super::IoreqServer::quiesce): no request is in flight, none that was
/// deferred is unanswered, no page is marked, and nobody takes a new one. vCPUs that ask for something wait until it is resumed,
/// or until another process has taken the server over. Dropping it resumes.
///
/// ```
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
/// use std::time::Duration;
///
/// struct Zero;
/// impl Handler for Zero {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         0.into()
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Done
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// server.route("zero", PortRange::new(0x500, 0x503)?, Zero)?;
/// let running = server.start()?;
/// running.stop()?; // workers first
///
/// let quiesced = server.quiesce(Duration::from_secs(5))?;
/// let saved = quiesced.save();
/// assert_eq!(saved.routes().count(), 1);
/// let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500))?; // waits
/// assert_eq!(server.poll()?, 0);
/// quiesced.resume()?;
/// let running = server.start()?;
/// assert_eq!(guest.join()?, 0);
/// # running.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Quiesced<H: Hypervisor> {
    /// None once it has been resumed or left.
    core: Option<Arc<Core<H>>>,
    expired: u64,
}

impl<H: Hypervisor> Quiesced<H> {
    /// Requests that handlers had deferred and did not complete within the bound: answered as if the handler had failed.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// The framework's own state: ranges and their routes' names, pages and their trackers' names. What the handlers know they
    /// save themselves (see [`Snapshot`](crate::snapshot::Snapshot)), now: nobody calls them.
    #[must_use]
    pub fn save(&self) -> SavedServer {
        let core = self.core.as_ref();
        core.map_or_else(SavedServer::default, |core| SavedServer::of(core))
    }

    /// Goes on: pages are marked again, with the handlers that they had, and requests are taken by whoever serves. What handlers
    /// derive from their pages they have to read again, as after [`MemTypeClaim::resume`](crate::claim::MemTypeClaim::resume).
    ///
    /// # Errors
    /// As that; requests are served all the same.
    pub fn resume(mut self) -> Result<(), MarkError> {
        self.core.take().map_or(Ok(()), |core| wake(&core))
    }

    /// Leaves the server to the process that [takes it over](super::Builder::take_over), by its record: it stays with the
    /// hypervisor, with its ranges, when this process drops it. vCPUs wait meanwhile. Drop everything that was made from it.
    ///
    /// # Errors
    /// `WrongState` for a server without a [record](super::Builder::record), which nobody could take over; it is resumed.
    pub fn leave(mut self) -> Result<()> {
        let Some(core) = self.core.take() else {
            return Ok(());
        };
        if !core.is_recorded() {
            let err = core.error(Op::TakeOver, ErrorKind::WrongState);
            resume_or_tell(&core);
            return Err(err.about("the server has no record"));
        }
        // Relaxed: read by the last owner.
        core.left.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Lets requests be taken again, then marks what was tracked.
fn wake<H: Hypervisor>(core: &Arc<Core<H>>) -> Result<(), MarkError> {
    core.allow_service();
    let result = core.ledger().resume(core);
    core.grace.collect();
    core.wake_all();
    result
}

fn resume_or_tell<H: Hypervisor>(core: &Arc<Core<H>>) {
    match wake(core) {
        Err(err) if err.kind() != ErrorKind::DomainGone => {
            tracing::error!(%err, "the server goes on without the pages that it tracked");
        }
        _ => {}
    }
}

impl<H: Hypervisor> Drop for Quiesced<H> {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            resume_or_tell(&core);
        }
    }
}

impl<H: Hypervisor> fmt::Debug for Quiesced<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quiesced")
            .field("expired", &self.expired)
            .finish_non_exhaustive()
    }
}

impl<H: Hypervisor> Core<H> {
    fn allow_service(&self) {
        // Release: with the lock of a group, what was done at rest comes before what is served next.
        self.quiesced.store(false, Ordering::Release);
    }

    /// See [`IoreqServer::quiesce`](super::IoreqServer::quiesce).
    pub(super) fn quiesce(self: &Arc<Self>, bound: Duration) -> Result<Quiesced<H>> {
        let refused = |kind, why: &str| self.error(Op::Serve, kind).about(why);
        if scope::in_handler() {
            return Err(self.error(Op::Serve, ErrorKind::WouldDeadlock));
        }
        // SeqCst: one at a time; for groups see the module, for workers `Running::start`.
        if self.quiesced.swap(true, Ordering::SeqCst) {
            return Err(refused(ErrorKind::WrongState, "it is at rest already"));
        }
        let started = Instant::now();
        if !self.nobody_serves() {
            self.allow_service();
            return Err(refused(
                ErrorKind::StillInUse,
                "workers serve it: stop them first",
            ));
        }
        // From here on it is undone by dropping it.
        let mut quiesced = Quiesced {
            core: Some(Arc::clone(self)),
            expired: 0,
        };
        let mut ledger = self.ledger();
        if ledger.is_claimed() {
            ledger.suspend(self)?;
        }
        drop(ledger);
        self.unmark_all(started, bound)?;
        quiesced.expired = self.finish_all(started, bound);
        Ok(quiesced)
    }

    /// Whether every group is without somebody who serves it, soon.
    fn nobody_serves(&self) -> bool {
        // SeqCst: as in `quiesce`.
        if self.running.load(Ordering::SeqCst) > 0 {
            return false;
        }
        let started = Instant::now();
        self.groups.iter().all(|group| {
            while unserved(group).is_none() {
                if started.elapsed() > TURN {
                    return false;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            true
        })
    }

    /// Serves until no page is marked: the protocol waits for answers.
    fn unmark_all(&self, started: Instant, bound: Duration) -> Result<()> {
        while !self.pages.is_empty() {
            for group in &self.groups {
                if let Some(mut group) = unserved(group) {
                    group.pass(self);
                }
            }
            match self.step_unmark() {
                Step::Progress => {}
                Step::Waiting => std::thread::sleep(Duration::from_micros(20)),
                Step::Idle => {
                    self.ledger().unmarker.retry_stubborn();
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            if started.elapsed() > bound && !self.pages.is_empty() {
                let err = self.error(Op::Unmark, ErrorKind::Deferred);
                return Err(err.about(format!(
                    "{} pages are marked still: the guest keeps writing them",
                    self.pages.len()
                )));
            }
        }
        Ok(())
    }

    /// Finishes what was taken, and what was posted, and takes nothing new. Gives the number of requests whose completion did not
    /// come in time.
    fn finish_all(&self, started: Instant, bound: Duration) -> u64 {
        let mut expired = 0;
        loop {
            let groups = self.groups.iter().filter_map(unserved);
            let left: usize = groups.map(|mut group| group.finish_taken(self)).sum();
            if left == 0 {
                return expired;
            }
            if started.elapsed() > bound {
                let groups = self.groups.iter().filter_map(unserved);
                expired += groups.map(|mut group| group.expire()).sum::<u64>();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}
