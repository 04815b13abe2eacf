// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A taken request, to be answered: the completion guard.

use std::borrow::Cow;
use std::fmt;

use super::duty::{Duty, abandon, finish, refusal};
use super::memory::{SlotIndex, SlotMemory};
use super::page::IoreqPage;
use super::slots::Slots;
use crate::abi::Ioreq;
use crate::ids::VcpuId;

/// A request that was taken from its slot, and the duty to answer it.
///
/// There is no way to forget it but `mem::forget`: [`answer`](Self::answer) and [`refuse`](Self::refuse) consume it, and its
/// drop refuses and counts [`Slots::abandoned`]. It stays so when the request is parked or answered from elsewhere: [`into_owned`](Self::into_owned)
/// makes the same guard without the borrow, which may be kept, sent to another thread, answered or dropped there.
///
/// The vCPU sleeps until it is *notified* through its event channel, which is the caller's: after the answer, and after a
/// drop too.
///
/// ```
/// use ioreq_core::{VcpuId, abi::*, slot::Slots};
/// # use std::sync::{Arc, atomic::{AtomicU8, Ordering}};
/// # use ioreq_core::hypervisor::SharedPage;
/// # #[repr(align(4096))]
/// # struct Page([AtomicU8; 4096]);
/// # let owner = Arc::new(Page([const { AtomicU8::new(0) }; 4096]));
/// # let addr = std::ptr::NonNull::from(&*owner).cast();
/// # // SAFETY: 4096 bytes of atomics, alive as long as `owner`, which the page keeps.
/// # let page = unsafe { SharedPage::new(addr, owner.clone()) }?;
/// # owner.0[IOREQ_FLAGS_OFFSET].store(IOREQ_DIR_READ | STATE_IOREQ_READY, Ordering::Relaxed);
/// let slots = Slots::new(page, 1)?;
/// let slot = slots.get(VcpuId(0)).expect("one vCPU");
/// let taken = slot.take().expect("the guest reads");
/// assert!(taken.raw().is_read());
/// assert_eq!(slot.state(), STATE_IOREQ_INPROCESS);
///
/// let owned = taken.into_owned(); // no longer borrows `slots`
/// std::thread::spawn(move || owned.answer(Some(0x1234))).join().unwrap();
/// assert_eq!(slot.state(), STATE_IORESP_READY);
/// assert_eq!(slot.peek().data, 0x1234);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it answers the request as nobody's"]
pub struct Taken<'a, M: SlotMemory + Clone = IoreqPage> {
    slots: Cow<'a, Slots<M>>,
    index: SlotIndex,
    raw: Ioreq,
    answered: bool,
}

/// Proof that a request was answered: the vCPU is to be notified.
///
/// ```
/// # use ioreq_core::{slot::Answered, EventChannels, LocalPort, Result};
/// fn finish(answered: Answered, events: &impl EventChannels, ports: &[LocalPort]) -> Result<()> {
///     events.notify(ports[answered.vcpu().0 as usize])
/// }
/// ```
#[derive(Debug)]
#[must_use = "the vCPU sleeps until it is notified"]
pub struct Answered {
    vcpu: VcpuId,
}

impl Answered {
    #[inline]
    pub(super) fn new(vcpu: VcpuId) -> Self {
        Answered { vcpu }
    }

    /// The vCPU to notify.
    #[must_use]
    pub fn vcpu(&self) -> VcpuId {
        self.vcpu
    }
}

impl<'a, M: SlotMemory + Clone> Taken<'a, M> {
    /// The same duty, with the copy of the slot at hand.
    #[inline]
    pub(crate) fn new(duty: Duty<'a, M>, raw: Ioreq) -> Self {
        let (slots, index) = duty.pass_on();
        Taken {
            slots: Cow::Borrowed(slots),
            index,
            raw,
            answered: false,
        }
    }

    /// The copy of the slot: as the guest's side wrote it, unchecked; `pad` is 0.
    #[inline]
    #[must_use]
    pub fn raw(&self) -> &Ioreq {
        &self.raw
    }

    /// The vCPU that waits.
    #[inline]
    #[must_use]
    pub fn vcpu(&self) -> VcpuId {
        self.index.vcpu()
    }

    /// The same request without the borrow, for parking it or answering it from another thread. The slot stays INPROCESS.
    /// Costs two reference counts, so it is not for the normal way.
    pub fn into_owned(mut self) -> Taken<'static, M> {
        let owned = Taken {
            slots: Cow::Owned(Slots::clone(&self.slots)),
            index: self.index,
            raw: self.raw,
            answered: false,
        };
        // `self` is dropped here, and must not answer: the new guard will.
        self.answered = true;
        owned
    }

    /// Answers: `data` is the value of an inline read; `None` leaves the slot's data as it is.
    #[inline]
    pub fn answer(mut self, data: Option<u64>) -> Answered {
        self.finish(data);
        Answered::new(self.vcpu())
    }

    /// Answers as nobody's device does: all-ones for an inline read, nothing for anything else. For requests that make no
    /// sense or go nowhere. Not counted as abandoned.
    pub fn refuse(mut self) -> Answered {
        self.finish_refused();
        Answered::new(self.vcpu())
    }

    fn finish_refused(&mut self) {
        self.finish(refusal(self.raw.flags));
    }

    #[inline]
    fn finish(&mut self, data: Option<u64>) {
        // First, so that nothing can answer twice: from the store below on, the slot is Xen's.
        self.answered = true;
        finish(&self.slots, self.index, self.raw.flags, data);
    }
}

impl<M: SlotMemory + Clone> Drop for Taken<'_, M> {
    #[inline]
    fn drop(&mut self) {
        if !self.answered {
            abandon(&self.slots, self.index, self.raw.flags);
        }
    }
}

impl<M: SlotMemory + Clone> fmt::Debug for Taken<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken")
            .field("vcpu", &self.vcpu())
            .field("raw", &self.raw)
            .finish_non_exhaustive()
    }
}
