// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The server: from a request in a vCPU's slot to its answer.
//!
//! [`IoreqServer::builder`] sets a server up in the one order that is safe with Xen. Handlers are added for ranges, a
//! [`MemTypeClaim`](crate::claim::MemTypeClaim) for tracked pages. Then requests are served in one of three ways:
//! [`IoreqServer::start`] makes worker threads, [`IoreqServer::subscriber`] serves in a user's own `event-manager`
//! EventManager, [`IoreqServer::poll`] serves what is there in the calling thread.

mod builder;
mod bus;
mod carry;
mod control;
mod core;
mod dirty;
mod dma;
mod exit;
mod group;
mod held;
mod ioreq_server;
mod journaled;
mod log_limit;
#[cfg(all(test, loom))]
mod model;
mod panics;
mod polling;
mod quiesce;
mod record;
mod routing;
mod run;
mod saved;
mod seldom;
mod service;
mod subscriber;
mod vcpu;
mod waker;
mod watch;
mod watchdog;

pub use builder::{Builder, Workers};
pub use dma::{Dma, DmaError};
pub use exit::Exit;
pub use ioreq_server::{Control, DestroyError, IoreqServer};
pub use panics::PanicPolicy;
pub use polling::Polling;
pub use quiesce::Quiesced;
pub use record::ServerRecord;
pub use run::Running;
pub use saved::SavedServer;
pub use subscriber::{Budget, Subscriber, SubscriberExit};
pub use watch::{DomainNotice, DomainWatch, life_line};
pub use watchdog::SlowHandler;

pub(crate) use core::Core;
