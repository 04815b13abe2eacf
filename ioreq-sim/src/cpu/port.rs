// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Port I/O, and PCI configuration space through it.

use ioreq_core::Sbdf;
use ioreq_core::memory::Width;

use super::io::{Access, Operand};
use super::{Cpu, Emul};
use crate::fate::{CpuFault, CrashReason};
use crate::gate::Pass;

macro_rules! sized {
    ($($read:ident $write:ident $ty:ty, $width:ident, $text:literal;)*) => {$(
        #[doc = concat!("Reads ", $text, " from a port; all-ones where nobody answers.")]
        ///
        /// # Errors
        /// `Stopped` when the domain ends.
        pub fn $read(&mut self, port: u16) -> Result<$ty, CpuFault> {
            #[allow(clippy::cast_possible_truncation, reason = "cut to the width by `pio`")]
            self.pio(port, Width::$width, None).map(|v| v as $ty)
        }

        #[doc = concat!("Writes ", $text, " to a port.")]
        ///
        /// # Errors
        /// `Stopped` when the domain ends.
        pub fn $write(&mut self, port: u16, value: $ty) -> Result<(), CpuFault> {
            self.pio(port, Width::$width, Some(u64::from(value))).map(drop)
        }
    )*};
}

impl Cpu {
    /// `handle_pio`: reads, or writes a value. The access is not a page fault: Xen does not hold the p2m lock.
    fn pio(&mut self, port: u16, width: Width, write: Option<u64>) -> Result<u64, CpuFault> {
        self.instruction(Pass::Run, u64::from(port), |cpu| {
            let done = cpu.port_access(port, u32::from(width as u8), write);
            match done {
                Err(Emul::Unhandleable) => Err(Emul::Stop(cpu.crash(CrashReason::UnhandledPort {
                    vcpu: cpu.vcpu.id,
                    port,
                }))),
                done => done,
            }
        })
    }

    /// `hvmemul_do_pio_buffer`
    pub(super) fn port_access(
        &mut self,
        port: u16,
        size: u32,
        write: Option<u64>,
    ) -> Result<u64, Emul> {
        let access = Access {
            mmio: false,
            addr: u64::from(port),
            size,
            read: write.is_none(),
            df: false,
        };
        self.do_io(access, &mut 1, Operand::Inline(write.unwrap_or(0)))
    }

    sized! {
        inb outb u8, B1, "a byte";
        inw outw u16, B2, "2 bytes";
        inl outl u32, B4, "4 bytes";
    }

    /// Reads a port. Ports take 1, 2 or 4 bytes; 8 counts as 4.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn port_in(&mut self, port: u16, width: Width) -> Result<u64, CpuFault> {
        self.pio(port, width.min(Width::B4), None)
    }

    /// Writes a port. Ports take 1, 2 or 4 bytes; 8 counts as 4.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn port_out(&mut self, port: u16, width: Width, value: u64) -> Result<(), CpuFault> {
        let width = width.min(Width::B4);
        self.pio(port, width, Some(width.cut(value))).map(drop)
    }

    /// Reads PCI configuration space through ports 0xcf8 and 0xcfc. `register` is below 256; an access stays inside its
    /// aligned 4 bytes. Segment 0 only, as the ports reach.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn pci_config_read(
        &mut self,
        function: Sbdf,
        register: u8,
        width: Width,
    ) -> Result<u64, CpuFault> {
        self.outl(0xcf8, address(function, register))?;
        self.port_in(0xcfc + u16::from(register & 3), width)
    }

    /// Writes PCI configuration space; see [`pci_config_read`](Self::pci_config_read).
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn pci_config_write(
        &mut self,
        function: Sbdf,
        register: u8,
        width: Width,
        value: u64,
    ) -> Result<(), CpuFault> {
        self.outl(0xcf8, address(function, register))?;
        let width = width.min(Width::B4);
        self.pio(
            0xcfc + u16::from(register & 3),
            width,
            Some(width.cut(value)),
        )
        .map(drop)
    }
}

/// The word for port 0xcf8.
fn address(function: Sbdf, register: u8) -> u32 {
    1 << 31 | (function.bits() & 0xffff) << 8 | u32::from(register & 0xfc)
}
