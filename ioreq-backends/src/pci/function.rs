// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The function as the guest's configuration accesses see it.
//!
//! Lock order: `routing` before `config`, `config` before the locks of the interrupts. The routes are changed without the
//! `config` lock, so that a BAR that moves delays no interrupt: registers first, then the routes follow what the registers say
//! by then. Whoever changes them last makes the routes what they say.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::{Result, Sbdf, Width};

use super::bar::Bar;
use super::builder::Builder;
use super::capability;
use super::config::{ConfigSpace, bad};
use super::header::{
    BARS, BARS_END, COMMAND, COMMAND_INTX_DISABLE, COMMAND_MASTER, Header, STATUS, STATUS_ERRORS,
    STATUS_INTERRUPT,
};
use super::interrupts::{FunctionInterrupts, Programmed};
use super::lock::lock;
use super::routing::{BarStatus, Routing};
use super::saved::SavedFunction;

/// A guest's write to configuration space.
///
/// ```
/// use ioreq_backends::pci::ConfigWrite;
/// use ioreq_core::Width;
/// let write = ConfigWrite { register: 0x44, width: Width::B2, value: 3 };
/// assert!(write.touches(0x45, 1));
/// assert!(!write.touches(0x46, 2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfigWrite {
    /// The first byte written.
    pub register: u16,
    /// Bytes written.
    pub width: Width,
    /// What the guest wrote; read back to see what it did.
    pub value: u64,
}

impl ConfigWrite {
    /// Whether it wrote any of `len` bytes from `register` on.
    #[must_use]
    pub fn touches(&self, register: u16, len: u16) -> bool {
        let (first, end) = (u64::from(register), u64::from(register) + u64::from(len));
        let own = u64::from(self.register);
        own < end && first < own + self.width.bytes()
    }
}

pub(super) type Listener = Box<dyn Fn(&PciFunction, ConfigWrite) + Send + Sync>;

/// A PCI function. Made by its [`builder`](Self::builder); see the [module](super) for the whole.
///
/// It is the [`Handler`] of its configuration space: route it at its [`sbdf`](Self::sbdf), and for ECAM at its 4 KiB of MMIO.
/// Dropping it retracts its BARs.
///
/// ```
/// # use std::sync::Arc;
/// # use ioreq_backends::pci::*;
/// # use ioreq_core::handler::*;
/// # use ioreq_core::hypervisor::{Interrupts, Intx};
/// # use ioreq_core::routes::{RouteId, Routes};
/// # use ioreq_core::*;
/// # struct Nowhere;
/// # impl Interrupts for Nowhere {
/// #     fn set_pci_intx(&self, _: Sbdf, _: Intx, _: bool) -> Result<()> { Ok(()) }
/// #     fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> { Ok(()) }
/// #     fn inject_msi(&self, _: u64, _: u32) -> Result<()> { Ok(()) }
/// # }
/// # impl Routes for Nowhere {
/// #     fn add(&self, _: &str, _: IoRange, _: Arc<dyn Handler>) -> Result<RouteId> { Ok(RouteId::from_raw(0)) }
/// #     fn replace(&self, _: RouteId, _: Arc<dyn Handler>) -> Result<()> { Ok(()) }
/// #     fn retract(&self, _: RouteId) -> Result<()> { Ok(()) }
/// # }
/// # let (routes, hypervisor) = (Arc::new(Nowhere), Arc::new(Nowhere));
/// # let at = Sbdf::new(0, 0, 4, 0).unwrap();
/// let interrupts = FunctionInterrupts::new(at, hypervisor, Signals::new())?;
/// let function = PciFunction::builder(Header::new(0x1af4, 0x10f1), interrupts)
///     .bar(0, Bar::mem32(0x1000))
///     .build(routes)?;
/// // server.route("pci", function.sbdf(), Arc::clone(&function))?;
///
/// // What a guest does to place BAR 0:
/// # let ram = vm_memory::GuestRegionCollection::<ioreq_core::memory::MappedRegion>::new();
/// # let cx = Context::detached(DomId(1), VcpuId(0), &ram);
/// # let config = |register| Access { space: Space::Pci, addr: register, offset: register, width: Width::B4 };
/// let _ = function.write(&cx, config(0x10), 0xffff_ffff);
/// assert_eq!(function.register(0x10, Width::B4), Some(0xffff_f000)); // 4 KiB
/// let _ = function.write(&cx, config(0x10), 0xfe00_0000);
/// let _ = function.write(&cx, config(0x04), 0x2); // decode memory
/// assert_eq!(function.bars()[0].range, Some(MmioRange::sized(0xfe00_0000, 0x1000)?.into()));
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub struct PciFunction {
    interrupts: Arc<FunctionInterrupts>,
    config: Mutex<ConfigSpace>,
    len: u64,
    bars: Vec<(u8, Bar)>,
    routing: Mutex<Routing>,
    /// Where the MSI capability is.
    msi: Option<usize>,
    /// Where the MSI-X capability is.
    msix: Option<usize>,
    /// The bodies of the device's own capabilities.
    owned: Vec<Range<usize>>,
    listener: Option<Listener>,
}

/// What a builder has put together.
pub(super) struct Parts {
    pub(super) interrupts: Arc<FunctionInterrupts>,
    pub(super) config: ConfigSpace,
    pub(super) bars: Vec<(u8, Bar)>,
    pub(super) routing: Routing,
    pub(super) msi: Option<usize>,
    pub(super) msix: Option<usize>,
    pub(super) owned: Vec<Range<usize>>,
    pub(super) listener: Option<Listener>,
}

impl PciFunction {
    /// Starts to build a function that raises `interrupts`, at their address.
    pub fn builder(header: Header, interrupts: Arc<FunctionInterrupts>) -> Builder {
        Builder::new(header, interrupts)
    }

    pub(super) fn new(parts: Parts) -> Self {
        PciFunction {
            interrupts: parts.interrupts,
            len: parts.config.len() as u64,
            config: Mutex::new(parts.config),
            bars: parts.bars,
            routing: Mutex::new(parts.routing),
            msi: parts.msi,
            msix: parts.msix,
            owned: parts.owned,
            listener: parts.listener,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn sbdf(&self) -> Sbdf {
        self.interrupts.sbdf()
    }

    /// Its interrupts.
    #[must_use]
    pub fn interrupts(&self) -> &Arc<FunctionInterrupts> {
        &self.interrupts
    }

    /// Length of its configuration space in bytes: 256 or 4096.
    #[must_use]
    #[allow(
        clippy::len_without_is_empty,
        reason = "a configuration space has 256 bytes at least"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// How each BAR stands, in ascending order.
    #[must_use]
    pub fn bars(&self) -> Vec<BarStatus> {
        lock(&self.routing).status()
    }

    /// Tries again to decode BARs that the guest placed where something else was. Worth a call when another device's routes
    /// have gone; the guest's next change of a BAR or of the command register does it, too.
    pub fn refresh(&self) {
        self.follow();
    }

    /// What the guest would read at `register`; `None` if that is not all inside the configuration space.
    #[must_use]
    pub fn register(&self, register: u16, width: Width) -> Option<u64> {
        let mut config = lock(&self.config);
        let at = usize::from(register);
        if !config.covers(register.into(), width) {
            return None;
        }
        self.show(&mut config);
        Some(config.get(at, width))
    }

    /// The device's own store into one of its capabilities; no mask applies.
    ///
    /// # Errors
    /// `InvalidArgument` unless all bytes belong to the body of one capability that the builder was given.
    pub fn set_register(&self, register: u16, width: Width, value: u64) -> Result<()> {
        let at = usize::from(register);
        let inside = |body: &Range<usize>| body.start <= at && at + width.size() <= body.end;
        if !self.owned.iter().any(inside) {
            return Err(bad(format!(
                "{}: {} bytes at {register:#x} are not all in a capability of the device's own",
                self.sbdf(),
                width.bytes()
            )));
        }
        lock(&self.config).set(at, width, value);
        Ok(())
    }

    /// Sets error bits of the status register, which the guest clears by writing 1. Others are left alone.
    pub fn raise_status(&self, errors: u16) {
        let mut config = lock(&self.config);
        let status = config.get16(STATUS) | (errors & STATUS_ERRORS);
        config.set(STATUS, Width::B2, status.into());
    }

    /// Where the first capability with this id is.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<u16> {
        capability::find(&lock(&self.config), id)
    }

    /// Everything as after reset: no BAR is placed, no interrupt enabled, pending or asserted. The listener is not called.
    pub fn reset(&self) {
        {
            let mut config = lock(&self.config);
            config.reset();
            self.program(&config);
            self.interrupts.reset();
        }
        self.follow();
    }

    pub(super) fn save_state(&self) -> SavedFunction {
        let mut config = lock(&self.config);
        self.show(&mut config);
        let (pending, messages) = self.interrupts.save();
        SavedFunction {
            config: config.values(),
            pending,
            messages,
        }
    }

    /// All of it, or nothing, and what does not fit.
    pub(super) fn restore_state(&self, state: &SavedFunction) -> Result<(), String> {
        {
            let mut config = lock(&self.config);
            if state.config.len() != config.len() {
                return Err(format!(
                    "{} bytes of configuration space, not {}",
                    state.config.len(),
                    config.len()
                ));
            }
            self.interrupts.check_saved(&state.messages)?;
            let owned = |at| self.owned.iter().any(|body| body.contains(&at));
            let pending = self.msi_pending_at();
            let shown = |at: usize| {
                (STATUS..STATUS + 2).contains(&at)
                    || pending.is_some_and(|pending| (pending..pending + 4).contains(&at))
            };
            if let Some(at) = config.differs(&state.config, |at| owned(at) || shown(at)) {
                return Err(format!(
                    "{}: the read-only byte at {at:#x} is {:#04x}, not {:#04x}",
                    self.sbdf(),
                    state.config.get(at).copied().unwrap_or_default(),
                    config.get(at, Width::B1)
                ));
            }
            config.take_values(&state.config, owned);
            self.interrupts.restore(state.pending, &state.messages);
            self.program(&config);
        }
        self.follow();
        Ok(())
    }

    /// Where MSI's pending bits are.
    fn msi_pending_at(&self) -> Option<usize> {
        let msi = self.interrupts.signals().msi.zip(self.msi);
        msi.and_then(|(spec, at)| Some(at + spec.pending_at()?))
    }

    /// Tells the interrupts what the registers say. Under the lock of `config`, so one at a time and the last one last.
    fn program(&self, config: &MutexGuard<'_, ConfigSpace>) {
        let command = config.get16(COMMAND);
        let master = command & COMMAND_MASTER != 0;
        let signals = self.interrupts.signals();
        let msi = signals.msi.zip(self.msi);
        let msix = signals.msix.zip(self.msix);
        self.interrupts.program(&Programmed {
            master,
            intx_disabled: command & COMMAND_INTX_DISABLE != 0,
            msi: msi.map(|(spec, at)| spec.registers(config, at)),
            msix: msix.map(|(spec, at)| spec.controls(config, at, master)),
        });
    }

    /// Brings the registers up to date that show the device's state.
    fn show(&self, config: &mut ConfigSpace) {
        let status = config.get16(STATUS) & !STATUS_INTERRUPT;
        let interrupt = if self.interrupts.is_asserted() {
            STATUS_INTERRUPT
        } else {
            0
        };
        config.set(STATUS, Width::B2, (status | interrupt).into());
        if let Some(pending) = self.msi_pending_at() {
            let bits = self.interrupts.msi_pending();
            config.set(pending, Width::B4, bits.into());
        }
    }

    /// Makes the routes what the registers say now.
    fn follow(&self) {
        let mut routing = lock(&self.routing);
        let decoded: Vec<_> = {
            let config = lock(&self.config);
            let bars = self.bars.iter();
            bars.map(|(index, bar)| (*index, bar.decoded(&config, *index)))
                .collect()
        };
        let wanted = |index| {
            let known = decoded.iter().find(|(known, _)| *known == index);
            known.and_then(|(_, range)| *range)
        };
        routing.follow(wanted, self.interrupts.noted_failures());
    }
}

const OUTSIDE: &str = "the access is not all inside the configuration space";

impl Handler for PciFunction {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        let register = u16::try_from(access.offset).ok();
        let value = register.and_then(|register| self.register(register, access.width));
        value.map_or(ReadOutcome::Refused(OUTSIDE), ReadOutcome::Value)
    }

    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let write = {
            let mut config = lock(&self.config);
            let register = u16::try_from(access.offset).ok();
            let Some(register) = register.filter(|at| config.covers((*at).into(), access.width))
            else {
                return WriteOutcome::Refused(OUTSIDE);
            };
            let write = ConfigWrite {
                register,
                width: access.width,
                value,
            };
            config.guest_write(register.into(), access.width, value);
            self.program(&config);
            write
        };
        let bars = || write.touches(bounded(BARS), bounded(BARS_END - BARS));
        if write.touches(bounded(COMMAND), 2) || bars() {
            self.follow();
        }
        if let Some(listener) = &self.listener {
            listener(self, write);
        }
        WriteOutcome::Done
    }
}

/// A place in the header, as a register number.
fn bounded(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

impl Drop for PciFunction {
    fn drop(&mut self) {
        let failures = Arc::clone(self.interrupts.noted_failures());
        lock(&self.routing).follow(|_| None, &failures);
        if self.interrupts.is_asserted() {
            self.interrupts.reset();
        }
    }
}

impl fmt::Debug for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciFunction")
            .field("sbdf", &self.sbdf())
            .field("bars", &self.bars())
            .field("interrupts", &self.interrupts)
            .finish_non_exhaustive()
    }
}
