// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Service inside a user's own `event-manager` EventManager.
//!
//! The manager has no idle hook and no timers. So each call serves within a budget of requests and of time; when there may be
//! more, it arms its own eventfd and lets other subscribers have their turn. A timerfd drives the background work.

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::control::TICK;
use super::core::{Core, unserved};
use super::exit::Exit;
use crate::claim::Step;
use crate::error::{Error, Op, Result};
use crate::hypervisor::Hypervisor;

/// What one call of the event loop may take.
///
/// ```
/// use ioreq_core::server::Budget;
/// assert!(Budget::default().requests > 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Requests served before other subscribers have their turn; at least one pass over the slots is made.
    pub requests: usize,
    /// Time after which they have it. Within it the slots are polled when nothing is there.
    pub time: Duration,
}

impl Default for Budget {
    /// 64 requests, 50 µs.
    fn default() -> Self {
        Budget {
            requests: 64,
            time: Duration::from_micros(50),
        }
    }
}

/// A subscriber that serves all of a server's vCPUs; made by
/// [`IoreqServer::subscriber`](super::IoreqServer::subscriber). Add it to an `event_manager::EventManager`.
///
/// ```
/// use ioreq_core::event_manager::{EventManager, SubscriberOps};
/// use ioreq_core::server::{Budget, Exit, IoreqServer};
/// use ioreq_core::ShutdownReason;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let subscriber = server.subscriber(Budget::default())?;
/// let exit = subscriber.exit();
/// let mut manager = EventManager::new()?;
/// manager.add_subscriber(subscriber);
/// # let _ = (exit, Exit::Stopped, ShutdownReason::Crash);
/// manager.run_with_timeout(0)?; // serves what is there, and comes back
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Subscriber<H: Hypervisor> {
    core: Arc<Core<H>>,
    budget: Budget,
    again: EventFd,
    timer: TimerFd,
    ticked: Instant,
    exit: Arc<Mutex<Option<Exit>>>,
}

impl<H: Hypervisor> Subscriber<H> {
    pub(super) fn new(core: &Arc<Core<H>>, budget: Budget) -> Result<Self> {
        let io = |err: std::io::Error| Error::from_io(Op::Serve, &err).domain(core.hv.domid());
        let again = EventFd::new(EFD_NONBLOCK).map_err(io)?;
        let mut timer = TimerFd::new().map_err(|err| io(err.into()))?;
        timer
            .reset(TICK, Some(TICK))
            .map_err(|err| io(err.into()))?;
        core.control.set_inline(true);
        Ok(Subscriber {
            core: Arc::clone(core),
            budget,
            again,
            timer,
            ticked: Instant::now(),
            exit: Arc::default(),
        })
    }

    /// Why the service ended; `None` while it goes on. The same for every clone of the handle, and valid after the
    /// subscriber has been given to a manager.
    #[must_use]
    pub fn exit(&self) -> SubscriberExit {
        SubscriberExit(Arc::clone(&self.exit))
    }

    /// Serves within the budget. True if there may be more to do.
    fn serve(&mut self) -> bool {
        let started = Instant::now();
        let mut served = 0;
        loop {
            let now = self.core.serve_unserved();
            served += now;
            if served >= self.budget.requests || started.elapsed() >= self.budget.time {
                break;
            }
            if now == 0 {
                std::hint::spin_loop();
            }
        }
        let (step, exit) = self.core.inline_work(&mut self.ticked);
        if let Some(exit) = exit {
            self.exit
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(exit);
        }
        served > 0 || step != Step::Idle
    }

    /// Nothing more came: events may fire again. True if something came while that was done.
    fn settle_down(&mut self) -> bool {
        let mut served = 0;
        for group in &self.core.groups {
            if let Some(mut group) = unserved(group)
                && !self.core.is_quiesced()
            {
                group.unmask();
                served += group.pass(&self.core);
            }
        }
        served > 0
    }
}

impl<H: Hypervisor> MutEventSubscriber for Subscriber<H> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.timer.as_raw_fd() {
            let _expirations = self.timer.wait();
        } else if events.fd() == self.again.as_raw_fd() {
            let _empty = self.again.read();
        } else {
            for group in &self.core.groups {
                if let Some(mut group) = unserved(group)
                    && let Err(exit) = group.take_events_of(events.fd())
                {
                    self.exit
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(exit);
                }
            }
        }
        if self
            .exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
        {
            self.unsubscribe(ops);
            return;
        }
        if (self.serve() || self.settle_down())
            && let Err(err) = self.again.write(1)
        {
            tracing::debug!(%err, "eventfd write");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in self.fds() {
            if let Err(err) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%err, "an event source could not be added to the event manager");
            }
        }
        // Requests may be there from before.
        let _full = self.again.write(1);
    }
}

impl<H: Hypervisor> Subscriber<H> {
    fn fds(&self) -> Vec<i32> {
        let mut fds = vec![self.timer.as_raw_fd(), self.again.as_raw_fd()];
        for (group, waker) in self.core.groups.iter().zip(&self.core.wakers) {
            fds.push(waker.as_raw_fd());
            fds.push(
                group
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .event_fd(),
            );
        }
        fds
    }

    fn unsubscribe(&self, ops: &mut EventOps<'_>) {
        for fd in self.fds() {
            // Already removed by an earlier event of the same batch.
            let _gone = ops.remove(Events::empty_raw(fd));
        }
        self.core.expire_deferred();
    }
}

impl<H: Hypervisor> fmt::Debug for Subscriber<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// Tells why a [`Subscriber`]'s service ended.
///
/// ```
/// use event_manager::{EventManager, SubscriberOps};
/// use ioreq_core::server::{Budget, Exit, IoreqServer};
/// use ioreq_core::ShutdownReason;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let subscriber = server.subscriber(Budget::default())?;
/// let exit = subscriber.exit();
/// let mut manager = EventManager::new()?;
/// manager.add_subscriber(subscriber);
/// assert!(exit.get().is_none());
///
/// domain.shutdown(ShutdownReason::PowerOff);
/// while exit.get().is_none() {
///     manager.run_with_timeout(100)?;
/// }
/// assert!(matches!(exit.get(), Some(Exit::Shutdown(ShutdownReason::PowerOff))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SubscriberExit(Arc<Mutex<Option<Exit>>>);

impl SubscriberExit {
    /// The reason; `None` while it goes on.
    #[must_use]
    pub fn get(&self) -> Option<Exit> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
