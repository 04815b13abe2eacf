// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: maps anonymous memory, shows it as atomics, and vouches for it to `ioreq-core`'s types.
//!
//! The only file of the crate with unsafe code. Guest memory and the pages shared with device models are mapped here and
//! never seen through anything but atomics, volatile slices and raw addresses.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use ioreq_core::GfnRange;
use ioreq_core::hypervisor::SharedPage;
use ioreq_core::memory::MappedRegion;

/// Zeroed anonymous memory, touched page by page as it is used.
#[derive(Debug)]
pub(crate) struct Mapping {
    addr: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// `len` bytes, at least 1.
    pub(crate) fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len.max(1)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: mmap of fresh anonymous memory touches no memory that exists; every argument is a plain value.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        NonNull::new(addr.cast::<u8>())
            .filter(|a| a.as_ptr().cast() != libc::MAP_FAILED)
            .map(|addr| Mapping { addr, len })
            .ok_or_else(io::Error::last_os_error)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: `len` bytes from `addr` on are mapped until `self` is dropped, AtomicU8 has the layout of u8 and any
        // bit pattern is one, and nobody accesses the mapping but by atomics and volatile slices.
        unsafe { std::slice::from_raw_parts(self.addr.as_ptr().cast(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; whoever was given its address keeps `self` alive.
        let rc = unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
        debug_assert_eq!(rc, 0, "munmap of our own mapping");
    }
}

// SAFETY: owns its mapping, which is valid from every thread.
unsafe impl Send for Mapping {}
// SAFETY: gives out atomics only.
unsafe impl Sync for Mapping {}

/// Guest memory for `frames`.
pub(crate) fn guest_region(frames: GfnRange) -> io::Result<MappedRegion> {
    let bytes = frames
        .pages()
        .checked_mul(4096)
        .filter(|&b| isize::try_from(b).is_ok())
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let mapping = Arc::new(Mapping::new(bytes)?);
    let host = mapping.addr;
    // SAFETY: `pages * 4096` bytes from `host` on, mapped as long as `mapping` lives, which the region keeps; this crate
    // accesses guest memory by vm-memory's volatile and atomic accesses only.
    Ok(unsafe { MappedRegion::new(frames, host, mapping) })
}

/// A type that is one page of atomics and nothing else.
///
/// # Safety
/// The type must be 4096 bytes of atomics, aligned to 4096.
pub(crate) unsafe trait PageOfAtomics: Send + Sync + 'static {}

// SAFETY: a repr(C, align(4096)) array of 128 slots of atomics; its size is asserted beside its definition.
unsafe impl PageOfAtomics for crate::servers::pages::IoreqPage {}
// SAFETY: a repr(C, align(4096)) struct of atomics; its size is asserted beside its definition.
unsafe impl PageOfAtomics for crate::servers::pages::BufferedPage {}

/// The page as device models get it.
pub(crate) fn share<P: PageOfAtomics>(page: &Arc<P>) -> SharedPage {
    let addr = NonNull::from(&**page).cast::<u8>();
    // SAFETY: 4096 bytes of atomics (the trait's contract), alive as long as the Arc that the page keeps, and only ever
    // behind references to atomics.
    let shared = unsafe { SharedPage::new(addr, Arc::clone(page) as _) };
    shared.unwrap_or_else(|e| unreachable!("the type is aligned to a page: {e}"))
}

/// Two neighbouring 32-bit words (the lower at an address that is a multiple of 8) as one of 64 bits, the lower word in
/// the low half: Xen's `guest_cmpxchg64` on both pointers of the buffered ring.
///
/// The device model accesses the halves with 32-bit atomics at the same time. x86 defines that; Rust's model leaves mixed
/// sizes open, as for every program that shares such a ring with Xen.
pub(crate) fn compare_exchange_pair(
    words: &PointerPair,
    old: (u32, u32),
    new: (u32, u32),
) -> Result<(), ()> {
    let word = std::ptr::from_ref(words).cast::<AtomicU64>();
    // SAFETY: `PointerPair` is 8 bytes of atomics aligned to 8, and outlives the reference made here.
    let word = unsafe { &*word };
    let join = |(low, high): (u32, u32)| u64::from(low) | u64::from(high) << 32;
    // AcqRel: pairs with the consumer's read-modify-write of its read pointer (Acquire of entries it freed) and its
    // load of the write pointer.
    word.compare_exchange(join(old), join(new), Ordering::AcqRel, Ordering::Relaxed)
        .map(drop)
        .map_err(drop)
}

/// The read and the write pointer of a buffered ring.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub(crate) struct PointerPair {
    /// Next entry that the device model takes.
    pub(crate) read: AtomicU32,
    /// Next entry that Xen fills.
    pub(crate) write: AtomicU32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_is_exchanged_only_when_both_halves_match() {
        let pair = PointerPair::default();
        assert_eq!(compare_exchange_pair(&pair, (0, 1), (5, 6)), Err(()));
        assert_eq!(compare_exchange_pair(&pair, (0, 0), (5, 6)), Ok(()));
        assert_eq!(pair.read.load(Ordering::Relaxed), 5);
        assert_eq!(pair.write.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_mapping_starts_as_zeroes_and_keeps_stores() {
        let mapping = Mapping::new(8192).unwrap();
        assert_eq!(mapping.bytes().len(), 8192);
        mapping.bytes()[8191].store(7, Ordering::Relaxed);
        assert_eq!(mapping.bytes()[8191].load(Ordering::Relaxed), 7);
        assert_eq!(mapping.bytes()[0].load(Ordering::Relaxed), 0);
    }
}
