// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The duty to answer, by itself, and how it is done.

use super::memory::{SlotIndex, SlotMemory};
use super::page::IoreqPage;
use super::slots::Slots;
use super::taken::Answered;
use crate::abi::{IOREQ_DATA_IS_PTR, IOREQ_DIR_READ, IOREQ_STATE_MASK, STATE_IORESP_READY};
use crate::sync::atomic::Ordering;

/// A [`Taken`](super::Taken) without the copy of the slot, which its holder has: for the way of nearly every request, where that copy
/// stays in registers. It lends itself to nobody, so that it does, too.
#[must_use = "dropping it answers the request as nobody's"]
pub(crate) struct Duty<'a, M: SlotMemory = IoreqPage> {
    slots: &'a Slots<M>,
    index: SlotIndex,
    flags: u8,
}

impl<'a, M: SlotMemory> Duty<'a, M> {
    #[inline]
    pub(super) fn new(slots: &'a Slots<M>, index: SlotIndex, flags: u8) -> Self {
        Duty {
            slots,
            index,
            flags,
        }
    }

    /// As [`Taken::answer`](super::Taken::answer).
    #[inline]
    pub(crate) fn answer(self, data: Option<u64>) -> Answered {
        let flags = self.flags;
        let (slots, index) = self.pass_on();
        finish(slots, index, flags, data);
        Answered::new(index.vcpu())
    }

    /// Whoever gets these has the duty from now on.
    #[inline]
    pub(super) fn pass_on(self) -> (&'a Slots<M>, SlotIndex) {
        let parts = (self.slots, self.index);
        // Its drop would answer; there is nothing in it to free.
        std::mem::forget(self);
        parts
    }
}

impl<M: SlotMemory> Drop for Duty<'_, M> {
    #[inline]
    fn drop(&mut self) {
        abandon(self.slots, self.index, self.flags);
    }
}

/// What answers a request that is refused: all-ones for an inline read.
pub(super) fn refusal(flags: u8) -> Option<u64> {
    (flags & (IOREQ_DIR_READ | IOREQ_DATA_IS_PTR) == IOREQ_DIR_READ).then_some(u64::MAX)
}

/// Hands the slot back: with `data`, and the flags that it was taken with.
#[inline]
pub(super) fn finish<M: SlotMemory>(
    slots: &Slots<M>,
    index: SlotIndex,
    flags: u8,
    data: Option<u64>,
) {
    let memory = &slots.memory;
    if let Some(data) = data {
        memory.set_data(index, data);
    }
    let flags = flags & !IOREQ_STATE_MASK | STATE_IORESP_READY;
    // Release: pairs with the `smp_rmb` after the load of the state in Xen's `wait_for_io`: whoever sees RESP_READY sees
    // the data, and all that the handler stored.
    memory.set_flags(index, flags, Ordering::Release);
}

/// Answers a request that an error or a panic lost, as nobody's device does. Out of line: whoever answers pays for the look alone.
#[cold]
#[inline(never)]
pub(super) fn abandon<M: SlotMemory>(slots: &Slots<M>, index: SlotIndex, flags: u8) {
    slots.count_abandoned();
    finish(slots, index, flags, refusal(flags));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, AtomicU64};

    use super::*;
    use crate::abi::{IOREQ_DF, STATE_IOREQ_INPROCESS, STATE_IOREQ_READY};
    use crate::ids::VcpuId;

    /// One slot: its flags, its data.
    #[derive(Clone, Default)]
    struct One(Arc<(AtomicU8, AtomicU64)>);

    impl SlotMemory for One {
        fn flags(&self, _: SlotIndex, order: Ordering) -> u8 {
            self.0.0.load(order)
        }
        fn set_flags(&self, _: SlotIndex, flags: u8, order: Ordering) {
            self.0.0.store(flags, order);
        }
        fn addr(&self, _: SlotIndex) -> u64 {
            0xe000_0000
        }
        fn data(&self, _: SlotIndex) -> u64 {
            self.0.1.load(Ordering::Relaxed)
        }
        fn set_data(&self, _: SlotIndex, data: u64) {
            self.0.1.store(data, Ordering::Relaxed);
        }
        fn count(&self, _: SlotIndex) -> u32 {
            1
        }
        fn size(&self, _: SlotIndex) -> u32 {
            4
        }
        fn vp_eport(&self, _: SlotIndex) -> u32 {
            1
        }
        fn kind(&self, _: SlotIndex) -> u8 {
            1
        }
    }

    /// A slot with a request that has these flags and data 7.
    fn ready(flags: u8) -> (One, Slots<One>) {
        let memory = One::default();
        let slots = Slots::in_memory(memory.clone(), 1).unwrap();
        let index = SlotIndex::new(VcpuId(0)).unwrap();
        memory.set_data(index, 7);
        memory.set_flags(index, flags | STATE_IOREQ_READY, Ordering::Release);
        (memory, slots)
    }

    /// Flags and data.
    fn state(memory: &One) -> (u8, u64) {
        let index = SlotIndex::new(VcpuId(0)).unwrap();
        (memory.flags(index, Ordering::Acquire), memory.data(index))
    }

    #[test]
    fn answered_once_with_the_flags_of_the_copy() {
        let (memory, slots) = ready(IOREQ_DIR_READ | IOREQ_DF);
        let (duty, raw) = slots.get(VcpuId(0)).unwrap().take_apart().unwrap();
        assert_eq!((raw.data, raw.size), (7, 4));
        assert_eq!(state(&memory).0 & IOREQ_STATE_MASK, STATE_IOREQ_INPROCESS);
        // A guest that rewrites its slot meanwhile.
        memory.0.0.store(0xff, Ordering::Relaxed);
        assert_eq!(duty.answer(Some(9)).vcpu(), VcpuId(0));
        let flags = IOREQ_DIR_READ | IOREQ_DF | STATE_IORESP_READY;
        assert_eq!(state(&memory), (flags, 9));
        assert_eq!(slots.abandoned(), 0);
        assert!(slots.get(VcpuId(0)).unwrap().take_apart().is_none());
    }

    #[test]
    fn dropped_it_answers_as_nobodys() {
        for (flags, data) in [
            (IOREQ_DIR_READ, u64::MAX),
            (IOREQ_DIR_READ | IOREQ_DATA_IS_PTR, 7),
            (0, 7),
            (IOREQ_DATA_IS_PTR, 7),
        ] {
            let (memory, slots) = ready(flags);
            drop(slots.get(VcpuId(0)).unwrap().take_apart());
            assert_eq!(state(&memory), (flags | STATE_IORESP_READY, data));
            assert_eq!(slots.abandoned(), 1);
        }
    }

    #[test]
    fn passed_on_it_is_the_other_guards() {
        let (memory, slots) = ready(IOREQ_DIR_READ);
        let (duty, raw) = slots.get(VcpuId(0)).unwrap().take_apart().unwrap();
        let taken = super::super::Taken::new(duty, raw);
        assert_eq!(state(&memory).0 & IOREQ_STATE_MASK, STATE_IOREQ_INPROCESS);
        let _answered = taken.answer(Some(1));
        assert_eq!(state(&memory).1, 1);
        assert_eq!(slots.abandoned(), 0);
    }
}
