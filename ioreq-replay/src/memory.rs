// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: makes volatile slices of copies of guest memory, so that what a device reads is what was recorded, and nothing that the guest
//! stores in between.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::step::Log;

/// Words of a copy, aligned as the guest's.
const WORD: usize = size_of::<AtomicU64>();

/// Guest memory of one [`Step`](crate::Step). Reads are recorded, or come from the recording; stores go to the memory itself. Where nothing is
/// recorded or played, it is that memory.
///
/// It is for what reads *or* writes, as rust-vmm's crates do: a slice that is asked for with both permissions is as one that is written.
///
/// ```
/// use ioreq_core::GuestMap;
/// use ioreq_replay::{StepMemory, Tape};
/// use ioreq_sim::{DomainConfig, Machine};
/// use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
///
/// /// Whatever takes guest memory takes this, too.
/// fn index(memory: &impl GuestMemory) -> Result<u16, GuestMemoryError> {
///     memory.load(GuestAddress(0x2002), std::sync::atomic::Ordering::Acquire)
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let memory = domain.hypervisor().memory();
/// let looked = Tape::default().thread("worker").take(&memory, |memory| index(&**memory).ok());
/// assert_eq!(looked.map(|(_step, index)| index), Some(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StepMemory<M> {
    memory: Arc<M>,
    log: Option<Log>,
    /// What slices were handed out of; they live as long as this.
    copies: Mutex<Vec<Arc<[AtomicU64]>>>,
}

impl<M: GuestMemory> StepMemory<M> {
    pub(crate) fn plain(memory: Arc<M>) -> Self {
        StepMemory {
            memory,
            log: None,
            copies: Mutex::default(),
        }
    }

    pub(crate) fn logged(memory: Arc<M>, log: Log) -> Self {
        StepMemory {
            memory,
            log: Some(log),
            copies: Mutex::default(),
        }
    }

    /// The same bytes as `slice`, which are guest memory at `addr`, where nobody else writes.
    fn copy<'a, B: BitmapSlice>(
        &'a self,
        log: &Log,
        addr: GuestAddress,
        slice: &VolatileSlice<'a, B>,
    ) -> VolatileSlice<'a, B> {
        let mut bytes = vec![0; slice.len()];
        log.read(addr, &mut bytes, |bytes| {
            slice.copy_to(bytes);
        });
        let before = usize::try_from(addr.0 % WORD as u64).unwrap_or(0);
        let words = (before + bytes.len()).div_ceil(WORD);
        let copy: Arc<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let start = copy.as_ptr().cast::<u8>().cast_mut().wrapping_add(before);
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.push(copy);
        // SAFETY: `before + bytes.len()` bytes of atomics, which may be written through shared pointers; they are kept in `copies`, which
        // gives nothing back, for as long as `self`, and so for 'a.
        let copied =
            unsafe { VolatileSlice::with_bitmap(start, bytes.len(), slice.bitmap().clone(), None) };
        copied.copy_from(&bytes);
        copied
    }
}

impl<M: GuestMemory> GuestMemory for StepMemory<M> {
    type PhysicalMemory = M::PhysicalMemory;
    type Bitmap = M::Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.memory.check_range(addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let slices = self.memory.get_slices(addr, count, access)?;
        let log = self.log.as_ref().filter(|_| access == Permissions::Read);
        Ok(Slices {
            memory: self,
            slices,
            log,
            addr,
        })
    }

    fn physical_memory(&self) -> Option<&Self::PhysicalMemory> {
        match self.log {
            None => self.memory.physical_memory(),
            // Whoever has it reads without telling.
            Some(_) => None,
        }
    }
}

/// The parts of an access.
struct Slices<'a, M, I> {
    memory: &'a StepMemory<M>,
    slices: I,
    log: Option<&'a Log>,
    /// Of the next part.
    addr: GuestAddress,
}

impl<'a, M, B, I> Iterator for Slices<'a, M, I>
where
    M: GuestMemory,
    B: BitmapSlice + 'a,
    I: Iterator<Item = Result<VolatileSlice<'a, B>>>,
{
    type Item = Result<VolatileSlice<'a, B>>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.slices.next()?;
        let (Some(log), Ok(slice)) = (self.log, &next) else {
            return Some(next);
        };
        let addr = self.addr;
        self.addr = GuestAddress(addr.0.wrapping_add(slice.len() as u64));
        Some(Ok(self.memory.copy(log, addr, slice)))
    }
}

impl<'a, M, B, I> FusedIterator for Slices<'a, M, I>
where
    M: GuestMemory,
    B: BitmapSlice + 'a,
    I: FusedIterator<Item = Result<VolatileSlice<'a, B>>>,
{
}

impl<'a, M, B, I> GuestMemorySliceIterator<'a, B> for Slices<'a, M, I>
where
    M: GuestMemory,
    B: BitmapSlice + 'a,
    I: GuestMemorySliceIterator<'a, B>,
{
}

impl<M> fmt::Debug for StepMemory<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepMemory")
            .field("is_logged", &self.log.is_some())
            .finish_non_exhaustive()
    }
}
