// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: makes tables of atomics from zeroed memory, which the system maps only where it is touched.

use std::sync::Arc;

use crate::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16};

/// A type whose zeroed memory is a valid value.
///
/// # Safety
/// All-zero bytes must be a valid value of the type, equal to what [`zero`](Self::zero) returns.
pub(super) unsafe trait Zero: Sized {
    /// The value of zeroed memory.
    #[cfg_attr(
        not(loom),
        allow(dead_code, reason = "loom's atomics are made one by one")
    )]
    fn zero() -> Self;
}

// SAFETY: std's atomics have the representation of their integer or pointer, and 0 or null is one. (Under loom the bytes are
// never used: see `table`.)
unsafe impl<T> Zero for AtomicPtr<T> {
    fn zero() -> Self {
        AtomicPtr::new(std::ptr::null_mut())
    }
}
// SAFETY: as above.
unsafe impl Zero for AtomicU8 {
    fn zero() -> Self {
        AtomicU8::new(0)
    }
}
// SAFETY: as above.
unsafe impl Zero for AtomicU16 {
    fn zero() -> Self {
        AtomicU16::new(0)
    }
}

// SAFETY: all of it is.
unsafe impl<T: Zero, const N: usize> Zero for [T; N] {
    fn zero() -> Self {
        std::array::from_fn(|_| T::zero())
    }
}

/// `len` zeroes.
#[cfg(not(loom))]
pub(super) fn table<T: Zero>(len: usize) -> Box<[T]> {
    let table = Box::<[T]>::new_zeroed_slice(len);
    // SAFETY: zeroed memory is a valid value of `T` (the trait's contract).
    unsafe { table.assume_init() }
}

/// `len` zeroes.
#[cfg(loom)]
pub(super) fn table<T: Zero>(len: usize) -> Box<[T]> {
    (0..len).map(|_| T::zero()).collect()
}

/// One zeroed value.
#[cfg(not(loom))]
pub(super) fn boxed<T: Zero>() -> Box<T> {
    let value = Box::<T>::new_zeroed();
    // SAFETY: as in `table`.
    unsafe { value.assume_init() }
}

/// One zeroed value.
#[cfg(loom)]
pub(super) fn boxed<T: Zero>() -> Box<T> {
    Box::new(T::zero())
}

/// One zeroed value, which may be pointed to from elsewhere when its owner is moved.
#[cfg(not(loom))]
pub(super) fn shared<T: Zero>() -> Arc<T> {
    let value = Arc::<T>::new_zeroed();
    // SAFETY: as in `table`.
    unsafe { value.assume_init() }
}

/// One zeroed value.
#[cfg(loom)]
pub(super) fn shared<T: Zero>() -> Arc<T> {
    Arc::new(T::zero())
}
