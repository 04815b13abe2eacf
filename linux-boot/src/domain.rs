// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A domain for Linux: memory, interrupt controllers and timers, and nothing that a device model would have to provide.

use std::io;
use std::sync::Arc;

use xen_rig::{Entry, Fate, Guest, Kind, Place, Privcmd};

use crate::boot::Loaded;
use crate::layout;

/// `HVM_PARAM_TIMER_MODE`, and `HVMPTM_no_delay_for_missed_ticks`
const TIMER_MODE: (u32, u64) = (10, 1);
/// `HVM_PARAM_ACPI_IOPORTS_LOCATION`: 1 puts the power-management ports at [`layout::PM_EVENTS`], where the tables have them.
const ACPI_PORTS: (u32, u64) = (19, 1);

/// A domain that has memory, and no kernel yet. Dropping it destroys the domain.
#[derive(Debug)]
pub struct LinuxDomain {
    guest: Guest,
}

impl LinuxDomain {
    /// Makes it, paused.
    ///
    /// # Errors
    /// Xen's. What was made is gone then.
    ///
    /// # Panics
    /// For an amount of memory that [`layout::frames`] does not take.
    pub fn new(xen: &Arc<Privcmd>, vcpus: u32, mib: u64) -> io::Result<Self> {
        let kind = Kind {
            vcpus,
            hap: true,
            full: true,
        };
        let guest = Guest::empty(xen, kind, &layout::frames(mib))?;
        for (index, value) in [TIMER_MODE, ACPI_PORTS] {
            guest.set_param(index, value)?;
        }
        Ok(LinuxDomain { guest })
    }

    /// One that another process made and left behind. Dropping it destroys the domain.
    ///
    /// # Errors
    /// Xen's; and that the domain is gone.
    pub fn adopt(xen: &Arc<Privcmd>, domid: u16, vcpus: u32) -> io::Result<Self> {
        let guest = Guest::adopt(xen, domid, vcpus)?;
        Ok(LinuxDomain { guest })
    }

    /// Its id.
    #[must_use]
    pub fn domid(&self) -> u16 {
        self.guest.domid()
    }

    /// Has the first vCPU start in the kernel that was loaded.
    ///
    /// # Errors
    /// Xen's.
    pub fn enter(&self, loaded: &Loaded) -> io::Result<()> {
        self.guest.enter(Entry {
            rip: loaded.entry,
            rsp: layout::STACK - 16,
            rsi: layout::BOOT_PARAMS,
            cr3: layout::PAGE_TABLES,
            gdt: layout::GDT,
        })
    }

    /// Lets it run. Every ioreq server is to be there before: an access that comes earlier is nobody's.
    ///
    /// # Errors
    /// Xen's.
    pub fn unpause(&self) -> io::Result<()> {
        self.guest.unpause()
    }

    /// Where a vCPU is, found out while the domain is paused.
    ///
    /// # Errors
    /// Xen's.
    pub fn place(&self, vcpu: u32) -> io::Result<Place> {
        self.guest.pause()?;
        let place = self.guest.place(vcpu);
        self.guest.unpause()?;
        place
    }

    /// What has become of it.
    ///
    /// # Errors
    /// Xen's.
    pub fn fate(&self) -> io::Result<Fate> {
        self.guest.fate()
    }
}
