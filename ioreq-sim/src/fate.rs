// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why things end: domains that crash, vCPUs that stop, a hypervisor that panics.

use std::fmt;

use ioreq_core::{Gfn, ServerId, ShutdownReason, VcpuId};

/// Why Xen crashed a domain. The text names the place in Xen's source.
///
/// ```
/// use ioreq_core::{ServerId, VcpuId};
/// use ioreq_sim::CrashReason;
/// let reason = CrashReason::UnknownState { server: ServerId(0), vcpu: VcpuId(1), state: 9 };
/// assert!(reason.to_string().contains("state 9"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashReason {
    /// The device model moved a slot's state backward.
    BackwardState {
        /// Whose slot.
        server: ServerId,
        /// Which slot.
        vcpu: VcpuId,
        /// State seen before.
        from: u8,
        /// State seen now.
        to: u8,
    },
    /// The device model set a state that does not exist.
    UnknownState {
        /// Whose slot.
        server: ServerId,
        /// Which slot.
        vcpu: VcpuId,
        /// The state.
        state: u8,
    },
    /// A vCPU started another I/O while the answer to an earlier one was still latched: the earlier instruction found
    /// its page changed when it was re-executed and never consumed its answer.
    AnswerNotConsumed {
        /// The vCPU.
        vcpu: VcpuId,
        /// Address or port of the I/O whose answer is latched.
        latched: u64,
        /// Address or port of the I/O that came.
        came: u64,
    },
    /// A port access that no device model could be given: the slot was in use, or its vp_eport was wrong.
    UnhandledPort {
        /// The vCPU.
        vcpu: VcpuId,
        /// The port.
        port: u16,
    },
    /// A re-executed store had other data than before.
    OperandChanged {
        /// The vCPU.
        vcpu: VcpuId,
        /// Guest-physical address.
        addr: u64,
    },
    /// A string instruction's memory operand turned out to be MMIO.
    OperandNotRam {
        /// The vCPU.
        vcpu: VcpuId,
        /// Guest-physical address.
        addr: u64,
    },
    /// A test asked for it.
    Requested,
}

impl fmt::Display for CrashReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CrashReason::BackwardState {
                server,
                vcpu,
                from,
                to,
            } => write!(
                f,
                "ioreq.c wait_for_io: weird ioreq state transition {from} -> {to} on {server} {vcpu}"
            ),
            CrashReason::UnknownState {
                server,
                vcpu,
                state,
            } => write!(
                f,
                "ioreq.c wait_for_io: weird ioreq state {state} on {server} {vcpu}"
            ),
            CrashReason::AnswerNotConsumed {
                vcpu,
                latched,
                came,
            } => write!(
                f,
                "emulate.c hvmemul_do_io: {vcpu} accesses {came:#x} while the answer for {latched:#x} is not consumed"
            ),
            CrashReason::UnhandledPort { vcpu, port } => {
                write!(
                    f,
                    "io.c handle_pio: unexpected PIO status, port {port:#x}, {vcpu}"
                )
            }
            CrashReason::OperandChanged { vcpu, addr } => write!(
                f,
                "emulate.c hvmemul_phys_mmio_access: {vcpu} re-executed a store to {addr:#x} with other data"
            ),
            CrashReason::OperandNotRam { vcpu, addr } => write!(
                f,
                "emulate.c hvmemul_acquire_page: operand {addr:#x} of {vcpu} is not RAM"
            ),
            CrashReason::Requested => f.write_str("crashed by request"),
        }
    }
}

/// Why a vCPU can do nothing more.
///
/// ```
/// use ioreq_sim::StopReason;
/// assert_eq!(StopReason::Destroyed.to_string(), "the domain was destroyed");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// Xen crashed the domain.
    Crashed(CrashReason),
    /// Xen itself panicked: everything on the machine is over.
    HypervisorPanic(String),
    /// The domain was destroyed.
    Destroyed,
    /// The domain shut down.
    Shutdown(ShutdownReason),
    /// A deterministic schedule gave up: nobody could go on.
    Abandoned,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::Crashed(reason) => write!(f, "the domain crashed: {reason}"),
            StopReason::HypervisorPanic(reason) => write!(f, "hypervisor panic: {reason}"),
            StopReason::Destroyed => f.write_str("the domain was destroyed"),
            StopReason::Shutdown(reason) => write!(f, "the domain shut down: {reason:?}"),
            StopReason::Abandoned => f.write_str("the schedule ended: nobody could go on"),
        }
    }
}

/// Why a vCPU is stuck: it loops in an instruction that cannot complete.
///
/// ```
/// use ioreq_core::Gfn;
/// use ioreq_sim::StuckReason;
/// assert!(StuckReason::NoOwner { gfn: Gfn(1) }.to_string().contains("gfn 0x1"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StuckReason {
    /// It writes a page of a type whose owner was destroyed. Setting the page to ram_rw frees it.
    NoOwner {
        /// The page.
        gfn: Gfn,
    },
    /// It fetches instructions from a tracked page. Setting the page to ram_rw frees it.
    Fetch {
        /// The page.
        gfn: Gfn,
    },
    /// The server was destroyed while it had this vCPU's request. Nothing frees it.
    ServerDestroyed {
        /// The server.
        server: ServerId,
    },
}

impl fmt::Display for StuckReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StuckReason::NoOwner { gfn } => {
                write!(f, "writes {gfn}, whose memory type has no owner any more")
            }
            StuckReason::Fetch { gfn } => write!(f, "fetches instructions from tracked {gfn}"),
            StuckReason::ServerDestroyed { server } => {
                write!(f, "{server} was destroyed with its request in flight")
            }
        }
    }
}

/// What a guest instruction can end with, other than its result.
///
/// ```
/// use ioreq_sim::CpuFault;
/// let fault = CpuFault::GeneralProtection { addr: 0x1000 };
/// assert_eq!(fault.to_string(), "#GP in an access to 0x1000");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuFault {
    /// Xen could not emulate the access and injected #GP. The vCPU can go on.
    #[error("#GP in an access to {addr:#x}")]
    GeneralProtection {
        /// Address of the access.
        addr: u64,
    },
    /// The vCPU is stopped for good.
    #[error("{0}")]
    Stopped(StopReason),
}

/// Why a guest program did not return a value.
///
/// ```
/// use ioreq_sim::{CrashReason, VcpuExit};
/// let exit = VcpuExit::DomainCrashed { reason: CrashReason::Requested };
/// assert_eq!(exit.to_string(), "the domain crashed: crashed by request");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuExit {
    /// The program ended with a fault of its own.
    #[error("unhandled guest fault: {0}")]
    Fault(CpuFault),
    /// Xen crashed the domain.
    #[error("the domain crashed: {reason}")]
    DomainCrashed {
        /// Why.
        reason: CrashReason,
    },
    /// Xen panicked.
    #[error("hypervisor panic: {reason}")]
    HypervisorPanic {
        /// Why.
        reason: String,
    },
    /// The domain was destroyed.
    #[error("the domain was destroyed")]
    DomainDestroyed,
    /// The domain shut down before the program was done.
    #[error("the domain shut down: {0:?}")]
    DomainShutdown(ShutdownReason),
    /// The vCPU is stuck; its thread ends with the domain.
    #[error("the vCPU is stuck: it {0}")]
    Stuck(StuckReason),
    /// The schedule ended before the program was done: nobody could go on.
    #[error("the schedule ended before the program: nobody could go on")]
    Abandoned,
    /// The guest program panicked (a bug in the test, not in the device model).
    #[error("the guest program panicked: {0}")]
    Panicked(String),
}

impl From<CpuFault> for VcpuExit {
    fn from(fault: CpuFault) -> Self {
        match fault {
            CpuFault::Stopped(reason) => reason.into(),
            fault => VcpuExit::Fault(fault),
        }
    }
}

impl From<StopReason> for VcpuExit {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Crashed(reason) => VcpuExit::DomainCrashed { reason },
            StopReason::HypervisorPanic(reason) => VcpuExit::HypervisorPanic { reason },
            StopReason::Destroyed => VcpuExit::DomainDestroyed,
            StopReason::Shutdown(reason) => VcpuExit::DomainShutdown(reason),
            StopReason::Abandoned => VcpuExit::Abandoned,
        }
    }
}
