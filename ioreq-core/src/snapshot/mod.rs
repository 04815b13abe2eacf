// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Saving what devices know, and giving it to the same devices elsewhere: for migration, suspend, and the upgrade of a running
//! device model.
//!
//! A state is plain data with a name and a version ([`SavedState`]); a device gives it and takes it ([`Snapshot`]). With the
//! feature `serde`, [`Versioned`] writes and reads it in any format. What is read comes from another machine and may be anything:
//! a version that this program does not know, another device's state, or what the device cannot take is an error that says so.

#[cfg(feature = "serde")]
mod plain;
#[cfg(feature = "serde")]
mod versioned;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "serde")]
pub use versioned::Versioned;

/// A device's saved state: plain data, with what tells it from others'.
///
/// ```
/// use ioreq_core::snapshot::SavedState;
///
/// struct Scratch {
///     value: u64,
/// }
///
/// impl SavedState for Scratch {
///     const KIND: &'static str = "scratch register";
///     const VERSION: u32 = 1;
/// }
/// assert_eq!(Scratch::VERSION, 1);
/// ```
pub trait SavedState: Sized {
    /// What it is the state of: a name, never changed.
    const KIND: &'static str;
    /// Counts up when its meaning changes. Older programs refuse it then.
    const VERSION: u32;
}

/// A device whose state can be saved and restored. Both while nobody calls it as a handler: a server is brought to rest for that
/// ([`IoreqServer::quiesce`](crate::server::IoreqServer::quiesce)).
///
/// ```
/// use ioreq_core::snapshot::{RestoreError, SavedState, Snapshot};
/// use std::sync::Mutex;
///
/// /// A register of 8 bits.
/// struct Scratch(Mutex<u8>);
///
/// #[derive(Debug, PartialEq)]
/// struct ScratchState {
///     value: u64,
/// }
///
/// impl SavedState for ScratchState {
///     const KIND: &'static str = "scratch register";
///     const VERSION: u32 = 1;
/// }
///
/// impl Snapshot for Scratch {
///     type State = ScratchState;
///     fn save(&self) -> ScratchState {
///         ScratchState { value: (*self.0.lock().unwrap()).into() }
///     }
///     fn restore(&self, state: ScratchState) -> Result<(), RestoreError> {
///         // From another machine: it may be anything.
///         let value = u8::try_from(state.value);
///         let value = value.map_err(|_| RestoreError::of::<ScratchState>("the register has 8 bits"))?;
///         *self.0.lock().unwrap() = value;
///         Ok(())
///     }
/// }
///
/// let (here, there) = (Scratch(Mutex::new(7)), Scratch(Mutex::new(0)));
/// there.restore(here.save())?;
/// assert_eq!(there.save(), ScratchState { value: 7 });
/// let refused = there.restore(ScratchState { value: 1 << 20 }).unwrap_err();
/// assert_eq!(refused.to_string(), "the state of a scratch register cannot be restored: the register has 8 bits");
/// assert_eq!(there.save(), ScratchState { value: 7 }); // as it was
/// # Ok::<(), RestoreError>(())
/// ```
pub trait Snapshot {
    /// Its state.
    type State: SavedState;

    /// What it knows now.
    fn save(&self) -> Self::State;

    /// Makes it what was saved, of a device that was made in the same way.
    ///
    /// # Errors
    /// What does not fit. Unless the implementation says otherwise the device is as before then.
    fn restore(&self, state: Self::State) -> Result<(), RestoreError>;
}

/// [`Snapshot`] with `&mut self`. A `Mutex` around one is a [`Snapshot`], as it is a handler around a
/// [`MutHandler`](crate::handler::MutHandler).
///
/// ```
/// use ioreq_core::snapshot::{MutSnapshot, RestoreError, SavedState, Snapshot};
/// use std::sync::{Arc, Mutex};
///
/// struct Counter(u64);
/// struct Count(u64);
/// impl SavedState for Count {
///     const KIND: &'static str = "counter";
///     const VERSION: u32 = 1;
/// }
/// impl MutSnapshot for Counter {
///     type State = Count;
///     fn save(&self) -> Count {
///         Count(self.0)
///     }
///     fn restore(&mut self, state: Count) -> Result<(), RestoreError> {
///         self.0 = state.0;
///         Ok(())
///     }
/// }
/// let shared = Arc::new(Mutex::new(Counter(0)));
/// shared.restore(Count(7))?;
/// assert_eq!(Snapshot::save(&shared).0, 7);
/// # Ok::<(), RestoreError>(())
/// ```
pub trait MutSnapshot {
    /// Its state.
    type State: SavedState;

    /// As [`Snapshot::save`].
    fn save(&self) -> Self::State;

    /// As [`Snapshot::restore`].
    ///
    /// # Errors
    /// As there.
    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError>;
}

impl<T: MutSnapshot + ?Sized> Snapshot for Mutex<T> {
    type State = T::State;

    fn save(&self) -> T::State {
        self.lock().unwrap_or_else(PoisonError::into_inner).save()
    }

    fn restore(&self, state: T::State) -> Result<(), RestoreError> {
        let mut device = self.lock().unwrap_or_else(PoisonError::into_inner);
        device.restore(state)
    }
}

impl<T: Snapshot + ?Sized> Snapshot for Arc<T> {
    type State = T::State;

    fn save(&self) -> T::State {
        (**self).save()
    }

    fn restore(&self, state: T::State) -> Result<(), RestoreError> {
        (**self).restore(state)
    }
}

/// A state that a device cannot take, and why.
///
/// ```
/// use ioreq_core::{server::SavedServer, snapshot::RestoreError};
/// let err = RestoreError::of::<SavedServer>("no such range");
/// assert_eq!(err.kind(), "server");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreError {
    kind: &'static str,
    why: String,
}

impl RestoreError {
    /// That a state of this type cannot be taken.
    pub fn of<S: SavedState>(why: impl Into<String>) -> Self {
        RestoreError {
            kind: S::KIND,
            why: why.into(),
        }
    }

    /// What it is the state of.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RestoreError { kind, why } = self;
        write!(f, "the state of a {kind} cannot be restored: {why}")
    }
}

impl std::error::Error for RestoreError {}
