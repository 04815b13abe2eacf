// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device raises interrupts with.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioreq_core::hypervisor::{Interrupts, Intx};
use ioreq_core::{Error, ErrorKind, Op, Result, Sbdf};

use super::config::bad;
use super::failures::Failures;
use super::intx::Pin;
use super::msi::{self, Messages, Msi};
use super::msix::{Controls, Msix, Table};
use super::saved::SavedMessage;

/// The ways a function can interrupt; the guest chooses among them.
///
/// ```
/// use ioreq_backends::pci::{Msi, Signals};
/// use ioreq_core::hypervisor::Intx;
/// let signals = Signals::new().intx(Intx::A).msi(Msi::new(1));
/// # let _ = signals;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Signals {
    pub(super) intx: Option<Intx>,
    pub(super) msi: Option<Msi>,
    pub(super) msix: Option<Msix>,
}

impl Signals {
    /// None at all.
    pub const fn new() -> Self {
        Signals {
            intx: None,
            msi: None,
            msix: None,
        }
    }

    /// An interrupt pin.
    pub const fn intx(mut self, pin: Intx) -> Self {
        self.intx = Some(pin);
        self
    }

    /// MSI.
    pub const fn msi(mut self, msi: Msi) -> Self {
        self.msi = Some(msi);
        self
    }

    /// MSI-X.
    pub const fn msix(mut self, msix: Msix) -> Self {
        self.msix = Some(msix);
        self
    }
}

/// What became of an interrupt.
///
/// ```
/// use ioreq_backends::pci::Delivery;
/// assert_ne!(Delivery::Sent, Delivery::Pending);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The guest has it.
    Sent,
    /// It is masked, or the function may not master the bus; it is sent when the guest allows it.
    Pending,
    /// The guest has neither MSI nor MSI-X enabled: use the pin.
    Disabled,
}

/// A function's interrupts. Callable from any thread, handlers included.
///
/// A message is sent with the lock of its vector held, so that none arrives after the guest has masked it; an
/// implementation of [`Interrupts`] must therefore not call back.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::pci::{Delivery, FunctionInterrupts, Msi, Signals};
/// use ioreq_core::hypervisor::{Interrupts, Intx};
/// use ioreq_core::{Result, Sbdf};
///
/// # struct Nowhere;
/// # impl Interrupts for Nowhere {
/// #     fn set_pci_intx(&self, _: Sbdf, _: Intx, _: bool) -> Result<()> { Ok(()) }
/// #     fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> { Ok(()) }
/// #     fn inject_msi(&self, _: u64, _: u32) -> Result<()> { Ok(()) }
/// # }
/// # let hypervisor: Arc<dyn Interrupts> = Arc::new(Nowhere);
/// let at = Sbdf::new(0, 0, 3, 0).unwrap();
/// let interrupts = FunctionInterrupts::new(at, hypervisor, Signals::new().intx(Intx::A).msi(Msi::new(1)))?;
/// // The device has news for the guest:
/// if interrupts.trigger(0)? == Delivery::Disabled {
///     interrupts.set_intx(true)?; // until the guest has read them
/// }
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub struct FunctionInterrupts {
    function: Sbdf,
    signals: Signals,
    pin: Option<Pin>,
    msi: Option<Messages>,
    msix: Option<Arc<Table>>,
    failures: Arc<Failures>,
    taken: AtomicBool,
}

impl FunctionInterrupts {
    /// The interrupts of `function`.
    ///
    /// # Errors
    /// `InvalidArgument` for a number of vectors or a layout that cannot be.
    pub fn new(
        function: Sbdf,
        hypervisor: Arc<dyn Interrupts>,
        signals: Signals,
    ) -> Result<Arc<Self>> {
        if let Some(msi) = signals.msi {
            msi.check()?;
        }
        if let Some(msix) = signals.msix {
            msix.check()?;
        }
        let hv = || Arc::clone(&hypervisor);
        Ok(Arc::new(FunctionInterrupts {
            function,
            signals,
            pin: signals.intx.map(|pin| Pin::new(function, pin, hv())),
            msi: signals.msi.map(|_| Messages::new(hv())),
            msix: signals.msix.map(|spec| Arc::new(Table::new(spec, hv()))),
            failures: Arc::default(),
            taken: AtomicBool::new(false),
        }))
    }

    /// The function.
    #[must_use]
    pub fn sbdf(&self) -> Sbdf {
        self.function
    }

    /// Sends message `vector`: by MSI-X if the guest enabled that, else by MSI. Where the guest allows fewer messages by MSI,
    /// message `vector` modulo their number stands for it.
    ///
    /// # Errors
    /// `InvalidArgument` if the function has no such vector. As the hypervisor says; the message stays pending then, and is
    /// tried again when it is triggered or unmasked.
    pub fn trigger(&self, vector: u16) -> Result<Delivery> {
        self.check(vector)?;
        if let Some(table) = &self.msix {
            match table.trigger(vector) {
                Some(Ok(Delivery::Disabled)) => {}
                Some(result) => return result,
                // Only MSI has so many; with MSI-X in use there is nothing to send it by.
                None if table.is_enabled() => return Err(self.no_vector(vector)),
                None => {}
            }
        }
        match &self.msi {
            Some(messages) => messages.trigger(vector),
            None => Ok(Delivery::Disabled),
        }
    }

    /// Takes message `vector` back if it is still pending: the guest has seen to its cause by other ways.
    ///
    /// # Errors
    /// `InvalidArgument` if the function has no such vector.
    pub fn withdraw(&self, vector: u16) -> Result<()> {
        self.check(vector)?;
        if let Some(table) = &self.msix {
            table.withdraw(vector);
        }
        if let Some(messages) = &self.msi {
            messages.withdraw(vector);
        }
        Ok(())
    }

    /// Whether message `vector` waits to be allowed out by MSI-X, or by MSI as its own number.
    #[must_use]
    pub fn is_pending(&self, vector: u16) -> bool {
        let by_msix = self.msix.as_ref().map(|table| table.is_pending(vector));
        let by_msi = self.msi.as_ref().map(Messages::pending);
        by_msix == Some(true)
            || by_msi.is_some_and(|bits| bits.checked_shr(vector.into()).unwrap_or(0) & 1 != 0)
    }

    /// Sets the level of the interrupt pin. It reaches the guest unless that has disabled the pin or uses MSI or MSI-X; the
    /// status register's bit shows it in any case.
    ///
    /// # Errors
    /// `InvalidArgument` for a function without a pin; as the hypervisor says.
    pub fn set_intx(&self, asserted: bool) -> Result<()> {
        match &self.pin {
            Some(pin) => pin.set(asserted),
            None => {
                let what = format!("{}: the function has no interrupt pin", self.function);
                Err(Error::new(Op::SetPciIntx, ErrorKind::InvalidArgument).about(what))
            }
        }
    }

    /// Requests of the guest's writes that the hypervisor refused so far: interrupts it unmasked, BARs it moved. They are logged,
    /// too, ever more rarely.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.count()
    }

    fn check(&self, vector: u16) -> Result<()> {
        let msix = self.signals.msix.map_or(0, Msix::vectors);
        let msi = self.signals.msi.map_or(0, Msi::vectors);
        if vector >= msix.max(msi) {
            return Err(self.no_vector(vector));
        }
        Ok(())
    }

    fn no_vector(&self, vector: u16) -> Error {
        let what = format!("{}: no vector {vector}", self.function);
        Error::new(Op::InjectMsi, ErrorKind::InvalidArgument).about(what)
    }

    pub(super) fn signals(&self) -> Signals {
        self.signals
    }

    pub(super) fn table(&self) -> Option<&Arc<Table>> {
        self.msix.as_ref()
    }

    pub(super) fn noted_failures(&self) -> &Arc<Failures> {
        &self.failures
    }

    /// What the status register's bit shows.
    pub(super) fn is_asserted(&self) -> bool {
        self.pin.as_ref().is_some_and(Pin::is_asserted)
    }

    /// What MSI's pending register shows.
    pub(super) fn msi_pending(&self) -> u32 {
        self.msi.as_ref().map_or(0, Messages::pending)
    }

    /// One function owns them.
    ///
    /// # Errors
    /// `InvalidArgument` the second time.
    pub(super) fn take(&self) -> Result<()> {
        // Relaxed: nothing else is told by it.
        if self.taken.swap(true, Ordering::Relaxed) {
            return Err(bad(format!(
                "{}: these interrupts have a function already",
                self.function
            )));
        }
        Ok(())
    }

    /// What the guest's registers say now. One caller at a time.
    pub(super) fn program(&self, programmed: &Programmed) {
        let note = |what: &str, result: Result<()>| {
            if let Err(err) = result {
                self.failures.note(self.function, what, &err);
            }
        };
        if let (Some(table), Some(controls)) = (&self.msix, programmed.msix) {
            note("unmasked MSI-X", table.control(controls));
        }
        if let (Some(messages), Some(registers)) = (&self.msi, programmed.msi) {
            note(
                "unmasked MSI",
                messages.program(registers, programmed.master),
            );
        }
        if let Some(pin) = &self.pin {
            let messages = programmed.msix.is_some_and(|msix| msix.enabled)
                || programmed.msi.is_some_and(|msi| msi.enabled);
            note("INTx", pin.disable(programmed.intx_disabled || messages));
        }
    }

    /// What is pending by MSI, and MSI-X's messages.
    pub(super) fn save(&self) -> (u32, Vec<SavedMessage>) {
        let table = self.msix.as_ref();
        let messages = table.map_or_else(Vec::new, |table| table.save());
        (self.msi_pending(), messages)
    }

    /// Whether so many messages can be restored.
    pub(super) fn check_saved(&self, messages: &[SavedMessage]) -> std::result::Result<(), String> {
        let own = self.msix.as_ref().map_or(0, |table| table.len());
        if messages.len() == own {
            return Ok(());
        }
        Err(format!("{} messages of MSI-X, not {own}", messages.len()))
    }

    /// What was saved, before the registers are [programmed](Self::program).
    pub(super) fn restore(&self, pending: u32, messages: &[SavedMessage]) {
        if let Some(table) = &self.msix {
            table.restore(messages);
        }
        if let (Some(own), Some(spec)) = (&self.msi, self.signals.msi) {
            own.restore(pending & spec.all());
        }
    }

    /// As after reset, but for what the registers say.
    pub(super) fn reset(&self) {
        if let Some(table) = &self.msix {
            table.reset();
        }
        if let Some(pin) = &self.pin
            && let Err(err) = pin.set(false)
        {
            self.failures.note(self.function, "INTx", &err);
        }
    }
}

/// What a function's registers say about interrupts.
#[derive(Debug)]
pub(super) struct Programmed {
    pub(super) master: bool,
    pub(super) intx_disabled: bool,
    pub(super) msi: Option<msi::Registers>,
    pub(super) msix: Option<Controls>,
}

impl fmt::Debug for FunctionInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionInterrupts")
            .field("function", &self.function)
            .field("pin", &self.pin)
            .field("msi", &self.msi)
            .field("msix", &self.msix)
            .field("failures", &self.failures())
            .finish_non_exhaustive()
    }
}
