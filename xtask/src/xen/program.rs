// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs for dom0: built statically, so that dom0 needs no libraries.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, root};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds an example of a package.
pub(crate) fn example(package: &str, name: &str) -> Result<PathBuf> {
    build(&["build", "-p", package, "--example", name], name)
}

/// Builds the behaviour suite with its rig for a real Xen.
pub(crate) fn behaviour() -> Result<PathBuf> {
    build(
        &[
            "test",
            "-p",
            "ioreq",
            "--features",
            "xen",
            "--test",
            "behaviour",
            "--no-run",
        ],
        "behaviour",
    )
}

/// Builds with these arguments; the executable of the target `name`.
fn build(args: &[&str], name: &str) -> Result<PathBuf> {
    // A target directory of its own: the flag would make cargo build everything anew each time.
    let more = [
        "--target",
        TARGET,
        "--target-dir",
        "target/static",
        "--message-format",
        "json-render-diagnostics",
    ];
    let mut command = cargo(&root(), &[args, &more].concat());
    command
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_TEST_DEBUG", "0")
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo")?;
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{name} could not be built: {status}");
    }
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo made no executable of {name}"))
}
