// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The type 0 header (PCI Local Bus 3.0, section 6.1; register names as in Linux' `pci_regs.h`).

use ioreq_core::Result;
use ioreq_core::hypervisor::Intx;

use super::config::{ConfigSpace, bad};

pub(super) const COMMAND: usize = 0x04;
pub(super) const STATUS: usize = 0x06;
pub(super) const BARS: usize = 0x10;
/// First byte after the six BARs.
pub(super) const BARS_END: usize = 0x28;
pub(super) const CAPABILITIES: usize = 0x34;
/// First byte after the header.
pub(super) const HEADER_END: usize = 0x40;

/// Command: decode I/O BARs.
pub(super) const COMMAND_IO: u16 = 1 << 0;
/// Command: decode memory BARs.
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may master the bus, which includes sending MSIs.
pub(super) const COMMAND_MASTER: u16 = 1 << 2;
/// Command: does not drive its interrupt pin.
pub(super) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Parity error response, SERR#: stored, for the guest to read back.
const COMMAND_STORED: u16 = 1 << 6 | 1 << 8;

/// Status: the interrupt pin's level, before it is disabled.
pub(super) const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status: the errors that the guest clears by writing 1: parity detected, SERR# sent, master abort, target abort received
/// and sent, parity reported.
pub(super) const STATUS_ERRORS: u16 = 1 << 15 | 1 << 14 | 1 << 13 | 1 << 12 | 1 << 11 | 1 << 8;

const MULTI_FUNCTION: u8 = 1 << 7;

/// What a function says of itself.
///
/// ```
/// use ioreq_backends::pci::Header;
/// let vga = Header::new(0x8086, 0x1916)
///     .class(0x03, 0x00, 0x00) // display, VGA compatible
///     .revision(0x07)
///     .subsystem(0x8086, 0x2212);
/// # let _ = vga;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Header {
    vendor: u16,
    device: u16,
    revision: u8,
    class: [u8; 3],
    subsystem: (u16, u16),
    multi_function: bool,
}

impl Header {
    /// A function of this vendor and device id: class "other" (0xff), everything else 0.
    pub const fn new(vendor: u16, device: u16) -> Self {
        Header {
            vendor,
            device,
            revision: 0,
            class: [0, 0, 0xff],
            subsystem: (0, 0),
            multi_function: false,
        }
    }

    /// The class: base class, subclass, programming interface.
    pub const fn class(mut self, base: u8, sub: u8, interface: u8) -> Self {
        self.class = [interface, sub, base];
        self
    }

    /// The revision.
    pub const fn revision(mut self, revision: u8) -> Self {
        self.revision = revision;
        self
    }

    /// Subsystem vendor and subsystem id.
    pub const fn subsystem(mut self, vendor: u16, id: u16) -> Self {
        self.subsystem = (vendor, id);
        self
    }

    /// There are other functions in the same slot: function 0 must say so, or guests do not look for them.
    pub const fn multi_function(mut self) -> Self {
        self.multi_function = true;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        // What Linux' pci_bus_generic_read_dev_vendor_id takes for an empty slot.
        let absent =
            self.vendor == 0xffff || (self.vendor == 0 && matches!(self.device, 0 | 0xffff));
        if absent {
            return Err(bad(format!(
                "PCI id {:04x}:{:04x}: guests take that for an empty slot",
                self.vendor, self.device
            )));
        }
        Ok(())
    }

    /// Defines the header's registers, BARs and capability pointer excepted.
    pub(super) fn define(&self, config: &mut ConfigSpace, pin: Option<Intx>, decodes: u16) {
        let command = COMMAND_STORED | COMMAND_MASTER | decodes;
        let command = command
            | if pin.is_some() {
                COMMAND_INTX_DISABLE
            } else {
                0
            };
        let pin = pin.map_or(0, |pin| pin as u8 + 1);
        let kind = if self.multi_function {
            MULTI_FUNCTION
        } else {
            0
        };

        let mut ro = |at, bytes: &[u8]| config.define(at, bytes, &[], &[]);
        ro(0x00, &self.vendor.to_le_bytes());
        ro(0x02, &self.device.to_le_bytes());
        ro(0x08, &[self.revision]);
        ro(0x09, &self.class);
        ro(0x0e, &[kind]);
        ro(0x2c, &self.subsystem.0.to_le_bytes());
        ro(0x2e, &self.subsystem.1.to_le_bytes());
        ro(0x3d, &[pin]);
        config.define(COMMAND, &[0; 2], &command.to_le_bytes(), &[]);
        config.define(STATUS, &[0; 2], &[], &STATUS_ERRORS.to_le_bytes());
        // Cache line size, latency timer, interrupt line: stored, for the guest to read back.
        config.define(0x0c, &[0; 2], &[0xff; 2], &[]);
        config.define(0x3c, &[0], &[0xff], &[]);
    }

    /// Says that there is a list of capabilities, and where it starts.
    pub(super) fn define_capabilities(config: &mut ConfigSpace, first: u8) {
        let status = STATUS_CAPABILITIES.to_le_bytes();
        config.define(STATUS, &status, &[], &STATUS_ERRORS.to_le_bytes());
        config.define(CAPABILITIES, &[first], &[], &[]);
    }
}
