// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The PCI host bridge: its own function, and the ports of configuration mechanism 1.
//!
//! Xen makes the accesses to configuration space itself, out of what the guest writes to 0xcf8 and does at 0xcfc; a server that has the
//! function gets them as such. What is left of the mechanism is that 0xcf8 can be read back: a guest looks for that first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ioreq::backends::pci::{FunctionInterrupts, Header, PciFunction, Signals};
use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::hypervisor::Interrupts;
use ioreq::routes::Routes;
use ioreq::{PortRange, RangeError, Result, Sbdf, Width};

use crate::power::Power;

const FIRST: u16 = 0xcf8;
const PORTS: u64 = 4;
/// The reset register lies among the ports of the address register, which is 4 bytes or nothing.
const RESET_OFFSET: u64 = 1;

/// Intel's 82441FX, which every guest knows.
const HEADER: Header = Header::new(0x8086, 0x1237).class(0x06, 0x00, 0x00);

/// The ports of the bridge.
#[derive(Debug)]
pub struct HostBridge {
    address: AtomicU32,
    power: Arc<Power>,
}

impl HostBridge {
    /// With the reset register, which is `power`'s.
    #[must_use]
    pub fn new(power: Arc<Power>) -> Self {
        HostBridge {
            address: AtomicU32::new(0),
            power,
        }
    }

    /// Its ports.
    ///
    /// # Errors
    /// None: they are ports.
    pub fn ports() -> std::result::Result<PortRange, RangeError> {
        PortRange::sized(FIRST, PORTS)
    }

    /// The bridge's function.
    ///
    /// # Errors
    /// As [`PciFunction`]'s builder.
    pub fn function(
        at: Sbdf,
        interrupts: Arc<dyn Interrupts>,
        routes: Arc<dyn Routes>,
    ) -> Result<Arc<PciFunction>> {
        let interrupts = FunctionInterrupts::new(at, interrupts, Signals::new())?;
        PciFunction::builder(HEADER, interrupts).build(routes)
    }
}

impl Handler for HostBridge {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        match (access.offset, access.width) {
            // Relaxed: a register.
            (0, Width::B4) => u64::from(self.address.load(Ordering::Relaxed)).into(),
            (RESET_OFFSET, Width::B1) => 0.into(),
            _ => ReadOutcome::Refused("the address register is 4 bytes"),
        }
    }

    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        match (access.offset, access.width, u32::try_from(value)) {
            (0, Width::B4, Ok(value)) => {
                self.address.store(value, Ordering::Relaxed);
                WriteOutcome::Done
            }
            (RESET_OFFSET, Width::B1, Ok(value)) => {
                self.power.reset_control(value);
                WriteOutcome::Done
            }
            _ => WriteOutcome::Refused("the address register is 4 bytes"),
        }
    }
}
