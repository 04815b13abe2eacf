// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts on their way from a device to the hypervisor.

use std::fmt;
use std::sync::Arc;

use ioreq_core::hypervisor::{InjectedEvent, Interrupts, Intx};
use ioreq_core::{Result, Sbdf, VcpuId};
use serde::{Deserialize, Serialize};

use crate::tape::Inner;

/// What a device told the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Interrupt {
    Pci {
        function: u32,
        pin: u8,
        asserted: bool,
    },
    Isa {
        irq: u8,
        asserted: bool,
    },
    Msi {
        addr: u64,
        data: u32,
    },
    Link {
        link: u8,
        irq: u8,
    },
    Level {
        irq: u32,
        asserted: bool,
    },
    Event {
        vcpu: u32,
        vector: u8,
        kind: u8,
        error_code: Option<u32>,
        insn_len: u8,
        cr2: u64,
    },
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = |asserted: &bool| if *asserted { "up" } else { "down" };
        match self {
            Interrupt::Pci {
                function,
                pin,
                asserted,
            } => write!(f, "pin {pin} of function {function:#x} {}", level(asserted)),
            Interrupt::Isa { irq, asserted } => write!(f, "ISA line {irq} {}", level(asserted)),
            Interrupt::Msi { addr, data } => write!(f, "message {data:#x} to {addr:#x}"),
            Interrupt::Link { link, irq } => write!(f, "link {link} to line {irq}"),
            Interrupt::Level { irq, asserted } => write!(f, "line {irq} {}", level(asserted)),
            Interrupt::Event { vcpu, vector, .. } => write!(f, "event {vector} for v{vcpu}"),
        }
    }
}

/// Passes interrupts on, and tells the tape.
pub(crate) struct Told {
    pub(crate) to: Arc<dyn Interrupts>,
    pub(crate) tape: Arc<Inner>,
}

impl Told {
    fn tell(
        &self,
        interrupt: Interrupt,
        pass_on: impl FnOnce(&dyn Interrupts) -> Result<()>,
    ) -> Result<()> {
        self.tape.signal(interrupt, || pass_on(&*self.to))
    }
}

impl Interrupts for Told {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        let told = Interrupt::Pci {
            function: function.bits(),
            pin: pin as u8,
            asserted,
        };
        self.tell(told, |to| to.set_pci_intx(function, pin, asserted))
    }

    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        let told = Interrupt::Isa { irq, asserted };
        self.tell(told, |to| to.set_isa_irq(irq, asserted))
    }

    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        let told = Interrupt::Msi { addr, data };
        self.tell(told, |to| to.inject_msi(addr, data))
    }

    fn set_pci_link_route(&self, link: u8, irq: u8) -> Result<()> {
        let told = Interrupt::Link { link, irq };
        self.tell(told, |to| to.set_pci_link_route(link, irq))
    }

    fn set_irq_level(&self, irq: u32, asserted: bool) -> Result<()> {
        let told = Interrupt::Level { irq, asserted };
        self.tell(told, |to| to.set_irq_level(irq, asserted))
    }

    fn inject_event(&self, vcpu: VcpuId, event: InjectedEvent) -> Result<()> {
        let told = Interrupt::Event {
            vcpu: vcpu.0,
            vector: event.vector,
            kind: event.kind,
            error_code: event.error_code,
            insn_len: event.insn_len,
            cr2: event.cr2,
        };
        self.tell(told, |to| to.inject_event(vcpu, event))
    }
}
