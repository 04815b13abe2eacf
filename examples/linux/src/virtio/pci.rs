// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI function (virtio 1.2, 4.1) with one memory BAR, and interrupts by MSI-X, or by pin where the guest does not use that.

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::backends::pci::{
    Bar, Capability, Delivery, FunctionInterrupts, Header, Msix, PciFunction, Signals,
};
use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::hypervisor::{Interrupts, Intx};
use ioreq::routes::Routes;
use ioreq::snapshot::{RestoreError, Snapshot};
use ioreq::{Result, Sbdf, Width};

use super::device::{Device, Signal, Stopped};
use super::lock;
use super::negotiation::{Negotiation, config_word};
use crate::saved::{Changed, SavedPciTransport};

/// Red Hat's id, which virtio devices have; a device's id is this and its kind.
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// Virtio 1 and no earlier.
const REVISION: u8 = 1;

/// The BAR, and what is where in it. Pages of their own, so that a guest could map them apart.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0;
const COMMON_SIZE: u32 = 0x38;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
const PAGE: u32 = 0x1000;
/// Bytes from one queue's notification address to the next one's.
const NOTIFY_STEP: u32 = 4;

/// `VIRTIO_PCI_CAP_*`
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
/// `VIRTIO_MSI_NO_VECTOR`
const NO_VECTOR: u16 = 0xffff;
/// The interrupt status: a queue was used.
const ISR_QUEUE: u8 = 1;

/// How long a device may take to come to rest before the framework tells of it.
const OVERRUN: Duration = Duration::from_secs(5);

/// Answers a write when what it asks for is done, which may be later and in another thread: the vCPU waits, its worker does not.
pub(super) fn finish_later(cx: &Context<'_>, ask: impl FnOnce(Stopped)) -> WriteOutcome {
    let (deferred, completion) = cx.defer_write(OVERRUN);
    ask(Box::new(move || {
        let _the_server_may_be_gone = completion.complete(());
    }));
    WriteOutcome::Defer(deferred)
}

/// A virtio device's function.
#[derive(Debug)]
pub struct PciTransport {
    function: Arc<PciFunction>,
    registers: Arc<Registers>,
}

impl PciTransport {
    /// The function of `device` at `at`, of base class and subclass `class`. Its BAR goes through `routes`; route
    /// [`function`](Self::function) itself at its address.
    ///
    /// # Errors
    /// As [`PciFunction`]'s builder.
    pub fn new(
        device: Arc<dyn Device>,
        at: Sbdf,
        class: (u8, u8),
        interrupts: Arc<dyn Interrupts>,
        routes: Arc<dyn Routes>,
        changed: Changed,
    ) -> Result<Self> {
        let queues = device.queues().len();
        // One for each queue, and one for changes of the configuration.
        let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(vectors, (BAR, MSIX_TABLE), (BAR, MSIX_PENDING));
        let signals = Signals::new().intx(Intx::A).msix(msix);
        let interrupts = FunctionInterrupts::new(at, interrupts, signals)?;
        let messages = Arc::new(Messages {
            interrupts: Arc::clone(&interrupts),
            vectors,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: Mutex::new(0),
        });
        let kind = u16::try_from(device.kind()).unwrap_or(0);
        let config = u32::try_from(device.config().len()).unwrap_or(PAGE);
        let registers = Arc::new(Registers {
            negotiation: Negotiation::new(device),
            signal: Arc::clone(&messages) as _,
            messages,
            changed: changed.clone(),
        });
        let header = Header::new(VENDOR, FIRST_DEVICE + kind)
            .revision(REVISION)
            .class(class.0, class.1, 0)
            .subsystem(VENDOR, kind);
        let notify_step = NOTIFY_STEP.to_le_bytes();
        let function = PciFunction::builder(header, interrupts)
            .bar(BAR, Bar::mem32(BAR_SIZE).served_by(Arc::clone(&registers)))
            .capability(capability(CAP_COMMON, COMMON, COMMON_SIZE, &[]))
            .capability(capability(CAP_NOTIFY, NOTIFY, PAGE, &notify_step))
            .capability(capability(CAP_ISR, ISR, 1, &[]))
            .capability(capability(CAP_DEVICE, CONFIG, config.max(4), &[]))
            .on_write(move |_, _| changed.tell())
            .build(routes)?;
        Ok(PciTransport {
            function,
            registers,
        })
    }

    pub(crate) fn save(&self) -> SavedPciTransport {
        let Messages { config, queues, .. } = &*self.registers.messages;
        SavedPciTransport {
            function: self.function.save(),
            negotiation: self.registers.negotiation.save(),
            config: config.load(Ordering::Relaxed),
            queues: queues
                .iter()
                .map(|vector| vector.load(Ordering::Relaxed))
                .collect(),
        }
    }

    pub(crate) fn restore(
        &self,
        saved: SavedPciTransport,
    ) -> std::result::Result<(), RestoreError> {
        let Registers {
            negotiation,
            messages,
            signal,
            ..
        } = &*self.registers;
        messages.choose(Some(&messages.config), saved.config.into());
        for (register, vector) in messages.queues.iter().zip(saved.queues) {
            messages.choose(Some(register), vector.into());
        }
        self.function.restore(saved.function)?;
        negotiation.restore(saved.negotiation, signal);
        Ok(())
    }

    /// The function, for its route.
    #[must_use]
    pub fn function(&self) -> &Arc<PciFunction> {
        &self.function
    }
}

/// Where in the BAR a structure is (`struct virtio_pci_cap`).
fn capability(kind: u8, offset: u64, len: u32, more: &[u8]) -> Capability {
    let offset = u32::try_from(offset).unwrap_or(0);
    let mut body = vec![kind, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    Capability::vendor(body)
}

/// Interrupts by message, or by pin.
struct Messages {
    interrupts: Arc<FunctionInterrupts>,
    vectors: u16,
    /// Vectors that the driver chose. (Relaxed throughout: registers of their own, which the driver sets before it starts the device.)
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    isr: Mutex<u8>,
}

impl Messages {
    /// The driver chooses a vector: one that there is, or none.
    fn choose(&self, register: Option<&AtomicU16>, vector: u64) {
        let vector = u16::try_from(vector).unwrap_or(NO_VECTOR);
        let vector = if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        };
        if let Some(register) = register {
            register.store(vector, Ordering::Relaxed);
        }
    }

    fn chosen(register: Option<&AtomicU16>) -> u64 {
        let vector = register.map(|register| register.load(Ordering::Relaxed));
        vector.unwrap_or(NO_VECTOR).into()
    }

    fn queue(&self, queue: u16) -> Option<&AtomicU16> {
        self.queues.get(usize::from(queue))
    }

    /// The driver reads the interrupt status, which clears it.
    fn take_isr(&self) -> u8 {
        let mut isr = lock(&self.isr);
        let was = std::mem::take(&mut *isr);
        self.tell(self.interrupts.set_intx(false));
        was
    }

    fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.take_isr();
    }

    fn tell(&self, result: Result<()>) {
        if let Err(err) = result {
            tracing::warn!(%err, "a virtio device's interrupt");
        }
    }
}

impl Signal for Messages {
    fn used(&self, queue: u16) {
        let vector = self
            .queue(queue)
            .map(|vector| vector.load(Ordering::Relaxed));
        let vector = vector.filter(|vector| *vector != NO_VECTOR);
        match vector.map(|vector| self.interrupts.trigger(vector)) {
            Some(Ok(Delivery::Disabled)) | None => {
                let mut isr = lock(&self.isr);
                *isr |= ISR_QUEUE;
                // Reaches nobody where the guest uses messages.
                self.tell(self.interrupts.set_intx(true));
            }
            Some(Ok(_)) => {}
            Some(Err(err)) => self.tell(Err(err)),
        }
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("interrupts", &self.interrupts)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// What is in the BAR, but for MSI-X.
struct Registers {
    negotiation: Negotiation,
    messages: Arc<Messages>,
    signal: Arc<dyn Signal>,
    changed: Changed,
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registers")
            .field("negotiation", &self.negotiation)
            .field("messages", &self.messages)
            .finish_non_exhaustive()
    }
}

impl Registers {
    /// A field of `struct virtio_pci_common_cfg`.
    fn common(&self, offset: u64, width: Width) -> Option<u64> {
        let negotiation = &self.negotiation;
        let queue = || negotiation.queue();
        Some(match (offset, width) {
            (0x04, Width::B4) => negotiation.offered().into(),
            (0x0c, Width::B4) => negotiation.accepted().into(),
            (0x10, Width::B2) => Messages::chosen(Some(&self.messages.config)),
            (0x12, Width::B2) => negotiation.device().queues().len() as u64,
            (0x14, Width::B1) => negotiation.status().into(),
            (0x15, Width::B1) => 0, // the configuration never changes
            (0x16, Width::B2) => negotiation.selected().into(),
            (0x18, Width::B2) => queue().size.into(),
            (0x1a, Width::B2) => Messages::chosen(self.messages.queue(negotiation.selected())),
            (0x1c, Width::B2) => queue().ready.into(),
            (0x1e, Width::B2) => negotiation.selected().into(),
            (0x20..0x38, Width::B4 | Width::B8) => {
                let setup = queue();
                let addresses = [setup.descriptors, setup.available, setup.used];
                let address = addresses.get(usize::try_from((offset - 0x20) / 8).ok()?)?;
                match (offset % 8, width) {
                    (0, width) => width.cut(*address),
                    (4, Width::B4) => address >> 32,
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    fn set_common(
        &self,
        cx: &Context<'_>,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Option<WriteOutcome> {
        let negotiation = &self.negotiation;
        let (word, half) = (u32::try_from(value).ok(), u16::try_from(value).ok());
        match (offset, width) {
            (0x00, Width::B4) => negotiation.select_offered(word?),
            (0x08, Width::B4) => negotiation.select_accepted(word?),
            (0x0c, Width::B4) => negotiation.accept(word?),
            (0x10, Width::B2) => self.messages.choose(Some(&self.messages.config), value),
            (0x14, Width::B1) => {
                let status = u8::try_from(value).ok()?;
                if status == 0 {
                    self.messages.reset();
                }
                return Some(finish_later(cx, |done| {
                    negotiation.set_status(status, &self.signal, done);
                    self.changed.tell();
                }));
            }
            (0x16, Width::B2) => negotiation.select_queue(half?),
            (0x18, Width::B2) => {
                let size = half?;
                negotiation.set_queue(|queue| queue.size = size);
            }
            (0x1a, Width::B2) => {
                let register = self.messages.queue(negotiation.selected());
                self.messages.choose(register, value);
            }
            (0x1c, Width::B2) => negotiation.set_queue(|queue| queue.ready = value & 1 != 0),
            (0x20..0x38, Width::B4 | Width::B8) => {
                let (number, part) = ((offset - 0x20) / 8, offset % 8);
                if part != 0 && (part, width) != (4, Width::B4) {
                    return None;
                }
                negotiation.set_queue(|queue| {
                    let address = match number {
                        0 => &mut queue.descriptors,
                        1 => &mut queue.available,
                        _ => &mut queue.used,
                    };
                    let kept = !(width.all_ones() << (8 * part));
                    *address = *address & kept | value << (8 * part);
                });
            }
            _ => return None,
        }
        Some(WriteOutcome::Done)
    }
}

impl Handler for Registers {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        let (offset, width) = (access.offset, access.width);
        let value = match offset {
            COMMON..ISR => self.common(offset, width),
            ISR => Some(self.messages.take_isr().into()),
            CONFIG..NOTIFY => {
                let config = self.negotiation.device().config();
                Some(config_word(config, offset - CONFIG, width.size()))
            }
            _ => None,
        };
        match value {
            Some(value) => value.into(),
            None => ReadOutcome::Refused("no virtio register of this width"),
        }
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let (offset, width) = (access.offset, access.width);
        let end = NOTIFY + u64::from(PAGE);
        match offset {
            COMMON..ISR => self
                .set_common(cx, offset, width, value)
                .unwrap_or(WriteOutcome::Refused("no virtio register of this width")),
            NOTIFY.. if offset < end => {
                let queue = u16::try_from((offset - NOTIFY) / u64::from(NOTIFY_STEP));
                self.negotiation.device().notify(queue.unwrap_or(u16::MAX));
                WriteOutcome::Done
            }
            _ => WriteOutcome::Refused("no virtio register that can be written"),
        }
    }
}
