// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the fuzz targets do with an input. Each target is a function of bytes that panics on a finding, so that inputs can be
//! replayed without libFuzzer: `cargo test` runs the seeds, the program `replay` any files.

pub mod pci;
pub mod ring;
pub mod saved;
pub mod script;
pub mod shadow;
pub mod slot;
pub mod stream;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the program, and of the folder of its seeds.
    pub name: &'static str,
    /// Runs one input. A panic is a finding.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "slot",
        run: slot::run,
    },
    Target {
        name: "ring",
        run: ring::run,
    },
    Target {
        name: "stream",
        run: stream::run,
    },
    Target {
        name: "shadow",
        run: shadow::run,
    },
    Target {
        name: "saved",
        run: saved::run,
    },
    Target {
        name: "pci",
        run: pci::run,
    },
];

/// The target with this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
