// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The saved state of a function: its configuration space, and the messages that are not in it.

use ioreq_core::snapshot::{RestoreError, SavedState, Snapshot};

use super::PciFunction;

/// What a guest has made of a [`PciFunction`]: the bytes of its configuration space, MSI-X's table, and which messages are pending. The
/// level of the interrupt pin is not in it: the device sets it again as its own state wants it.
///
/// ```
/// use ioreq_backends::pci::PciFunction;
/// use ioreq_core::snapshot::{RestoreError, Snapshot};
/// fn moved(here: &PciFunction, there: &PciFunction) -> Result<(), RestoreError> {
///     there.restore(here.save())?; // places its BARs where the guest has them
///     assert_eq!(there.save(), here.save());
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedFunction {
    pub(super) config: Vec<u8>,
    /// Of MSI.
    pub(super) pending: u32,
    pub(super) messages: Vec<SavedMessage>,
}

/// One message of MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct SavedMessage {
    pub(super) address: u64,
    pub(super) data: u32,
    pub(super) masked: bool,
    pub(super) pending: bool,
}

impl SavedState for SavedFunction {
    const KIND: &'static str = "PCI function";
    const VERSION: u32 = 1;
}

impl Snapshot for PciFunction {
    type State = SavedFunction;

    fn save(&self) -> SavedFunction {
        self.save_state()
    }

    /// BARs are routed again where they were; one whose place is taken is told as when a guest places it there
    /// ([`bars`](PciFunction::bars)). The listener is not called.
    ///
    /// # Errors
    /// A configuration space of another length or with other read-only bytes, another number of messages: nothing is changed.
    fn restore(&self, state: SavedFunction) -> Result<(), RestoreError> {
        self.restore_state(&state)
            .map_err(RestoreError::of::<SavedFunction>)
    }
}
