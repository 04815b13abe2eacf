// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loads, stores, instruction fetches.

use ioreq_core::memory::Width;
use ioreq_core::{Gfn, P2mType};

use super::{Cpu, Emul};
use crate::fate::{CpuFault, StuckReason};
use crate::gate::Pass;

macro_rules! sized {
    ($($load:ident $store:ident $ty:ty, $width:ident, $text:literal;)*) => {$(
        #[doc = concat!("Loads ", $text, ".")]
        ///
        /// # Errors
        /// See [`load`](Self::load).
        pub fn $load(&mut self, addr: u64) -> Result<$ty, CpuFault> {
            #[allow(clippy::cast_possible_truncation, reason = "cut to the width by `load`")]
            self.load(addr, Width::$width).map(|v| v as $ty)
        }

        #[doc = concat!("Stores ", $text, ".")]
        ///
        /// # Errors
        /// See [`store`](Self::store).
        pub fn $store(&mut self, addr: u64, value: $ty) -> Result<(), CpuFault> {
            self.store(addr, Width::$width, u64::from(value))
        }
    )*};
}

impl Cpu {
    /// Loads `width` bytes, zero-extended, from any address.
    ///
    /// # Errors
    /// `GeneralProtection` when Xen cannot emulate the access, `Stopped` when the domain ends.
    pub fn load(&mut self, addr: u64, width: Width) -> Result<u64, CpuFault> {
        let size = width as u8;
        self.instruction(Pass::Fault, addr, |cpu| {
            let plain = cpu.emu.mmio.is_empty()
                && addr % 4096 + u64::from(size) <= 4096
                && cpu.readable(addr);
            match plain.then(|| cpu.ram_load(addr, u32::from(size))).flatten() {
                Some(value) => Ok(value),
                None => cpu.read(addr, u32::from(size)),
            }
        })
    }

    /// Stores the low `width` bytes of `value` to any address.
    ///
    /// # Errors
    /// `GeneralProtection` when Xen cannot emulate the access, `Stopped` when the domain ends.
    pub fn store(&mut self, addr: u64, width: Width, value: u64) -> Result<(), CpuFault> {
        let bytes = value.to_le_bytes();
        self.instruction(Pass::Fault, addr, |cpu| {
            cpu.write(addr, &bytes[..width.size()])
        })
    }

    sized! {
        load8 store8 u8, B1, "a byte";
        load16 store16 u16, B2, "2 bytes";
        load32 store32 u32, B4, "4 bytes";
        load64 store64 u64, B8, "8 bytes";
    }

    /// Stores 16 bytes by one instruction (`movups`): two requests of 8 where it leaves the guest.
    ///
    /// # Errors
    /// See [`store`](Self::store).
    pub fn store128(&mut self, addr: u64, value: u128) -> Result<(), CpuFault> {
        let bytes = value.to_le_bytes();
        self.instruction(Pass::Fault, addr, |cpu| cpu.write(addr, &bytes))
    }

    /// Fetches an instruction at `addr`. From a tracked page that never ends, until the page is ordinary RAM again.
    ///
    /// # Errors
    /// `GeneralProtection` from MMIO, `Stopped` when the domain ends.
    pub fn fetch(&mut self, addr: u64) -> Result<(), CpuFault> {
        self.instruction(Pass::Fault, addr, |cpu| {
            match cpu.domain.p2m.access_type(addr) {
                P2mType::RamRw | P2mType::RamRo => Ok(()),
                P2mType::MmioDm => Err(Emul::Unhandleable),
                P2mType::IoreqServer => {
                    let gfn = Gfn(addr >> 12);
                    cpu.emu.stuck = Some(StuckReason::Fetch { gfn });
                    Err(Emul::Retry)
                }
            }
        })
    }
}
