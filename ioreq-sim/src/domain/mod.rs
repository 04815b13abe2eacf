// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Domains.

mod cacheattr;
mod dmop;
mod inner;
mod leaks;
mod vram;

use std::sync::Arc;
use std::thread;

use ioreq_core::{
    DomId, DomainState, Error, ErrorKind, Gfn, Op, P2mType, Result, ShutdownReason, VcpuId,
};

use crate::config::DomainConfig;
use crate::counts::Counts;
use crate::cpu::Cpu;
use crate::fate::{CpuFault, CrashReason};
use crate::faults::Faults;
use crate::hostile::Hostile;
use crate::hypervisor::SimHypervisor;
use crate::interrupts::Injected;
use crate::machine::MachineInner;
use crate::vcpu::VcpuThread;

pub(crate) use inner::DomainInner;
pub use inner::SimMemory;
pub use leaks::LeakReport;

/// A domain, seen from outside: its creator's handle. Clones are handles on the same domain.
///
/// ```
/// use ioreq_core::{DomainState, ShutdownReason};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// assert_eq!(domain.state(), DomainState::Running);
/// domain.shutdown(ShutdownReason::PowerOff);
/// assert_eq!(domain.state(), DomainState::Shutdown(ShutdownReason::PowerOff));
/// domain.destroy();
/// assert_eq!(domain.state(), DomainState::Gone);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Domain {
    owner: Arc<Owner>,
}

/// Destroys the domain when the last handle goes.
#[derive(Debug)]
struct Owner(Arc<DomainInner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

impl Domain {
    pub(crate) fn create(machine: &Arc<MachineInner>, config: DomainConfig) -> Result<Self> {
        let inner = DomainInner::create(machine, config)?;
        Ok(Domain {
            owner: Arc::new(Owner(inner)),
        })
    }

    pub(crate) fn inner(&self) -> &Arc<DomainInner> {
        &self.owner.0
    }

    /// Its id.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.inner().domid
    }

    /// Number of its vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.inner().config.vcpus
    }

    /// A new device-model process's handle.
    #[must_use]
    pub fn hypervisor(&self) -> SimHypervisor {
        SimHypervisor::new(self.clone(), DomId(0))
    }

    /// A new device-model process in another domain than domain 0, a stub domain say. Each server is used by processes of the
    /// domain that created it; those of others are refused (EPERM).
    ///
    /// ```
    /// use ioreq_core::{BufIoreq, DomId, Transport};
    /// use ioreq_sim::{DomainConfig, Machine};
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let id = domain.hypervisor().create_server(BufIoreq::Off)?;
    /// let other = domain.hypervisor_in(DomId(9));
    /// assert_eq!(other.destroy_server(id).unwrap_err().errno(), Some(1)); // EPERM
    /// assert!(other.create_server(BufIoreq::Off).is_ok());
    /// # Ok::<(), ioreq_core::Error>(())
    /// ```
    #[must_use]
    pub fn hypervisor_in(&self, emulator: DomId) -> SimHypervisor {
        SimHypervisor::new(self.clone(), emulator)
    }

    /// Its memory. Accesses from outside are not trapped, as those of dom0 are not.
    #[must_use]
    pub fn memory(&self) -> Arc<SimMemory> {
        Arc::clone(&self.inner().memory)
    }

    /// A page's type (`HVMOP_get_mem_type`); `None` where nothing is populated. Video memory whose next store is logged is told
    /// as `ram_ro`, and so is ordinary RAM in log-dirty mode; on Xen only until the guest writes the page, which the model does
    /// not record for all of memory.
    #[must_use]
    pub fn mem_type(&self, gfn: impl Into<GfnArg>) -> Option<P2mType> {
        let gfn = gfn.into().0;
        let inner = self.inner();
        match inner.p2m.lookup(gfn) {
            Some(P2mType::RamRw) if inner.is_log_dirty() || inner.p2m.is_logged(gfn) => {
                Some(P2mType::RamRo)
            }
            other => other,
        }
    }

    /// What has become of it.
    #[must_use]
    pub fn state(&self) -> DomainState {
        self.inner().state()
    }

    /// Why Xen crashed it, if it did.
    #[must_use]
    pub fn crash_reason(&self) -> Option<CrashReason> {
        self.inner().crash_reason()
    }

    /// How often things happened.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner().counts()
    }

    /// What servers left behind.
    #[must_use]
    pub fn leaks(&self) -> LeakReport {
        LeakReport::of(self.inner())
    }

    /// What was injected so far, in order (the last 65536).
    #[must_use]
    pub fn injected(&self) -> Vec<Injected> {
        self.inner().interrupts.all()
    }

    /// Faults to inject.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.inner().faults
    }

    /// Raw access to the pages that servers share with Xen, to play a hostile or broken peer.
    #[must_use]
    pub fn hostile(&self) -> Hostile {
        Hostile::new(Arc::clone(self.inner()))
    }

    /// Turns global log-dirty mode (live migration) on or off.
    ///
    /// # Errors
    /// `Busy` (EBUSY) with tracked pages outstanding.
    pub fn set_log_dirty(&self, on: bool) -> Result<()> {
        self.inner()
            .set_log_dirty(on)
            .map_err(|e| Error::from_errno(Op::Configure, e).domain(self.domid()))
    }

    /// Frames that device models said they modified (`modified_memory`) in log-dirty mode, and forgets them.
    #[must_use]
    pub fn take_modified(&self) -> Vec<Gfn> {
        let mut dirty = self
            .inner()
            .dirty
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut *dirty).into_iter().map(Gfn).collect()
    }

    /// Pauses it: when this returns no vCPU runs. Pauses nest.
    pub fn pause(&self) {
        self.inner().hold.pause(self.inner().gates());
    }

    /// Ends one pause. Only after a [`pause`](Self::pause).
    pub fn unpause(&self) {
        self.inner().hold.unpause();
    }

    /// Crashes it from outside.
    pub fn crash(&self) {
        self.inner().crash(CrashReason::Requested);
    }

    /// Shuts it down with a reason; it still exists.
    pub fn shutdown(&self, reason: ShutdownReason) {
        self.inner().shut_down(reason);
    }

    /// Destroys it: vCPUs end, servers go, hypercalls give ESRCH. Mapped memory stays until the last mapping goes.
    pub fn destroy(&self) {
        self.inner().destroy();
    }

    /// The guest reboots: this domain shuts down and goes, and one with the same configuration and another id takes its
    /// place, as a toolstack does it.
    ///
    /// # Errors
    /// As [`Machine::create_domain`](crate::Machine::create_domain).
    pub fn reboot(&self) -> Result<Domain> {
        self.shutdown(ShutdownReason::Reboot);
        self.destroy();
        Domain::create(&self.inner().machine, self.inner().config.clone())
    }

    /// A vCPU, to run guest operations on the calling thread.
    ///
    /// ```
    /// use ioreq_core::VcpuId;
    /// use ioreq_sim::{DomainConfig, Machine};
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let mut cpu = domain.cpu(VcpuId(0))?;
    /// assert_eq!(cpu.inb(0x60), Ok(0xff)); // nobody has that port
    /// assert!(domain.cpu(VcpuId(0)).is_err()); // one program at a time
    /// # Ok::<(), ioreq_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` for a vCPU that does not exist, `StillInUse` for one that is running already.
    pub fn cpu(&self, id: VcpuId) -> Result<Cpu> {
        let mut cpu = self.take_cpu(id)?;
        cpu.keep(self.clone());
        Ok(cpu)
    }

    /// Runs a guest program on a vCPU's thread.
    ///
    /// # Errors
    /// As [`cpu`](Self::cpu).
    pub fn spawn<T: Send + 'static>(
        &self,
        id: VcpuId,
        program: impl FnOnce(&mut Cpu) -> Result<T, CpuFault> + Send + 'static,
    ) -> Result<VcpuThread<T>> {
        let mut cpu = self.take_cpu(id)?;
        let vcpu = Arc::clone(cpu.vcpu());
        let thread = thread::Builder::new()
            .name(format!("{}{}", self.domid(), id))
            .spawn(move || program(&mut cpu))
            .map_err(|e| Error::from_io(Op::Configure, &e).domain(self.domid()))?;
        Ok(VcpuThread::new(self.clone(), vcpu, thread))
    }

    fn take_cpu(&self, id: VcpuId) -> Result<Cpu> {
        let bad = |kind| {
            Error::new(Op::Configure, kind)
                .domain(self.domid())
                .about(format!("{id} of {} vCPUs", self.vcpus()))
        };
        let vcpu = usize::try_from(id.0)
            .ok()
            .and_then(|i| self.inner().vcpus.get(i));
        let vcpu = vcpu.ok_or_else(|| bad(ErrorKind::InvalidArgument))?;
        let state = vcpu.take().ok_or_else(|| bad(ErrorKind::StillInUse))?;
        Ok(Cpu::new(self.inner(), vcpu, state))
    }
}

/// A frame, given as a [`Gfn`] or as its number.
///
/// ```
/// use ioreq_core::Gfn;
/// use ioreq_sim::GfnArg;
/// assert_eq!(GfnArg::from(5), GfnArg(Gfn(5)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GfnArg(pub Gfn);

impl From<Gfn> for GfnArg {
    fn from(gfn: Gfn) -> Self {
        GfnArg(gfn)
    }
}

impl From<u64> for GfnArg {
    fn from(gfn: u64) -> Self {
        GfnArg(Gfn(gfn))
    }
}
