// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What happened how often, for tests.

use std::sync::atomic::{AtomicU64, Ordering};

use ioreq_core::Op;
use ioreq_core::abi;

/// Numbers of `xen_dm_op` are below this.
const OPS: usize = 24;

/// How often a domain's things happened since it was created.
///
/// ```
/// use ioreq_core::{BufIoreq, Op, Transport};
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// domain.hypervisor().create_server(BufIoreq::Off)?;
/// assert_eq!(domain.counts().dmop(Op::CreateServer), 1);
/// assert_eq!(domain.counts().sent(), 0);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    ops: [u64; OPS],
    /// Port requests sent.
    pub port: u64,
    /// MMIO and tracked-page requests sent.
    pub mmio: u64,
    /// PCI configuration requests sent.
    pub pci: u64,
    /// TIMEOFFSET requests put into rings.
    pub time_offset: u64,
    /// INVALIDATE requests sent.
    pub invalidate: u64,
    /// Requests put into buffered rings, TIMEOFFSET included.
    pub buffered: u64,
    /// Accesses that left the guest, with or without a request.
    pub exits: u64,
    /// Instructions executed again after an answer.
    pub reexecutions: u64,
    /// Notifications by device models.
    pub notifies: u64,
}

impl Counts {
    /// How often a DMOP was called, failed calls included. Claims and disclaims count as one operation.
    #[must_use]
    pub fn dmop(&self, op: Op) -> u64 {
        number(op)
            .and_then(|n| self.ops.get(n).copied())
            .unwrap_or(0)
    }

    /// DMOPs of all kinds.
    #[must_use]
    pub fn dmops(&self) -> u64 {
        self.ops.iter().sum()
    }

    /// Requests sent through slots.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.port + self.mmio + self.pci + self.invalidate
    }
}

/// The DMOP's number in `dm_op.h`.
fn number(op: Op) -> Option<usize> {
    Some(match op {
        Op::CreateServer => 1,
        Op::ServerInfo => 2,
        Op::MapRange => 3,
        Op::UnmapRange => 4,
        Op::SetServerState => 5,
        Op::DestroyServer => 6,
        Op::SetPciIntx => 8,
        Op::SetIsaIrq => 9,
        Op::SetPciLinkRoute => 10,
        Op::ModifiedMemory => 11,
        Op::SetMemType => 12,
        Op::InjectEvent => 13,
        Op::InjectMsi => 14,
        Op::ClaimMemType | Op::DisclaimMemType => 15,
        Op::VcpuCount => 20,
        _ => return None,
    })
}

/// Counted by device models' threads.
#[derive(Debug, Default)]
pub(crate) struct ModelCounts {
    ops: [AtomicU64; OPS],
    pub(crate) notifies: AtomicU64,
}

impl ModelCounts {
    pub(crate) fn count(&self, op: u32) {
        if let Some(counter) = self.ops.get(op as usize) {
            // Relaxed, as every counter here: numbers that order nothing.
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counted by one vCPU: plain loads and stores, since nobody else writes them.
#[derive(Debug, Default)]
pub(crate) struct VcpuCounts {
    kinds: [AtomicU64; 9],
    pub(crate) buffered: AtomicU64,
    pub(crate) exits: AtomicU64,
    pub(crate) reexecutions: AtomicU64,
}

/// Adds one to a counter that only the calling thread writes.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl VcpuCounts {
    pub(crate) fn sent(&self, kind: u8) {
        if let Some(counter) = self.kinds.get(usize::from(kind)) {
            bump(counter);
        }
    }
}

/// The sum over a domain.
pub(crate) fn total<'a>(
    model: &ModelCounts,
    vcpus: impl IntoIterator<Item = &'a VcpuCounts>,
) -> Counts {
    let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let mut sum = Counts {
        notifies: load(&model.notifies),
        ..Counts::default()
    };
    for (to, from) in sum.ops.iter_mut().zip(&model.ops) {
        *to = load(from);
    }
    for vcpu in vcpus {
        let kind = |k: u8| vcpu.kinds.get(usize::from(k)).map_or(0, load);
        sum.port += kind(abi::IOREQ_TYPE_PIO);
        sum.mmio += kind(abi::IOREQ_TYPE_COPY);
        sum.pci += kind(abi::IOREQ_TYPE_PCI_CONFIG);
        sum.time_offset += kind(abi::IOREQ_TYPE_TIMEOFFSET);
        sum.invalidate += kind(abi::IOREQ_TYPE_INVALIDATE);
        sum.buffered += load(&vcpu.buffered);
        sum.exits += load(&vcpu.exits);
        sum.reexecutions += load(&vcpu.reexecutions);
    }
    sum
}
