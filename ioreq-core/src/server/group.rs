// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A service group: the vCPUs that one worker serves, with their event channels.
//!
//! Whoever serves a group holds its lock: a worker thread for as long as it runs, an event loop or a polling caller for one
//! pass. So there is one server of a slot at a time.

use std::cell::OnceCell;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::builder::Builder;
use super::carry::Carry;
use super::core::Core;
use super::exit::Exit;
use super::polling::{Polling, Spin};
use super::run::Stop;
use super::service::Service;
use super::waker::Waker;
use crate::dispatch::Reader;
use crate::error::{Error, ErrorKind, Op, Result};
use crate::handler::{Pending, Reply};
use crate::hypervisor::{EventChannels, Hypervisor};
use crate::ids::{EvtchnPort, LocalPort, VcpuId};
use crate::slot::Taken;
use crate::stats::{PerWorker, WorkerCounters};
use crate::sync::SegQueue;

/// A request that could not be finished at once.
pub(super) struct Suspended {
    pub(super) taken: Taken<'static>,
    pub(super) carry: Carry,
    /// The page it writes is being unmarked; otherwise a handler's reply is awaited.
    pub(super) parked: bool,
}

/// One vCPU of a group.
pub(super) struct Member {
    pub(super) vcpu: VcpuId,
    pub(super) port: LocalPort,
    pub(super) suspended: Option<Suspended>,
    /// The deferral that its request waits for.
    pub(super) pending: Option<Arc<Pending>>,
    /// That deferral's overrun has been told.
    pub(super) overrun_told: bool,
}

impl Member {
    /// Whether this side still holds the duty to answer the slot's request. What a guest then writes into its slot is ignored.
    pub(super) fn is_held(&self) -> bool {
        self.suspended.is_some()
            || self
                .pending
                .as_ref()
                .is_some_and(|pending| pending.is_waiting())
    }
}

/// A reply for a suspended request, on its way from the completing thread to the group.
pub(super) struct Posted {
    pub(super) member: usize,
    pub(super) reply: Option<Reply>,
}

/// The event-channel side of a group, while the builder binds ports.
pub(super) struct GroupParts<E> {
    index: usize,
    events: E,
    waker: Arc<Waker>,
    members: Vec<Member>,
    ring_port: Option<LocalPort>,
    waits: bool,
}

impl<E: EventChannels> GroupParts<E> {
    pub(super) fn new(index: usize, events: E, waker: Arc<Waker>) -> Self {
        let waits = events.prepare_to_wait();
        GroupParts {
            index,
            events,
            waker,
            waits,
            members: Vec::new(),
            ring_port: None,
        }
    }

    pub(super) fn bind(&mut self, vcpu: VcpuId, port: EvtchnPort) -> Result<()> {
        let port = self.events.bind(port)?;
        let (suspended, pending) = (None, None);
        self.members.push(Member {
            vcpu,
            port,
            suspended,
            pending,
            overrun_told: false,
        });
        Ok(())
    }

    pub(super) fn bind_ring(&mut self, port: EvtchnPort) -> Result<()> {
        self.ring_port = Some(self.events.bind(port)?);
        Ok(())
    }
}

/// See the module.
pub(crate) struct Group<H: Hypervisor> {
    reader: Reader,
    service: Service<H>,
    epoll: Epoll,
    /// Ports that fired and stay masked while we look at the slots ourselves.
    masked: Vec<LocalPort>,
    /// Room for the ports of one look at the event channels.
    fired: Box<[LocalPort]>,
    ring_port: Option<LocalPort>,
    waker: Arc<Waker>,
    polling: Polling,
    /// The event channels can be waited in: one system call less than to wait for their descriptor, and then to read it.
    waits: bool,
}

impl<H: Hypervisor> Group<H> {
    pub(super) fn new(
        parts: GroupParts<H::Events>,
        (memory, memory_epoch): (Arc<H::Memory>, u64),
        reader: Reader,
        counters: &Arc<PerWorker<WorkerCounters>>,
        options: &Builder<H>,
    ) -> Result<Self> {
        let GroupParts {
            index,
            events,
            waker,
            members,
            ring_port,
            waits,
        } = parts;
        let io = |err: std::io::Error| Error::from_io(Op::Serve, &err);
        let epoll = Epoll::new().map_err(io)?;
        for fd in [events.as_raw_fd(), waker.as_raw_fd()] {
            let data = u64::try_from(fd).unwrap_or_default();
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd,
                    EpollEvent::new(EventSet::IN, data),
                )
                .map_err(io)?;
        }
        // A member's each, the ring's, and one that only wakes.
        let ports = members.len() + 2;
        let events = Arc::new(events);
        if waits {
            waker.wakes(Arc::clone(&events) as _);
        }
        let service = Service {
            index,
            members,
            events,
            memory,
            // Fetched at the first look, if it has changed since.
            memory_epoch,
            counters: Arc::clone(counters),
            replies: Arc::new(SegQueue::new()),
            waker: Arc::clone(&waker),
            suspended: 0,
            sample_every: options.sample_every(),
            until_sample: 0,
            inherited: options.takes_over(),
        };
        Ok(Group {
            reader,
            service,
            epoll,
            masked: Vec::with_capacity(ports),
            // Room for one more than can fire: a look that does not fill it has seen all.
            fired: vec![LocalPort(0); (ports + 1).max(8)].into(),
            ring_port,
            waker,
            polling: options.polling_policy(),
            waits,
        })
    }

    /// One look at everything the group serves. Returns the number of requests served.
    pub(super) fn pass(&mut self, core: &Core<H>) -> usize {
        self.waker.take();
        let mut guard = self.reader.enter();
        self.service.pass(core, &mut guard)
    }

    /// The descriptor that is readable when an event came.
    pub(super) fn event_fd(&self) -> i32 {
        self.service.events.as_raw_fd()
    }

    /// Takes what made `fd` readable, if it is one of the group's.
    pub(super) fn take_events_of(&mut self, fd: i32) -> Result<(), Exit> {
        if fd == self.waker.as_raw_fd() {
            self.waker.drain();
        } else if fd == self.event_fd() {
            self.take_events()?;
        }
        Ok(())
    }

    /// Takes the events that came; their ports stay masked.
    #[inline(always)]
    fn take_events(&mut self) -> Result<(), Exit> {
        loop {
            match self.service.events.pending(&mut self.fired) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    for port in self.fired.iter().take(count) {
                        if !self.masked.contains(port) {
                            self.masked.push(*port);
                        }
                    }
                    if count < self.fired.len() {
                        return Ok(());
                    }
                }
                Err(err) if err.kind() == ErrorKind::Retry => {}
                Err(err) => return self.no_events(err),
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn no_events(&mut self, err: Error) -> Result<(), Exit> {
        match err.kind() {
            ErrorKind::EventOverflow => {
                // Events were lost: the pass that follows looks at every slot and at the ring all the same.
                self.service
                    .count(|counters| counters.event_overflows.bump());
                self.service.events.recover().map_err(Exit::Failed)?;
                self.masked.clear();
                Ok(())
            }
            ErrorKind::TakenOver => Err(Exit::TakenOver),
            ErrorKind::DomainGone => Err(Exit::DomainGone),
            _ => Err(Exit::Failed(err)),
        }
    }

    /// Lets the ports that fired fire again. Look at the slots once more after it.
    #[inline(always)]
    pub(super) fn unmask(&mut self) {
        if self.masked.is_empty() {
            return;
        }
        if let Err(err) = self.service.events.unmask(&self.masked) {
            not_unmasked(&err);
        }
        self.masked.clear();
    }

    /// A worker's life: serve while requests come, poll for a while, sleep.
    pub(super) fn work(&mut self, core: &Core<H>, stop: &Stop) -> Option<Exit> {
        let exit = match self.set_waiting(true) {
            Ok(()) => self.work_until(core, stop),
            Err(err) => Some(Exit::Failed(err)),
        };
        // Whoever serves next may have an event loop, which must not wait anywhere else.
        if let Err(err) = self.set_waiting(false) {
            tracing::error!(%err, "event channels go on waiting");
        }
        // The mappings of a domain that is gone would keep it as a zombie for as long as the server is kept.
        self.service.refresh_memory(core);
        exit
    }

    fn set_waiting(&self, on: bool) -> crate::error::Result<()> {
        if self.waits {
            self.service.events.set_waiting(on)?;
        }
        Ok(())
    }

    fn work_until(&mut self, core: &Core<H>, stop: &Stop) -> Option<Exit> {
        let mut spin = Spin::new(self.polling);
        loop {
            {
                let mut guard = self.reader.enter();
                loop {
                    if stop.is_set() {
                        return None;
                    }
                    self.waker.take();
                    if self.service.pass(core, &mut guard) > 0 {
                        spin.served(Instant::now);
                    } else if !spin.again(Instant::now) {
                        break;
                    }
                    guard.quiesce();
                }
            }
            self.unmask();
            // A request that came before the unmask has no event to wake us.
            if self.pass(core) > 0 {
                spin.served(Instant::now);
                continue;
            }
            // The looks above take wake-ups; who stops the worker sets the flag first, and then wakes it.
            while !stop.is_set() {
                if let Err(exit) = self.sleep(core) {
                    return Some(exit);
                }
                if !spin.sleeps_next() {
                    break;
                }
                // On a processor that they share the guest goes on when the worker sleeps again, not when it is answered. So as little
                // as possible comes in between: ports are unmasked before the answer, and there is no second look: what comes
                // after the first has an event.
                self.unmask();
                if self.pass(core) == 0 {
                    break;
                }
                // One look at the clock, or none.
                let now = OnceCell::new();
                let clock = || *now.get_or_init(Instant::now);
                spin.served(clock);
                if spin.again(clock) {
                    break;
                }
            }
        }
    }

    /// Waits for an event or a wake-up, off line: a sleeping worker delays nobody.
    fn sleep(&mut self, core: &Core<H>) -> Result<(), Exit> {
        self.service.count(|counters| counters.sleeps.bump());
        match self.service.patience() {
            timeout if timeout < 0 && self.waits => self.take_events(),
            timeout => self.sleep_for(core, timeout),
        }
    }

    /// Waits for the descriptors, so many milliseconds; -1 for ever.
    #[inline(never)]
    fn sleep_for(&mut self, core: &Core<H>, timeout: i32) -> Result<(), Exit> {
        let mut ready = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(timeout, &mut ready) {
            Ok(count) => count,
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(err) => {
                let err = Error::from_io(Op::Serve, &err)
                    .domain(core.hv.domid())
                    .server(core.id);
                return Err(Exit::Failed(err));
            }
        };
        let mut fds = ready.iter().take(count).map(EpollEvent::fd);
        fds.try_for_each(|fd| self.take_events_of(fd))
    }

    /// Answers deferred requests in their completions' place.
    pub(super) fn expire_deferred(&mut self, core: &Core<H>) {
        self.expire();
        self.pass(core);
    }

    /// Gives deferred requests up; their number. [`finish_taken`](Self::finish_taken) answers those of several elements.
    pub(super) fn expire(&mut self) -> u64 {
        let waiting = self.service.members.iter();
        let waiting = waiting.filter_map(|member| member.pending.as_ref());
        let expired = waiting.filter(|pending| pending.expire());
        expired.count() as u64
    }

    /// Goes on with requests that were taken, and with the ring, and takes no new one. Gives the number that is not finished.
    pub(super) fn finish_taken(&mut self, core: &Core<H>) -> usize {
        self.waker.take();
        let guard = self.reader.enter();
        self.service.finish_taken(core, &guard)
    }

    /// The server ends: every request that is still suspended is answered by its guard, and its vCPU notified.
    pub(super) fn close(&mut self) {
        self.service.close();
        let ports = self
            .service
            .members
            .iter()
            .map(|member| member.port)
            .chain(self.ring_port);
        for port in ports {
            if let Err(err) = self.service.events.unbind(port) {
                tracing::debug!(%err, "an event channel could not be unbound");
            }
        }
    }
}

#[cold]
#[inline(never)]
fn not_unmasked(err: &Error) {
    tracing::warn!(%err, "event channels could not be unmasked");
}
