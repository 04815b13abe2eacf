// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is left when marking pages fails in the middle.

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::range::GfnRange;

/// Marking pages failed; says of every page what became of it.
///
/// The pages the hypervisor may or may not have marked are *unknown*: they keep a route that applies writes as the guest wrote
/// them, so the guest goes on either way, and they are queued to be unmarked.
///
/// ```
/// use ioreq_core::{Error, ErrorKind, GfnRange, Op, claim::MarkError};
/// let mut err = MarkError::new(Error::new(Op::Mark, ErrorKind::OutOfMemory));
/// err.untouched.push(GfnRange::sized(0x80, 0x40)?);
/// assert_eq!(err.kind(), ErrorKind::OutOfMemory);
/// assert!(err.to_string().contains("0 pages tracked, 0 unknown, 64 untouched"));
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkError {
    error: Error,
    /// Pages that are tracked now, with the handler that was given.
    pub done: Vec<GfnRange>,
    /// Pages that may or may not be marked: writes are applied as written; they are queued to be unmarked.
    pub unknown: Vec<GfnRange>,
    /// Pages that are as they were.
    pub untouched: Vec<GfnRange>,
}

impl MarkError {
    /// Nothing done, nothing unknown so far.
    #[must_use]
    pub fn new(error: Error) -> Self {
        MarkError {
            error,
            done: Vec::new(),
            unknown: Vec::new(),
            untouched: Vec::new(),
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// The hypervisor's error, or the framework's.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }
}

impl fmt::Display for MarkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = |ranges: &[GfnRange]| ranges.iter().map(GfnRange::pages).sum::<u64>();
        write!(
            f,
            "{} ({} pages tracked, {} unknown, {} untouched)",
            self.error,
            pages(&self.done),
            pages(&self.unknown),
            pages(&self.untouched)
        )
    }
}

impl std::error::Error for MarkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl From<MarkError> for Error {
    fn from(err: MarkError) -> Self {
        err.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Op;
    use std::error::Error as _;

    #[test]
    fn the_cause_is_the_systems_error() {
        let from_xen = MarkError::new(Error::from_errno(Op::SetMemType, libc::ENOMEM));
        let cause = from_xen.source().expect("Xen said so").to_string();
        assert!(cause.contains("os error 12"), "{cause}");
        let ours = MarkError::new(Error::new(Op::Mark, ErrorKind::WrongState));
        assert!(ours.source().is_none());
    }
}
