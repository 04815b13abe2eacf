// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Registers in memory (virtio 1.2, 4.2), and a level interrupt.

use std::fmt;
use std::sync::{Arc, Mutex};

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::hypervisor::{Interrupts, Intx};
use ioreq::{Sbdf, Width};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};

use super::device::{Device, Signal};
use super::lock;
use super::negotiation::{Negotiation, config_word};
use super::pci::finish_later;
use crate::saved::{Changed, SavedNegotiation};

/// "virt"
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "XIOR"
const VENDOR: u32 = 0x524f_4958;

/// A device's page of registers. The interrupt is the line of pin A of a PCI slot with nothing in it: Xen has no operation for a line of
/// its own (<https://xenbits.xen.org/docs/unstable/hypercall/x86_64/include,public,hvm,dm_op.h.html>).
pub struct MmioTransport {
    negotiation: Negotiation,
    line: Arc<Line>,
    signal: Arc<dyn Signal>,
    changed: Changed,
}

impl MmioTransport {
    /// The registers of `device`, with the interrupt line of pin A of `slot`.
    #[must_use]
    pub fn new(
        device: Arc<dyn Device>,
        slot: Sbdf,
        interrupts: Arc<dyn Interrupts>,
        changed: Changed,
    ) -> Self {
        let line = Arc::new(Line {
            slot,
            interrupts,
            causes: Mutex::new(0),
        });
        MmioTransport {
            negotiation: Negotiation::new(device),
            signal: Arc::clone(&line) as _,
            line,
            changed,
        }
    }

    pub(crate) fn save(&self) -> SavedNegotiation {
        self.negotiation.save()
    }

    pub(crate) fn restore(&self, saved: SavedNegotiation) {
        self.negotiation.restore(saved, &self.signal);
    }

    fn register(&self, offset: u32) -> u32 {
        let negotiation = &self.negotiation;
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => negotiation.device().kind(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => negotiation.offered(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => negotiation.queue().most.into(),
            VIRTIO_MMIO_QUEUE_READY => negotiation.queue().ready.into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => *lock(&self.line.causes),
            VIRTIO_MMIO_STATUS => negotiation.status().into(),
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn set_register(&self, cx: &Context<'_>, offset: u32, value: u32) -> WriteOutcome {
        let negotiation = &self.negotiation;
        let low = |address: &mut u64| *address = *address >> 32 << 32 | u64::from(value);
        let high = |address: &mut u64| *address = *address & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => negotiation.select_offered(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => negotiation.select_accepted(value),
            VIRTIO_MMIO_DRIVER_FEATURES => negotiation.accept(value),
            VIRTIO_MMIO_QUEUE_SEL => {
                negotiation.select_queue(u16::try_from(value).unwrap_or(u16::MAX));
            }
            VIRTIO_MMIO_QUEUE_NUM => {
                let size = u16::try_from(value).unwrap_or(0);
                negotiation.set_queue(|queue| queue.size = size);
            }
            VIRTIO_MMIO_QUEUE_READY => negotiation.set_queue(|queue| queue.ready = value & 1 != 0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => {
                negotiation.set_queue(|queue| low(&mut queue.descriptors))
            }
            VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                negotiation.set_queue(|queue| high(&mut queue.descriptors));
            }
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => negotiation.set_queue(|queue| low(&mut queue.available)),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                negotiation.set_queue(|queue| high(&mut queue.available));
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => negotiation.set_queue(|queue| low(&mut queue.used)),
            VIRTIO_MMIO_QUEUE_USED_HIGH => negotiation.set_queue(|queue| high(&mut queue.used)),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let queue = u16::try_from(value).unwrap_or(u16::MAX);
                negotiation.device().notify(queue);
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.line.acknowledge(value),
            VIRTIO_MMIO_STATUS => {
                let status = value.to_le_bytes()[0];
                if status == 0 {
                    self.line.acknowledge(u32::MAX);
                }
                return finish_later(cx, |done| {
                    negotiation.set_status(status, &self.signal, done);
                    self.changed.tell();
                });
            }
            _ => return WriteOutcome::Refused("no virtio register that can be written"),
        }
        WriteOutcome::Done
    }
}

impl Handler for MmioTransport {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        if let Some(offset) = access.offset.checked_sub(config) {
            let config = self.negotiation.device().config();
            return config_word(config, offset, access.width.size()).into();
        }
        match (u32::try_from(access.offset), access.width) {
            (Ok(offset), Width::B4) => u64::from(self.register(offset)).into(),
            _ => ReadOutcome::Refused("virtio registers are read 4 bytes at a time"),
        }
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        match (
            u32::try_from(access.offset),
            access.width,
            u32::try_from(value),
        ) {
            (Ok(offset), Width::B4, Ok(value)) => self.set_register(cx, offset, value),
            _ => WriteOutcome::Refused("virtio registers are written 4 bytes at a time"),
        }
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("negotiation", &self.negotiation)
            .finish_non_exhaustive()
    }
}

/// An interrupt line, asserted while it has a cause.
struct Line {
    slot: Sbdf,
    interrupts: Arc<dyn Interrupts>,
    /// `VIRTIO_MMIO_INT_*`, as the driver reads them.
    causes: Mutex<u32>,
}

impl Line {
    fn acknowledge(&self, causes: u32) {
        let mut now = lock(&self.causes);
        let before = *now;
        *now &= !causes;
        self.drive(before, *now);
    }

    /// Under the lock of the causes: the last level that the hypervisor is told is the last that there is.
    fn drive(&self, before: u32, now: u32) {
        if (before != 0) == (now != 0) {
            return;
        }
        if let Err(err) = self.interrupts.set_pci_intx(self.slot, Intx::A, now != 0) {
            tracing::warn!(%err, "a virtio device's interrupt line");
        }
    }
}

impl Signal for Line {
    fn used(&self, _: u16) {
        let mut now = lock(&self.causes);
        let before = *now;
        *now |= VIRTIO_MMIO_INT_VRING;
        self.drive(before, *now);
    }
}
