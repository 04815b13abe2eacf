// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dirty bits of video memory, as `hap_track_dirty_vram` keeps them: of one range a domain, and no more. A page is dirty when it
//! is ordinary RAM again, which the guest's first store makes of one that is logged. So what others write does not count.

use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

use ioreq_core::Gfn;
use libc::{EINVAL, ESRCH};

use super::DomainInner;

/// Most frames of a call: 1 GiB of them.
const MAX_FRAMES: u32 = 1 << 18;

impl DomainInner {
    fn vram(&self) -> MutexGuard<'_, Option<Range<u64>>> {
        self.vram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another range than the last one: logging moves there, and all its pages count as dirty. The same: what was written
    /// since. None (`nr` 0): logging ends.
    pub(crate) fn track_dirty_vram(
        &self,
        first: u64,
        nr: u32,
        bitmap: &mut [u8],
    ) -> Result<(), i32> {
        if nr > MAX_FRAMES {
            return Err(EINVAL);
        }
        if self.is_destroyed() {
            return Err(ESRCH);
        }
        let bytes = usize::try_from(nr.div_ceil(8)).map_err(|_| EINVAL)?;
        let bitmap = bitmap.get_mut(..bytes).ok_or(EINVAL)?;
        let frames = first..first.wrapping_add(u64::from(nr));
        self.hold.pause(self.gates());
        self.with_p2m_lock(|p2m| {
            let mut vram = self.vram();
            if vram.as_ref() == Some(&frames) {
                bitmap.fill(0);
                for (bit, gfn) in frames.enumerate() {
                    if p2m.log(gfn, true) {
                        bitmap[bit / 8] |= 1 << (bit % 8);
                    }
                }
                return;
            }
            for gfn in vram.take().into_iter().flatten() {
                p2m.log(gfn, false);
            }
            if nr != 0 {
                for gfn in frames.clone() {
                    p2m.log(gfn, true);
                }
                *vram = Some(frames);
                bitmap.fill(0xff);
            }
        });
        self.hold.unpause();
        Ok(())
    }

    /// Whether video memory is logged.
    pub(super) fn tracks_vram(&self) -> bool {
        self.vram().is_some()
    }

    /// A store to a page that is logged: further ones need not be seen.
    pub(crate) fn log_store(&self, gfn: Gfn) {
        self.p2m.log(gfn.0, false);
    }
}
