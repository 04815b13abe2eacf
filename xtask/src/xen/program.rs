// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs for dom0: built statically, so that dom0 needs no libraries.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::turns;
use crate::run::{cargo, root, succeed};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds an example of a package.
pub(crate) fn example(package: &str, name: &str) -> Result<PathBuf> {
    build(&["build", "-p", package, "--example", name], name)
}

/// Builds an example of the facade, for the real Xen.
pub(crate) fn facade_example(name: &str) -> Result<PathBuf> {
    let package = ["build", "-p", "ioreq", "--features", "xen"];
    build(&[&package[..], &["--example", name]].concat(), name)
}

/// Builds a program of a package: our own crates optimised a little, because a debug build of them is slow where all is emulated, and others'
/// not, because building those is.
pub(crate) fn package_binary(package: &str, name: &str) -> Result<PathBuf> {
    const OURS: [&str; 4] = [
        "--config",
        "profile.dev.opt-level=1",
        "--config",
        "profile.dev.package.\"*\".opt-level=0",
    ];
    let package = ["build", "-p", package, "--bin", name];
    build(&[&package[..], &OURS].concat(), name)
}

/// Builds the guest of the main job: for nothing but a vCPU, so without a C library and its start.
pub(crate) fn vgpu_guest() -> Result<PathBuf> {
    let mut command = bare("build");
    command.args(["--message-format", "json-render-diagnostics"]);
    executable(command, "vgpu-guest")
}

/// What makes a program that is on its own.
const BARE: &str = "--cfg freestanding -C panic=abort -C relocation-model=static -C link-arg=-nostartfiles \
    -C link-arg=-nostdlib -C link-arg=-static -C link-arg=-Wl,--build-id=none";

/// Lints the guest's program as it is built.
pub(crate) fn lint_guest() -> Result<()> {
    succeed(bare("clippy").args(["--", "-D", "warnings"]))
}

/// A cargo command on the guest's program.
fn bare(what: &str) -> Command {
    let args = [what, "-p", "vgpu-guest", "--bin", "vgpu-guest", "--release"];
    let place = ["--target", TARGET, "--target-dir", "target/bare"];
    let mut command = cargo(&root(), &[&args[..], &place].concat());
    command.env("RUSTFLAGS", BARE);
    command
}

/// An example of a package, optimised.
pub(crate) fn fast_example(package: &str, name: &str) -> Result<PathBuf> {
    build(
        &[
            "build",
            "--profile",
            "bench",
            "-p",
            package,
            "--example",
            name,
        ],
        name,
    )
}

/// Builds the C server that the framework is compared with. It needs Debian's libxen-dev.
pub(crate) fn c_server() -> Result<PathBuf> {
    let (source, folder) = (root().join("xen-rig/c/server.c"), root().join("target/xen"));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("cserver");
    let mut command = Command::new("cc");
    command
        .args([
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            "-o",
        ])
        .args([&path, &source]);
    for library in [
        "devicemodel",
        "foreignmemory",
        "evtchn",
        "call",
        "toolcore",
        "toollog",
    ] {
        command.arg(format!("-lxen{library}"));
    }
    succeed(&mut command).context("the C server could not be built: is libxen-dev installed?")?;
    Ok(path)
}

/// Builds the behaviour suite with its rig for a real Xen: as a package of its own, because the test's needs a minute's worth of others.
pub(crate) fn behaviour() -> Result<PathBuf> {
    build(
        &["build", "-p", "behaviour-on-xen", "--bin", "behaviour"],
        "behaviour",
    )
}

/// Builds the program of a crate outside the workspace.
pub(crate) fn of_crate(folder: &Path, name: &str, target: &Path) -> Result<PathBuf> {
    build_in(folder, &["build", "--bin", name], name, target)
}

/// Builds with these arguments; the executable of the target `name`.
fn build(args: &[&str], name: &str) -> Result<PathBuf> {
    // A target directory of its own: the flag would make cargo build everything anew each time.
    build_in(&root(), args, name, &root().join("target/static"))
}

fn build_in(folder: &Path, args: &[&str], name: &str, target: &Path) -> Result<PathBuf> {
    let mut command = cargo(folder, args);
    static_build(&mut command, target).args(["--message-format", "json-render-diagnostics"]);
    executable(command, name)
}

/// Where that puts what it builds without optimising.
pub(crate) fn in_target(target: &Path) -> PathBuf {
    target.join(TARGET).join("debug")
}

/// Has a cargo command build statically into `target`.
pub(crate) fn static_build<'a>(command: &'a mut Command, target: &Path) -> &'a mut Command {
    command
        .env("CARGO_BUILD_TARGET", TARGET)
        .env("CARGO_TARGET_DIR", target)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        // Dom0's memory has to hold them.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_TEST_DEBUG", "0")
}

/// Runs a build; the executable of the target `name`.
fn executable(mut command: Command, name: &str) -> Result<PathBuf> {
    // Not beside a boot that has all processors.
    let _turn = turns::wait_for(1);
    command.stdout(Stdio::piped());
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
