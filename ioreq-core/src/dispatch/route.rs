// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the routing structures lead to.

use std::fmt;
use std::sync::Arc;

use crate::handler::{Handler, TypedHandler, Verdict};
use crate::range::IoRange;
use crate::stats::{PerWorker, RouteCounters};

/// A range's handler. The handler's pointer comes first: it is what a request needs.
pub(crate) struct Route {
    pub(crate) handler: Arc<dyn Handler>,
    /// Where the range starts: accesses are told their offset from here.
    pub(crate) base: u64,
    pub(crate) counters: Arc<PerWorker<RouteCounters>>,
    pub(crate) range: IoRange,
    pub(crate) name: Arc<str>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Route({:?}, {})", self.name, self.range)
    }
}

/// What the pages of one tracker have in common.
#[derive(Debug)]
pub(crate) struct TrackerShared {
    pub(crate) name: Arc<str>,
    pub(crate) counters: PerWorker<RouteCounters>,
}

/// Where tracked pages lead; what they have in common, if they have a handler each.
pub(crate) struct PageRoute {
    pub(crate) handler: Option<TypedHandler>,
    /// The pages are leaving: no handler, and writes are applied as written.
    pub(crate) leaving: bool,
    pub(crate) fallback: Verdict,
    pub(crate) tracker: Arc<TrackerShared>,
}

impl PageRoute {
    /// Whether the page is that tracker's.
    pub(crate) fn is_of(&self, tracker: &Arc<TrackerShared>) -> bool {
        Arc::ptr_eq(&self.tracker, tracker)
    }

    /// Whether the page is on its way out.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }
}

impl fmt::Debug for PageRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaving = if self.is_leaving() { ", leaving" } else { "" };
        write!(f, "PageRoute({:?}{leaving})", self.tracker.name)
    }
}
