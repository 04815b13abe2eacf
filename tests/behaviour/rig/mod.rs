// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the suite asks of a hypervisor: the framework's own traits, and what it takes to set a scene around them.
//!
//! A rig makes domains. A domain hands out handles for device-model processes, runs guest operations, and answers what only
//! a toolstack may ask. The model implements it in [`sim`], a real Xen in `xen`, with a small agent in the guest.

mod dmop;
mod guest;
mod sim;
#[cfg(feature = "xen")]
mod xen;

use ioreq_core::hypervisor::SharedPage;
use ioreq_core::{DomId, Gfn, Hypervisor, ServerId, VcpuId};

pub(crate) use dmop::*;
pub(crate) use guest::{End, GuestOp, OpResult, Outcome};
pub(crate) use sim::SimRig;
#[cfg(feature = "xen")]
pub(crate) use xen::XenRig;

/// An errno of the hypervisor.
pub(crate) type Errno = i32;

/// A release of Xen whose behaviour the rows tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V4_17,
    V4_20,
}

/// What kind of domain a test needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) vcpus: u32,
    /// Hardware-assisted paging.
    pub(crate) hap: bool,
    /// Emulation flags 0x3ff (VGA, RTC and all) instead of a local APIC only.
    pub(crate) full: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            vcpus: 1,
            hap: true,
            full: false,
        }
    }
}

impl Options {
    pub(crate) fn vcpus(vcpus: u32) -> Self {
        Options {
            vcpus,
            ..Options::default()
        }
    }

    pub(crate) fn full() -> Self {
        Options {
            full: true,
            ..Options::default()
        }
    }

    pub(crate) fn no_hap() -> Self {
        Options {
            hap: false,
            ..Options::default()
        }
    }
}

/// What a rig may lack; a row that `needs` it is ignored there, and listed as ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ability {
    /// Domains without HAP (a Xen built with shadow paging).
    NoHap,
    /// Forcing the ring of an event-channel handle to overflow.
    EventOverflow,
    /// Having Xen look at a slot twice without the vCPU sleeping in between.
    TwoLooks,
    /// A device model in another domain than dom0.
    StubDomain,
}

/// A hypervisor to test.
pub(crate) trait Rig: Send + Sync + 'static {
    type Domain: Domain;

    /// What the test names start with.
    fn name(&self) -> &str;

    fn version(&self) -> Version;

    fn has(&self, ability: Ability) -> bool;

    /// Whether a hypervisor that panicked takes only its own domain with it, as a model's does.
    fn survives_panic(&self) -> bool;

    /// How often something may be tried whose timing the rig does not control.
    fn attempts(&self) -> u32;

    /// A new domain, running, its vCPUs idle. Memory: frames [`RAM`](crate::support::layout::RAM), but for the VGA hole.
    ///
    /// # Errors
    /// The errno of the creation.
    fn create(&self, options: Options) -> Result<Self::Domain, Errno>;

    /// The same, where it must work.
    #[track_caller]
    fn domain(&self, options: Options) -> Self::Domain {
        match self.create(options) {
            Ok(domain) => domain,
            Err(errno) => panic!("{options:?} gives errno {errno}"),
        }
    }

    /// A DMOP on any domain id, by an unrestricted process.
    ///
    /// # Errors
    /// Xen's errno.
    fn dm_op(&self, domid: DomId, op: &mut DmOp) -> Result<(), Errno>;
}

/// One domain of a rig.
pub(crate) trait Domain: Send + Sync {
    type Process: Hypervisor;
    type Run: Run;

    /// A handle on the domain for one more device-model process.
    fn process(&self) -> Self::Process;

    /// The same in another domain, on a rig with [`Ability::StubDomain`].
    fn process_elsewhere(&self) -> Self::Process {
        unreachable!("the rig has no other domain for device models")
    }

    /// Kills a process with all its handles, as kill -9 does: nothing is undone.
    fn kill(&self, process: &Self::Process);

    /// A DMOP by an unrestricted process. `buffer` is the second buffer of the operations that have one.
    ///
    /// # Errors
    /// Xen's errno.
    fn dm_op(&self, op: &mut DmOp, buffer: &mut [u8]) -> Result<(), Errno>;

    /// Acquires a resource frame of a server by number.
    ///
    /// # Errors
    /// Xen's errno.
    fn acquire(&self, id: ServerId, frame: u64) -> Result<SharedPage, Errno>;

    /// `HVMOP_get_mem_type`: a page's `hvmmem_type_t`.
    fn mem_type(&self, gfn: Gfn) -> u16;

    /// Turns global log-dirty mode on or off.
    ///
    /// # Errors
    /// Xen's errno.
    fn log_dirty(&self, on: bool) -> Result<(), Errno>;

    /// `XEN_DOMCTL_pausedomain`, synchronous.
    fn pause(&self);

    /// `XEN_DOMCTL_unpausedomain`.
    fn unpause(&self);

    /// Has an idle vCPU do `ops` one after the other; returns at once.
    fn start(&self, vcpu: VcpuId, ops: &[GuestOp]) -> Self::Run;

    /// How many interrupts and events device models have sent so far, on a rig that can tell.
    fn injected(&self) -> Option<usize> {
        None
    }

    /// How the whole domain ended, if it did.
    fn end(&self) -> Option<End>;

    /// Makes the event ring of `events` overflow, by whatever the rig has to force it.
    fn overflow(&self, events: &<Self::Process as ioreq_core::Transport>::Events);
}

/// A vCPU at work.
pub(crate) trait Run {
    /// Whether the operations are through, or the vCPU will do nothing more. Never waits.
    fn is_back(&self) -> bool;

    /// Waits until it is, for as long as the rig finds reasonable.
    fn join(self) -> Outcome;

    /// Waits long enough to call the vCPU stuck; whether it is still away then.
    fn stays_away(&self) -> bool;
}
