// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A log handler's saved state.

use ioreq_core::GfnRange;
use ioreq_core::snapshot::{RestoreError, SavedState, Snapshot};

use super::PageLog;

/// How many writes a [`PageLog`] has numbered, of each of its pages: so that after a migration the numbers go on, and a reader sees
/// a gap where records were lost. Records that were not read are not in it: [drain](super::LogReader::drain) the log first.
///
/// ```
/// use ioreq_backends::write_log::WriteLog;
/// use ioreq_core::{GfnRange, snapshot::Snapshot};
/// let (log, _reader) = WriteLog::new(64)?;
/// let pages = GfnRange::sized(0x10, 2)?;
/// let (here, there) = (log.handler(pages)?, log.handler(pages)?);
/// there.restore(here.save())?;
/// assert!(log.handler(GfnRange::sized(0x10, 3)?)?.restore(here.save()).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedNumbers {
    pages: GfnRange,
    next: Vec<u64>,
}

impl SavedState for SavedNumbers {
    const KIND: &'static str = "write log";
    const VERSION: u32 = 1;
}

impl Snapshot for PageLog {
    type State = SavedNumbers;

    fn save(&self) -> SavedNumbers {
        SavedNumbers {
            pages: self.pages(),
            next: self.numbers(),
        }
    }

    fn restore(&self, state: SavedNumbers) -> Result<(), RestoreError> {
        let SavedNumbers { pages, next } = state;
        let refused = |why| Err(RestoreError::of::<SavedNumbers>(why));
        if pages != self.pages() {
            return refused(format!(
                "it is of {pages}, and this handler logs {}",
                self.pages()
            ));
        }
        if next.len() as u64 != pages.pages() {
            return refused(format!(
                "{} numbers for {} pages",
                next.len(),
                pages.pages()
            ));
        }
        self.set_numbers(&next);
        Ok(())
    }
}
