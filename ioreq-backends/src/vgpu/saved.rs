// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The saved state of a PVINFO page: what the guest wrote, and the roots of its address spaces. Shadows are not in it: they are
//! made again from guest memory.

use ioreq_core::snapshot::{MutSnapshot, RestoreError, SavedState};

use super::{Pvinfo, Root};

/// A [`Pvinfo`] page and its address spaces.
///
/// ```
/// use ioreq_backends::vgpu::{Pvinfo, Shadow};
/// use ioreq_core::snapshot::{MutSnapshot, RestoreError};
///
/// /// After the claim has been resumed: the guest may have written to its page tables meanwhile.
/// fn rebuild(pvinfo: &mut Pvinfo) -> Result<(), RestoreError> {
///     let saved = pvinfo.save();
///     pvinfo.restore(saved)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedPvinfo {
    /// The whole page.
    page: Vec<u8>,
    /// Oldest first.
    roots: Vec<Root>,
}

impl SavedState for SavedPvinfo {
    const KIND: &'static str = "PVINFO page";
    const VERSION: u32 = 1;
}

impl MutSnapshot for Pvinfo {
    type State = SavedPvinfo;

    fn save(&self) -> SavedPvinfo {
        SavedPvinfo {
            page: self.bytes().to_vec(),
            roots: self.shadow().roots(),
        }
    }

    /// Address spaces that are there are ended first, then all are made from guest memory, and their pages tracked.
    ///
    /// # Errors
    /// A page of another size or with other read-only registers: nothing is changed. A root that cannot be shadowed: no address
    /// space is left then.
    fn restore(&mut self, state: SavedPvinfo) -> Result<(), RestoreError> {
        let refused = |why: String| Err(RestoreError::of::<SavedPvinfo>(why));
        let own = self.bytes();
        if state.page.len() != own.len() {
            return refused(format!("{} bytes, not {}", state.page.len(), own.len()));
        }
        let mut differ = (0..).zip(own.iter().zip(&state.page));
        if let Some((at, _)) =
            differ.find(|(at, (own, saved))| own != saved && !Self::writable(*at))
        {
            return refused(format!("the register at {at:#x} is another one's"));
        }
        self.set_bytes(&state.page);
        let shadow = self.shadow().clone();
        shadow.destroy_all();
        for root in state.roots {
            if let Err(err) = shadow.create(root) {
                shadow.destroy_all();
                return refused(format!("{root:?}: {err}"));
            }
        }
        Ok(())
    }
}
