// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors: which operation, on which domain and server, over which range, with which errno, and what to do.

use std::fmt;

use crate::ids::{DomId, ServerId};
use crate::range::{GfnRange, IoRange, MmioRange, PortRange, RangeError};

/// `Result` with the framework's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The operation that failed; hypervisor operations have the DMOP's name.
///
/// ```
/// assert_eq!(ioreq_core::Op::ClaimMemType.to_string(), "map_mem_type_to_ioreq_server");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// `XEN_DMOP_create_ioreq_server`
    CreateServer,
    /// `XEN_DMOP_get_ioreq_server_info`
    ServerInfo,
    /// `XEN_DMOP_map_io_range_to_ioreq_server`
    MapRange,
    /// `XEN_DMOP_unmap_io_range_from_ioreq_server`
    UnmapRange,
    /// `XEN_DMOP_set_ioreq_server_state`
    SetServerState,
    /// `XEN_DMOP_destroy_ioreq_server`
    DestroyServer,
    /// `XEN_DMOP_map_mem_type_to_ioreq_server` with the write flag
    ClaimMemType,
    /// `XEN_DMOP_map_mem_type_to_ioreq_server` with no flag
    DisclaimMemType,
    /// `XEN_DMOP_set_mem_type`
    SetMemType,
    /// `XENMEM_acquire_resource`
    AcquireResource,
    /// `XEN_DMOP_nr_vcpus`
    VcpuCount,
    /// `XEN_DMOP_modified_memory`
    ModifiedMemory,
    /// `XEN_DMOP_set_pci_intx_level`
    SetPciIntx,
    /// `XEN_DMOP_set_isa_irq_level`
    SetIsaIrq,
    /// `XEN_DMOP_set_pci_link_route`
    SetPciLinkRoute,
    /// `XEN_DMOP_set_irq_level` (Arm)
    SetIrqLevel,
    /// `XEN_DMOP_inject_msi`
    InjectMsi,
    /// `XEN_DMOP_inject_event`
    InjectEvent,
    /// `XEN_DMOP_track_dirty_vram`
    TrackDirtyVram,
    /// `XEN_DMOP_remote_shutdown`
    RemoteShutdown,
    /// `XEN_DMOP_relocate_memory`
    RelocateMemory,
    /// `XEN_DMOP_pin_memory_cacheattr`
    PinCacheAttr,
    /// `HVMOP_get_mem_type`
    GetMemType,
    /// `XENMEM_maximum_gpfn`
    MaximumGpfn,
    /// Opening a device of the hypervisor
    Open,
    /// Recording a server, or taking one over by its record
    TakeOver,
    /// Work that the kernel does in a device model's place (irqfd, ioeventfd)
    KernelOffload,
    /// Giving up the right to reach other domains
    Restrict,
    /// Opening, binding, waiting on, unmasking or notifying event channels
    EventChannel,
    /// Mapping guest memory into this process
    MapGuestMemory,
    /// Reading or writing guest memory
    AccessGuestMemory,
    /// Asking for the domain's state
    DomainState,
    /// Adding, replacing or removing a route
    Route,
    /// Waiting for handlers of retracted routes
    Synchronize,
    /// Marking pages for write tracking
    Mark,
    /// Unmarking pages
    Unmark,
    /// Setting a server up or serving it
    Serve,
    /// Building a value from bad input
    Configure,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::CreateServer => "create_ioreq_server",
            Op::ServerInfo => "get_ioreq_server_info",
            Op::MapRange => "map_io_range_to_ioreq_server",
            Op::UnmapRange => "unmap_io_range_from_ioreq_server",
            Op::SetServerState => "set_ioreq_server_state",
            Op::DestroyServer => "destroy_ioreq_server",
            Op::ClaimMemType => "map_mem_type_to_ioreq_server",
            Op::DisclaimMemType => "map_mem_type_to_ioreq_server (disclaim)",
            Op::SetMemType => "set_mem_type",
            Op::AcquireResource => "acquire_resource",
            Op::VcpuCount => "nr_vcpus",
            Op::ModifiedMemory => "modified_memory",
            Op::SetPciIntx => "set_pci_intx_level",
            Op::SetIsaIrq => "set_isa_irq_level",
            Op::SetPciLinkRoute => "set_pci_link_route",
            Op::SetIrqLevel => "set_irq_level",
            Op::InjectMsi => "inject_msi",
            Op::InjectEvent => "inject_event",
            Op::TrackDirtyVram => "track_dirty_vram",
            Op::RemoteShutdown => "remote_shutdown",
            Op::RelocateMemory => "relocate_memory",
            Op::PinCacheAttr => "pin_memory_cacheattr",
            Op::GetMemType => "get_mem_type",
            Op::MaximumGpfn => "maximum_gpfn",
            Op::Open => "open",
            Op::TakeOver => "take over",
            Op::KernelOffload => "kernel offload",
            Op::Restrict => "restrict",
            Op::EventChannel => "event channel",
            Op::MapGuestMemory => "map guest memory",
            Op::AccessGuestMemory => "access guest memory",
            Op::DomainState => "domain state",
            Op::Route => "route",
            Op::Synchronize => "synchronize",
            Op::Mark => "mark",
            Op::Unmark => "unmark",
            Op::Serve => "serve",
            Op::Configure => "configure",
        })
    }
}

/// What went wrong, for callers that act on it.
///
/// ```
/// use ioreq_core::ErrorKind;
/// assert!(ErrorKind::AlreadyClaimed.advice().contains("disclaim"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another server, or this one, owns the memory type already (EBUSY from a claim).
    AlreadyClaimed,
    /// The domain runs without hardware-assisted paging (EOPNOTSUPP from a claim).
    NoHap,
    /// The server is not in the state the operation needs, e.g. not the owner (EINVAL from a disclaim).
    WrongState,
    /// No ioreq server of that id (ENOENT).
    NoSuchServer,
    /// No such range on the server (ENOENT from an unmap).
    NoSuchRange,
    /// The range, or part of it, is registered already (EEXIST).
    RangeExists,
    /// The caller may not do that to the domain (EPERM).
    NotPermitted,
    /// The server's limit of ranges is reached (ENOMEM; 256 a type).
    TooManyRanges,
    /// The domain's limit of servers is reached (ENOSPC; 8).
    TooManyServers,
    /// Try again (EAGAIN, EINTR).
    Retry,
    /// The domain is gone (ESRCH).
    DomainGone,
    /// Pages of the type are outstanding, log-dirty mode is on, or a vCPU has not taken its last event (EBUSY).
    Busy,
    /// The hypervisor lacks the operation (EOPNOTSUPP, ENOSYS).
    NotSupported,
    /// An argument is wrong (EINVAL), or was found wrong before the call.
    InvalidArgument,
    /// The address is not guest memory.
    BadAddress,
    /// A new route overlaps one that exists.
    RouteConflict,
    /// The route is gone already.
    NoSuchRoute,
    /// Waiting here could never end: a handler asked to wait for handlers.
    WouldDeadlock,
    /// A claim, or another handle on the server, is still alive.
    StillInUse,
    /// The event ring overflowed (EFBIG); recovered by a reset and a scan of every slot.
    EventOverflow,
    /// Another process serves this server now.
    TakenOver,
    /// Bounded work did not finish within its bound; what is left goes on in the background.
    Deferred,
    /// No memory in this process or the hypervisor (ENOMEM).
    OutOfMemory,
    /// Anything else; see the errno.
    Other,
}

impl ErrorKind {
    /// What the caller can do about it.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            ErrorKind::AlreadyClaimed => {
                "one server a domain may own the type; disclaim it there, or take that server over"
            }
            ErrorKind::NoHap => "create the domain with hardware-assisted paging (hap=1)",
            ErrorKind::WrongState => {
                "check that this server owns the type and the page is ordinary RAM"
            }
            ErrorKind::NoSuchServer => "the server was destroyed, or the id is of another domain",
            ErrorKind::NoSuchRange => "unmap exactly what was mapped",
            ErrorKind::RangeExists => "unmap the old range first, or choose another",
            ErrorKind::NotPermitted => {
                "run where the domain may be controlled (dom0 or its stub domain), unrestricted"
            }
            ErrorKind::TooManyRanges => {
                "merge neighbouring ranges, or track pages by memory type instead"
            }
            ErrorKind::TooManyServers => "destroy a server of the domain that is no longer needed",
            ErrorKind::Retry => "call again",
            ErrorKind::DomainGone => "drop this server; a rebooted guest has a new domid",
            ErrorKind::Busy => "unmark all pages before log-dirty mode, or wait until it is off",
            ErrorKind::NotSupported => "this hypervisor does not offer the operation",
            ErrorKind::InvalidArgument => "correct the argument",
            ErrorKind::BadAddress => "use addresses inside guest memory",
            ErrorKind::RouteConflict => "retract the other route first, or choose another range",
            ErrorKind::NoSuchRoute => "the route was retracted before",
            ErrorKind::WouldDeadlock => "call it from a control thread, not from a handler",
            ErrorKind::StillInUse => "drop the claims and handles of the server first",
            ErrorKind::EventOverflow => {
                "nothing: the framework resets the ring and scans the slots"
            }
            ErrorKind::TakenOver => "stop: another process owns the server",
            ErrorKind::Deferred => {
                "nothing: the page stays correct and is tried again in the background"
            }
            ErrorKind::OutOfMemory => "free memory, or work in smaller batches",
            ErrorKind::Other => "see the errno",
        }
    }
}

/// An errno value as the hypervisor or kernel gave it.
///
/// ```
/// use ioreq_core::error::Errno;
/// assert!(Errno(16).to_string().contains("os error 16"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl std::error::Error for Errno {}

/// What the operation was about.
///
/// ```
/// use ioreq_core::{error::Subject, PortRange};
/// let subject = Subject::from(PortRange::new(1, 2)?);
/// assert_eq!(subject.to_string(), "ports 0x1–0x2");
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// An I/O range.
    Io(IoRange),
    /// Guest frames.
    Gfns(GfnRange),
    /// Two ranges in conflict, each with the name of what it belongs to.
    Conflict {
        /// The range that was asked for.
        new: String,
        /// The range that is there.
        existing: String,
    },
    /// Anything else, in words.
    Text(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Io(range) => range.fmt(f),
            Subject::Gfns(range) => range.fmt(f),
            Subject::Conflict { new, existing } => write!(f, "{new} overlaps {existing}"),
            Subject::Text(text) => f.write_str(text),
        }
    }
}

impl From<IoRange> for Subject {
    fn from(range: IoRange) -> Self {
        Subject::Io(range)
    }
}

impl From<GfnRange> for Subject {
    fn from(range: GfnRange) -> Self {
        Subject::Gfns(range)
    }
}

impl From<MmioRange> for Subject {
    fn from(range: MmioRange) -> Self {
        Subject::Io(range.into())
    }
}

impl From<PortRange> for Subject {
    fn from(range: PortRange) -> Self {
        Subject::Io(range.into())
    }
}

impl From<String> for Subject {
    fn from(text: String) -> Self {
        Subject::Text(text)
    }
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Subject::Text(text.into())
    }
}

/// The framework's error. Cheap to return: one pointer.
///
/// ```
/// use ioreq_core::{DomId, Error, ErrorKind, Op, ServerId};
/// let err = Error::from_errno(Op::ClaimMemType, 16).domain(DomId(3)).server(ServerId(1));
/// assert_eq!(err.kind(), ErrorKind::AlreadyClaimed);
/// assert!(err.to_string().starts_with("map_mem_type_to_ioreq_server on d3 ioserv1: "));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    op: Op,
    kind: ErrorKind,
    domid: Option<DomId>,
    server: Option<ServerId>,
    subject: Option<Subject>,
    errno: Option<Errno>,
}

impl Error {
    /// An error found before any call was made.
    #[must_use]
    pub fn new(op: Op, kind: ErrorKind) -> Self {
        Error(Box::new(Inner {
            op,
            kind,
            domid: None,
            server: None,
            subject: None,
            errno: None,
        }))
    }

    /// An error from the hypervisor or kernel. The kind follows from the operation and the errno, as measured on Xen.
    #[must_use]
    pub fn from_errno(op: Op, errno: i32) -> Self {
        let mut err = Self::new(op, kind_of(op, errno));
        err.0.errno = Some(Errno(errno));
        err
    }

    /// The same, from an [`std::io::Error`].
    #[must_use]
    pub fn from_io(op: Op, source: &std::io::Error) -> Self {
        match source.raw_os_error() {
            Some(errno) => Self::from_errno(op, errno),
            None => Self::new(op, ErrorKind::Other).about(source.to_string()),
        }
    }

    /// Names the domain.
    #[must_use]
    pub fn domain(mut self, domid: DomId) -> Self {
        self.0.domid = Some(domid);
        self
    }

    /// Names the server.
    #[must_use]
    pub fn server(mut self, id: ServerId) -> Self {
        self.0.server = Some(id);
        self
    }

    /// Names the range or other subject.
    #[must_use]
    pub fn about(mut self, subject: impl Into<Subject>) -> Self {
        self.0.subject = Some(subject.into());
        self
    }

    /// Names two ranges in conflict, each with what it belongs to.
    #[must_use]
    pub fn conflict(self, new: String, existing: String) -> Self {
        self.about(Subject::Conflict { new, existing })
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Which operation failed.
    #[must_use]
    pub fn op(&self) -> Op {
        self.0.op
    }

    /// The errno, where a call was made.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.0.errno.map(|e| e.0)
    }

    /// The domain, where known.
    #[must_use]
    pub fn domid(&self) -> Option<DomId> {
        self.0.domid
    }

    /// The server, where known.
    #[must_use]
    pub fn server_id(&self) -> Option<ServerId> {
        self.0.server
    }

    /// The range or other subject, where known.
    #[must_use]
    pub fn subject(&self) -> Option<&Subject> {
        self.0.subject.as_ref()
    }
}

/// The kind of an errno, by operation: Xen gives one errno several meanings.
fn kind_of(op: Op, errno: i32) -> ErrorKind {
    match (op, errno) {
        (Op::ClaimMemType, libc::EBUSY) => ErrorKind::AlreadyClaimed,
        (Op::ClaimMemType | Op::DisclaimMemType | Op::SetMemType, libc::EOPNOTSUPP) => {
            ErrorKind::NoHap
        }
        (Op::DisclaimMemType | Op::SetMemType, libc::EINVAL) => ErrorKind::WrongState,
        (Op::MapRange, libc::EEXIST) => ErrorKind::RangeExists,
        (Op::MapRange | Op::UnmapRange, libc::ENOMEM) => ErrorKind::TooManyRanges,
        (Op::UnmapRange, libc::ENOENT) => ErrorKind::NoSuchRange,
        (Op::CreateServer, libc::ENOSPC) => ErrorKind::TooManyServers,
        (Op::EventChannel, libc::EFBIG) => ErrorKind::EventOverflow,
        (Op::EventChannel, libc::ENOTCONN) => ErrorKind::InvalidArgument,
        (Op::Open, libc::ENOENT | libc::ENODEV | libc::ENXIO) => ErrorKind::NotSupported,
        (Op::KernelOffload, libc::ENOTTY) => ErrorKind::NotSupported,
        (Op::TakeOver, libc::ENOENT) => ErrorKind::NoSuchServer,
        (Op::MapGuestMemory, libc::EINVAL | libc::ENOENT) => ErrorKind::BadAddress,
        (_, libc::EBUSY) => ErrorKind::Busy,
        (_, libc::ENOENT) => ErrorKind::NoSuchServer,
        (_, libc::EPERM | libc::EACCES) => ErrorKind::NotPermitted,
        (_, libc::EAGAIN | libc::EINTR) => ErrorKind::Retry,
        (_, libc::ESRCH) => ErrorKind::DomainGone,
        (_, libc::EOPNOTSUPP | libc::ENOSYS) => ErrorKind::NotSupported,
        (_, libc::EINVAL | libc::E2BIG) => ErrorKind::InvalidArgument,
        (_, libc::EFAULT) => ErrorKind::BadAddress,
        (_, libc::ENOMEM) => ErrorKind::OutOfMemory,
        _ => ErrorKind::Other,
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            op,
            kind,
            domid,
            server,
            subject,
            errno,
        } = &*self.0;
        write!(f, "{op}")?;
        if domid.is_some() || server.is_some() {
            f.write_str(" on")?;
        }
        if let Some(domid) = domid {
            write!(f, " {domid}")?;
        }
        if let Some(server) = server {
            write!(f, " {server}")?;
        }
        if let Some(subject) = subject {
            write!(f, ", {subject}")?;
        }
        write!(f, ": {kind:?}")?;
        if let Some(Errno(errno)) = errno {
            write!(f, " (errno {errno})")?;
        }
        write!(f, "; {}", kind.advice())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.errno.as_ref().map(|e| e as _)
    }
}

impl From<RangeError> for Error {
    fn from(err: RangeError) -> Self {
        Error::new(Op::Configure, ErrorKind::InvalidArgument).about(err.to_string())
    }
}
