// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts and events into the guest.

use ioreq_core::abi::dm_op::{
    InjectEvent, InjectMsi, SetIrqLevel, SetIsaIrqLevel, SetPciIntxLevel, SetPciLinkRoute,
};
use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{Op, Result, Sbdf, VcpuId};

use super::DeviceModel;

/// Last ISA line.
const LAST_ISA_IRQ: u8 = 15;

impl DeviceModel {
    /// `XEN_DMOP_set_pci_intx_level`: the level of a function's pin. All functions of a device share its pins.
    ///
    /// # Errors
    /// `InvalidArgument` for a function outside bus 0 of segment 0: Xen has no other.
    pub fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        if function.segment() != 0 || function.bus() != 0 {
            let why = format!("{function}: interrupt pins are on bus 0000:00 only");
            return Err(self.refuse(Op::SetPciIntx, why));
        }
        let op = SetPciIntxLevel {
            domain: function.segment(),
            bus: function.bus(),
            device: function.device(),
            intx: pin as u8,
            level: asserted.into(),
        };
        self.call(Op::SetPciIntx, &op)
            .map(drop)
            .map_err(|err| err.about(function.to_string()))
    }

    /// `XEN_DMOP_set_isa_irq_level`: the level of an ISA line.
    ///
    /// Only for domains with an emulated PIC, which everything but a bare test domain has: without one (emulation flags
    /// that are the local APIC alone), Xen (4.17.7, 4.20.5-pre) overwrites a pointer of its own, and panics at the next use of it.
    ///
    /// # Errors
    /// `InvalidArgument` for a line above 15.
    pub fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        if irq > LAST_ISA_IRQ {
            return Err(self.refuse(Op::SetIsaIrq, format!("ISA line {irq}: 0 to 15 exist")));
        }
        let op = SetIsaIrqLevel {
            isa_irq: irq,
            level: asserted.into(),
        };
        self.call(Op::SetIsaIrq, &op)
            .map(drop)
            .map_err(|err| err.about(format!("ISA line {irq}")))
    }

    /// `XEN_DMOP_set_pci_link_route`: the ISA line of a PCI link; 0 disconnects.
    ///
    /// # Errors
    /// `InvalidArgument` for a link above 3 or a line above 15.
    pub fn set_pci_link_route(&self, link: u8, irq: u8) -> Result<()> {
        let what = format!("PCI link {link} to ISA line {irq}");
        if link > 3 || irq > LAST_ISA_IRQ {
            let why = format!("{what}: links 0 to 3 and lines 0 to 15 exist");
            return Err(self.refuse(Op::SetPciLinkRoute, why));
        }
        let op = SetPciLinkRoute { link, isa_irq: irq };
        self.call(Op::SetPciLinkRoute, &op)
            .map(drop)
            .map_err(|err| err.about(what))
    }

    /// `XEN_DMOP_inject_msi`: a message-signalled interrupt, as the guest programmed it.
    ///
    /// # Errors
    /// As the hypervisor says.
    pub fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        let op = InjectMsi { data, pad: 0, addr };
        self.call(Op::InjectMsi, &op)
            .map(drop)
            .map_err(|err| err.about(format!("message {data:#x} to {addr:#x}")))
    }

    /// `XEN_DMOP_inject_event`: an event into one vCPU.
    ///
    /// # Errors
    /// `InvalidArgument` for a vCPU that does not exist; `Busy` while it has an event pending.
    pub fn inject_event(&self, vcpu: VcpuId, event: InjectedEvent) -> Result<()> {
        let op = InjectEvent {
            vcpuid: vcpu.0,
            vector: event.vector,
            kind: event.kind,
            insn_len: event.insn_len,
            pad0: 0,
            error_code: event.error_code.unwrap_or(u32::MAX),
            pad1: 0,
            cr2: event.cr2,
        };
        self.call(Op::InjectEvent, &op)
            .map(drop)
            .map_err(|err| err.about(vcpu.to_string()))
    }

    /// `XEN_DMOP_set_irq_level` (Arm): the level of a shared peripheral interrupt.
    ///
    /// # Errors
    /// `NotSupported` on x86, as Xen says.
    pub fn set_irq_level(&self, irq: u32, asserted: bool) -> Result<()> {
        let op = SetIrqLevel {
            irq,
            level: asserted.into(),
            pad: [0; 3],
        };
        self.call(Op::SetIrqLevel, &op)
            .map(drop)
            .map_err(|err| err.about(format!("SPI {irq}")))
    }
}
