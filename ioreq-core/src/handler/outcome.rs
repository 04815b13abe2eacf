// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a handler answers.

use super::Deferred;

/// Answer to a read.
///
/// ```
/// use ioreq_core::handler::ReadOutcome;
/// assert!(matches!(ReadOutcome::from(7_u64), ReadOutcome::Value(7)));
/// ```
#[derive(Debug)]
#[must_use]
pub enum ReadOutcome {
    /// The value; the framework cuts it to the access's width.
    Value(u64),
    /// The handler does not serve this read, and says why: the guest gets all-ones, the refusal is counted and logged.
    Refused(&'static str),
    /// Answered later, through the [`Completion`](super::Completion) made with this.
    Defer(Deferred<u64>),
}

impl From<u64> for ReadOutcome {
    fn from(value: u64) -> Self {
        ReadOutcome::Value(value)
    }
}

/// Answer to a write to a port, an MMIO address or configuration space.
///
/// ```
/// use ioreq_core::handler::WriteOutcome;
/// assert!(matches!(WriteOutcome::from(()), WriteOutcome::Done));
/// ```
#[derive(Debug)]
#[must_use]
pub enum WriteOutcome {
    /// Taken.
    Done,
    /// The handler does not serve this write, and says why: it is dropped, counted and logged.
    Refused(&'static str),
    /// Done later, through the [`Completion`](super::Completion) made with this.
    Defer(Deferred<()>),
}

impl From<()> for WriteOutcome {
    fn from((): ()) -> Self {
        WriteOutcome::Done
    }
}

/// Answer to a batch.
///
/// ```
/// use ioreq_core::handler::BatchOutcome;
/// assert_ne!(BatchOutcome::Done, BatchOutcome::OneByOne);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum BatchOutcome {
    /// All elements are served.
    Done,
    /// The handler does not take batches (or not this one): it gets the elements one by one.
    OneByOne,
    /// The handler does not serve these accesses, and says why: all-ones, or dropped; counted and logged.
    Refused(&'static str),
}

/// What becomes of a write to a tracked page.
///
/// ```
/// use ioreq_core::handler::Verdict;
/// assert_eq!(Verdict::default(), Verdict::Apply);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Verdict {
    /// Store what the guest wrote.
    #[default]
    Apply,
    /// Store this value instead, in the access's width.
    Replace(u64),
    /// Store nothing.
    Drop,
}

/// Answer to a write to a tracked page.
///
/// ```
/// use ioreq_core::handler::{PageOutcome, Verdict};
/// assert!(matches!(PageOutcome::from(Verdict::Drop), PageOutcome::Drop));
/// ```
#[derive(Debug)]
#[must_use]
pub enum PageOutcome {
    /// The framework stores what the guest wrote, once the handler has returned and before any other write to the page.
    Apply,
    /// The framework stores this value instead, in the access's width.
    Replace(u64),
    /// Nothing is stored.
    Drop,
    /// The handler has stored what should be stored itself ([`PageWrite::apply`](super::PageWrite::apply)).
    Done,
    /// Decided later, through the [`Completion`](super::Completion) made with this. The page's order is not held
    /// meanwhile: other vCPUs may write the page.
    Defer(Deferred<Verdict>),
}

impl From<Verdict> for PageOutcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Apply => PageOutcome::Apply,
            Verdict::Replace(value) => PageOutcome::Replace(value),
            Verdict::Drop => PageOutcome::Drop,
        }
    }
}
