// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tells a server's [journal](crate::journal) of what is served. Where there is none nothing of this runs: a request's way looks at one
//! word for all that few servers want (`DirtyLogging::is_plain`).

use super::core::Core;
use crate::abi::Ioreq;
use crate::hypervisor::Hypervisor;
use crate::ids::VcpuId;
use crate::journal::{End, Journal, Served};

/// Something that is being served. Its end is told when this is dropped: answered without a value, if nothing else was said.
pub(super) struct Entry<'a> {
    journal: Option<&'a dyn Journal>,
    end: End,
}

impl<'a> Entry<'a> {
    pub(super) fn journal(&self) -> Option<&'a dyn Journal> {
        self.journal
    }

    pub(super) fn ends(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(journal) = self.journal {
            journal.end(self.end);
        }
    }
}

impl<H: Hypervisor> Core<H> {
    /// Tells that this is served now; waits until it may be.
    pub(super) fn journaled(&self, served: Served<'_>) -> Entry<'_> {
        let journal = self.journal.as_deref();
        if let Some(journal) = journal {
            journal.begin(served);
        }
        Entry {
            journal,
            end: End::Answered(None),
        }
    }

    /// A request that makes no sense.
    #[cold]
    #[inline(never)]
    pub(super) fn journal_refusal(&self, vcpu: VcpuId, raw: &Ioreq) {
        self.journaled(Served::Request(vcpu, raw))
            .ends(End::Refused);
    }
}
