// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which lines of its modules a target's seeds reach: by the stable compiler's own instrumentation, which LLVM's tools of the same
//! major version read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Target;
use crate::run::{cargo, root, succeed};
use crate::xen::apt::Apt;

/// Lines that a target must reach, in percent.
const LEAST: f64 = 90.0;

/// `llvm-profdata` and `llvm-cov`.
struct Tools {
    folder: PathBuf,
    /// For the shared libraries of unpacked packages.
    libraries: Option<PathBuf>,
    suffix: String,
}

impl Tools {
    /// Of the machine, or unpacked below `target` by its apt.
    fn find() -> Result<Self> {
        let version = Command::new("rustc").arg("-vV").output()?;
        let text = String::from_utf8(version.stdout)?;
        let llvm = text
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .and_then(|version| version.split('.').next())
            .context("rustc -vV names no version of LLVM")?;
        let installed = PathBuf::from(format!("/usr/bin/llvm-cov-{llvm}"));
        if installed.exists() {
            return Ok(Tools {
                folder: "/usr/bin".into(),
                libraries: None,
                suffix: format!("-{llvm}"),
            });
        }
        let unpacked = root().join("target/fuzz/llvm");
        let folder = unpacked.join(format!("usr/lib/llvm-{llvm}/bin"));
        if !folder.join("llvm-cov").exists() {
            let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
            let suite = release
                .lines()
                .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
                .context(
                    "LLVM's tools come as Debian packages: this machine's release is not known",
                )?;
            println!("unpacking llvm-{llvm} below {}", unpacked.display());
            let apt = Apt::of(suite, &root().join("target/fuzz/apt"))?;
            let package = format!("llvm-{llvm}");
            let mut packages = apt.with_dependencies(&package)?;
            packages.retain(|name| name.contains("llvm"));
            apt.unpack(&packages, &unpacked)?;
        }
        let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib"];
        let libraries = libraries.map(|folder| unpacked.join(folder));
        Ok(Tools {
            folder,
            libraries: libraries.into_iter().find(|folder| folder.is_dir()),
            suffix: String::new(),
        })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(self.folder.join(format!("{tool}{}", self.suffix)));
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }
}

#[derive(Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    filename: String,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    lines: Lines,
}

#[derive(Deserialize, Clone, Copy, Default)]
struct Lines {
    count: u64,
    covered: u64,
}

impl Lines {
    #[allow(clippy::cast_precision_loss, reason = "numbers of lines are small")]
    fn percent(self) -> f64 {
        100.0 * self.covered as f64 / self.count.max(1) as f64
    }
}

/// Measures, and prints a table. Fails below the bound.
pub(super) fn tell(targets: &[&Target]) -> Result<()> {
    let tools = Tools::find()?;
    let folder = root().join("target/fuzz/coverage");
    let args = [
        "build",
        "--quiet",
        "--manifest-path",
        "fuzz/Cargo.toml",
        "--no-default-features",
        "--bin",
        "replay",
    ];
    let mut build = cargo(&root(), &args);
    succeed(
        build
            .env("RUSTFLAGS", "-Cinstrument-coverage")
            .env("CARGO_TARGET_DIR", &folder),
    )?;
    let program = folder.join("debug/replay");
    let mut low = Vec::new();
    for target in targets {
        let files = measure(&tools, &program, target, &folder)?;
        let mut sum = Lines::default();
        for (name, lines) in &files {
            println!(
                "{name:60} {:4} of {:4} {:6.1} %",
                lines.covered,
                lines.count,
                lines.percent()
            );
            sum.count += lines.count;
            sum.covered += lines.covered;
        }
        let all = format!("{}, all", target.name);
        println!(
            "{all:60} {:4} of {:4} {:6.1} %\n",
            sum.covered,
            sum.count,
            sum.percent()
        );
        if sum.percent() < LEAST {
            low.push(target.name);
        }
    }
    if !low.is_empty() {
        bail!("below {LEAST} %: {}", low.join(", "));
    }
    Ok(())
}

fn measure(
    tools: &Tools,
    program: &Path,
    target: &Target,
    folder: &Path,
) -> Result<BTreeMap<String, Lines>> {
    let raw = folder.join(format!("{}.profraw", target.name));
    let profile = folder.join(format!("{}.profdata", target.name));
    let mut replay = Command::new(program);
    replay
        .arg(target.name)
        .arg(root().join("fuzz/seeds").join(target.name))
        .env("LLVM_PROFILE_FILE", &raw);
    succeed(&mut replay)?;
    let mut merge = tools.command("llvm-profdata");
    succeed(
        merge
            .arg("merge")
            .arg("-sparse")
            .arg(&raw)
            .arg("-o")
            .arg(&profile),
    )?;
    let mut export = tools.command("llvm-cov");
    let output = export
        .args(["export", "-summary-only", "-instr-profile"])
        .arg(&profile)
        .arg(program)
        .output()?;
    if !output.status.success() {
        bail!("llvm-cov: {}", String::from_utf8_lossy(&output.stderr));
    }
    let export: Export = serde_json::from_slice(&output.stdout)?;
    let root = root();
    let mut found = BTreeMap::new();
    for file in export.data.into_iter().flat_map(|data| data.files) {
        // Paths of the fuzz package lead through it: fuzz/../ioreq-core.
        let path = Path::new(&file.filename);
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let Ok(name) = path.strip_prefix(&root) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
        if !is_test && target.about.iter().any(|about| name.starts_with(about)) {
            found.insert(name, file.summary.lines);
        }
    }
    if found.is_empty() {
        bail!("llvm-cov knows none of {}", target.about.join(", "));
    }
    Ok(found)
}
