// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Debian packages of any release, fetched and unpacked into a folder by this machine's own apt and its own sources, with
//! the release's name replaced. apt verifies signatures and sums as always; its state is in that folder, not the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// apt with a state of its own, for one release of Debian.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

/// What a command prints; an error with what it complained of, unless it succeeds.
fn output(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        bail!("{command:?} ended with {}: {}", out.status, why.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

impl Apt {
    /// Sets it up in `folder` and fetches the lists of packages.
    pub(crate) fn of(suite: &str, folder: &Path) -> Result<Self> {
        let os = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
        let here = os
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("the packages come by apt from Debian's releases: this machine's name of release is not known")?;
        for part in ["sources", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("no-packages"), "")?;
        let mut found = 0;
        let parts = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for path in parts.chain([PathBuf::from("/etc/apt/sources.list")]) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            if !(name.ends_with(".sources") || name.ends_with(".list")) || !text.contains(here) {
                continue;
            }
            fs::write(
                folder.join("sources").join(&*name),
                text.replace(here, suite),
            )?;
            found += 1;
        }
        if found == 0 {
            bail!("no source of {here} under /etc/apt");
        }
        let apt = Apt {
            folder: folder.to_path_buf(),
        };
        output(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let set = |name: &str, value: &str| {
            let value = self.folder.join(value);
            format!("{name}={}", value.display())
        };
        let mut command = Command::new(program);
        for option in [
            "Dir::Etc::sourcelist=/dev/null".into(),
            set("Dir::Etc::sourceparts", "sources"),
            set("Dir::State", "state"),
            set("Dir::State::status", "no-packages"),
            set("Dir::Cache", "cache"),
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C").arg("-q");
        command
    }

    /// The package that a meta-package of kernels stands for.
    pub(crate) fn kernel(&self) -> Result<String> {
        let text = output(
            self.command("apt-cache")
                .args(["depends", "linux-image-amd64"]),
        )?;
        let name = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"));
        Ok(name
            .context("linux-image-amd64 depends on no kernel")?
            .to_owned())
    }

    /// `package`, and what of its dependencies this machine lacks.
    pub(crate) fn with_dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut simulate = self.command("apt-get");
        let text = output(simulate.args(["-s", "--no-install-recommends", "install", package]))?;
        let needed = text
            .lines()
            .filter_map(|line| line.strip_prefix("Inst "))
            .filter_map(|line| line.split_whitespace().next());
        // QEMU's own parts must fit together, whatever is installed here.
        let own = |name: &str| name.starts_with("qemu") || ["seabios", "ipxe-qemu"].contains(&name);
        let installed = |name: &str| {
            let query = ["-W", "-f", "${Status}", name];
            output(Command::new("dpkg-query").args(query))
                .is_ok_and(|status| status.starts_with("install ok"))
        };
        Ok(needed
            .filter(|name| own(name) || !installed(name))
            .map(str::to_owned)
            .collect())
    }

    /// Fetches packages and unpacks them under `root`. Returns their file names, which tell the versions.
    pub(crate) fn unpack(&self, packages: &[String], root: &Path) -> Result<Vec<String>> {
        let fetched = self.folder.join("fetched");
        let _none = fs::remove_dir_all(&fetched);
        fs::create_dir_all(&fetched)?;
        let mut download = self.command("apt-get");
        output(
            download
                .arg("download")
                .args(packages)
                .current_dir(&fetched),
        )?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&fetched)? {
            let path = entry?.path();
            output(Command::new("dpkg").arg("-x").arg(&path).arg(root))?;
            names.push(
                path.file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        fs::remove_dir_all(&fetched)?;
        names.sort();
        Ok(names)
    }
}
