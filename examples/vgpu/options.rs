// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line.

use clap::{Parser, ValueEnum, value_parser};

/// A vGPU with shadow page tables, on the embedded hypervisor model.
#[derive(Debug, Clone, Parser)]
#[command(name = "vgpu")]
pub(crate) struct Options {
    /// vCPUs that drive the GPU.
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=16))]
    pub(crate) vcpus: u32,
    /// GPU contexts alive at once, shared out among the vCPUs; each has one at least.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=256))]
    pub(crate) contexts: u32,
    /// Commands submitted in all.
    #[arg(long, default_value_t = 12_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub(crate) submissions: u64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Table pages tracked at once in a reserved, otherwise empty address space, beside those of the contexts.
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u64).range(0..=1_000_000))]
    pub(crate) pages: u64,
    /// Whether last-level tables that are written again and again go out of sync. `compare`, or no value, runs the same seed
    /// twice, off and on, and tells the difference.
    #[arg(long, value_enum, num_args = 0..=1, default_value_t = Choice::On, default_missing_value = "compare")]
    pub(crate) out_of_sync: Choice,
    /// The model's version of Xen.
    #[arg(long, value_enum, default_value_t = Version::V4_20)]
    pub(crate) xen: Version,
    /// Ends with one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// On, off, or one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    On,
    Off,
    Compare,
}

/// Versions that the model knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    #[value(name = "4.17")]
    V4_17,
    #[value(name = "4.20")]
    V4_20,
}

impl Options {
    /// Contexts of one vCPU.
    pub(crate) fn contexts_of(&self, vcpu: u32) -> u32 {
        let (each, rest) = (self.contexts / self.vcpus, self.contexts % self.vcpus);
        (each + u32::from(vcpu < rest)).max(1)
    }

    /// Submissions of one vCPU.
    pub(crate) fn submissions_of(&self, vcpu: u32) -> u64 {
        let (each, rest) = (
            self.submissions / u64::from(self.vcpus),
            self.submissions % u64::from(self.vcpus),
        );
        each + u64::from(u64::from(vcpu) < rest)
    }
}
