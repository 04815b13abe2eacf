// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: casts a pointer to std's atomic into one to its transparent wrapper (`from_ptr`).
//!
//! Atomics and a mutex that tell the audit what they do. As much of std's interface as the request path uses.

use std::sync::{LockResult, TryLockError};

use crate::audit;

/// Stands in for `std::sync::atomic`.
#[allow(dead_code, reason = "std's interface; not every type uses all of it")]
pub(crate) mod atomic {
    use std::sync::atomic as real;

    pub(crate) use real::Ordering;

    use crate::audit;

    pub(crate) fn fence(order: Ordering) {
        audit::fence();
        real::fence(order);
    }

    macro_rules! common {
        ($name:ident $(<$t:ident>)?, $value:ty) => {
            impl $(<$t>)? $name $(<$t>)? {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(real::$name::new(value))
                }
                fn addr(&self) -> usize {
                    std::ptr::from_ref(self).addr()
                }
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(order)
                }
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    audit::store(self.addr());
                    self.0.store(value, order);
                }
                pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                    audit::rmw(self.addr());
                    self.0.swap(value, order)
                }
                pub(crate) fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    audit::rmw(self.addr());
                    self.0.compare_exchange(old, new, success, failure)
                }
                pub(crate) fn compare_exchange_weak(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    audit::rmw(self.addr());
                    self.0.compare_exchange_weak(old, new, success, failure)
                }
            }
        };
    }

    macro_rules! integer {
        ($name:ident, $value:ty) => {
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub(crate) struct $name(real::$name);
            common!($name, $value);
            impl $name {
                pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    audit::rmw(self.addr());
                    self.0.fetch_add(value, order)
                }
                pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    audit::rmw(self.addr());
                    self.0.fetch_sub(value, order)
                }
                /// # Safety
                /// As std's `from_ptr`.
                pub(crate) unsafe fn from_ptr<'a>(ptr: *mut $value) -> &'a Self {
                    // SAFETY: the wrapper is transparent over std's atomic, which is transparent over the integer; the rest
                    // is the caller's promise.
                    unsafe { &*ptr.cast::<Self>() }
                }
            }
        };
    }

    integer!(AtomicU8, u8);
    integer!(AtomicU16, u16);
    integer!(AtomicU32, u32);
    integer!(AtomicU64, u64);
    integer!(AtomicUsize, usize);

    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub(crate) struct AtomicBool(real::AtomicBool);
    common!(AtomicBool, bool);

    #[derive(Debug)]
    #[repr(transparent)]
    pub(crate) struct AtomicPtr<T>(real::AtomicPtr<T>);
    common!(AtomicPtr<T>, *mut T);
}

pub(crate) use std::sync::MutexGuard;

/// Stands in for `std::sync::Mutex`.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }
    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        audit::lock();
        self.0.lock()
    }
    pub(crate) fn try_lock(&self) -> Result<MutexGuard<'_, T>, TryLockError<MutexGuard<'_, T>>> {
        audit::lock();
        self.0.try_lock()
    }
    pub(crate) fn get_mut(&mut self) -> LockResult<&mut T> {
        self.0.get_mut()
    }
}
