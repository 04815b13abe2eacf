// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What Xen keeps for a domain.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use crossbeam::utils::CachePadded;
use ioreq_core::hypervisor::InjectedEvent;
use ioreq_core::memory::MappedRegion;
use ioreq_core::{
    DomId, DomainState, Error, ErrorKind, EvtchnPort, Op, P2mType, Result, ShutdownReason, VcpuId,
};
use vm_memory::GuestRegionCollection;

use super::cacheattr::Pinned;
use crate::config::DomainConfig;
use crate::counts::{self, Counts, ModelCounts};
use crate::evtchn::Channel;
use crate::fate::{CrashReason, StopReason, StuckReason};
use crate::faults::Faults;
use crate::gate::{Gate, Hold};
use crate::interrupts::{Injected, InterruptLog};
use crate::machine::MachineInner;
use crate::memory;
use crate::p2m::P2m;
use crate::schedule::{self, Turn};
use crate::servers::Published;
use crate::vcpu::Vcpu;

/// Guest memory in this process.
///
/// ```
/// use ioreq_sim::{DomainConfig, Machine, SimMemory};
/// use vm_memory::{Bytes, GuestAddress};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let memory: &SimMemory = &domain.memory();
/// memory.write_obj(7_u64, GuestAddress(0x2000))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type SimMemory = GuestRegionCollection<MappedRegion>;

/// Whether a domain lives.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Running,
    Shutdown(ShutdownReason),
    Crashed(CrashReason),
    Destroyed,
}

/// The event-channel ports of a domain's servers.
#[derive(Debug)]
struct Ports {
    next: u32,
    open: HashMap<u32, Arc<Channel>>,
}

#[derive(Debug)]
pub(crate) struct DomainInner {
    pub(crate) machine: Arc<MachineInner>,
    pub(crate) domid: DomId,
    pub(crate) config: DomainConfig,
    pub(crate) vcpus: Vec<Arc<Vcpu>>,
    pub(crate) hold: Hold,
    pub(crate) p2m: P2m,
    p2m_writer: Mutex<()>,
    pub(crate) memory: Arc<SimMemory>,
    /// `ioreq_server.lock`.
    control: Mutex<()>,
    pub(crate) servers: Published,
    ports: Mutex<Ports>,
    life: Mutex<Life>,
    stuck: AtomicU32,
    unstuck: Mutex<()>,
    types_changed: Condvar,
    pub(crate) interrupts: InterruptLog,
    pub(crate) faults: Faults,
    /// On lines of its own: what device models count is beside nothing that vCPUs look at.
    pub(crate) model_counts: CachePadded<ModelCounts>,
    /// The last word that a vCPU wrote to port 0xcf8.
    pub(crate) cf8: AtomicU32,
    log_dirty: AtomicBool,
    pub(crate) dirty: Mutex<BTreeSet<u64>>,
    /// The frames whose dirty bits are kept.
    pub(super) vram: Mutex<Option<Range<u64>>>,
    pub(super) pinned: Mutex<Vec<Pinned>>,
    /// Locked accesses that straddle a cache line take turns.
    pub(crate) split_lock: Mutex<()>,
    /// Times that the domain was paused by a server's state change: the grace periods given.
    pub(crate) pauses: AtomicU64,
}

impl DomainInner {
    pub(super) fn create(machine: &Arc<MachineInner>, config: DomainConfig) -> Result<Arc<Self>> {
        let config = config.checked()?;
        let no_memory = |e: std::io::Error| Error::from_io(Op::MapGuestMemory, &e);
        let regions = config
            .regions
            .iter()
            .map(|&frames| memory::guest_region(frames))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(no_memory)?;
        let memory = SimMemory::from_regions(regions).map_err(|e| {
            Error::new(Op::Configure, ErrorKind::InvalidArgument).about(e.to_string())
        })?;
        let p2m = P2m::new(&config.regions).map_err(no_memory)?;
        let domid = machine.new_domid().ok_or_else(|| {
            Error::new(Op::Configure, ErrorKind::OutOfMemory).about("no domain ids are left")
        })?;
        let domain = Arc::new(DomainInner {
            machine: Arc::clone(machine),
            domid,
            vcpus: (0..config.vcpus)
                .map(|id| Arc::new(Vcpu::new(id)))
                .collect(),
            config,
            hold: Hold::default(),
            p2m,
            p2m_writer: Mutex::new(()),
            memory: Arc::new(memory),
            control: Mutex::new(()),
            servers: Published::default(),
            ports: Mutex::new(Ports {
                next: 3,
                open: HashMap::new(),
            }),
            life: Mutex::new(Life::Running),
            stuck: AtomicU32::new(0),
            unstuck: Mutex::new(()),
            types_changed: Condvar::new(),
            interrupts: InterruptLog::default(),
            faults: Faults::default(),
            model_counts: CachePadded::default(),
            cf8: AtomicU32::new(0),
            log_dirty: AtomicBool::new(false),
            dirty: Mutex::default(),
            vram: Mutex::default(),
            pinned: Mutex::default(),
            split_lock: Mutex::new(()),
            pauses: AtomicU64::new(0),
        });
        machine.add(domid, &domain);
        if machine.panic_reason().is_some() {
            domain.halt();
        }
        domain.check_panic(Op::Configure)?;
        Ok(domain)
    }

    // Life and death.

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: Life) {
        {
            let mut life = self.life();
            if *life == Life::Destroyed || (*life != Life::Running && how != Life::Destroyed) {
                return;
            }
            *life = how;
        }
        self.halt();
    }

    /// Stops every vCPU and wakes whatever sleeps. The reason is stored already.
    pub(crate) fn halt(&self) {
        self.hold.stop();
        self.vcpus.iter().for_each(|v| v.rouse());
        drop(self.unstuck.lock().unwrap_or_else(PoisonError::into_inner));
        self.types_changed.notify_all();
    }

    pub(crate) fn crash(&self, reason: CrashReason) {
        self.end(Life::Crashed(reason));
    }

    pub(crate) fn shut_down(&self, reason: ShutdownReason) {
        self.end(Life::Shutdown(reason));
    }

    pub(super) fn destroy(&self) {
        self.end(Life::Destroyed);
        let _control = self.lock_control();
        self.servers.update(|table| {
            for entry in table.entries.iter_mut().filter_map(Option::take) {
                entry.server.destroy();
                self.close_channels(&entry.server);
            }
            table.owner = None;
        });
        self.vcpus.iter().for_each(|vcpu| vcpu.forget_requests());
        self.machine.remove(self.domid);
    }

    pub(crate) fn is_destroyed(&self) -> bool {
        *self.life() == Life::Destroyed
    }

    pub(crate) fn state(&self) -> DomainState {
        match &*self.life() {
            Life::Running => DomainState::Running,
            Life::Shutdown(reason) => DomainState::Shutdown(*reason),
            Life::Crashed(_) => DomainState::Shutdown(ShutdownReason::Crash),
            Life::Destroyed => DomainState::Gone,
        }
    }

    pub(crate) fn crash_reason(&self) -> Option<CrashReason> {
        match &*self.life() {
            Life::Crashed(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Why nothing runs any more. Called only once the hold says so.
    pub(crate) fn stop_reason(&self) -> StopReason {
        if let Some(reason) = self.machine.panic_reason() {
            return StopReason::HypervisorPanic(reason.clone());
        }
        match &*self.life() {
            Life::Crashed(reason) => StopReason::Crashed(reason.clone()),
            Life::Shutdown(reason) => StopReason::Shutdown(*reason),
            Life::Running | Life::Destroyed => StopReason::Destroyed,
        }
    }

    /// Refuses everything once Xen has panicked.
    pub(crate) fn check_panic(&self, op: Op) -> Result<()> {
        match self.machine.panic_reason() {
            None => Ok(()),
            Some(reason) => Err(Error::new(op, ErrorKind::Other)
                .domain(self.domid)
                .about(format!("hypervisor panic: {reason}"))),
        }
    }

    // Locks.

    pub(crate) fn gates(&self) -> impl Iterator<Item = &Gate> {
        self.vcpus.iter().map(|v| &v.gate)
    }

    pub(crate) fn lock_control(&self) -> MutexGuard<'_, ()> {
        lock(&self.control)
    }

    /// Runs `change` under the p2m lock.
    pub(crate) fn with_p2m_lock<T>(&self, change: impl FnOnce(&P2m) -> T) -> T {
        let _writer = lock(&self.p2m_writer);
        self.hold.lock_p2m(self.gates());
        let result = change(&self.p2m);
        self.hold.unlock_p2m();
        result
    }

    /// Runs `change` while no vCPU runs.
    pub(crate) fn paused<T>(&self, change: impl FnOnce() -> T) -> T {
        self.hold.pause(self.gates());
        // Relaxed: a number of its own.
        self.pauses.fetch_add(1, Ordering::Relaxed);
        let result = change();
        self.hold.unpause();
        result
    }

    // Ports.

    pub(crate) fn open_channel(&self, vcpu: &Arc<Vcpu>, emulator: DomId) -> Arc<Channel> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = ports.next;
        ports.next += 1;
        let channel = Arc::new(Channel::new(port, Arc::clone(vcpu), emulator));
        ports.open.insert(port, Arc::clone(&channel));
        channel
    }

    pub(crate) fn close_channels(&self, server: &crate::servers::Server) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for channel in server.all_channels() {
            channel.close();
            ports.open.remove(&channel.port.0);
        }
    }

    pub(crate) fn channel(&self, port: EvtchnPort) -> Option<Arc<Channel>> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.open.get(&port.0).cloned()
    }

    pub(crate) fn bound_ports(&self) -> usize {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.open.values().filter(|c| c.is_bound()).count()
    }

    // Stuck vCPUs.

    /// Whether a vCPU that reported `reason` still cannot go on.
    pub(crate) fn still_stuck(&self, reason: &StuckReason) -> bool {
        let tracked = |gfn| self.p2m.lookup(gfn) == Some(P2mType::IoreqServer);
        match *reason {
            StuckReason::NoOwner { gfn } => tracked(gfn) && self.servers.current().owner.is_none(),
            StuckReason::Fetch { gfn } => tracked(gfn),
            StuckReason::ServerDestroyed { .. } => true,
        }
    }

    /// Waits until the vCPU can go on. False if the domain ended.
    pub(crate) fn wait_unstuck(&self, vcpu: &Vcpu, reason: StuckReason) -> bool {
        // SeqCst and the fence: this comes before the look at the type, as `types_changed` stores the type before it looks
        // for stuck vCPUs.
        self.stuck.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        vcpu.set_stuck(Some(reason));
        while !self.hold.stopped() && self.still_stuck(&reason) {
            match schedule::yield_point(false) {
                Turn::Mine => continue,
                Turn::Over => break,
                Turn::Free => {}
            }
            let guard = self.unstuck.lock().unwrap_or_else(PoisonError::into_inner);
            let _guard = self
                .types_changed
                .wait_while(guard, |()| {
                    !self.hold.stopped() && self.still_stuck(&reason)
                })
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.stuck.fetch_sub(1, Ordering::SeqCst);
        vcpu.set_stuck(None);
        !self.hold.stopped()
    }

    /// Types or their owner changed: stuck vCPUs, and who joins them, look again.
    pub(crate) fn types_changed(&self) {
        fence(Ordering::SeqCst);
        if self.stuck.load(Ordering::SeqCst) == 0 {
            return;
        }
        drop(self.unstuck.lock().unwrap_or_else(PoisonError::into_inner));
        self.types_changed.notify_all();
        self.vcpus.iter().for_each(|v| v.nudge());
    }

    // The rest.

    pub(crate) fn is_log_dirty(&self) -> bool {
        // Relaxed: changed under the p2m lock, read under it.
        self.log_dirty.load(Ordering::Relaxed)
    }

    pub(crate) fn set_log_dirty(&self, on: bool) -> Result<(), i32> {
        self.with_p2m_lock(|p2m| {
            if on && p2m.outstanding() > 0 {
                return Err(libc::EBUSY);
            }
            self.log_dirty.store(on, Ordering::Relaxed);
            Ok(())
        })
    }

    pub(crate) fn inject(&self, injected: Injected) {
        self.interrupts.push(injected);
        let target = injected.target(self.config.vcpus);
        if let Some(vcpu) = target.and_then(|t| self.vcpus.get(t as usize)) {
            vcpu.interrupt(injected);
        }
    }

    /// `inject_event`: one at a time, until the vCPU has taken it.
    pub(crate) fn inject_event(&self, id: VcpuId, event: InjectedEvent) -> Result<(), i32> {
        let vcpu = usize::try_from(id.0).ok().and_then(|i| self.vcpus.get(i));
        let injected = Injected::Event { vcpu: id, event };
        if !vcpu.ok_or(libc::EINVAL)?.event(injected) {
            return Err(libc::EBUSY);
        }
        self.interrupts.push(injected);
        Ok(())
    }

    pub(crate) fn counts(&self) -> Counts {
        counts::total(&self.model_counts, self.vcpus.iter().map(|v| &v.counts))
    }
}

/// A lock that may be held across yield points of a schedule.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        if schedule::yield_point(false) != Turn::Mine {
            return mutex.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ioreq_core::{BufIoreq, PortRange, Transport, VcpuId};

    use crate::{DomainConfig, Machine};

    /// A vCPU that waits for an answer when its domain goes leaves nothing behind in this process.
    #[test]
    fn a_domain_that_goes_in_the_middle_of_a_request_is_freed() {
        let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
        let hv = domain.hypervisor();
        let id = hv.create_server(BufIoreq::Off).unwrap();
        hv.ioreq_page(id).unwrap();
        hv.set_server_state(id, true).unwrap();
        let ports = PortRange::sized(0x500, 4).unwrap();
        hv.map_range(id, ports.into()).unwrap();
        let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500)).unwrap();
        while guest.waiting_on().is_none() {
            std::thread::yield_now();
        }
        let vcpu = Arc::downgrade(&domain.inner().vcpus[0]);
        domain.destroy();
        guest.join().unwrap_err();
        drop((hv, domain));
        assert!(vcpu.upgrade().is_none());
    }
}
