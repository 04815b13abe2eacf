// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Building the targets for libFuzzer.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, succeed};

/// What cargo-fuzz 0.13 passes: coverage counters for libFuzzer in every crate, AddressSanitizer, and one codegen unit, so that the
/// counters of one function are together.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-sanitizer-coverage-stack-depth",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
    "-Ccodegen-units=1",
    "--cfg",
    "fuzzing",
];

/// A nightly compiler.
#[derive(Debug)]
pub(crate) struct Nightly {
    /// For which it builds.
    host: String,
}

impl Nightly {
    /// The machine that it builds for.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// # Errors
    /// What is missing.
    pub(crate) fn find() -> Result<Self> {
        let version = Command::new("rustc").args(["+nightly", "-vV"]).output();
        let version = version
            .ok()
            .filter(|output| output.status.success())
            .context("no toolchain `nightly`: `rustup toolchain install nightly`")?;
        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        let host = text.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc -vV names no host")?.to_owned();
        let compiler = Command::new("c++").arg("--version").output();
        if !compiler.is_ok_and(|output| output.status.success()) {
            bail!("no C++ compiler, which libFuzzer needs: `apt-get install g++`");
        }
        Ok(Nightly { host })
    }
}

/// Builds the targets of the checkout `tree`; the folder of the programs.
pub(crate) fn build(
    nightly: &Nightly,
    tree: &Path,
    target: &Path,
    names: &[&str],
) -> Result<PathBuf> {
    let mut args = vec!["+nightly", "build", "--release", "--quiet"];
    args.extend([
        "--manifest-path",
        "fuzz/Cargo.toml",
        "--target",
        &nightly.host,
    ]);
    for name in names {
        args.extend(["--bin", name]);
    }
    let mut command = cargo(tree, &args);
    command
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env("CARGO_TARGET_DIR", target)
        // The toolchain is the one that `+nightly` names.
        .env_remove("RUSTUP_TOOLCHAIN");
    succeed(&mut command)?;
    Ok(target.join(&nightly.host).join("release"))
}
