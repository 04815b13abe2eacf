// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Statistics as users read them: sums over the workers.

use super::histogram::Latency;
use super::{Counter, PerWorker, RouteCounters, WorkerCounters};

macro_rules! server_stats {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        /// What a server has done so far, summed over its workers. Counts of one moment may be a few requests apart.
        ///
        /// ```
        /// let stats = ioreq_core::stats::ServerStats::default();
        /// assert_eq!(stats.requests(), 0);
        /// ```
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ServerStats {
            $($(#[$doc])* pub $field: u64,)*
            /// Pages that were stored into and could not be told to the hypervisor while
            /// [dirty logging](crate::server::IoreqServer::set_dirty_logging) was on: a migration under way may miss them.
            pub dirty_faults: u64,
            /// Calls of handlers that were told of because they ran for longer than their
            /// [budget](crate::server::Builder::handler_budget).
            pub slow_handlers: u64,
            /// Handlers out of service since they panicked: see [`PanicPolicy`](crate::server::PanicPolicy).
            pub broken_routes: u64,
            /// Requests found waiting for a tenth of a second or longer: their event was lost, and they were served by this look
            /// for them, or their worker was busy that long.
            pub overlooked: u64,
            /// Latency of the sampled synchronous requests.
            pub latency: Latency,
        }

        impl ServerStats {
            pub(crate) fn sum(workers: &PerWorker<WorkerCounters>) -> Self {
                let mut stats = ServerStats::default();
                for worker in workers.iter() {
                    $(stats.$field += Counter::get(&worker.$field);)*
                    stats.latency.merge(&worker.latency);
                }
                stats
            }
        }
    };
}

server_stats! {
    /// Port reads; a repeated instruction counts once.
    port_reads,
    /// Port writes.
    port_writes,
    /// MMIO reads.
    mmio_reads,
    /// MMIO writes, those to tracked pages included.
    mmio_writes,
    /// PCI configuration reads.
    pci_reads,
    /// PCI configuration writes.
    pci_writes,
    /// Of the MMIO writes, those to tracked pages; pages that are leaving included.
    page_writes,
    /// Entries taken from the buffered ring.
    buffered,
    /// Requests that the guest's clock was set.
    time_offsets,
    /// Requests to drop cached mappings.
    invalidates,
    /// Requests of a type this version does not know.
    unknown,
    /// Requests to no route: all-ones, or dropped.
    unclaimed,
    /// Writes to guest memory that is not tracked (any more), applied as written.
    stale_writes,
    /// Requests that a handler refused.
    refused,
    /// Requests that made no sense.
    malformed,
    /// Elements of repeated instructions whose data pointer is not guest memory.
    data_faults,
    /// Handlers that panicked.
    panics,
    /// Requests that a handler deferred.
    deferred,
    /// Deferred requests that took longer than their handler said.
    overruns,
    /// Requests held back while their page was being unmarked.
    parked,
    /// Notifications sent.
    notifies,
    /// Notifications that failed.
    notify_errors,
    /// Times a worker went to sleep.
    sleeps,
    /// Absurd pointers found in the buffered ring.
    ring_anomalies,
    /// Event rings that overflowed and were recovered.
    event_overflows,
}

impl ServerStats {
    /// All synchronous requests, each counted once.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.port_reads
            + self.port_writes
            + self.mmio_reads
            + self.mmio_writes
            + self.pci_reads
            + self.pci_writes
            + self.time_offsets
            + self.invalidates
            + self.unknown
            + self.malformed
    }
}

/// What one route, or one tracker, has served.
///
/// ```
/// let stats = ioreq_core::stats::RouteStats::default();
/// assert_eq!((stats.reads, stats.writes), (0, 0));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteStats {
    /// Reads, each element of a repeated instruction by itself.
    pub reads: u64,
    /// Writes, likewise.
    pub writes: u64,
    /// Accesses that the handler refused.
    pub refused: u64,
    /// Calls that panicked.
    pub panics: u64,
}

impl RouteStats {
    pub(crate) fn sum(workers: &PerWorker<RouteCounters>) -> Self {
        let mut stats = RouteStats::default();
        for worker in workers.iter() {
            stats.reads += worker.reads.get();
            stats.writes += worker.writes.get();
            stats.refused += worker.refused.get();
            stats.panics += worker.panics.get();
        }
        stats
    }
}
