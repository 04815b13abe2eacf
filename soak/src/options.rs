// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line.

use std::sync::OnceLock;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};

use crate::scenes::Scene;

/// Churn of everything at once, with invariants checked all along.
#[derive(Debug, Parser)]
#[command(name = "soak")]
pub(crate) struct Options {
    /// Where: on the embedded model, or on the Xen in whose dom0 this runs.
    #[arg(long, value_enum, default_value_t = On::Model)]
    pub(crate) hypervisor: On,
    /// How long.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..=1_000_000))]
    pub(crate) seconds: u64,
    /// Seed of all that is chosen; without it one is made up, and told.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this scene.
    #[arg(long, value_enum)]
    pub(crate) scene: Option<Scene>,
    /// Only this round of the scene, once: what a failure says to do.
    #[arg(long, requires = "scene")]
    pub(crate) round: Option<u64>,
    /// Ends with one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the domains are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    Model,
    Xen,
}

impl Options {
    pub(crate) fn seed(&self) -> u64 {
        static MADE_UP: OnceLock<u64> = OnceLock::new();
        self.seed
            .unwrap_or_else(|| *MADE_UP.get_or_init(|| fastrand::u64(..1 << 32)))
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Between two quiet points: a twentieth of the time, from 3 to 30 seconds.
    pub(crate) fn epoch(&self) -> Duration {
        let twentieth = self.time() / 20;
        twentieth.clamp(Duration::from_secs(3), Duration::from_secs(30))
    }
}
