// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All slots of a domain, and one of them: looking and taking.

use std::fmt;
use std::sync::Arc;

use super::duty::Duty;
use super::memory::{SlotIndex, SlotMemory};
use super::page::IoreqPage;
use super::taken::Taken;
use crate::abi::{
    IOREQ_DATA_IS_PTR, IOREQ_DF, IOREQ_DIR_READ, IOREQ_SLOTS, IOREQ_STATE_MASK, Ioreq,
    STATE_IOREQ_INPROCESS, STATE_IOREQ_READY,
};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::hypervisor::SharedPage;
use crate::ids::{EvtchnPort, VcpuId};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The slots of one domain's vCPUs. A clone is another handle on the same slots.
///
/// ```
/// use ioreq_core::{VcpuId, abi::STATE_IOREQ_NONE, slot::Slots};
/// # use std::sync::{Arc, atomic::AtomicU8};
/// # use ioreq_core::hypervisor::SharedPage;
/// # #[repr(align(4096))]
/// # struct Page([AtomicU8; 4096]);
/// # let owner = Arc::new(Page([const { AtomicU8::new(0) }; 4096]));
/// # let addr = std::ptr::NonNull::from(&*owner).cast();
/// # // SAFETY: 4096 bytes of atomics, alive as long as `owner`, which the page keeps.
/// # let page = unsafe { SharedPage::new(addr, owner.clone()) }?;
/// let slots = Slots::new(page, 4)?;
/// let slot = slots.get(VcpuId(3)).expect("four vCPUs");
/// assert_eq!(slot.state(), STATE_IOREQ_NONE);
/// assert!(slot.take().is_none(), "nothing to do");
/// assert!(slots.get(VcpuId(4)).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Slots<M = IoreqPage> {
    pub(super) memory: M,
    vcpus: u32,
    abandoned: Arc<AtomicU64>,
}

impl Slots<IoreqPage> {
    /// The slots of vCPUs 0 to `vcpus - 1` in the ioreq page.
    ///
    /// # Errors
    /// `InvalidArgument` unless `vcpus` is 1 to [`IOREQ_SLOTS`]: a page has no more slots, an x86 domain no more vCPUs.
    pub fn new(page: SharedPage, vcpus: u32) -> Result<Self> {
        Self::in_memory(IoreqPage::new(page), vcpus)
    }
}

impl<M> Slots<M> {
    /// The slots in any [`SlotMemory`].
    ///
    /// # Errors
    /// As [`new`](Slots::new).
    pub fn in_memory(memory: M, vcpus: u32) -> Result<Self> {
        if vcpus == 0 || vcpus as usize > IOREQ_SLOTS {
            let text = format!("{vcpus} vCPUs: an ioreq page serves 1 to {IOREQ_SLOTS}");
            return Err(Error::new(Op::Configure, ErrorKind::InvalidArgument).about(text));
        }
        Ok(Slots {
            memory,
            vcpus,
            abandoned: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// The slot of one vCPU; `None` if the domain has no such vCPU.
    #[inline]
    #[must_use]
    pub fn get(&self, vcpu: VcpuId) -> Option<Slot<'_, M>> {
        let index = SlotIndex::new(vcpu).filter(|_| vcpu.0 < self.vcpus)?;
        Some(Slot { slots: self, index })
    }

    /// All slots, vCPU 0 first.
    pub fn iter(&self) -> impl Iterator<Item = Slot<'_, M>> {
        (0..self.vcpus).filter_map(|vcpu| self.get(VcpuId(vcpu)))
    }

    /// How many requests were answered by the drop of their [`Taken`] so far: an error or a panic lost them.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        // Relaxed: a statistic; nothing is read on its strength.
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(super) fn count_abandoned(&self) {
        // Relaxed: see `abandoned`. The only read-modify-write of this module, and not on a request's normal way.
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }
}

impl<M: Clone> Clone for Slots<M> {
    fn clone(&self) -> Self {
        Slots {
            memory: self.memory.clone(),
            vcpus: self.vcpus,
            abandoned: Arc::clone(&self.abandoned),
        }
    }
}

impl<M> fmt::Debug for Slots<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots")
            .field("vcpus", &self.vcpus)
            .finish_non_exhaustive()
    }
}

/// One vCPU's slot.
///
/// Looking ([`state`](Self::state), [`peek`](Self::peek)) is for any thread at any time. Taking is for *one thread at a
/// time* per slot: it is a load and a store, not a read-modify-write, so two threads that race to take would both have the
/// request, and the second answer would strike whatever the vCPU asks next. The server gives each vCPU to one worker.
///
/// ```
/// use ioreq_core::{BufIoreq, Transport, VcpuId, abi::STATE_IOREQ_NONE, slot::Slots};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let id = hv.create_server(BufIoreq::Off)?;
/// let slots = Slots::new(hv.ioreq_page(id)?, hv.vcpus()?)?;
/// let slot = slots.get(VcpuId(0)).expect("one vCPU");
/// assert_eq!((slot.vcpu(), slot.state()), (VcpuId(0), STATE_IOREQ_NONE));
/// assert!(slot.take().is_none(), "the guest asks nothing");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Slot<'a, M = IoreqPage> {
    slots: &'a Slots<M>,
    index: SlotIndex,
}

impl<'a, M: SlotMemory> Slot<'a, M> {
    /// Whose slot it is.
    #[must_use]
    pub fn vcpu(&self) -> VcpuId {
        self.index.vcpu()
    }

    /// The state: `STATE_IOREQ_NONE` … `STATE_IORESP_READY`, or any other number below 16 that was put there.
    #[inline]
    #[must_use]
    pub fn state(&self) -> u8 {
        // Acquire: READY pairs with the barrier before the store in Xen's `ioreq_send`; NONE is stored by `wait_for_io`,
        // and what its vCPU did before is visible to who sees it.
        self.slots.memory.flags(self.index, Ordering::Acquire) & IOREQ_STATE_MASK
    }

    /// The guest-side event channel of the vCPU. 0 until the server is enabled.
    #[must_use]
    pub fn vp_eport(&self) -> EvtchnPort {
        EvtchnPort(self.slots.memory.vp_eport(self.index))
    }

    /// Takes the request, if there is one (READY): the slot becomes INPROCESS. One thread at a time (see [`Slot`]).
    #[inline]
    #[must_use]
    pub fn take(&self) -> Option<Taken<'a, M>>
    where
        M: Clone,
    {
        let (duty, raw) = self.take_in(STATE_IOREQ_READY)?;
        Some(Taken::new(duty, raw))
    }

    /// The same in two parts, for who keeps the copy in registers.
    #[inline(always)]
    pub(crate) fn take_apart(&self) -> Option<(Duty<'a, M>, Ioreq)> {
        self.take_in(STATE_IOREQ_READY)
    }

    /// Takes a request that an earlier server took and did not answer (INPROCESS). Only while nobody else serves the slot,
    /// and holds no [`Taken`] of it: when a server is taken over, before it is served.
    #[must_use]
    pub fn resume(&self) -> Option<Taken<'a, M>>
    where
        M: Clone,
    {
        let (duty, raw) = self.take_in(STATE_IOREQ_INPROCESS)?;
        Some(Taken::new(duty, raw))
    }

    #[inline(always)]
    fn take_in(&self, state: u8) -> Option<(Duty<'a, M>, Ioreq)> {
        let memory = &self.slots.memory;
        // Acquire: pairs with the barrier before `state = READY` in Xen's `ioreq_send`, so the fields read below are the
        // request's. For INPROCESS: with the Release below, by the thread that took it first.
        let flags = memory.flags(self.index, Ordering::Acquire);
        if flags & IOREQ_STATE_MASK != state {
            return None;
        }
        // The one copy. The guest may rewrite the slot from here on; nobody looks.
        let raw = Ioreq {
            addr: memory.addr(self.index),
            data: memory.data(self.index),
            count: memory.count(self.index),
            size: memory.size(self.index),
            vp_eport: memory.vp_eport(self.index),
            pad: 0,
            flags,
            kind: memory.kind(self.index),
        };
        // Release: pairs with the Acquire above in `resume`, which may be another process: it then sees the fields, as this
        // thread did. Xen's `wait_for_io` takes no data with INPROCESS.
        let in_process = flags & !IOREQ_STATE_MASK | STATE_IOREQ_INPROCESS;
        memory.set_flags(self.index, in_process, Ordering::Release);
        Some((Duty::new(self.slots, self.index, flags), raw))
    }

    /// Looks at the slot in whatever state it is, and changes nothing. For any thread.
    #[must_use]
    pub fn peek(&self) -> SlotView {
        let memory = &self.slots.memory;
        // Acquire: as in `take`. It comes first, so that the fields are never of an older request than the state.
        let flags = memory.flags(self.index, Ordering::Acquire);
        SlotView {
            state: flags & IOREQ_STATE_MASK,
            kind: memory.kind(self.index),
            is_read: flags & IOREQ_DIR_READ != 0,
            data_is_ptr: flags & IOREQ_DATA_IS_PTR != 0,
            df: flags & IOREQ_DF != 0,
            addr: memory.addr(self.index),
            data: memory.data(self.index),
            size: memory.size(self.index),
            count: memory.count(self.index),
        }
    }
}

impl<M> fmt::Debug for Slot<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("vcpu", &self.index.vcpu())
            .finish_non_exhaustive()
    }
}

/// A slot as [`Slot::peek`] saw it. Values are as the slot has them: unchecked.
///
/// The state was read first. The other fields are of the request in that state, or of a *later* one of the same vCPU, and
/// then the one in that state is over: answered, and the answer consumed. With state NONE they mean nothing.
///
/// ```
/// use ioreq_core::{abi::STATE_IOREQ_READY, slot::SlotView};
/// fn waits_for(view: &SlotView, addr: u64) -> bool {
///     view.state == STATE_IOREQ_READY && view.addr == addr
/// }
/// # fn check(view: &SlotView) -> bool { waits_for(view, 0) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotView {
    /// The state.
    pub state: u8,
    /// `IOREQ_TYPE_*`.
    pub kind: u8,
    /// The direction bit says read.
    pub is_read: bool,
    /// `data` is a guest address.
    pub data_is_ptr: bool,
    /// Addresses step downward.
    pub df: bool,
    /// Port, guest-physical address or packed PCI address.
    pub addr: u64,
    /// Inline data, or its guest-physical address; after an answer, the answer.
    pub data: u64,
    /// Bytes of one access.
    pub size: u32,
    /// Repeat count.
    pub count: u32,
}
