// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What differs between hypervisors: how domains are made, how their vCPUs are driven, and which faults can be had.

mod execute;
mod model;
mod xen;

use std::fmt;
use std::time::Duration;

use ioreq::Hypervisor;
use ioreq::sim::{Faults, Hostile};
use xen_rig::{Done, Instr};

use crate::Failure;

pub(crate) use model::Model;
pub(crate) use xen::Xen;

/// A hypervisor to soak on.
pub(crate) trait Platform: Sync + 'static {
    type Hv: Hypervisor;
    type Guest: Guest<Hv = Self::Hv>;

    /// Its name and version.
    fn name(&self) -> String;

    /// A new domain of so many vCPUs, with an emulated VGA window. Its memory: 16 MiB without that window.
    fn guest(&self, vcpus: u32) -> Result<Self::Guest, Failure>;

    /// How many instructions a program has at most.
    fn program_len(&self) -> usize;

    /// Whether scenes take turns: where one processor does everything, all at once would be none.
    fn takes_turns(&self) -> bool {
        false
    }

    /// How long a round goes on.
    fn round_length(&self) -> Duration;

    /// The model itself, for what only it has.
    fn model(&self) -> Option<&Model> {
        None
    }

    /// What was left behind at a quiet point, in all of the hypervisor.
    fn left_behind(&self) -> Result<Option<String>, Failure>;
}

/// A domain. Dropping it destroys it.
pub(crate) trait Guest: Send + Sync {
    type Hv: Hypervisor;

    /// A handle for one more device-model process.
    fn process(&self) -> Result<Self::Hv, Failure>;

    /// A vCPU, to be driven by the calling thread.
    fn vcpu(&self, id: u32) -> Result<Box<dyn Vcpu + '_>, Failure>;

    fn pause(&self) -> Result<(), Failure>;

    fn unpause(&self) -> Result<(), Failure>;

    fn log_dirty(&self, on: bool) -> Result<(), Failure>;

    /// Whether a page's writes trap.
    fn is_marked(&self, gfn: u64) -> Result<bool, Failure>;

    /// Shuts it down, or crashes it; it still exists.
    fn shut_down(&self, crash: bool) -> Result<(), Failure>;

    /// Destroys it, under whatever goes on.
    fn destroy(&self);

    /// What its servers left behind in the hypervisor.
    fn leaks(&self) -> Result<Option<String>, Failure>;

    /// Requests sent to device models so far, on a hypervisor that counts them.
    fn sent(&self) -> Option<u64> {
        None
    }

    /// Faults on purpose, on a hypervisor that has them.
    fn faults(&self) -> Option<&Faults> {
        None
    }

    /// The shared pages, open to rewriting, on a hypervisor where a guest reaches them.
    fn hostile(&self) -> Option<Hostile> {
        None
    }

    /// Kills a process of this domain's, in the middle of what this thread does with it; None where this process would die, too.
    const KILL: Option<fn(&Self::Hv)> = None;
}

/// A vCPU.
pub(crate) trait Vcpu {
    /// Has it execute a program; what came of each instruction.
    ///
    /// # Errors
    /// How the domain ended meanwhile.
    fn run(&mut self, program: &[Instr]) -> Result<Vec<Done>, Ended>;
}

/// Why a vCPU goes on no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its domain was destroyed or shut down.
    Gone,
    /// Anything else: the hypervisor crashed the domain, or the vCPU does not come back.
    Wrong(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Gone => f.write_str("the domain is gone"),
            Ended::Wrong(how) => f.write_str(how),
        }
    }
}

impl std::error::Error for Ended {}
