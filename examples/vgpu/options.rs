// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line.

use clap::{Parser, ValueEnum, value_parser};

/// A vGPU with shadow page tables, under guests that drive it hard.
#[derive(Debug, Clone, Parser)]
#[command(name = "vgpu")]
pub(crate) struct Options {
    /// Where the guest is: on the embedded model, or a domain of the Xen that this runs on.
    #[arg(long, value_enum, default_value_t = On::Model)]
    pub(crate) hypervisor: On,
    /// The domain, on Xen.
    #[arg(long)]
    pub(crate) domid: Option<u16>,
    /// vCPUs that drive the GPU.
    ///
    /// On Xen, as many as the domain has.
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=16))]
    pub(crate) vcpus: u32,
    /// GPU contexts alive at once, shared out among the vCPUs; each has one at least.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=256))]
    pub(crate) contexts: u32,
    /// Commands submitted in all [default: 12000, on Xen 120: each trap costs a software-emulated Xen half a millisecond].
    #[arg(long, value_parser = value_parser!(u64).range(1..=100_000_000))]
    submissions: Option<u64>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Rounds in which two neighbouring vCPUs write one table, and one of them takes it away under the other's writes.
    /// [default: 300, on Xen 320].
    #[arg(long, value_parser = value_parser!(u64).range(0..=1_000_000))]
    rounds: Option<u64>,
    /// Entries that the writer goes on to write then. A page that is written all the time comes to rest, and is unmarked, only after
    /// that; it is to last longer than it takes the server to try.
    /// [default: 100, on Xen 16].
    #[arg(long, value_parser = value_parser!(u64).range(0..=1_000_000))]
    after: Option<u64>,
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

/// Where the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    Model,
    Xen,
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
    /// One number for the model, another for Xen.
    fn default(&self, on_model: u64, on_xen: u64) -> u64 {
        match self.hypervisor {
            On::Model => on_model,
            On::Xen => on_xen,
        }
    }

    pub(crate) fn submissions(&self) -> u64 {
        let default = self.default(12_000, 120);
        self.submissions.unwrap_or(default)
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.unwrap_or(self.default(300, 320))
    }

    pub(crate) fn after(&self) -> u64 {
        self.after.unwrap_or(self.default(100, 16))
    }

    /// Contexts of one vCPU.
    pub(crate) fn contexts_of(&self, vcpu: u32) -> u32 {
        let (each, rest) = (self.contexts / self.vcpus, self.contexts % self.vcpus);
        (each + u32::from(vcpu < rest)).max(1)
    }

    /// Submissions of one vCPU.
    pub(crate) fn submissions_of(&self, vcpu: u32) -> u64 {
        let (vcpus, all) = (u64::from(self.vcpus), self.submissions());
        let (each, rest) = (all / vcpus, all % vcpus);
        each + u64::from(u64::from(vcpu) < rest)
    }
}
