// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line.

use std::path::PathBuf;

use clap::{Parser, value_parser};

/// Boots Linux on this Xen, with this program as its device model.
#[derive(Debug, Clone, Parser)]
#[command(name = "linux-dm")]
pub(crate) struct Options {
    /// The kernel: vmlinux, or a bzImage, which unpacks itself.
    #[arg(long)]
    pub(crate) kernel: PathBuf,
    /// The initial RAM disk.
    #[arg(long)]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(
        long,
        default_value = "console=ttyS0 panic=1 quiet nopv nokaslr noxsave"
    )]
    pub(crate) cmdline: String,
    /// The disk's image: /dev/vda.
    #[arg(long)]
    pub(crate) disk: PathBuf,
    /// Memory of the guest in MiB, in steps of 2.
    #[arg(long, default_value_t = 256, value_parser = memory)]
    pub(crate) memory: u64,
    /// vCPUs of the guest.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=16))]
    pub(crate) vcpus: u32,
    /// Types at the console: each line of the file is a text to wait for, a tabulator, and what is typed then.
    #[arg(long)]
    pub(crate) script: Option<PathBuf>,
    /// Keeps what another process needs to go on after the death of this one, in files whose names begin with this.
    #[arg(long)]
    pub(crate) state: Option<PathBuf>,
    /// Goes on with the guest of a process that died, instead of booting one. The other options are as they were.
    #[arg(long, requires = "state")]
    pub(crate) take_over: bool,
    /// How often the guest may reboot: each time it gets another domain.
    #[arg(long, default_value_t = 0)]
    pub(crate) reboots: u32,
    /// For tests: kills the disk's thread in the midst of its work, on average each time that it has passed so many points.
    #[arg(long, default_value_t = 0)]
    pub(crate) kill_disk: u32,
    /// For tests: kills this process in the midst of the disk's work, when its thread has passed so many points.
    #[arg(long, conflicts_with = "kill_disk")]
    pub(crate) kill_after: Option<u32>,
    /// Records what the devices take in, for `cargo run --example replay FILE`. To compare what the disk reads, too, that needs the disk's
    /// image as it is now: copy it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["take_over", "reboots", "kill_disk"])]
    pub(crate) record: Option<PathBuf>,
    /// Shows in the terminal what the servers do, until `q` is pressed: vCPUs, requests, rates, latency, tracked pages, what is wrong.
    #[arg(long)]
    pub(crate) live: bool,
    /// Gives a page for Prometheus to who asks for one at this unix socket.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) metrics: Option<PathBuf>,
    /// Does not show the console.
    #[arg(long)]
    pub(crate) quiet: bool,
}

fn memory(text: &str) -> Result<u64, String> {
    let mib = text.parse::<u64>().ok();
    mib.filter(|mib| (64..3072).contains(mib) && mib.is_multiple_of(2))
        .ok_or_else(|| format!("{text} is no even number from 64 to 3070"))
}
