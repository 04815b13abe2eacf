// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: holds the address of a page that another agent writes at any time, and vouches for its lifetime.
//!
//! One 4 KiB page shared with the hypervisor. It gives out raw addresses only: all access is field by field, atomic, by
//! [`crate::slot`] and [`crate::ring`]; a reference to its contents would promise the compiler that nobody else writes.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Why an address cannot be a shared page.
///
/// ```
/// use ioreq_core::hypervisor::PageError;
/// assert!(PageError::Misaligned { addr: 0x10 }.to_string().contains("0x10"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Not a multiple of 4096.
    #[error("{addr:#x} is not aligned to a page of 4096 bytes")]
    Misaligned {
        /// The address.
        addr: usize,
    },
}

/// A 4 KiB page shared with the hypervisor, kept mapped while any clone of this value lives.
///
/// ```
/// use std::{alloc::Layout, ptr::NonNull, sync::Arc};
/// use ioreq_core::hypervisor::SharedPage;
///
/// #[repr(align(4096))]
/// struct Page([std::sync::atomic::AtomicU8; 4096]);
/// let owner: Arc<Page> = Arc::new(Page([const { std::sync::atomic::AtomicU8::new(0) }; 4096]));
/// let addr = NonNull::from(&*owner).cast::<u8>();
/// // SAFETY: 4096 bytes of atomics, alive as long as `owner`, which the page keeps.
/// let page = unsafe { SharedPage::new(addr, owner) }?;
/// assert_eq!(page.as_ptr(), addr);
/// # Ok::<(), ioreq_core::hypervisor::PageError>(())
/// ```
#[derive(Clone)]
pub struct SharedPage {
    addr: NonNull<u8>,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl SharedPage {
    /// A page at `addr`, kept alive by `owner` (whose drop unmaps it).
    ///
    /// # Errors
    /// [`PageError::Misaligned`] unless `addr` is a multiple of 4096.
    ///
    /// # Safety
    /// The 4096 bytes at `addr` must be readable and writable until `owner` is dropped, be shared memory from Rust's
    /// point of view (never behind a reference that is not to atomics or `UnsafeCell`), and be accessed by everybody in
    /// this process only with atomic operations.
    pub unsafe fn new(
        addr: NonNull<u8>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, PageError> {
        if !addr.addr().get().is_multiple_of(4096) {
            return Err(PageError::Misaligned {
                addr: addr.addr().get(),
            });
        }
        Ok(SharedPage {
            addr,
            _owner: owner,
        })
    }

    /// The page's first byte. Valid for 4096 bytes while this value, or a clone, lives.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.addr
    }

    /// What keeps the page: in loom models it is the page.
    #[cfg(loom)]
    pub(crate) fn owner(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self._owner)
    }
}

impl fmt::Debug for SharedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPage")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

// SAFETY: the address is valid from any thread while the owner lives (`new`'s contract), the owner is Send + Sync, and
// this type performs no access itself: the accessors use atomics only.
unsafe impl Send for SharedPage {}
// SAFETY: as for Send; a shared `SharedPage` gives out nothing but the address.
unsafe impl Sync for SharedPage {}
