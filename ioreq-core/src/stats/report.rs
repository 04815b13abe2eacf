// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Statistics as users read them: sums over the workers.

use std::sync::Arc;

use super::histogram::Latency;
use super::{Counter, PerWorker, RouteCounters, WorkerCounters};
use crate::ids::{DomId, ServerId};

macro_rules! server_stats {
    ($($(#[doc = $doc:literal])* $field:ident),* $(,)?) => {
        /// What a server has done so far, summed over its workers. Counts of one moment may be a few requests apart.
        ///
        /// ```
        /// let stats = ioreq_core::stats::ServerStats::default();
        /// assert_eq!(stats.requests(), 0);
        /// ```
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ServerStats {
            $($(#[doc = $doc])* pub $field: u64,)*
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

            /// What workers count.
            fn counted(&self) -> impl Iterator<Item = Count> + use<> {
                let counts = [$(Count {
                    name: stringify!($field),
                    help: concat!($($doc),*),
                    value: self.$field,
                }),*];
                counts.into_iter()
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

    /// The same by their kind.
    ///
    /// ```
    /// let stats = ioreq_core::stats::ServerStats::default();
    /// let sum: u64 = stats.by_kind().map(|(_kind, count)| count).sum();
    /// assert_eq!(sum, stats.requests());
    /// ```
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let kinds = [
            ("port_read", self.port_reads),
            ("port_write", self.port_writes),
            ("mmio_read", self.mmio_reads),
            ("mmio_write", self.mmio_writes),
            ("pci_read", self.pci_reads),
            ("pci_write", self.pci_writes),
            ("time_offset", self.time_offsets),
            ("invalidate", self.invalidates),
            ("unknown", self.unknown),
            ("malformed", self.malformed),
        ];
        kinds.into_iter()
    }

    /// Every other count, by the name of its field.
    ///
    /// ```
    /// let stats = ioreq_core::stats::ServerStats::default();
    /// assert!(stats.others().any(|count| count.name == "panics" && count.value == 0));
    /// assert!(stats.others().all(|count| count.name != "port_reads"), "that is a kind");
    /// ```
    pub fn others(&self) -> impl Iterator<Item = Count> + use<> {
        const KINDS: [&str; 10] = [
            "port_reads",
            "port_writes",
            "mmio_reads",
            "mmio_writes",
            "pci_reads",
            "pci_writes",
            "time_offsets",
            "invalidates",
            "unknown",
            "malformed",
        ];
        let more = [
            (
                "dirty_faults",
                "Pages that were stored into and could not be told to whoever logs dirty pages.",
                self.dirty_faults,
            ),
            (
                "slow_handlers",
                "Calls of handlers that ran for longer than their budget.",
                self.slow_handlers,
            ),
            (
                "broken_routes",
                "Handlers out of service since they panicked.",
                self.broken_routes,
            ),
            (
                "overlooked",
                "Requests found waiting for a tenth of a second or longer.",
                self.overlooked,
            ),
        ];
        let more = more.map(|(name, help, value)| Count { name, help, value });
        let counted = self.counted().filter(|count| !KINDS.contains(&count.name));
        counted.chain(more)
    }
}

/// One of a server's counts: how often something happened.
///
/// ```
/// use ioreq_core::stats::ServerStats;
/// for count in ServerStats::default().others().take(1) {
///     assert_eq!((count.name, count.value), ("page_writes", 0));
///     assert!(count.help.contains("tracked pages"));
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Count {
    /// The name of the field of [`ServerStats`].
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// How often.
    pub value: u64,
}

/// A server at one moment: for a page, a display, or a monitoring system ([`prometheus`](super::prometheus())). Made by
/// [`IoreqServer::report`](crate::server::IoreqServer::report).
///
/// ```
/// use ioreq_core::server::IoreqServer;
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(4))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let report = server.report();
/// assert_eq!((report.domid, report.vcpus.len(), report.waiting()), (domain.domid(), 4, 0));
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The domain.
    pub domid: DomId,
    /// The server, as the hypervisor knows it.
    pub server: ServerId,
    /// Of each vCPU, whether it waits for the answer to a request.
    pub vcpus: Vec<bool>,
    /// Pages of which every write traps, those that are leaving included.
    pub tracked_pages: u64,
    /// What it has done.
    pub stats: ServerStats,
    /// Each route's, and each tracker's, name and part of that.
    pub routes: Vec<(Arc<str>, RouteStats)>,
}

impl Report {
    /// How many vCPUs wait for an answer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.vcpus.iter().filter(|waits| **waits).count()
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
