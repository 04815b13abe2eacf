// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Locks of a device that goes on after a panic: a guest must not turn one panic into a device that is gone.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
