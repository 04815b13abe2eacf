// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The crates as they are published: packaged, built from their packages by cargo, and unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, root, succeed};

/// A package of the workspace that is published.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) name: String,
    version: String,
}

impl Published {
    /// Where it is unpacked, below `folder`.
    pub(super) fn unpacked(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}", self.name, self.version))
    }
}

/// What is too large for what a package holds: something came along.
const MOST_KIB: u64 = 256;

/// Packages all that are published, and unpacks them into `folder`; `target` is cargo's.
pub(super) fn package(target: &Path, folder: &Path) -> Result<Vec<Published>> {
    let published = published()?;
    let target_name = target.to_str().context("a path in UTF-8")?;
    // What is tried is what is there, committed or not.
    let mut args = vec![
        "package",
        "--quiet",
        "--allow-dirty",
        "--target-dir",
        target_name,
    ];
    for package in &published {
        args.extend(["-p", &package.name]);
    }
    succeed(&mut cargo(&root(), &args))?;
    for package in &published {
        let file = format!("{}-{}.crate", package.name, package.version);
        let file = target.join("package").join(file);
        let kib = fs::metadata(&file)
            .with_context(|| format!("{}", file.display()))?
            .len()
            / 1024;
        println!("{} {}: {kib} KiB", package.name, package.version);
        if kib > MOST_KIB {
            bail!("{}: {kib} KiB, and {MOST_KIB} are the most", file.display());
        }
        let mut tar = Command::new("tar");
        succeed(tar.arg("-xzf").arg(&file).arg("-C").arg(folder))?;
        complete(package, folder)?;
    }
    Ok(published)
}

/// The workspace's packages that do not say otherwise.
fn published() -> Result<Vec<Published>> {
    let args = ["metadata", "--format-version", "1", "--no-deps"];
    let output = cargo(&root(), &args).output().context("cannot run cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let published = packages
        .iter()
        .filter(|package| package["publish"].is_null());
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    published
        .map(|package| {
            for key in ["description", "license", "readme", "rust_version"] {
                let name = &package["name"];
                package[key]
                    .as_str()
                    .with_context(|| format!("{name} has no {key}"))?;
            }
            Ok(Published {
                name: text(&package["name"])?,
                version: text(&package["version"])?,
            })
        })
        .collect()
}

/// Whether what a reader of the package needs is in it.
fn complete(package: &Published, folder: &Path) -> Result<()> {
    for file in [
        "README.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "Cargo.lock",
        "src/lib.rs",
    ] {
        let path = package.unpacked(folder).join(file);
        if !path.is_file() {
            bail!("the package {} has no {file}", package.name);
        }
    }
    Ok(())
}
