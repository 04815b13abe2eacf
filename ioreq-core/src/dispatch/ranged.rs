// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A route together with the range it is for, as the maps of ranges keep it: one object, so that one load leads to both.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A route and the range it is for. Derefs to the route.
///
/// ```
/// use ioreq_core::{PortRange, dispatch::{Grace, PortMap}};
/// let ports = PortMap::new(Grace::new());
/// let range = PortRange::new(0x70, 0x71)?;
/// ports.insert(range, "rtc")?;
/// let conflict = ports.insert(range, "another rtc").unwrap_err();
/// assert_eq!(conflict.existing().range(), range);
/// assert_eq!(conflict.existing().len(), 3); // of the route, "rtc"
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Ranged<S, R> {
    pub(super) range: S,
    pub(super) route: R,
}

impl<S: Copy, R> Ranged<S, R> {
    /// The range.
    #[must_use]
    pub fn range(&self) -> S {
        self.range
    }
}

impl<S, R> Deref for Ranged<S, R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.route
    }
}

/// A range overlaps one that is there.
///
/// ```
/// use ioreq_core::{MmioRange, dispatch::{Grace, RangeMap}};
/// let ranges = RangeMap::new(Grace::new());
/// ranges.insert(MmioRange::new(0, 0xfff)?, "first")?;
/// let conflict = ranges.insert(MmioRange::new(0xfff, 0x1fff)?, "second").unwrap_err();
/// assert_eq!(**conflict.existing(), "first");
/// assert_eq!(conflict.to_string(), "overlaps mmio 0x0–0xfff");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Conflict<S, R>(Arc<Ranged<S, R>>);

impl<S, R> Conflict<S, R> {
    pub(super) fn new(existing: &Arc<Ranged<S, R>>) -> Self {
        Conflict(Arc::clone(existing))
    }

    /// The route that is there, with its range.
    #[must_use]
    pub fn existing(&self) -> &Ranged<S, R> {
        &self.0
    }
}

impl<S: fmt::Debug, R> fmt::Debug for Conflict<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conflict({:?})", self.0.range)
    }
}

impl<S: fmt::Display, R> fmt::Display for Conflict<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "overlaps {}", self.0.range)
    }
}

impl<S: fmt::Debug + fmt::Display, R> std::error::Error for Conflict<S, R> {}
