// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The interrupt pin: a level that the device sets, and that the guest can keep off the line.

use std::fmt;
use std::sync::{Arc, Mutex};

use ioreq_core::hypervisor::{Interrupts, Intx};
use ioreq_core::{Result, Sbdf};

use super::lock::lock;

/// One function's pin.
pub(super) struct Pin {
    function: Sbdf,
    pin: Intx,
    hypervisor: Arc<dyn Interrupts>,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// What the device wants.
    asserted: bool,
    /// The guest wants no interrupts by pin: it disabled them, or enabled MSI or MSI-X.
    disabled: bool,
    /// What the hypervisor was told last.
    driven: bool,
}

impl Pin {
    pub(super) fn new(function: Sbdf, pin: Intx, hypervisor: Arc<dyn Interrupts>) -> Self {
        Pin {
            function,
            pin,
            hypervisor,
            line: Mutex::new(Line::default()),
        }
    }

    /// What the device wants, whether or not it reaches the guest: the status register's bit.
    pub(super) fn is_asserted(&self) -> bool {
        lock(&self.line).asserted
    }

    pub(super) fn set(&self, asserted: bool) -> Result<()> {
        let mut line = lock(&self.line);
        line.asserted = asserted;
        self.drive(&mut line)
    }

    pub(super) fn disable(&self, disabled: bool) -> Result<()> {
        let mut line = lock(&self.line);
        line.disabled = disabled;
        self.drive(&mut line)
    }

    /// Tells the hypervisor, under the lock: the last call it sees is the last state. A level that it did not take is tried
    /// again with the next change.
    fn drive(&self, line: &mut Line) -> Result<()> {
        let level = line.asserted && !line.disabled;
        if level != line.driven {
            self.hypervisor
                .set_pci_intx(self.function, self.pin, level)?;
            line.driven = level;
        }
        Ok(())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin")
            .field("pin", &self.pin)
            .field("line", &*lock(&self.line))
            .finish_non_exhaustive()
    }
}
