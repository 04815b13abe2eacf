// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of ioreq servers, their pages and ports.

use super::{EventChannels, SharedPage};
use crate::error::{Error, ErrorKind, Op};
use crate::ids::{DomId, EvtchnPort, ServerId};
use crate::range::IoRange;
use crate::{Result, abi};

/// Whether, and how, a server gets a buffered ring (`handle_bufioreq`).
///
/// ```
/// use ioreq_core::BufIoreq;
/// assert_eq!(BufIoreq::Atomic.raw(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BufIoreq {
    /// No ring: every request is synchronous.
    #[default]
    Off,
    /// `HVM_IOREQSRV_BUFIOREQ_ATOMIC`: a ring, read with an atomic read-modify-write of its read pointer. The legacy
    /// mode is not offered: Xen may rewind the pointers under a plain store.
    Atomic,
}

impl BufIoreq {
    /// The DMOP's `handle_bufioreq`.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            BufIoreq::Off => abi::HVM_IOREQSRV_BUFIOREQ_OFF,
            BufIoreq::Atomic => abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC,
        }
    }
}

/// What Xen tells of a server (`get_ioreq_server_info` with the no_gfns flag).
///
/// ```
/// use ioreq_core::{EvtchnPort, ServerInfo};
/// let info = ServerInfo { bufioreq_port: Some(EvtchnPort(3)) };
/// assert!(info.bufioreq_port.is_some());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerInfo {
    /// The buffered ring's event channel; `None` without a ring. Valid once the server is created.
    pub bufioreq_port: Option<EvtchnPort>,
}

/// Why a domain shut itself down (`SHUTDOWN_*` of `sched.h`).
///
/// ```
/// use ioreq_core::ShutdownReason;
/// assert_eq!(ShutdownReason::from_raw(3), ShutdownReason::Crash);
/// assert_eq!(ShutdownReason::Suspend.raw(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShutdownReason {
    /// `SHUTDOWN_poweroff`, 0
    PowerOff,
    /// `SHUTDOWN_reboot`, 1
    Reboot,
    /// `SHUTDOWN_suspend`, 2
    Suspend,
    /// `SHUTDOWN_crash`, 3
    Crash,
    /// `SHUTDOWN_watchdog`, 4
    Watchdog,
    /// `SHUTDOWN_soft_reset`, 5
    SoftReset,
    /// A code that this version does not name.
    Other(u8),
}

impl ShutdownReason {
    /// From Xen's number.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            0 => ShutdownReason::PowerOff,
            1 => ShutdownReason::Reboot,
            2 => ShutdownReason::Suspend,
            3 => ShutdownReason::Crash,
            4 => ShutdownReason::Watchdog,
            5 => ShutdownReason::SoftReset,
            other => ShutdownReason::Other(other),
        }
    }

    /// Xen's number.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            ShutdownReason::PowerOff => 0,
            ShutdownReason::Reboot => 1,
            ShutdownReason::Suspend => 2,
            ShutdownReason::Crash => 3,
            ShutdownReason::Watchdog => 4,
            ShutdownReason::SoftReset => 5,
            ShutdownReason::Other(other) => other,
        }
    }
}

/// What has become of a domain.
///
/// ```
/// use ioreq_core::{DomainState, ShutdownReason};
/// assert_ne!(DomainState::Running, DomainState::Shutdown(ShutdownReason::Crash));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainState {
    /// It runs, or is paused.
    Running,
    /// It shut down, with the reason; it still exists.
    Shutdown(ShutdownReason),
    /// It is dying or does not exist any more.
    Gone,
}

/// One domain's ioreq servers: life, ranges, shared pages, event channels.
///
/// The raw operations, in Xen's own order and with Xen's own traps: use [`IoreqServer`](crate::server::IoreqServer),
/// which knows the safe order, unless you implement or test a hypervisor.
///
/// ```
/// use ioreq_core::{BufIoreq, ErrorKind, PortRange, Transport};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(2))?;
/// let hv = domain.hypervisor();
/// assert_eq!(hv.vcpus()?, 2);
/// let id = hv.create_server(BufIoreq::Off)?;
/// hv.map_range(id, PortRange::new(0x500, 0x503)?.into())?;
/// let again = hv.map_range(id, PortRange::new(0x503, 0x510)?.into());
/// assert_eq!(again.unwrap_err().kind(), ErrorKind::RangeExists);
/// hv.destroy_server(id)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Transport: Send + Sync + 'static {
    /// This process's event channels.
    type Events: EventChannels;

    /// The domain.
    fn domid(&self) -> DomId;

    /// What tells the domain from one that gets its id later: one line, e.g. its UUID. For
    /// [`Builder::record`](crate::server::Builder::record).
    ///
    /// # Errors
    /// `NotSupported` by default, and where it cannot be told.
    fn identity(&self) -> Result<String> {
        Err(Error::new(Op::DomainState, ErrorKind::NotSupported).domain(self.domid()))
    }

    /// Number of vCPUs, at least 1 and at most [`abi::IOREQ_SLOTS`].
    ///
    /// # Errors
    /// `NotSupported` where the hypervisor cannot tell and nobody said.
    fn vcpus(&self) -> Result<u32>;

    /// `XEN_DMOP_create_ioreq_server`.
    ///
    /// # Errors
    /// `TooManyServers` (ENOSPC) beyond 8, `DomainGone`, `NotPermitted`.
    fn create_server(&self, bufioreq: BufIoreq) -> Result<ServerId>;

    /// `XEN_DMOP_destroy_ioreq_server`. Does not disclaim: the owner's pages stay behind, stuck.
    ///
    /// # Errors
    /// `NoSuchServer`.
    fn destroy_server(&self, id: ServerId) -> Result<()>;

    /// `XEN_DMOP_set_ioreq_server_state`. Enabling an enabled server pauses and unpauses the domain and changes nothing
    /// else: when it returns no vCPU is in the middle of re-executing an answered access.
    ///
    /// # Errors
    /// `NoSuchServer`.
    fn set_server_state(&self, id: ServerId, enabled: bool) -> Result<()>;

    /// `XEN_DMOP_get_ioreq_server_info`, with the no_gfns flag.
    ///
    /// # Errors
    /// `NoSuchServer`.
    fn server_info(&self, id: ServerId) -> Result<ServerInfo>;

    /// `XEN_DMOP_map_io_range_to_ioreq_server`.
    ///
    /// # Errors
    /// `RangeExists` (EEXIST), `TooManyRanges` (ENOMEM, 256 disjoint ranges a type), `NoSuchServer`.
    fn map_range(&self, id: ServerId, range: IoRange) -> Result<()>;

    /// `XEN_DMOP_unmap_io_range_from_ioreq_server`.
    ///
    /// # Errors
    /// `NoSuchRange` (ENOENT) if it is not wholly mapped, `NoSuchServer`.
    fn unmap_range(&self, id: ServerId, range: IoRange) -> Result<()>;

    /// The ioreq page (resource frame 1): a slot per vCPU.
    ///
    /// # Errors
    /// `NoSuchServer`.
    fn ioreq_page(&self, id: ServerId) -> Result<SharedPage>;

    /// The buffered page (resource frame 0).
    ///
    /// # Errors
    /// ENOENT for a server created without one.
    fn buffered_page(&self, id: ServerId) -> Result<SharedPage>;

    /// A new handle on event channels; each worker has its own.
    ///
    /// # Errors
    /// When the kernel refuses (limits, permissions).
    fn open_events(&self) -> Result<Self::Events>;

    /// What has become of the domain. Cheap enough for a call every few milliseconds.
    ///
    /// # Errors
    /// Only if it cannot be told; a domain that is gone is `Ok(DomainState::Gone)`.
    fn domain_state(&self) -> Result<DomainState>;
}
