// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From an address to its handler, without a lock.
//!
//! * [`Grace`] knows the threads that look things up ([`Reader`]), frees what was replaced when none of them can still see
//!   it, and tells when no handler of a removed route runs any more.
//! * [`PageMap`] leads from a guest frame to its route and to the page's [order](Page::lock): tracked pages.
//! * [`PortMap`] and [`RangeMap`] lead from an access to the route of the range that covers all of it.
//!
//! All of them change while readers run: what a reader finds, it may use until its [`ReadGuard`] quiesces or ends.

mod counted;
mod dispatcher;
mod edit;
mod grace;
mod held;
mod kind;
mod last_hit;
mod leaf;
mod link;
mod order;
mod page_map;
mod port_map;
mod range_map;
mod ranged;
mod route;
mod tally;
mod zeroed;

#[cfg(all(test, loom))]
mod model;

pub use counted::Counted;
pub use edit::Edit;
pub use grace::{Grace, ReadGuard, Reader};
pub use kind::Kind;
pub use leaf::{Lead, Page};
pub use order::{Locked, Parked};
pub use page_map::PageMap;
pub use port_map::PortMap;
pub use range_map::RangeMap;
pub use ranged::{Conflict, Ranged};

pub(crate) use dispatcher::Dispatcher;
pub(crate) use route::{PageRoute, Route, TrackerShared};
