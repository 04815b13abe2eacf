// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vCPU: guest instructions, and Xen's emulation of those that leave the guest.
//!
//! The files follow Xen's: `io` is `hvmemul_do_io` with `ioreq_send` and `wait_for_io`; `linear` is the MMIO cache, by which
//! an instruction that is executed again finds what it did before; `execute` is the loop around both.

mod atomic;
mod execute;
mod io;
mod linear;
mod memory;
mod port;
mod request;
mod string;

use std::fmt;
use std::sync::Arc;

use ioreq_core::abi::Ioreq;
use ioreq_core::{ShutdownReason, VcpuId};

use crate::domain::{Domain, DomainInner};
use crate::fate::{StopReason, StuckReason};
use crate::servers::{CachedTable, Entry};
use crate::vcpu::Vcpu;
use linear::MmioCache;

/// A vCPU in the hands of a guest program: it executes instructions, by guest-physical address (paging is off).
///
/// Accesses of plain RAM go straight to guest memory. What leaves the guest goes the way it goes on Xen: the request is put
/// into the vCPU's slot, the device model answers, the instruction is executed again. Every instruction returns an error
/// when the vCPU faults or its domain is over; a program hands that on with `?`.
///
/// ```
/// use ioreq_core::VcpuId;
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let mut cpu = domain.cpu(VcpuId(0))?;
/// cpu.store64(0x1ffc, 0x1122_3344_5566_7788)?; // across two pages
/// assert_eq!(cpu.load32(0x2000)?, 0x1122_3344);
/// assert_eq!(cpu.lock_add(0x2000, ioreq_core::Width::B4, 1)?, 0x1122_3344);
/// assert_eq!(cpu.load32(0xf000_0000)?, u32::MAX); // nobody's MMIO
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Cpu {
    domain: Arc<DomainInner>,
    vcpu: Arc<Vcpu>,
    emu: Box<EmulatorState>,
    table: CachedTable,
    /// The direction flag.
    df: bool,
    /// Keeps the domain while the vCPU is used on a thread of the caller's.
    keep: Option<Domain>,
}

/// What Xen keeps for a vCPU between two passes over an instruction (`vcpu_io`, `hvm_vcpu_io`).
#[derive(Debug, Default)]
pub(crate) struct EmulatorState {
    latch: Latch,
    /// Servers that hold a request of this vCPU, in the order Xen waits for them.
    pending: Vec<Arc<Entry>>,
    /// `mmio_cache`.
    mmio: Vec<MmioCache>,
    /// What this instruction has read from RAM (`hvmemul_cache`): address, value.
    reads: Vec<(u64, u64)>,
    /// `mmio_gla`: the page that the instruction's first MMIO access went to, and whether it wrote.
    known_page: Option<(u64, bool)>,
    /// This is not the first pass.
    again: bool,
    /// Why a retry without a request cannot end by itself.
    stuck: Option<StuckReason>,
}

impl EmulatorState {
    /// Lets go of the servers that hold a request.
    pub(crate) fn forget_requests(&mut self) {
        self.pending.clear();
    }
}

/// `vio->req`: the I/O of the instruction that is under way.
#[derive(Debug, Default)]
struct Latch {
    state: LatchState,
    req: Ioreq,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LatchState {
    #[default]
    Idle,
    /// With a device model.
    Sent,
    /// Answered; the instruction must come back for it.
    Answered,
}

/// What emulation ends with, other than done (`X86EMUL_*`).
#[derive(Debug)]
enum Emul {
    /// Once more, when the request is answered or whatever keeps it is gone.
    Retry,
    /// Cannot be emulated.
    Unhandleable,
    /// The vCPU does not run any more.
    Stop(StopReason),
}

impl Cpu {
    pub(crate) fn new(
        domain: &Arc<DomainInner>,
        vcpu: &Arc<Vcpu>,
        emu: Box<EmulatorState>,
    ) -> Self {
        Cpu {
            domain: Arc::clone(domain),
            vcpu: Arc::clone(vcpu),
            emu,
            table: CachedTable::default(),
            df: false,
            keep: None,
        }
    }

    pub(crate) fn keep(&mut self, domain: Domain) {
        self.keep = Some(domain);
    }

    pub(crate) fn vcpu(&self) -> &Arc<Vcpu> {
        &self.vcpu
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.vcpu.id
    }

    /// The direction flag: whether string instructions step downward.
    #[must_use]
    pub fn df(&self) -> bool {
        self.df
    }

    /// Sets (`std`) or clears (`cld`) the direction flag.
    pub fn set_df(&mut self, down: bool) {
        self.df = down;
    }

    /// The guest shuts its domain down. Instructions after it fail.
    pub fn shutdown(&mut self, reason: ShutdownReason) {
        self.domain.shut_down(reason);
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.vcpu.gate.leave();
        self.vcpu.park(std::mem::take(&mut self.emu));
        // It may have been destroyed since: then whoever destroyed it has found nothing parked.
        if self.domain.is_destroyed() {
            self.vcpu.forget_requests();
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("domain", &self.domain.domid)
            .field("vcpu", &self.vcpu.id)
            .field("df", &self.df)
            .finish_non_exhaustive()
    }
}
