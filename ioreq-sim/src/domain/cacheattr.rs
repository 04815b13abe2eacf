// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pinned cacheability, as `hvm_set_mem_pinned_cacheattr` keeps it. The model's memory has no caches to tell apart, so that what
//! is refused is all that anybody can see.

use std::sync::PoisonError;

use libc::{EBUSY, EINVAL, ENOENT, ENOSPC};

use super::DomainInner;

/// Ranges that a domain may have.
const MAX_PINNED: usize = 64;
/// Bits of a frame number of the processor.
const GFN_BITS: u32 = 48 - 12;
/// `XEN_DMOP_MEM_CACHEATTR_*`: UC, WC, WT, WP, WB, UC-.
const TYPES: [u32; 6] = [0, 1, 4, 5, 6, 7];
/// `XEN_DMOP_DELETE_MEM_CACHEATTR`
const DELETE: u32 = u32::MAX;

/// First and last frame, and the type.
pub(crate) type Pinned = (u64, u64, u32);

impl DomainInner {
    /// Pins `first..=last`, changes the type of exactly that range, or removes exactly that range.
    pub(crate) fn pin_cacheattr(&self, first: u64, last: u64, ty: u32) -> Result<(), i32> {
        if last < first || (first | last) >> GFN_BITS != 0 {
            return Err(EINVAL);
        }
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let same = pinned.iter().position(|p| (p.0, p.1) == (first, last));
        if ty == DELETE {
            pinned.swap_remove(same.ok_or(ENOENT)?);
            return Ok(());
        }
        if !TYPES.contains(&ty) {
            return Err(EINVAL);
        }
        if let Some(same) = same {
            pinned[same].2 = ty;
        } else if pinned.iter().any(|p| p.1 >= first && p.0 <= last) {
            return Err(EBUSY);
        } else if pinned.len() >= MAX_PINNED {
            return Err(ENOSPC);
        } else {
            pinned.push((first, last, ty));
        }
        Ok(())
    }
}
