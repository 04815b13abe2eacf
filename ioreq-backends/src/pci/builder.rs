// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Puts a function together, and checks that it can be.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ioreq_core::Result;
use ioreq_core::routes::Routes;

use super::bar::{Bar, BarKind, COUNT};
use super::capability::{Capability, ExtendedCapability, Placer};
use super::config::{CONVENTIONAL, ConfigSpace, EXTENDED, bad};
use super::function::{ConfigWrite, Listener, Parts, PciFunction};
use super::header::Header;
use super::interrupts::FunctionInterrupts;
use super::msix::{Msix, Window};
use super::msix_bar::{BarHandler, MsixPart};
use super::routing::Routing;

/// Builds a [`PciFunction`]; made by [`PciFunction::builder`].
///
/// ```
/// # use std::sync::Arc;
/// # use ioreq_backends::pci::*;
/// # use ioreq_core::hypervisor::{Interrupts, Intx};
/// # use ioreq_core::routes::Routes;
/// # use ioreq_core::{Result, Sbdf};
/// fn build(routes: Arc<dyn Routes>, hypervisor: Arc<dyn Interrupts>) -> Result<Arc<PciFunction>> {
///     let at = Sbdf::new(0, 0, 4, 0).unwrap();
///     let interrupts = FunctionInterrupts::new(at, hypervisor, Signals::new().intx(Intx::A))?;
///     PciFunction::builder(Header::new(0x1af4, 0x10f1), interrupts)
///         .bar(0, Bar::io(0x20))
///         .bar(2, Bar::mem64(1 << 20).prefetchable())
///         .capability(Capability::vendor([1, 2, 3]))
///         .build(routes)
/// }
/// ```
#[must_use]
pub struct Builder {
    header: Header,
    interrupts: Arc<FunctionInterrupts>,
    bars: Vec<(u8, Bar)>,
    capabilities: Vec<Capability>,
    extended: Vec<ExtendedCapability>,
    len: usize,
    listener: Option<Listener>,
}

impl Builder {
    pub(super) fn new(header: Header, interrupts: Arc<FunctionInterrupts>) -> Self {
        Builder {
            header,
            interrupts,
            bars: Vec::new(),
            capabilities: Vec::new(),
            extended: Vec::new(),
            len: CONVENTIONAL,
            listener: None,
        }
    }

    /// The BAR in register `index`, 0 to 5.
    pub fn bar(mut self, index: u8, bar: Bar) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// A capability. They are listed in this order, MSI and MSI-X last.
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push(capability);
        self
    }

    /// An extended capability, which makes the configuration space [`extended`](Self::extended).
    pub fn extended_capability(mut self, capability: ExtendedCapability) -> Self {
        self.extended.push(capability);
        self.extended()
    }

    /// 4096 bytes of configuration space instead of 256. Bytes from 256 on can be reached through ECAM only.
    pub fn extended(mut self) -> Self {
        self.len = EXTENDED;
        self
    }

    /// Called after each of the guest's writes to configuration space has taken effect, in the vCPU's worker, without a lock.
    pub fn on_write(
        mut self,
        listener: impl Fn(&PciFunction, ConfigWrite) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// The function, with nothing decoded. Its BARs' routes go through `routes`; route the function itself at its
    /// [`sbdf`](PciFunction::sbdf).
    ///
    /// # Errors
    /// `InvalidArgument`, with what is wrong: an id that guests take for an empty slot; a BAR's register, size or kind; MSI-X
    /// structures that are not inside a memory BAR; capabilities that do not fit; interrupts of another function.
    pub fn build(self, routes: Arc<dyn Routes>) -> Result<Arc<PciFunction>> {
        let function = self.interrupts.sbdf();
        let signals = self.interrupts.signals();
        let mut config = ConfigSpace::new(self.len);
        self.header.check()?;
        self.check_bars()?;
        if let Some(msix) = signals.msix {
            self.check_msix(msix)?;
        }

        let decodes = self.bars.iter();
        let decodes = decodes.fold(0, |bits, (_, bar)| bits | bar.decode_bit());
        self.header.define(&mut config, signals.intx, decodes);
        let mut routing = Routing::new(function, routes);
        let mut bars = self.bars.clone();
        bars.sort_by_key(|(index, _)| *index);
        for (index, bar) in &bars {
            bar.define(&mut config, *index);
            routing.bar(*index, Arc::new(self.handler(*index, bar)));
        }

        let mut placer = Placer::new();
        let mut owned = Vec::new();
        for capability in &self.capabilities {
            capability.check()?;
            owned.push(placer.place(&mut config, capability)?);
        }
        let mut place = |capability: Option<Capability>| -> Result<Option<usize>> {
            let Some(capability) = capability else {
                return Ok(None);
            };
            let body: Range<usize> = placer.place(&mut config, &capability)?;
            Ok(Some(body.start - 2))
        };
        let msi = place(signals.msi.map(|msi| msi.capability()))?;
        let msix = place(signals.msix.map(Msix::capability))?;
        for capability in &self.extended {
            capability.check()?;
            owned.push(placer.place_extended(&mut config, capability)?);
        }

        self.interrupts.take()?;
        Ok(Arc::new(PciFunction::new(Parts {
            interrupts: self.interrupts,
            config,
            bars,
            routing,
            msi,
            msix,
            owned,
            listener: self.listener,
        })))
    }

    fn check_bars(&self) -> Result<()> {
        let mut users: [Option<u8>; COUNT as usize] = [None; COUNT as usize];
        for (index, bar) in &self.bars {
            bar.check(*index)?;
            let registers =
                usize::from(*index)..usize::from(*index) + 1 + usize::from(bar.is_pair());
            for user in users.get_mut(registers).into_iter().flatten() {
                if let Some(other) = user.replace(*index) {
                    return Err(bad(format!(
                        "BAR {index} takes a register that BAR {other} has"
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_msix(&self, msix: Msix) -> Result<()> {
        for (what, window) in [("table", msix.table()), ("pending bits", msix.pending())] {
            let Window { bar, first, len } = window;
            let inside = self.bars.iter().any(|(index, region)| {
                *index == bar
                    && region.kind() != BarKind::Io
                    && first
                        .checked_add(len)
                        .is_some_and(|end| end <= region.size())
            });
            if !inside {
                return Err(bad(format!(
                    "MSI-X {what}: {len:#x} bytes at {first:#x} are not inside a memory BAR {bar}"
                )));
            }
        }
        Ok(())
    }

    fn handler(&self, index: u8, bar: &Bar) -> BarHandler {
        let msix = self.interrupts.signals().msix;
        let in_bar = |window: Window| (window.bar == index).then_some(window);
        let msix = msix.zip(self.interrupts.table());
        BarHandler {
            inner: bar.handler.clone(),
            msix: msix.map(|(spec, messages)| MsixPart {
                function: self.interrupts.sbdf(),
                messages: Arc::clone(messages),
                table: in_bar(spec.table()),
                pending: in_bar(spec.pending()),
                failures: Arc::clone(self.interrupts.noted_failures()),
            }),
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("header", &self.header)
            .field("interrupts", &self.interrupts)
            .field("bars", &self.bars)
            .field("capabilities", &self.capabilities)
            .field("extended", &self.extended)
            .finish_non_exhaustive()
    }
}
