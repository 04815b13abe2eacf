// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters and latency, kept per worker so that counting shares no cache line and needs no read-modify-write.

mod counter;
mod histogram;
mod prometheus;
mod report;
mod watch;
mod worker;

pub use histogram::Latency;
pub use prometheus::prometheus;
pub use report::{Count, Report, RouteStats, ServerStats};

pub(crate) use counter::{Counter, PerWorker};
pub(crate) use watch::{Calling, Watch};
pub(crate) use worker::{RouteCounters, WorkerCounters};
