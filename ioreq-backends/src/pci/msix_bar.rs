// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A BAR's handler: MSI-X structures where they are, the device's own handler everywhere else.

use std::sync::Arc;

use ioreq_core::Sbdf;
use ioreq_core::handler::{
    Access, Batch, BatchOutcome, Context, Handler, ReadOutcome, WriteOutcome,
};

use super::failures::Failures;
use super::msix::{Table, Window};

const NOBODY: &str = "the region has no handler";
const STRADDLES: &str = "the access is partly to an MSI-X structure";
const UNDEFINED: &str = "MSI-X structures take aligned accesses of 4 or 8 bytes";

/// Serves one BAR.
pub(super) struct BarHandler {
    pub(super) inner: Option<Arc<dyn Handler>>,
    pub(super) msix: Option<MsixPart>,
}

/// The MSI-X structures of a BAR.
pub(super) struct MsixPart {
    pub(super) function: Sbdf,
    pub(super) messages: Arc<Table>,
    pub(super) table: Option<Window>,
    pub(super) pending: Option<Window>,
    pub(super) failures: Arc<Failures>,
}

/// What an access goes to.
enum Target<'a> {
    Table(&'a MsixPart, Access),
    Pending(&'a MsixPart, Access),
    Inner(&'a dyn Handler),
    Nobody(&'static str),
}

impl BarHandler {
    fn target(&self, access: Access) -> Target<'_> {
        let (first, len) = (access.offset, access.width.bytes());
        let inside = |window: Window| {
            let offset = access.offset - window.first;
            Access { offset, ..access }
        };
        if let Some(msix) = &self.msix {
            for (window, is_table) in [(msix.table, true), (msix.pending, false)] {
                let Some(window) = window.filter(|window| window.overlaps(first, len)) else {
                    continue;
                };
                return match (window.covers(first, len), is_table) {
                    (false, _) => Target::Nobody(STRADDLES),
                    (true, true) => Target::Table(msix, inside(window)),
                    (true, false) => Target::Pending(msix, inside(window)),
                };
            }
        }
        match &self.inner {
            Some(handler) => Target::Inner(&**handler),
            None => Target::Nobody(NOBODY),
        }
    }

    /// The device's handler, if no element of the batch can be to an MSI-X structure.
    fn for_batch(&self, batch: &Batch) -> Option<&dyn Handler> {
        let last = batch.get(batch.len.checked_sub(1)?);
        let (one, other) = (batch.first.offset, last.offset);
        let (low, high) = (one.min(other), one.max(other));
        let len = (high - low).saturating_add(batch.first.width.bytes());
        if let Some(msix) = &self.msix {
            let touched = |window: Option<Window>| window.is_some_and(|w| w.overlaps(low, len));
            if touched(msix.table) || touched(msix.pending) {
                return None;
            }
        }
        self.inner.as_deref()
    }
}

impl Handler for BarHandler {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        let value = match self.target(access) {
            Target::Table(msix, access) => msix.messages.read(access),
            Target::Pending(msix, access) => msix.messages.read_pending(access),
            Target::Inner(handler) => return handler.read(cx, access),
            Target::Nobody(why) => return ReadOutcome::Refused(why),
        };
        value.map_or(ReadOutcome::Refused(UNDEFINED), ReadOutcome::Value)
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        match self.target(access) {
            Target::Table(msix, access) => match msix.messages.write(access, value) {
                None => return WriteOutcome::Refused(UNDEFINED),
                Some(Ok(())) => {}
                Some(Err(err)) => msix.failures.note(msix.function, "unmasked MSI-X", &err),
            },
            Target::Pending(..) => return WriteOutcome::Refused("pending bits are read-only"),
            Target::Inner(handler) => return handler.write(cx, access, value),
            Target::Nobody(why) => return WriteOutcome::Refused(why),
        }
        WriteOutcome::Done
    }

    fn read_batch(&self, cx: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        match self.for_batch(batch) {
            Some(handler) => handler.read_batch(cx, batch, values),
            None => BatchOutcome::OneByOne,
        }
    }

    fn write_batch(&self, cx: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        match self.for_batch(batch) {
            Some(handler) => handler.write_batch(cx, batch, values),
            None => BatchOutcome::OneByOne,
        }
    }
}
