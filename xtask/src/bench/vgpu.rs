// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The main job end to end, as one more figure: time for a trapped write of the example `vgpu`, everything that goes with it
//! included.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::run::{cargo, root};

/// Work of one run, and runs.
const SUBMISSIONS: &str = "3000";
const RUNS: u32 = 3;

/// The name of its row.
pub(crate) const NAME: &str = "the main job on the model (vgpu), a trapped write";

/// A line as the comparison writes them.
pub(crate) fn row() -> Result<String> {
    let runs = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    let (rounds, contexts): (Vec<f64>, Vec<u64>) = runs.into_iter().unzip();
    let row = json!({
        "name": NAME, "n": contexts.first(), "pattern": "contexts", "threads": 2, "contender": "ours", "unit": "ns",
        "rounds": rounds, "disturbed": 0,
    });
    Ok(row.to_string())
}

/// Nanoseconds for a trapped write, and the number of contexts.
fn run() -> Result<(f64, u64)> {
    let job = ["run", "--release", "--quiet", "--example", "vgpu", "--"];
    let options = ["--json", "--rounds", "0", "--submissions", SUBMISSIONS];
    let mut command = cargo(&root(), &[&job[..], &options].concat());
    let output = command.stderr(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(said.lines().last().unwrap_or_default())
        .with_context(|| format!("{command:?} reported nothing"))?;
    let number = |at: &str| report.get(at).and_then(Value::as_f64);
    if !output.status.success() || number("mismatches") != Some(0.0) {
        bail!("the main job was not done right: {report}");
    }
    let (seconds, traps) = (number("seconds"), number("traps"));
    let (seconds, traps) = seconds.zip(traps).context("no time, or no traps")?;
    let contexts = report.get("contexts").and_then(Value::as_u64);
    Ok((seconds * 1e9 / traps, contexts.context("no contexts")?))
}
