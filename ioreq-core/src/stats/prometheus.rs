// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reports in the text format that Prometheus reads
//! (<https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md>, version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::report::{Report, RouteStats, ServerStats};

/// Upper ends of the latencies' buckets: so many powers of two of nanoseconds, from a microsecond to a second.
const POWERS: std::ops::RangeInclusive<u32> = 10..=30;

/// All that the reports tell, as one page for Prometheus. Each server has a name, which is its label `server`; two reports of one name would
/// be one thing twice, so give each its own.
///
/// Counters are `ioreq_…_total`, by the names of [`ServerStats`]; requests are `ioreq_requests_total` by `kind`, routes
/// `ioreq_route_accesses_total` by `route` and `direction` (routes of one name are one). `ioreq_request_latency_seconds` is a histogram of the
/// requests that were measured ([`Builder::sample_latency`](crate::server::Builder::sample_latency)); its `_sum` is by the upper ends of
/// the buckets that are kept, at most an eighth too much.
///
/// ```
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer, stats::prometheus};
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(2))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let page = prometheus(&[("devices", &server.report())]);
/// assert!(page.contains("\nioreq_requests_total{server=\"devices\",kind=\"port_read\"} 0\n"));
/// assert!(page.contains("\nioreq_vcpus{server=\"devices\"} 2\n"));
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[must_use]
pub fn prometheus(reports: &[(&str, &Report)]) -> String {
    let mut page = Page(String::new());
    page.family(
        "ioreq_vcpus",
        "gauge",
        "vCPUs of the domain.",
        reports,
        |samples, report| {
            samples.put("", &[], report.vcpus.len());
        },
    );
    page.family(
        "ioreq_vcpus_waiting",
        "gauge",
        "vCPUs whose request is not answered at this moment.",
        reports,
        |samples, report| samples.put("", &[], report.waiting()),
    );
    page.family(
        "ioreq_tracked_pages",
        "gauge",
        "Guest pages of which every write traps, those that are leaving included.",
        reports,
        |samples, report| samples.put("", &[], report.tracked_pages),
    );
    page.family(
        "ioreq_requests_total",
        "counter",
        "Requests, by their kind. A repeated instruction counts once.",
        reports,
        |samples, report| {
            for (kind, count) in report.stats.by_kind() {
                samples.put("", &[("kind", kind)], count);
            }
        },
    );
    // Each counter is a family, and the reports are its samples.
    for (number, counter) in (0..).zip(ServerStats::default().others()) {
        page.family(
            &format!("ioreq_{}_total", counter.name),
            "counter",
            counter.help,
            reports,
            |samples, report| {
                if let Some(counter) = report.stats.others().nth(number) {
                    samples.put("", &[], counter.value);
                }
            },
        );
    }
    page.latency(reports);
    let (name, help) = (
        "ioreq_route_accesses_total",
        "Accesses, by route or tracker.",
    );
    page.family(name, "counter", help, reports, |samples, report| {
        for (route, stats) in by_name(report) {
            for (direction, count) in [("read", stats.reads), ("write", stats.writes)] {
                samples.put("", &[("route", route), ("direction", direction)], count);
            }
        }
    });
    let (name, help) = (
        "ioreq_route_refused_total",
        "Accesses that the route's handler refused.",
    );
    page.family(name, "counter", help, reports, |samples, report| {
        for (route, stats) in by_name(report) {
            samples.put("", &[("route", route)], stats.refused);
        }
    });
    let (name, help) = (
        "ioreq_route_panics_total",
        "Calls of the route's handler that panicked.",
    );
    page.family(name, "counter", help, reports, |samples, report| {
        for (route, stats) in by_name(report) {
            samples.put("", &[("route", route)], stats.panics);
        }
    });
    page.0
}

/// The routes, each name once.
fn by_name(report: &Report) -> BTreeMap<&str, RouteStats> {
    let mut routes = BTreeMap::<&str, RouteStats>::new();
    for (name, stats) in &report.routes {
        let sum = routes.entry(name).or_default();
        sum.reads += stats.reads;
        sum.writes += stats.writes;
        sum.refused += stats.refused;
        sum.panics += stats.panics;
    }
    routes
}

struct Page(String);

/// The samples of one server in a family.
struct Samples<'a> {
    page: &'a mut String,
    family: &'a str,
    server: &'a str,
}

impl Page {
    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        reports: &[(&str, &Report)],
        each: impl Fn(&mut Samples<'_>, &Report),
    ) {
        let help = help.trim().replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a string does not fail.
        let _ok = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (server, report) in reports {
            let mut samples = Samples {
                page: &mut self.0,
                family: name,
                server,
            };
            each(&mut samples, report);
        }
    }

    fn latency(&mut self, reports: &[(&str, &Report)]) {
        let name = "ioreq_request_latency_seconds";
        let help =
            "From the look that sees a request to its answer, of the requests that are measured.";
        self.family(name, "histogram", help, reports, |samples, report| {
            let latency = &report.stats.latency;
            for power in POWERS {
                let end = 1_u64 << power;
                samples.put(
                    "_bucket",
                    &[("le", &seconds(end.into()))],
                    latency.below(end),
                );
            }
            samples.put("_bucket", &[("le", "+Inf")], latency.measured());
            samples.put("_sum", &[], seconds(latency.sum()));
            samples.put("_count", &[], latency.measured());
        });
    }
}

/// Nanoseconds as seconds, exactly.
fn seconds(nanos: u128) -> String {
    const SECOND: u128 = 1_000_000_000;
    format!("{}.{:09}", nanos / SECOND, nanos % SECOND)
}

impl Samples<'_> {
    fn put(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let (family, server) = (self.family, escaped(self.server));
        let _ok = write!(self.page, "{family}{suffix}{{server=\"{server}\"");
        for (name, value) in labels {
            let _ok = write!(self.page, ",{name}=\"{}\"", escaped(value));
        }
        let _ok = writeln!(self.page, "}} {value}");
    }
}

/// As a label's value has it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}
