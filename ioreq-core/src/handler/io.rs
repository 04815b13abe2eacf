// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Handlers of ports, MMIO and PCI configuration space.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Access, Batch, BatchOutcome, Context, ReadOutcome, WriteOutcome};

/// Serves accesses to a range of ports, of MMIO addresses, or to a PCI function.
///
/// Called from any worker, for several vCPUs at once. An access always lies wholly inside the handler's range and is 1, 2,
/// 4 or 8 bytes wide; what else the guest does wrong is the handler's to judge.
///
/// Repeated instructions arrive element by element, unless the handler takes batches.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
///
/// /// A register that counts its reads.
/// struct Counter(AtomicU64);
///
/// impl Handler for Counter {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         self.0.fetch_add(1, Ordering::Relaxed).into()
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Refused("the counter is read-only")
///     }
/// }
/// ```
pub trait Handler: Send + Sync {
    /// The guest reads.
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome;

    /// The guest writes `value` (zero-extended from the access's width).
    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome;

    /// The guest reads `values.len()` elements; the handler fills them. Asked first for a repeated instruction.
    fn read_batch(&self, _: &Context<'_>, _: &Batch, _values: &mut [u64]) -> BatchOutcome {
        BatchOutcome::OneByOne
    }

    /// The guest writes these elements. Asked first for a repeated instruction.
    fn write_batch(&self, _: &Context<'_>, _: &Batch, _values: &[u64]) -> BatchOutcome {
        BatchOutcome::OneByOne
    }
}

/// [`Handler`] with `&mut self`, for devices with plain state. A `Mutex` around one is a [`Handler`].
///
/// ```
/// use std::sync::Mutex;
/// use ioreq_core::handler::{Access, Context, Handler, MutHandler, ReadOutcome, WriteOutcome};
///
/// #[derive(Default)]
/// struct Scratch(u64);
///
/// impl MutHandler for Scratch {
///     fn read(&mut self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         self.0.into()
///     }
///     fn write(&mut self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
///         self.0 = value;
///         WriteOutcome::Done
///     }
/// }
///
/// fn takes(_: impl Handler) {}
/// takes(Mutex::new(Scratch::default()));
/// ```
pub trait MutHandler: Send {
    /// As [`Handler::read`].
    fn read(&mut self, cx: &Context<'_>, access: Access) -> ReadOutcome;

    /// As [`Handler::write`].
    fn write(&mut self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome;

    /// As [`Handler::read_batch`].
    fn read_batch(&mut self, _: &Context<'_>, _: &Batch, _values: &mut [u64]) -> BatchOutcome {
        BatchOutcome::OneByOne
    }

    /// As [`Handler::write_batch`].
    fn write_batch(&mut self, _: &Context<'_>, _: &Batch, _values: &[u64]) -> BatchOutcome {
        BatchOutcome::OneByOne
    }
}

macro_rules! forward {
    ($($pointer:ident),*) => {$(
        impl<T: Handler + ?Sized> Handler for $pointer<T> {
            fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
                (**self).read(cx, access)
            }
            fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
                (**self).write(cx, access, value)
            }
            fn read_batch(&self, cx: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
                (**self).read_batch(cx, batch, values)
            }
            fn write_batch(&self, cx: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
                (**self).write_batch(cx, batch, values)
            }
        }
    )*};
}

forward!(Arc, Box);

impl<T: MutHandler + ?Sized> MutHandler for Box<T> {
    fn read(&mut self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        (**self).read(cx, access)
    }
    fn write(&mut self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        (**self).write(cx, access, value)
    }
    fn read_batch(&mut self, cx: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        (**self).read_batch(cx, batch, values)
    }
    fn write_batch(&mut self, cx: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        (**self).write_batch(cx, batch, values)
    }
}

/// A handler that panicked leaves its lock poisoned; the device goes on with the state as it is, because a guest must not
/// be able to turn one panic into a device that is gone.
impl<T: MutHandler + ?Sized> Handler for Mutex<T> {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(cx, access)
    }
    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(cx, access, value)
    }
    fn read_batch(&self, cx: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read_batch(cx, batch, values)
    }
    fn write_batch(&self, cx: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_batch(cx, batch, values)
    }
}
