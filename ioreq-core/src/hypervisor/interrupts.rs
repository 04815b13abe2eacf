// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts and events into the guest.

use crate::Result;
use crate::error::{Error, ErrorKind, Op};
use crate::ids::{Sbdf, VcpuId};

/// A PCI interrupt pin.
///
/// ```
/// use ioreq_core::hypervisor::Intx;
/// assert_eq!(Intx::B as u8, 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Intx {
    /// INTA#
    A = 0,
    /// INTB#
    B = 1,
    /// INTC#
    C = 2,
    /// INTD#
    D = 3,
}

/// An event to inject into a vCPU (`XEN_DMOP_inject_event`).
///
/// ```
/// use ioreq_core::hypervisor::InjectedEvent;
/// let page_fault = InjectedEvent { vector: 14, kind: 3, error_code: Some(2), insn_len: 0, cr2: 0x1000 };
/// assert_eq!(page_fault.vector, 14);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InjectedEvent {
    /// Interrupt vector.
    pub vector: u8,
    /// `X86_EVENTTYPE_*`: 0 external interrupt, 2 NMI, 3 hardware exception, 4–6 software.
    pub kind: u8,
    /// Error code, for exceptions that have one.
    pub error_code: Option<u32>,
    /// Length of the instruction, for software events.
    pub insn_len: u8,
    /// Faulting address, for page faults.
    pub cr2: u64,
}

/// Interrupts and events to the guest. Callable from any thread, handlers included.
///
/// ```
/// use ioreq_core::Interrupts;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// /// A device needs to know no more of the hypervisor than this.
/// fn edge(line: &dyn Interrupts) -> ioreq_core::Result<()> {
///     line.set_isa_irq(4, true)?;
///     line.set_isa_irq(4, false)
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// edge(&domain.hypervisor())?;
/// assert!(domain.hypervisor().set_isa_irq(16, true).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Interrupts: Send + Sync + 'static {
    /// `XEN_DMOP_set_pci_intx_level`: the level of a function's interrupt pin.
    ///
    /// # Errors
    /// As the hypervisor says; `InvalidArgument` for a segment other than 0.
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()>;

    /// `XEN_DMOP_set_isa_irq_level`: the level of an ISA interrupt line, 0–15.
    ///
    /// # Errors
    /// `InvalidArgument` for a line above 15.
    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()>;

    /// `XEN_DMOP_inject_msi`: a message-signalled interrupt, as the guest programmed it.
    ///
    /// # Errors
    /// As the hypervisor says.
    fn inject_msi(&self, addr: u64, data: u32) -> Result<()>;

    /// `XEN_DMOP_set_pci_link_route`: which ISA line a PCI link (0–3) goes to; 0 disconnects.
    ///
    /// # Errors
    /// `InvalidArgument` for a link above 3 or a line above 15; `NotSupported` by default.
    fn set_pci_link_route(&self, _link: u8, _irq: u8) -> Result<()> {
        Err(Error::new(Op::SetPciLinkRoute, ErrorKind::NotSupported))
    }

    /// `XEN_DMOP_set_irq_level` (Arm): the level of an SPI.
    ///
    /// # Errors
    /// `NotSupported` by default.
    fn set_irq_level(&self, _irq: u32, _asserted: bool) -> Result<()> {
        Err(Error::new(Op::SetIrqLevel, ErrorKind::NotSupported))
    }

    /// `XEN_DMOP_inject_event`: an event into one vCPU, which has room for one at a time.
    ///
    /// # Errors
    /// `Busy` (EBUSY) until the vCPU has taken the last one, `InvalidArgument` for a vCPU that does not exist. `NotSupported` by
    /// default.
    fn inject_event(&self, _vcpu: VcpuId, _event: InjectedEvent) -> Result<()> {
        Err(Error::new(Op::InjectEvent, ErrorKind::NotSupported))
    }
}
