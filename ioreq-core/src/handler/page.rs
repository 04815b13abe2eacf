// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Handlers of tracked pages.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestAddress;

use super::typed::Typed;
use super::{Context, PageOutcome, Verdict};
use crate::ids::{Gfn, PAGE_SIZE};
use crate::memory::{GuestRam, Width};

/// Who wrote to a tracked page.
///
/// ```
/// use ioreq_core::handler::WriteSource;
/// assert_ne!(WriteSource::Trapped, WriteSource::Dma);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteSource {
    /// A vCPU's store, trapped by the hypervisor.
    Trapped,
    /// Data of a repeated `ins`, or of a `movs` from MMIO, whose target is the page: the framework's own store, which the
    /// hypervisor does not trap.
    Framework,
    /// A device's store, through [`Dma`](crate::server::Dma).
    Dma,
}

/// One write to a tracked page, not yet in guest memory. It does not cross the page's end.
///
/// ```
/// use ioreq_core::handler::{PageOutcome, PageWrite, WriteSource};
/// use ioreq_core::{GuestMap, Width};
/// use ioreq_sim::{DomainConfig, Machine};
/// use vm_memory::GuestAddress;
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let ram = domain.hypervisor().memory();
/// let write = PageWrite::new(GuestAddress(0x1008), Width::B4, 7, WriteSource::Trapped, &*ram)
///     .expect("it does not cross a page's end");
/// assert_eq!(write.old(), Some(0));
/// assert!(matches!(write.apply(), PageOutcome::Done));
/// assert_eq!(write.old(), Some(7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PageWrite<'a> {
    gfn: Gfn,
    offset: u16,
    width: Width,
    value: u64,
    source: WriteSource,
    ram: &'a dyn GuestRam,
}

impl<'a> PageWrite<'a> {
    /// A write of `value` at `addr`; `None` if it crosses a page's end. For handlers' own tests as for the framework.
    ///
    /// ```
    /// use ioreq_core::{Gfn, Width, handler::{PageWrite, WriteSource}};
    /// use vm_memory::{GuestAddress, GuestRegionCollection};
    /// let ram = GuestRegionCollection::<ioreq_core::memory::MappedRegion>::new();
    /// let write = PageWrite::new(GuestAddress(0x5008), Width::B4, 7, WriteSource::Trapped, &ram).unwrap();
    /// assert_eq!((write.gfn(), write.offset(), write.value()), (Gfn(5), 8, 7));
    /// assert!(PageWrite::new(GuestAddress(0x5fff), Width::B2, 7, WriteSource::Trapped, &ram).is_none());
    /// ```
    pub fn new(
        addr: GuestAddress,
        width: Width,
        value: u64,
        source: WriteSource,
        ram: &'a dyn GuestRam,
    ) -> Option<Self> {
        Self::of_cut(addr, width, width.cut(value), source, ram)
    }

    /// The same, of a value that is cut to the width already.
    #[inline(always)]
    pub(crate) fn of_cut(
        addr: GuestAddress,
        width: Width,
        value: u64,
        source: WriteSource,
        ram: &'a dyn GuestRam,
    ) -> Option<Self> {
        let offset = addr.0 % PAGE_SIZE;
        if offset + width.bytes() > PAGE_SIZE {
            return None;
        }
        #[allow(
            clippy::cast_possible_truncation,
            reason = "an offset within a page is below 4096"
        )]
        let offset = offset as u16;
        Some(PageWrite {
            gfn: Gfn::of(addr),
            offset,
            width,
            value,
            source,
            ram,
        })
    }

    /// The page.
    #[must_use]
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// First byte within the page, below 4096.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.offset
    }

    /// Guest-physical address of the first byte.
    #[must_use]
    pub fn addr(&self) -> GuestAddress {
        GuestAddress((self.gfn.0 << crate::ids::PAGE_SHIFT) + u64::from(self.offset))
    }

    /// Bytes written.
    #[must_use]
    pub fn width(&self) -> Width {
        self.width
    }

    /// The value, zero-extended.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.value
    }

    /// Who wrote.
    #[must_use]
    pub fn source(&self) -> WriteSource {
        self.source
    }

    /// What the bytes hold before the write; `None` if the page is not guest memory (any more).
    #[must_use]
    pub fn old(&self) -> Option<u64> {
        self.ram.load(self.addr(), self.width).ok()
    }

    /// Stores what the guest wrote now, from inside the handler: for handlers that derive state from guest memory and want it
    /// to hold the new value first. A page that is not guest memory (any more) is left alone.
    pub fn apply(&self) -> PageOutcome {
        self.store(self.value)
    }

    /// Stores `value` in the access's width instead (see [`apply`](Self::apply)).
    pub fn store(&self, value: u64) -> PageOutcome {
        // A frame that was ballooned out meanwhile has nothing to store into; the guest gave that memory up.
        let _gone = self
            .ram
            .store(self.addr(), self.width, self.width.cut(value));
        PageOutcome::Done
    }
}

impl fmt::Debug for PageWrite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageWrite")
            .field("gfn", &self.gfn)
            .field("offset", &self.offset)
            .field("width", &self.width)
            .field("value", &format_args!("{:#x}", self.value))
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Told of every write to the tracked pages it was given.
///
/// The framework holds the page's *order* while the handler runs and until the store is made: handlers and stores of one page
/// never interleave, so what a handler derives from the page agrees with it. Different pages are served in parallel. A
/// handler must not write to another tracked page through [`Dma`](crate::server::Dma) (an error says so), and may track
/// and untrack pages, its own too: untracking from a handler is queued.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
///
/// /// Counts writes and lets them through.
/// #[derive(Default)]
/// struct Count(AtomicU64);
///
/// impl PageHandler for Count {
///     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         PageOutcome::Apply
///     }
/// }
/// ```
pub trait PageHandler: Typed + Send + Sync + 'static {
    /// A write to one of the handler's pages.
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome;

    /// What becomes of a write whose handler panicked or whose completion was dropped. By default it is applied: the page is
    /// the guest's own memory, and losing a store to it breaks the guest. Protecting handlers say [`Verdict::Drop`].
    fn fallback(&self) -> Verdict {
        Verdict::Apply
    }
}

/// [`PageHandler`] with `&mut self`. A `Mutex` around one is a [`PageHandler`].
///
/// ```
/// use std::sync::Mutex;
/// use ioreq_core::handler::{Context, MutPageHandler, PageHandler, PageOutcome, PageWrite};
///
/// struct Log(Vec<u64>);
///
/// impl MutPageHandler for Log {
///     fn write(&mut self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
///         self.0.push(write.value());
///         PageOutcome::Apply
///     }
/// }
///
/// fn takes(_: impl PageHandler) {}
/// takes(Mutex::new(Log(Vec::new())));
/// ```
pub trait MutPageHandler: Send {
    /// As [`PageHandler::write`].
    fn write(&mut self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome;

    /// As [`PageHandler::fallback`].
    fn fallback(&self) -> Verdict {
        Verdict::Apply
    }
}

macro_rules! forward {
    ($($pointer:ident),*) => {$(
        impl<T: PageHandler + ?Sized> PageHandler for $pointer<T> {
            fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
                (**self).write(cx, write)
            }
            fn fallback(&self) -> Verdict {
                (**self).fallback()
            }
        }
    )*};
}

forward!(Arc, Box);

impl<T: MutPageHandler + ?Sized> MutPageHandler for Box<T> {
    fn write(&mut self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        (**self).write(cx, write)
    }
    fn fallback(&self) -> Verdict {
        (**self).fallback()
    }
}

/// As for handlers of ranges: a poisoned lock does not take the handler out of service.
impl<T: MutPageHandler + 'static> PageHandler for Mutex<T> {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(cx, write)
    }
    fn fallback(&self) -> Verdict {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fallback()
    }
}
