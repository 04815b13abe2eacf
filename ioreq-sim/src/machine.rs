// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The machine: one hypervisor and its domains.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use ioreq_core::{DomId, LocalPort, Result};

use crate::config::DomainConfig;
use crate::domain::{Domain, DomainInner};
use crate::raw::RawDmop;
use crate::version::XenVersion;

/// One hypervisor. Cloning gives another handle on the same machine.
///
/// ```
/// use ioreq_sim::{DomainConfig, Machine, XenVersion};
/// let machine = Machine::builder().version(XenVersion::V4_17).build();
/// let first = machine.create_domain(DomainConfig::new(1))?;
/// let second = machine.create_domain(DomainConfig::new(4))?;
/// assert_ne!(first.domid(), second.domid());
/// assert_eq!(machine.panicked(), None);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Machine(Arc<MachineInner>);

/// Options of a [`Machine`].
///
/// ```
/// use ioreq_sim::{MachineBuilder, XenVersion};
/// let machine = MachineBuilder::default().build();
/// assert_eq!(machine.version(), XenVersion::V4_20);
/// ```
#[derive(Debug, Clone, Default)]
pub struct MachineBuilder {
    version: XenVersion,
}

impl MachineBuilder {
    /// Which Xen to be; 4.20 unless set.
    #[must_use]
    pub fn version(mut self, version: XenVersion) -> Self {
        self.version = version;
        self
    }

    /// The machine, without domains.
    #[must_use]
    pub fn build(self) -> Machine {
        Machine(Arc::new(MachineInner {
            version: self.version,
            domains: Mutex::default(),
            next_domid: AtomicU32::new(1),
            next_local_port: AtomicU32::new(1),
            panic: OnceLock::new(),
        }))
    }
}

impl Machine {
    /// A machine of the newest Xen that the model knows.
    #[must_use]
    pub fn new() -> Self {
        MachineBuilder::default().build()
    }

    /// A machine by options.
    #[must_use]
    pub fn builder() -> MachineBuilder {
        MachineBuilder::default()
    }

    /// Which Xen it is.
    #[must_use]
    pub fn version(&self) -> XenVersion {
        self.0.version
    }

    /// Creates a domain. It lives until it is destroyed, or until the last [`Domain`], hypervisor handle and vCPU thread
    /// handle of it are dropped.
    ///
    /// # Errors
    /// `InvalidArgument` with what is wrong with the configuration, `OutOfMemory`, `DomainGone` for 32751 domains.
    pub fn create_domain(&self, config: DomainConfig) -> Result<Domain> {
        Domain::create(&self.0, config)
    }

    /// Raw operations on a domain by its id, whether or not it exists; id 0 is the caller's own.
    ///
    /// ```
    /// use ioreq_core::DomId;
    /// let machine = ioreq_sim::Machine::new();
    /// assert_eq!(machine.raw(DomId(777)).create(0, 0), Err(3)); // ESRCH
    /// assert_eq!(machine.raw(DomId(0)).create(0, 0), Err(1)); // EPERM
    /// ```
    #[must_use]
    pub fn raw(&self, domid: DomId) -> RawDmop {
        let domain = self.0.find(domid);
        RawDmop::open(domid, domain, DomId(0))
    }

    /// Why Xen panicked, if it did. Nothing on the machine works any more then.
    #[must_use]
    pub fn panicked(&self) -> Option<String> {
        self.0.panic.get().cloned()
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// What domains know of their machine.
#[derive(Debug)]
pub(crate) struct MachineInner {
    pub(crate) version: XenVersion,
    domains: Mutex<BTreeMap<u16, Weak<DomainInner>>>,
    next_domid: AtomicU32,
    next_local_port: AtomicU32,
    panic: OnceLock<String>,
}

/// Domain ids end here (`DOMID_FIRST_RESERVED`).
const DOMIDS: u32 = 0x7ff0;

impl MachineInner {
    /// A domid that no domain had before, as far as the numbers reach.
    pub(crate) fn new_domid(&self) -> Option<DomId> {
        // Relaxed: a number of its own.
        let next = self.next_domid.fetch_add(1, Ordering::Relaxed);
        u16::try_from(next)
            .ok()
            .filter(|_| next < DOMIDS)
            .map(DomId)
    }

    pub(crate) fn new_local_port(&self) -> LocalPort {
        LocalPort(self.next_local_port.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn add(&self, domid: DomId, domain: &Arc<DomainInner>) {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.insert(domid.0, Arc::downgrade(domain));
    }

    pub(crate) fn remove(&self, domid: DomId) {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.remove(&domid.0);
    }

    fn find(&self, domid: DomId) -> Option<Arc<DomainInner>> {
        let domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.get(&domid.0).and_then(Weak::upgrade)
    }

    pub(crate) fn panic_reason(&self) -> Option<&String> {
        self.panic.get()
    }

    /// Xen panics: every domain stops.
    pub(crate) fn panic(&self, reason: String) {
        if self.panic.set(reason).is_err() {
            return;
        }
        let domains: Vec<_> = {
            let domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
            domains.values().filter_map(Weak::upgrade).collect()
        };
        domains.iter().for_each(|d| d.halt());
    }
}
