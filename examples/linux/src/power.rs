// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Power-off and reset: registers that end the domain.

use std::fmt;

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::{PortRange, RangeError, ShutdownReason, Width};

/// The power-management control register (ACPI 4.8.3.2.1), as the tables of `linux-boot` have it.
const CONTROL: u16 = 0xb004;
const PORTS: u64 = 2;
/// ACPI is on, and always was.
const SCI_EN: u64 = 1 << 0;
/// Go to sleep, in the state of these bits.
const SLP_EN: u64 = 1 << 13;
const SLP_TYP_SHIFT: u32 = 10;
/// "Soft off", as the namespace has it.
const SOFT_OFF: u64 = 5;
/// The reset register: do it.
const RESET: u32 = 1 << 2;

/// What ends the domain.
pub struct Power {
    end: Box<dyn Fn(ShutdownReason) + Send + Sync>,
}

impl Power {
    /// Calls `end` when the guest powers off or resets.
    pub fn new(end: impl Fn(ShutdownReason) + Send + Sync + 'static) -> Self {
        Power { end: Box::new(end) }
    }

    /// The control register's ports.
    ///
    /// # Errors
    /// None: they are ports.
    pub fn ports() -> Result<PortRange, RangeError> {
        PortRange::sized(CONTROL, PORTS)
    }

    /// The guest writes the reset register.
    pub(crate) fn reset_control(&self, value: u32) {
        if value & RESET != 0 {
            (self.end)(ShutdownReason::Reboot);
        }
    }
}

impl Handler for Power {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        (SCI_EN >> (8 * access.offset)).into()
    }

    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        if access.width == Width::B2
            && value & SLP_EN != 0
            && value >> SLP_TYP_SHIFT & 7 == SOFT_OFF
        {
            (self.end)(ShutdownReason::PowerOff);
        }
        WriteOutcome::Done
    }
}

impl fmt::Debug for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Power").finish_non_exhaustive()
    }
}
