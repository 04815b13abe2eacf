// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A log of the writes to tracked pages: which page, offset, width, value, vCPU, and in which order.
//!
//! [`WriteLog`] gives out the handlers, [`LogReader`] the records. Between them is a ring of fixed size: a write costs one slot
//! of it and no allocation, and never waits for the reader. When the ring is full the newest record is lost, and counted.
//!
//! # What the order means
//! * **One page:** records come out in the order in which the writes were served, which is the order in which they were stored,
//!   because the framework holds a page's order while its handler runs and until the store is made. Each page's writes are
//!   numbered from 0 without a gap; a gap in the numbers that come out is where records were lost. (A handler behind the
//!   log that defers decides its stores later: its page's records are in the order of arrival.)
//! * **Several pages:** a write that was answered before another one trapped comes out before it. Writes that were served at the
//!   same time come out in either order.

mod handler;
mod reader;
mod record;
mod ring;
mod saved;

pub use handler::{PageLog, WriteLog};
pub use reader::{Drain, LogReader};
pub use record::WriteRecord;
pub use saved::SavedNumbers;
