// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main job: that it runs, and that what it shows is what it promises to show.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, root, succeed};

/// Keys of the report that readers count on; the report may have more.
const KEYS: &[&str] = &[
    "hypervisor",
    "vcpus",
    "contexts",
    "submissions",
    "bytes_moved",
    "traps",
    "split_writes",
    "shadow_updates",
    "tables_reused",
    "tracked_pages_peak",
    "mismatches",
    "seconds",
    "traps_per_second",
    "rss_peak_kib",
];

/// What a run has to show at least: a place in the report, and a number.
type Bars = &'static [(&'static str, u64)];

/// The main job by itself.
const JOB: Bars = &[
    ("/vcpus", 2),
    ("/contexts", 4),
    ("/submissions", 10_000),
    ("/bytes_moved", 1 << 30),
    ("/traps", 100_000),
    ("/tables_reused", 1000),
    ("/contexts_created/l4", 1),
    ("/contexts_created/l3", 1),
    ("/submissions_l3", 1000),
    ("/out_of_sync/traps_avoided", 100_000),
];
/// What a run on a real Xen has to show: what two vCPUs do to tables that both write.
const TOGETHER: Bars = &[
    ("/vcpus", 2),
    ("/trapped_writes_by_vcpu/0", 4000),
    ("/trapped_writes_by_vcpu/1", 4000),
    ("/shared_page_writes", 500),
    ("/pages_unmarked_under_fire", 200),
    ("/contexts_created/l4", 1),
    ("/contexts_created/l3", 1),
    ("/submissions_l3", 1),
    ("/tables_reused", 1),
    ("/submissions", 100),
];
/// With a million pages.
const MILLION: Bars = &[("/tracked_pages_peak", 1_000_000)];
/// The most memory it may take then.
const MOST_KIB: u64 = 4 << 20;

pub(crate) fn run() -> Result<()> {
    succeed(&mut cargo(&root(), &["build", "--release", "--examples"]))?;
    check(&report(&[])?, JOB)?;
    let million = report(&["--pages", "1000000", "--submissions", "500"])?;
    check(&million, MILLION)?;
    let memory = number(&million, "/rss_peak_kib")?;
    if memory >= MOST_KIB {
        bail!("a million tracked pages take {memory} KiB: less than {MOST_KIB} is promised");
    }
    Ok(())
}

/// Checks the report of a run on a real Xen, in whatever a boot said.
pub(crate) fn check_on_xen<'a>(lines: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut reports = lines.filter_map(report_in);
    let report = reports.next().context("no report was told")?;
    check(&report, TOGETHER)
}

/// The report in a line. Xen may say something before it in the same line, or behind.
fn report_in(line: &str) -> Option<Value> {
    let text = line.get(line.find("{\"")?..)?;
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    values.next()?.ok().filter(Value::is_object)
}

/// Runs the example, shows what it says, and returns its report.
fn report(options: &[&str]) -> Result<Value> {
    let job = ["run", "--release", "--example", "vgpu", "--", "--json"];
    let mut command = cargo(&root(), &[&job, options].concat());
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).context("the last line is not one JSON object")
}

fn number(report: &Value, at: &str) -> Result<u64> {
    let value = report.pointer(at).and_then(Value::as_u64);
    value.with_context(|| format!("the report has no number at {at}"))
}

fn check(report: &Value, bars: Bars) -> Result<()> {
    if let Some(missing) = KEYS.iter().find(|key| report.get(key).is_none()) {
        bail!("the report has no {missing}");
    }
    for at in ["p50", "p99", "p999", "max"] {
        number(report, &format!("/latency_ns/{at}"))?;
    }
    for (at, least) in bars {
        let shown = number(report, at)?;
        if shown < *least {
            bail!("{at} is {shown}: at least {least} is promised");
        }
    }
    let (traps, split) = (number(report, "/traps")?, number(report, "/split_writes")?);
    if split * 100 < traps {
        bail!("{split} of {traps} traps are of halves of entries: at least 1 % is promised");
    }
    match number(report, "/mismatches")? {
        0 => Ok(()),
        wrong => bail!("{wrong} bytes or entries were wrong"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({
            "hypervisor": "model", "vcpus": 2, "contexts": 4, "submissions": 10_000, "bytes_moved": 1_u64 << 30,
            "traps": 100_000, "split_writes": 1000, "shadow_updates": 1, "tables_reused": 1000, "tracked_pages_peak": 1,
            "mismatches": 0, "seconds": 1.5, "traps_per_second": 1.5, "rss_peak_kib": 1,
            "latency_ns": { "p50": 1, "p99": 1, "p999": 1, "max": 1 },
            "contexts_created": { "l4": 1, "l3": 1 }, "submissions_l3": 1000,
            "out_of_sync": { "traps_avoided": 100_000 },
            "trapped_writes_by_vcpu": [4000, 4000], "shared_page_writes": 500, "pages_unmarked_under_fire": 200,
        })
    }

    #[test]
    fn every_promise_is_held_to() {
        for bars in [JOB, TOGETHER] {
            check(&good(), bars).unwrap();
            for (at, least) in bars {
                let mut bad = good();
                *bad.pointer_mut(at).unwrap() = json!(least - 1);
                let err = check(&bad, bars).unwrap_err().to_string();
                assert!(err.contains(at), "{at}: {err}");
            }
        }
        for (key, value) in [("mismatches", 1), ("split_writes", 999)] {
            let mut bad = good();
            bad[key] = json!(value);
            assert!(check(&bad, JOB).is_err(), "{key}");
        }
        assert!(check(&good(), MILLION).is_err());
    }

    #[test]
    fn a_report_is_found_among_what_a_boot_says() {
        let line = format!("(XEN) d1 {}(XEN) more", good());
        check_on_xen(["{", "x {\"y", &line].into_iter()).unwrap();
        let mut bad = good();
        bad["pages_unmarked_under_fire"] = json!(199);
        let line = bad.to_string();
        assert!(check_on_xen([line.as_str()].into_iter()).is_err());
        assert!(check_on_xen(["no report"].into_iter()).is_err());
    }

    #[test]
    fn every_key_is_missed() {
        for key in KEYS.iter().chain(&["latency_ns", "out_of_sync"]) {
            let mut bad = good();
            bad.as_object_mut().unwrap().remove(*key);
            assert!(check(&bad, JOB).is_err(), "{key}");
        }
    }
}
