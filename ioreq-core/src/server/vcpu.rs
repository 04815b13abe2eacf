// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What other threads see of a vCPU: its slot, and what the worker that serves it has noted.

use vm_memory::GuestAddress;

use super::core::Core;
use crate::abi::{IOREQ_TYPE_COPY, STATE_IOREQ_INPROCESS, STATE_IOREQ_READY, STATE_IORESP_READY};
use crate::claim::Look;
use crate::hypervisor::Hypervisor;
use crate::ids::{Gfn, VcpuId};
use crate::range::GfnRange;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Per-vCPU state that other threads look at, on a cache line of its own.
#[derive(Debug, Default)]
pub(crate) struct VcpuState {
    /// The vCPU's request is held back because its page is being unmarked.
    pub(super) parked: AtomicBool,
    /// The page on its way out that a trapped write of the vCPU was applied to last; 1 more than its gfn, 0 for none.
    late: AtomicU64,
    /// The last tick found a request that nobody had taken.
    waits: AtomicBool,
}

impl VcpuState {
    /// A trapped write was applied to a page that is on its way out.
    pub(super) fn note_late(&self, gfn: Gfn) {
        // Relaxed: for a statistic.
        self.late.store(gfn.0.wrapping_add(1), Ordering::Relaxed);
    }
}

impl<H: Hypervisor> Core<H> {
    /// What every slot says about writes to pages, for the unmark protocol. The slots are looked at, not taken: a guest that
    /// rewrites its slot meanwhile misleads the protocol about its own pages only.
    pub(crate) fn look(&self, seen: &mut dyn FnMut(Look)) {
        for (vcpu, slot) in self.vcpus.iter().zip(self.slots.iter()) {
            // Relaxed: as in `note_late`.
            if let Some(late) = vcpu.late.load(Ordering::Relaxed).checked_sub(1) {
                seen(Look::Late(Gfn(late)));
            }
            let view = slot.peek();
            if view.kind != IOREQ_TYPE_COPY || view.is_read || view.data_is_ptr {
                continue;
            }
            let gfn = Gfn::of(GuestAddress(view.addr));
            // Acquire: pairs with the worker's Release store of the flag, so that it was set after its request was taken.
            let parked = || vcpu.parked.load(Ordering::Acquire);
            seen(match view.state {
                STATE_IOREQ_READY => Look::Waiting(gfn),
                STATE_IOREQ_INPROCESS if parked() => Look::Waiting(gfn),
                STATE_IOREQ_INPROCESS => Look::Serving(gfn),
                STATE_IORESP_READY => Look::Answered(gfn),
                _ => continue,
            });
        }
    }

    /// Writes to these pages were before they started to leave.
    pub(crate) fn forget_late(&self, pages: GfnRange) {
        for vcpu in self.vcpus.iter() {
            // Relaxed: as in `note_late`. One that comes between the two is late indeed, and not counted.
            let late = vcpu.late.load(Ordering::Relaxed).checked_sub(1);
            if late.is_some_and(|gfn| pages.contains(Gfn(gfn))) {
                vcpu.late.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Wakes whoever serves a request that has waited since the last tick: its event was lost (or its worker is busy with others,
    /// and then looks once in vain). By the control side, once a tick.
    pub(super) fn wake_for_overlooked(&self) {
        for (index, (vcpu, slot)) in self.vcpus.iter().zip(self.slots.iter()).enumerate() {
            let waits = slot.state() == STATE_IOREQ_READY;
            // Relaxed: nobody else uses it.
            if vcpu.waits.swap(waits, Ordering::Relaxed) && waits {
                self.overlooked.fetch_add(1, Ordering::Relaxed);
                self.wake_worker_of(index);
            }
        }
        let waits = self.ring.as_ref().is_some_and(|ring| !ring.is_empty());
        // Relaxed: as above.
        if self.ring_waits.swap(waits, Ordering::Relaxed) && waits {
            self.overlooked.fetch_add(1, Ordering::Relaxed);
            self.wake_worker_of(0);
        }
    }

    fn wake_worker_of(&self, vcpu: usize) {
        if let Some(waker) = self.wakers.get(vcpu % self.wakers.len().max(1)) {
            waker.wake();
        }
    }

    /// Requests for the page may be served again: wakes the groups that hold some back.
    pub(crate) fn unpark(&self, gfn: Gfn) {
        self.pages.unpark(gfn);
        // SeqCst: the page's order, then the looks at the flags; pairs with the fence in `set_parked`: either the worker that holds
        // a request back sees that it need not, or it is woken.
        fence(Ordering::SeqCst);
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            // Acquire: as in `look`.
            if vcpu.parked.load(Ordering::Acquire) {
                self.wake_worker_of(index);
            }
        }
    }
}

/// For the vCPU's flag that its request is held back.
pub(super) fn set_parked<H: Hypervisor>(core: &Core<H>, vcpu: VcpuId, parked: bool) {
    if let Some(state) = core.vcpus.of(vcpu.0 as usize) {
        // Release: pairs with the Acquire load in `Core::look`, which then knows that the request was taken before.
        state.parked.store(parked, Ordering::Release);
        if parked {
            // SeqCst: the flag, then the next look at the page's order (`Service::resume`); pairs with the fence in `unpark`.
            fence(Ordering::SeqCst);
        }
    }
}
