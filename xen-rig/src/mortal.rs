// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A hypervisor handle whose process is killed at a chosen point: wraps any [`Hypervisor`], the model's or the real one, so the
//! framework itself needs no hooks for it.
//!
//! UNSAFETY: a signal to this process.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use ioreq_core::abi::{STATE_IOREQ_READY, STATE_IORESP_READY};
use ioreq_core::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq_core::hypervisor::{InjectedEvent, Intx, SharedPage};
use ioreq_core::slot::Slots;
use ioreq_core::{
    BufIoreq, DomId, DomainState, EventChannels, EvtchnPort, GfnRange, GuestMap, Hypervisor,
    Interrupts, IoRange, LocalPort, MarkAuthority, MemTypes, P2mType, Result, Sbdf, ServerId,
    ServerInfo, Transport, VcpuId,
};

/// Where in its work a server's process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KillPoint {
    /// A request is in its slot, and nobody has taken it.
    Ready,
    /// A request was taken and is not answered: in its handler, before or after the store.
    InProcess,
    /// A request is answered, and its vCPU not notified.
    Answered,
    /// Some pages of a call that marks are marked.
    Marking,
    /// Pages are parked, or some of a call that unmarks are unmarked.
    Unmarking,
}

impl KillPoint {
    /// All of them.
    pub const ALL: [KillPoint; 5] = [
        KillPoint::Ready,
        KillPoint::InProcess,
        KillPoint::Answered,
        KillPoint::Marking,
        KillPoint::Unmarking,
    ];
}

impl fmt::Display for KillPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KillPoint::Ready => "ready",
            KillPoint::InProcess => "in-process",
            KillPoint::Answered => "answered",
            KillPoint::Marking => "marking",
            KillPoint::Unmarking => "unmarking",
        })
    }
}

impl FromStr for KillPoint {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|point| point.to_string() == name)
            .ok_or_else(|| format!("{name} is no point to be killed at"))
    }
}

/// A process, as its death sees it.
pub trait Life: Send + Sync {
    /// It is killed here: nothing of it may go on.
    fn ends(&self) -> Infallible;
}

/// A real process: it dies by `kill -9`.
#[derive(Debug, Clone, Copy)]
pub struct Sigkill;

impl Life for Sigkill {
    fn ends(&self) -> Infallible {
        // SAFETY: it takes a number. The signal ends the whole process, and nobody can handle it.
        let _ends = unsafe { libc::raise(libc::SIGKILL) };
        loop {
            std::thread::park();
        }
    }
}

/// When a process dies.
pub struct Fuse {
    point: Option<KillPoint>,
    /// Times that the point is passed before.
    skip: AtomicU32,
    /// What is chosen at the point itself, e.g. how many pages of a call are changed.
    choice: u64,
    lit: AtomicBool,
    /// The server's slots, once its page was acquired.
    slots: OnceLock<Slots>,
    /// Of the call that it died in: pages that were changed, and all of its pages.
    changed: OnceLock<(u64, u64)>,
    life: Box<dyn Life>,
}

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fuse")
            .field("point", &self.point)
            .field("skip", &self.skip)
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

impl Fuse {
    /// Ends `life` when `point` has been passed `skip` times and is reached again; never without a point. `choice` is any number:
    /// it picks among what there is to choose at the point.
    #[must_use]
    pub fn new(
        point: Option<KillPoint>,
        skip: u32,
        choice: u64,
        life: impl Life + 'static,
    ) -> Arc<Self> {
        Arc::new(Fuse {
            point,
            skip: AtomicU32::new(skip),
            choice,
            lit: AtomicBool::new(false),
            slots: OnceLock::new(),
            changed: OnceLock::new(),
            life: Box::new(life),
        })
    }

    /// From now on points count: the server is set up.
    pub fn light(&self) {
        // Relaxed: a flag of its own.
        self.lit.store(true, Ordering::Relaxed);
    }

    /// Of the call that changes types and that the process died in, if it did in one: pages that were changed, and all of them.
    #[must_use]
    pub fn changed(&self) -> Option<(u64, u64)> {
        self.changed.get().copied()
    }

    /// Ends the process, if this is where.
    pub fn reached(&self, point: KillPoint) {
        if self.burns(point) {
            self.end();
        }
    }

    fn burns(&self, point: KillPoint) -> bool {
        // Relaxed: numbers of their own; of several threads that are at the point one is the last.
        let here = self.point == Some(point) && self.lit.load(Ordering::Relaxed);
        here && self
            .skip
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_err()
    }

    fn end(&self) -> ! {
        match self.life.ends() {}
    }

    /// Whether a slot is in this state.
    fn any_slot(&self, state: u8) -> bool {
        self.slots.get().is_some_and(|slots| {
            let mut vcpus = (0..slots.vcpus()).map(VcpuId);
            vcpus.any(|vcpu| slots.get(vcpu).is_some_and(|slot| slot.state() == state))
        })
    }
}

/// A device in which a process can die: a port that answers with its complement, and pages whose writes are applied, by the
/// framework or by the handler itself.
#[derive(Debug)]
pub struct MortalDevice(Arc<Fuse>);

impl MortalDevice {
    /// The device of a process with this fuse.
    #[must_use]
    pub fn new(fuse: &Arc<Fuse>) -> Self {
        MortalDevice(Arc::clone(fuse))
    }
}

impl Handler for MortalDevice {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        self.0.reached(KillPoint::InProcess);
        (access.addr ^ 0xff).into()
    }

    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

impl PageHandler for MortalDevice {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        if self.0.choice.is_multiple_of(2) {
            self.0.reached(KillPoint::InProcess);
            return PageOutcome::Apply;
        }
        let stored = write.apply();
        self.0.reached(KillPoint::InProcess);
        stored
    }
}

/// A handle on a domain that dies by its fuse.
#[derive(Debug)]
pub struct Mortal<H> {
    inner: H,
    fuse: Arc<Fuse>,
}

impl<H: Hypervisor> Mortal<H> {
    /// `inner`, until the fuse has burnt.
    pub fn new(inner: H, fuse: &Arc<Fuse>) -> Self {
        Mortal {
            inner,
            fuse: Arc::clone(fuse),
        }
    }
}

impl<H: Hypervisor> Transport for Mortal<H> {
    type Events = MortalEvents<H::Events>;

    fn domid(&self) -> DomId {
        self.inner.domid()
    }

    fn identity(&self) -> Result<String> {
        self.inner.identity()
    }

    fn vcpus(&self) -> Result<u32> {
        self.inner.vcpus()
    }

    fn create_server(&self, bufioreq: BufIoreq) -> Result<ServerId> {
        self.inner.create_server(bufioreq)
    }

    fn destroy_server(&self, id: ServerId) -> Result<()> {
        self.inner.destroy_server(id)
    }

    /// Once all is set up it is the grace period of unmarking: pages are parked, and the call is made or not.
    fn set_server_state(&self, id: ServerId, enabled: bool) -> Result<()> {
        if self.fuse.choice.is_multiple_of(3) && self.fuse.burns(KillPoint::Unmarking) {
            if self.fuse.choice.is_multiple_of(2) {
                let _whatever = self.inner.set_server_state(id, enabled);
            }
            self.fuse.end();
        }
        self.inner.set_server_state(id, enabled)
    }

    fn server_info(&self, id: ServerId) -> Result<ServerInfo> {
        self.inner.server_info(id)
    }

    fn map_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        self.inner.map_range(id, range)
    }

    fn unmap_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        self.inner.unmap_range(id, range)
    }

    fn ioreq_page(&self, id: ServerId) -> Result<SharedPage> {
        let page = self.inner.ioreq_page(id)?;
        if let Ok(slots) = Slots::new(page.clone(), self.inner.vcpus()?) {
            let _one_server = self.fuse.slots.set(slots);
        }
        Ok(page)
    }

    fn buffered_page(&self, id: ServerId) -> Result<SharedPage> {
        self.inner.buffered_page(id)
    }

    fn open_events(&self) -> Result<Self::Events> {
        let inner = self.inner.open_events()?;
        Ok(MortalEvents {
            inner,
            fuse: Arc::clone(&self.fuse),
        })
    }

    fn domain_state(&self) -> Result<DomainState> {
        self.inner.domain_state()
    }
}

/// Event channels of a process that dies.
#[derive(Debug)]
pub struct MortalEvents<E> {
    inner: E,
    fuse: Arc<Fuse>,
}

impl<E: AsRawFd> AsRawFd for MortalEvents<E> {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl<E: EventChannels> EventChannels for MortalEvents<E> {
    fn bind(&self, remote: EvtchnPort) -> Result<LocalPort> {
        self.inner.bind(remote)
    }

    fn unbind(&self, port: LocalPort) -> Result<()> {
        self.inner.unbind(port)
    }

    fn pending(&self, ports: &mut [LocalPort]) -> Result<usize> {
        self.inner.pending(ports)
    }

    fn unmask(&self, ports: &[LocalPort]) -> Result<()> {
        self.inner.unmask(ports)
    }

    fn notify(&self, port: LocalPort) -> Result<()> {
        if self.fuse.any_slot(STATE_IORESP_READY) {
            self.fuse.reached(KillPoint::Answered);
        }
        self.inner.notify(port)
    }

    fn recover(&self) -> Result<()> {
        self.inner.recover()
    }

    fn prepare_to_wait(&self) -> bool {
        self.inner.prepare_to_wait()
    }

    fn set_waiting(&self, on: bool) -> Result<()> {
        self.inner.set_waiting(on)
    }

    fn wake(&self) -> Result<()> {
        self.inner.wake()
    }
}

impl<H: Hypervisor> GuestMap for Mortal<H> {
    type Memory = H::Memory;

    fn memory(&self) -> Arc<H::Memory> {
        self.inner.memory()
    }

    /// Asked before every look at the slots: whoever dies here has not taken what is READY.
    fn memory_generation(&self) -> u64 {
        if self.fuse.any_slot(STATE_IOREQ_READY) {
            self.fuse.reached(KillPoint::Ready);
        }
        self.inner.memory_generation()
    }

    fn invalidate(&self) -> Result<()> {
        self.inner.invalidate()
    }

    fn modified(&self, pages: &[GfnRange]) -> Result<()> {
        self.inner.modified(pages)
    }
}

impl<H: Hypervisor> MemTypes for Mortal<H> {
    fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.inner.claim_mem_type(id)
    }

    fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.inner.disclaim_mem_type(id)
    }

    /// In the middle of a call: some of its pages are changed, from none to all. Calls for one page have no middle: few die there.
    fn set_mem_type(&self, authority: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        let point = match ty {
            P2mType::IoreqServer => KillPoint::Marking,
            _ => KillPoint::Unmarking,
        };
        let has_middle = pages.pages() > 1 || self.fuse.choice.is_multiple_of(5);
        if has_middle && self.fuse.burns(point) {
            let some = self.fuse.choice % (pages.pages() + 1);
            let _died_once = self.fuse.changed.set((some, pages.pages()));
            if let Some(some) = pages.batches(some.max(1)).next().filter(|_| some > 0) {
                let _whatever = self.inner.set_mem_type(authority, ty, some);
            }
            self.fuse.end();
        }
        self.inner.set_mem_type(authority, ty, pages)
    }
}

impl<H: Hypervisor> Interrupts for Mortal<H> {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        self.inner.set_pci_intx(function, pin, asserted)
    }

    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        self.inner.set_isa_irq(irq, asserted)
    }

    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.inner.inject_msi(addr, data)
    }

    fn set_pci_link_route(&self, link: u8, irq: u8) -> Result<()> {
        self.inner.set_pci_link_route(link, irq)
    }

    fn set_irq_level(&self, irq: u32, asserted: bool) -> Result<()> {
        self.inner.set_irq_level(irq, asserted)
    }

    fn inject_event(&self, vcpu: VcpuId, event: InjectedEvent) -> Result<()> {
        self.inner.inject_event(vcpu, event)
    }
}
