// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device behind every contender: it notes who it is and what reached it, so that each answer can be checked.

use std::cell::Cell;
use std::sync::Arc;

use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

thread_local! {
    /// Sum of what this thread's devices took. A plain cell of the thread: no contender pays for sharing it.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// What a device adds to the sum for one write.
#[inline]
pub(crate) fn mark(id: u64, offset: u64, value: u64) -> u64 {
    (id + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(offset ^ (value << 32))
}

/// The sum so far.
#[inline]
pub(crate) fn taken() -> u64 {
    TAKEN.get()
}

/// A device with a number.
pub(crate) struct Device {
    id: u64,
}

impl Device {
    pub(crate) fn new(id: u64) -> Arc<Self> {
        Arc::new(Device { id })
    }

    #[inline]
    fn take(&self, offset: u64, value: u64) {
        TAKEN.set(TAKEN.get().wrapping_add(mark(self.id, offset, value)));
    }
}

fn value_of(data: &[u8]) -> u64 {
    data.try_into()
        .map_or(u64::MAX, |bytes| u64::from(u32::from_le_bytes(bytes)))
}

impl Handler for Device {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.id.into()
    }
    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.take(access.offset, value);
        WriteOutcome::Done
    }
}

impl PageHandler for Device {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        self.take(write.offset().into(), write.value());
        // No guest memory here: what a store costs is the same whoever found the handler.
        PageOutcome::Drop
    }
}

impl DeviceMmio for Device {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, _: &mut [u8]) {}
    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.take(offset, value_of(data));
    }
}

impl DevicePio for Device {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}
    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.take(offset.into(), value_of(data));
    }
}
