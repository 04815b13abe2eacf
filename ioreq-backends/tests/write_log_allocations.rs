// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: an allocator that counts has to be an allocator.
//!
//! Logging a write allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ioreq_backends::write_log::WriteLog;
use ioreq_core::handler::{Context, PageHandler, PageWrite, WriteSource};
use ioreq_core::memory::MappedRegion;
use ioreq_core::{DomId, GfnRange, VcpuId, Width};
use vm_memory::{GuestAddress, GuestRegionCollection};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came, so its contract is the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and `alloc` got it from the same allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn logging_a_write_allocates_nothing_even_when_the_ring_is_full() {
    let (log, mut reader) = WriteLog::new(16).unwrap();
    let handler = log.handler(GfnRange::sized(0, 4).unwrap()).unwrap();
    let ram = GuestRegionCollection::<MappedRegion>::new();
    let cx = Context::detached(DomId(1), VcpuId(0), &ram);
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the counter counts");
    for turn in 0..64 {
        let addr = GuestAddress((turn % 4) << 12);
        let write = PageWrite::new(addr, Width::B8, turn, WriteSource::Trapped, &ram);
        let _ = handler.write(&cx, &write.unwrap());
    }
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!(reader.drain().count(), 16);
    assert_eq!(ALLOCATIONS.get(), before, "nor does reading");
    assert_eq!(log.lost(), 48);
}
