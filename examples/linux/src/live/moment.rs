// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Servers at one moment, as one, and what changed since another.

use std::collections::BTreeMap;
use std::time::Duration;

use ioreq::stats::{Report, RouteStats};

/// The servers of one domain.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) at: Duration,
    pub(super) servers: Vec<(&'static str, Report)>,
}

impl Moment {
    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.servers.iter().map(|(_, report)| report)
    }

    pub(super) fn domid(&self) -> String {
        let first = self.reports().next();
        first.map_or("-".into(), |report| report.domid.0.to_string())
    }

    /// Of each vCPU, whether any server has a request of it.
    pub(super) fn vcpus(&self) -> Vec<bool> {
        let mut all = Vec::new();
        for report in self.reports() {
            all.resize(all.len().max(report.vcpus.len()), false);
            all.iter_mut()
                .zip(&report.vcpus)
                .for_each(|(any, waits)| *any |= waits);
        }
        all
    }

    pub(super) fn tracked_pages(&self) -> u64 {
        self.reports().map(|report| report.tracked_pages).sum()
    }

    /// Requests by kind, in the order of the reports.
    pub(super) fn kinds(&self) -> Vec<(&'static str, u64)> {
        let Some(first) = self.reports().next() else {
            return Vec::new();
        };
        let kinds = first
            .stats
            .by_kind()
            .map(|(kind, _)| (kind, self.kind(kind)));
        kinds.collect()
    }

    pub(super) fn kind(&self, kind: &str) -> u64 {
        let all = self.reports().flat_map(|report| report.stats.by_kind());
        all.filter(|(name, _)| *name == kind)
            .map(|(_, count)| count)
            .sum()
    }

    /// Every other count.
    pub(super) fn others(&self) -> Vec<(&'static str, u64)> {
        let mut others = Vec::<(&'static str, u64)>::new();
        for count in self.reports().flat_map(|report| report.stats.others()) {
            match others.iter_mut().find(|(name, _)| *name == count.name) {
                Some((_, sum)) => *sum += count.value,
                None => others.push((count.name, count.value)),
            }
        }
        others
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        let others = self.others();
        others
            .iter()
            .find(|(other, _)| *other == name)
            .map_or(0, |(_, value)| *value)
    }

    /// The slowest server's.
    pub(super) fn latency(&self, share: f64) -> Option<u64> {
        let latencies = self
            .reports()
            .map(|report| report.stats.latency.percentile(share));
        latencies.max().flatten()
    }

    /// Routes by their server's and their own name.
    pub(super) fn routes(&self) -> BTreeMap<String, RouteStats> {
        let mut routes = BTreeMap::<String, RouteStats>::new();
        for (server, report) in &self.servers {
            for (name, stats) in &report.routes {
                let sum = routes.entry(format!("{server}: {name}")).or_default();
                sum.reads += stats.reads;
                sum.writes += stats.writes;
                sum.refused += stats.refused;
                sum.panics += stats.panics;
            }
        }
        routes
    }

    pub(super) fn accesses(&self, route: &str) -> u64 {
        self.routes()
            .get(route)
            .map_or(0, |stats| stats.reads + stats.writes)
    }
}

/// What became more since another moment.
#[derive(Debug)]
pub(super) struct Rates<'a> {
    before: Option<&'a Moment>,
    millis: u128,
}

impl<'a> Rates<'a> {
    pub(super) fn between(before: Option<&'a Moment>, now: &Moment) -> Self {
        let passed = before.map(|before| now.at.saturating_sub(before.at));
        Rates {
            before,
            millis: passed.unwrap_or_default().as_millis(),
        }
    }

    /// How many a second, of something that is `now` so many; `-` if nobody knows.
    pub(super) fn of(&self, now: u64, was: impl FnOnce(&Moment) -> u64) -> String {
        match self.before {
            Some(before) if self.millis > 0 => {
                let more = u128::from(now.saturating_sub(was(before)));
                (more * 1000 / self.millis).to_string()
            }
            _ => "-".into(),
        }
    }
}
