// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What users write: handlers, and what handlers answer.
//!
//! * [`Handler`] serves a range of ports, of MMIO addresses, or a PCI function; [`MutHandler`] is the same with
//!   `&mut self`, and a `Mutex` around one is a `Handler`.
//! * [`PageHandler`] is told of every write to the tracked pages it was given; [`MutPageHandler`] likewise.
//!
//! A handler never blocks a vCPU for good: whatever it does (return, panic, drop a [`Completion`]), the request is answered.

mod access;
mod context;
mod deferred;
mod io;
mod outcome;
mod page;
pub(crate) mod scope;
mod typed;

pub use access::{Access, Batch, Space};
pub use context::Context;
pub use deferred::{Completion, Deferred};
pub use io::{Handler, MutHandler};
pub use outcome::{BatchOutcome, PageOutcome, ReadOutcome, Verdict, WriteOutcome};
pub use page::{MutPageHandler, PageHandler, PageWrite, WriteSource};

pub use deferred::Answer;
pub(crate) use deferred::{Pending, Reply};
pub(crate) use typed::HandlerType;
pub use typed::{HandlerRef, TypedHandler};
