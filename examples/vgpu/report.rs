// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is told at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioreq::backends::vgpu::{EngineStats, ShadowStats};
use ioreq::claim::UnmarkReport;
use ioreq::stats::ServerStats;
use serde_json::json;
use vgpu_guest::Done;

use crate::checker::Tally;
use crate::options::Options;

pub(crate) struct Report {
    pub(crate) hypervisor: String,
    pub(crate) seconds: f64,
    /// Of this process, all its threads.
    pub(crate) cpu_seconds: f64,
    pub(crate) stats: ServerStats,
    pub(crate) shadow: ShadowStats,
    pub(crate) engine: EngineStats,
    pub(crate) contexts_alive: u64,
    /// Pages tracked at the end, once the reservation was made, and at most.
    pub(crate) tracked: u64,
    pub(crate) tracked_reserved: u64,
    pub(crate) tracked_peak: u64,
    pub(crate) interrupts: u64,
    /// Trapped writes that reached a table's handler.
    pub(crate) handled: u64,
    /// Trapped writes of each vCPU that reached a table's handler.
    pub(crate) by_vcpu: Vec<u64>,
    /// Of those, writes to pages that another vCPU writes, too.
    pub(crate) shared: u64,
    pub(crate) unmarked: UnmarkReport,
    /// Hypercalls that marked or unmarked pages, where they are counted.
    pub(crate) mark_calls: Option<u64>,
    /// How long the windows' writes took the vCPUs.
    pub(crate) window_seconds: f64,
    pub(crate) done: Done,
    pub(crate) tally: Arc<Tally>,
}

impl Report {
    /// Whether every byte and every entry was right.
    pub(crate) fn is_right(&self) -> bool {
        self.tally.mismatches() == 0
    }

    pub(crate) fn print(&self, options: &Options) {
        let Report {
            stats,
            shadow,
            engine,
            done,
            tally,
            ..
        } = self;
        let per_second = |count: u64| count as f64 / self.seconds.max(1e-9);
        let [small, medium, large, huge] =
            [0, 1, 2, 3].map(|size| tally.sizes[size].load(Ordering::Relaxed));
        println!(
            "{}, {} vCPUs, {:.1} s, {:.1} s of CPU time",
            self.hypervisor, options.vcpus, self.seconds, self.cpu_seconds
        );
        println!(
            "requests     {} (mmio reads {}, mmio writes {}, writes to table pages {})",
            stats.requests(),
            stats.mmio_reads,
            stats.mmio_writes.saturating_sub(stats.page_writes),
            stats.page_writes
        );
        println!(
            "traps        {} writes to tracked pages ({} of them on their way out), {:.0}/s",
            stats.page_writes,
            stats.page_writes.saturating_sub(self.handled),
            per_second(stats.page_writes)
        );
        println!(
            "shadow       {} updates, {} split writes, {} clashes, {} bad frames",
            shadow.updates, shadow.split_writes, shadow.clashes, shadow.bad_frames
        );
        println!(
            "tables       {} now, {} peak, {} freed, {} reused as data",
            shadow.tables, shadow.tables_peak, shadow.tables_freed, done.tables_reused
        );
        println!(
            "tracked      {} pages now, {} at the peak, {} reserved; {} set_mem_type calls",
            self.tracked,
            self.tracked_peak,
            self.tracked_reserved,
            self.mark_calls
                .map_or("uncounted".into(), |calls| calls.to_string())
        );
        println!(
            "shared       {} rounds; trapped writes by vCPU {:?}, {} of them to pages that several write",
            done.rounds / 2,
            self.by_vcpu,
            self.shared
        );
        println!(
            "unmarked     {} pages, {} of them while the guest wrote to them",
            self.unmarked.unmarked, self.unmarked.contended
        );
        println!(
            "out of sync  {} tables, read {} times; tracked again {} times, {} in vain; {} traps avoided",
            shadow.out_of_sync,
            shadow.rereads,
            shadow.protected_again,
            shadow.out_of_sync_in_vain,
            shadow.traps_avoided
        );
        println!(
            "windows      {} entries led elsewhere in {:.2} s of the vCPUs' time, {:.0} ns each",
            done.window_writes,
            self.window_seconds,
            self.window_ns()
        );
        println!(
            "contexts     {} alive at once; {} of 48 bits and {} of 32 bits created, {} of them streaming; shared tables written {} times",
            self.contexts_alive,
            done.wide_created,
            done.narrow_created,
            done.streams_created,
            done.common_turns
        );
        println!(
            "submissions  {} ({} of 32-bit contexts, {} finished by the engine's thread), {:.0}/s, {} interrupts",
            engine.submissions,
            tally.narrow.load(Ordering::Relaxed),
            engine.deferred,
            per_second(engine.submissions),
            self.interrupts
        );
        println!(
            "bytes        {} moved, {:.0} MiB/s; {} buffers moved in GPU space",
            engine.bytes,
            per_second(engine.bytes) / f64::from(1 << 20),
            done.moved
        );
        println!(
            "checked      {} entries (4 KiB {small}, 64 KiB {medium}, 2 MiB {large}, 1 GiB {huge}), {} bytes",
            tally.entries.load(Ordering::Relaxed),
            tally.bytes.load(Ordering::Relaxed)
        );
        let latency = |q: f64| stats.latency.percentile(q).unwrap_or(0);
        println!(
            "latency      p50 {} ns, p99 {} ns, p99.9 {} ns, max {} ns",
            latency(0.5),
            latency(0.99),
            latency(0.999),
            latency(1.0)
        );
        println!("memory       {} KiB peak", peak_kib());
        println!("mismatches   {}", tally.mismatches());
    }

    /// What out-of-sync tables gained over a run without.
    pub(crate) fn print_gain(&self, without: &Report) {
        println!("-- gained");
        println!(
            "traps        {} instead of {}",
            self.stats.page_writes, without.stats.page_writes
        );
        println!(
            "windows      {:.0} ns an entry instead of {:.0}, {:.2} s of the vCPUs' time instead of {:.2}",
            self.window_ns(),
            without.window_ns(),
            self.window_seconds,
            without.window_seconds
        );
        println!(
            "time         {:.1} s instead of {:.1}, {:.1} s of CPU time instead of {:.1}",
            self.seconds, without.seconds, self.cpu_seconds, without.cpu_seconds
        );
    }

    /// What the write of a window's entry took its vCPU, in the mean.
    fn window_ns(&self) -> f64 {
        self.window_seconds * 1e9 / self.done.window_writes.max(1) as f64
    }

    /// The report as one object; `before` is the run that it is compared with.
    pub(crate) fn json(&self, options: &Options, before: Option<&Report>) -> serde_json::Value {
        let latency = |q: f64| self.stats.latency.percentile(q).unwrap_or(0);
        json!({
            "hypervisor": self.hypervisor,
            "vcpus": options.vcpus,
            "contexts": self.contexts_alive,
            "submissions": self.engine.submissions,
            "bytes_moved": self.engine.bytes,
            "traps": self.stats.page_writes,
            "split_writes": self.shadow.split_writes,
            "shadow_updates": self.shadow.updates,
            "tables_reused": self.done.tables_reused,
            "tracked_pages_peak": self.tracked_peak,
            "mismatches": self.tally.mismatches(),
            "seconds": self.seconds,
            "traps_per_second": self.stats.page_writes as f64 / self.seconds.max(1e-9),
            "latency_ns": {
                "p50": latency(0.5), "p99": latency(0.99), "p999": latency(0.999), "max": latency(1.0),
            },
            "rss_peak_kib": peak_kib(),
            "contexts_created": { "l4": self.done.wide_created, "l3": self.done.narrow_created },
            "submissions_l3": self.tally.narrow.load(Ordering::Relaxed),
            "set_mem_type_calls": self.mark_calls,
            "trapped_writes_by_vcpu": self.by_vcpu,
            "shared_page_writes": self.shared,
            "shared_rounds": self.done.rounds / 2,
            "pages_unmarked": self.unmarked.unmarked,
            "pages_unmarked_under_fire": self.unmarked.contended,
            "cpu_seconds": self.cpu_seconds,
            "out_of_sync": {
                "tables": self.shadow.out_of_sync,
                "rereads": self.shadow.rereads,
                "tracked_again": self.shadow.protected_again,
                "in_vain": self.shadow.out_of_sync_in_vain,
                "traps_avoided": self.shadow.traps_avoided,
            },
            "window_writes": self.done.window_writes,
            "window_write_ns": self.window_ns(),
            "without_out_of_sync": before.map(|before| before.json(options, None)),
        })
    }
}

/// CPU time of this process so far, user and system.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // utime and stime, the 14th and 15th field, in ticks of 10 ms; the second is in parentheses, and may hold anything.
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// VmHWM of this process.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
