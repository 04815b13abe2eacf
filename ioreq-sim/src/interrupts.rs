// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts that device models inject.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{Sbdf, VcpuId};

/// Injections that the log keeps; older ones go.
const LOG: usize = 1 << 16;

/// One injection.
///
/// ```
/// use ioreq_core::Interrupts;
/// use ioreq_sim::{DomainConfig, Injected, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// domain.hypervisor().inject_msi(0xfee0_0000, 0x41)?;
/// assert_eq!(domain.injected(), [Injected::Msi { addr: 0xfee0_0000, data: 0x41 }]);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Injected {
    /// An interrupt pin's level was set.
    Intx {
        /// The function.
        function: Sbdf,
        /// The pin.
        pin: Intx,
        /// The level.
        asserted: bool,
    },
    /// An ISA line's level was set.
    Isa {
        /// The line.
        irq: u8,
        /// The level.
        asserted: bool,
    },
    /// A message-signalled interrupt.
    Msi {
        /// Its address; bits 19:12 name the target's APIC id, twice the vCPU's number.
        addr: u64,
        /// Its data; bits 7:0 are the vector.
        data: u32,
    },
    /// A PCI link was routed.
    LinkRoute {
        /// The link.
        link: u8,
        /// The ISA line, 0 for none.
        irq: u8,
    },
    /// An event for one vCPU.
    Event {
        /// The vCPU.
        vcpu: VcpuId,
        /// The event.
        event: InjectedEvent,
    },
}

impl Injected {
    /// Which vCPU's turn it is to notice; `None` for what interrupts nobody.
    pub(crate) fn target(&self, vcpus: u32) -> Option<u32> {
        match *self {
            Injected::Intx { asserted, .. } | Injected::Isa { asserted, .. } => {
                asserted.then_some(0)
            }
            Injected::Msi { addr, .. } => {
                let apic = u32::try_from(addr >> 12 & 0xff).unwrap_or(0);
                Some(if apic / 2 < vcpus { apic / 2 } else { 0 })
            }
            Injected::LinkRoute { .. } => None,
            Injected::Event { vcpu, .. } => Some(vcpu.0),
        }
    }
}

/// What was injected, in order.
#[derive(Debug, Default)]
pub(crate) struct InterruptLog(Mutex<VecDeque<Injected>>);

impl InterruptLog {
    pub(crate) fn push(&self, injected: Injected) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG {
            log.pop_front();
        }
        log.push_back(injected);
    }

    pub(crate) fn all(&self) -> Vec<Injected> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().copied().collect()
    }
}
