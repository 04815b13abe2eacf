// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory for the driver's own records, of which nothing is ever tracked.
//!
//! UNSAFETY: a global allocator.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;
use spin::mutex::SpinMutex;
use spin::relax::RelaxStrategy;

use crate::cpu::Bare;

/// Enough for what 16 drivers remember of their buffers' contents.
const BYTES: usize = 64 << 20;

/// While another vCPU has the lock: it may not even be running.
struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        Bare::current().yield_now();
    }
}

/// Zeros, which take no room in the program's file.
#[repr(align(4096))]
struct Room(UnsafeCell<[u8; BYTES]>);

// SAFETY: only the heap uses it, under its lock.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; BYTES]));

struct Locked(SpinMutex<Heap, Yield>);

#[global_allocator]
static HEAP: Locked = Locked(SpinMutex::new(Heap::empty()));

// SAFETY: the heap keeps the trait's promises; it is used under its lock.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut heap = self.0.lock();
        if heap.size() == 0 {
            // SAFETY: the room is the heap's for good, and this happens once.
            unsafe { heap.init(ROOM.0.get().cast(), BYTES) };
        }
        let found = heap.allocate_first_fit(layout);
        found.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(at) = NonNull::new(at) {
            // SAFETY: it was allocated here with this layout, as the trait asks of the caller.
            unsafe { self.0.lock().deallocate(at, layout) };
        }
    }
}
