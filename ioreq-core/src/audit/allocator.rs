// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: a global allocator, which is the only way to see allocations. It passes everything on to the system's.

use std::alloc::{GlobalAlloc, Layout, System};

use super::record::allocation;

/// Counts allocations made inside a request's window. Install it as the test's `#[global_allocator]`.
///
/// ```
/// use ioreq_core::audit::CountingAllocator;
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CountingAllocator;

// SAFETY: every call is passed on to `System` as it is, which keeps the trait's contract.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocation();
        // SAFETY: the caller's promises are `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above; `ptr` came from `alloc` above, so from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
