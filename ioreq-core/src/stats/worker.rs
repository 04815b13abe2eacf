// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a worker counts.

use super::histogram::Histogram;
use super::{Counter, Watch};

/// One worker's counters. Requests by kind, then what became of them.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    pub(crate) port_reads: Counter,
    pub(crate) port_writes: Counter,
    pub(crate) mmio_reads: Counter,
    pub(crate) mmio_writes: Counter,
    pub(crate) pci_reads: Counter,
    pub(crate) pci_writes: Counter,
    pub(crate) page_writes: Counter,
    pub(crate) buffered: Counter,
    pub(crate) time_offsets: Counter,
    pub(crate) invalidates: Counter,
    pub(crate) unknown: Counter,
    pub(crate) unclaimed: Counter,
    pub(crate) stale_writes: Counter,
    pub(crate) refused: Counter,
    pub(crate) malformed: Counter,
    pub(crate) data_faults: Counter,
    pub(crate) panics: Counter,
    pub(crate) deferred: Counter,
    pub(crate) overruns: Counter,
    pub(crate) parked: Counter,
    pub(crate) notifies: Counter,
    pub(crate) notify_errors: Counter,
    pub(crate) sleeps: Counter,
    pub(crate) ring_anomalies: Counter,
    pub(crate) event_overflows: Counter,
    pub(crate) latency: Histogram,
    /// The handler that runs.
    pub(crate) watch: Watch,
}

/// One worker's counters of one route.
#[derive(Debug, Default)]
pub(crate) struct RouteCounters {
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) refused: Counter,
    pub(crate) panics: Counter,
}
