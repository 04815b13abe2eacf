// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The versions of Xen that are tried, and where Debian has them.

use clap::ValueEnum;

/// A version of Xen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Release {
    /// Debian 12's.
    #[value(name = "4.17")]
    V4_17,
    /// Debian 13's.
    #[value(name = "4.20")]
    V4_20,
}

impl Release {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Release::V4_17 => "4.17",
            Release::V4_20 => "4.20",
        }
    }

    /// The Debian release whose packages have it.
    pub(crate) fn suite(self) -> &'static str {
        match self {
            Release::V4_17 => BASE,
            Release::V4_20 => "trixie",
        }
    }

    /// The hypervisor's package.
    pub(crate) fn package(self) -> String {
        format!("xen-hypervisor-{}-amd64", self.name())
    }

    /// The hypervisor's file in the package.
    pub(crate) fn image(self) -> String {
        format!("boot/xen-{}-amd64.gz", self.name())
    }
}

/// The Debian release that QEMU, dom0's kernel and busybox come from, whatever the Xen.
pub(crate) const BASE: &str = "bookworm";
