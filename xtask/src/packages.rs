// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the checks need of the machine beyond Rust.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::succeed;

/// A Debian package and how to see that what it brings is there.
struct Package {
    name: &'static str,
    brings: &'static str,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        brings: "/usr/bin/cc",
    },
    // For libFuzzer.
    Package {
        name: "g++",
        brings: "/usr/bin/c++",
    },
    Package {
        name: "libc6-dev",
        brings: "/usr/include/stdint.h",
    },
    Package {
        name: "libxen-dev",
        brings: "/usr/include/xen/hvm/dm_op.h",
    },
    // For instruction counts.
    Package {
        name: "valgrind",
        brings: "/usr/bin/valgrind",
    },
];

/// Installs what is missing, or says which command does.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<_> = PACKAGES
        .iter()
        .filter(|package| !Path::new(package.brings).exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let install = format!(
        "apt-get install --no-install-recommends {}",
        names.join(" ")
    );
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.starts_with(b"0"));
    if !root || !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing {}: run `{install}` as root", names.join(", "));
    }
    println!("installing {}", names.join(", "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        succeed(&mut command)
    };
    apt(&["-q", "update"])?;
    apt(&[
        &["-q", "-y", "install", "--no-install-recommends"],
        names.as_slice(),
    ]
    .concat())?;
    for package in missing {
        if !Path::new(package.brings).exists() {
            bail!(
                "{} is installed, but {} is not there",
                package.name,
                package.brings
            );
        }
    }
    Ok(())
}
