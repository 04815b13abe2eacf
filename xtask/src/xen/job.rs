// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask xen run`: an example in dom0, against a domain with the guest's program that it needs.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::boot::{Boot, Log};
use super::parts::Parts;
use super::program;

/// Processors of the machine, and vCPUs of the domain, if nobody says otherwise.
pub(super) const PROCESSORS: u8 = 2;
pub(super) const VCPUS: u64 = 2;
/// How long nothing may be said: an example may be silent until its report.
const PATIENCE: Duration = Duration::from_secs(240);
/// Memory of the machine: dom0's, and the domain's.
const MEMORY: u32 = 2304;

/// An example that has a guest for a real domain.
struct Example {
    name: &'static str,
    /// Builds the guest's program.
    guest: fn() -> Result<PathBuf>,
    /// Memory of a domain with so many vCPUs, as ranges of frames in hexadecimal.
    frames: fn(u64) -> Vec<String>,
}

const EXAMPLES: &[Example] = &[Example {
    name: "vgpu",
    guest: program::vgpu_guest,
    frames: vgpu_frames,
}];

/// Examples that drive the model's vCPUs themselves.
const MODEL_ONLY: &[&str] = &["hello_mmio", "write_watch"];

/// `vgpu_guest::layout`: what is shared and the program with its heap, the aperture, an arena for each vCPU.
pub(super) fn vgpu_frames(vcpus: u64) -> Vec<String> {
    let parts = [
        0..0xa0,
        0xc0..0x5000,
        1 << 20..(1 << 20) + (1 << 18),
        1 << 22..(1 << 22) + (vcpus << 14),
    ];
    let text = parts.map(|part| format!("{:x}-{:x}", part.start, part.end));
    text.into()
}

/// Boots and runs an example to its end; what the boot said.
pub(super) fn run(
    parts: &Parts,
    smp: u8,
    name: &str,
    vcpus: u64,
    arguments: &[String],
) -> Result<Log> {
    let Some(example) = EXAMPLES.iter().find(|example| example.name == name) else {
        if MODEL_ONLY.contains(&name) {
            bail!(
                "the guest of {name} is a program for the model's vCPUs: `cargo run --example {name}`"
            );
        }
        let known: Vec<&str> = EXAMPLES.iter().map(|example| example.name).collect();
        bail!(
            "no example {name} that runs on a real Xen; these do: {}",
            known.join(", ")
        );
    };
    let frames: Vec<String> = (example.frames)(vcpus)
        .iter()
        .map(|part| format!("--frames {part}"))
        .collect();
    let arguments: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    let job = format!(
        "/bin/run_guest --image /bin/guest --vcpus {vcpus} {} -- \
         /bin/{name} --hypervisor xen --vcpus {vcpus} {}",
        frames.join(" "),
        arguments.join(" ")
    );
    let log = Boot::new(parts, smp)
        .memory(MEMORY)
        .program("run_guest", &program::example("xen-rig", "run_guest")?)
        .program("guest", &(example.guest)()?)
        .program(name, &program::facade_example(name)?)
        .job(&job)
        .run(PATIENCE)?;
    tell(
        said(&log),
        format_args!("{name}: {}, {}", log.version, log.end),
    )?;
    log.succeeded().with_context(|| name.to_owned())?;
    if let Some(crash) = log.lines.iter().find(|line| super::suite::is_crash(line)) {
        bail!("{name}: {crash}");
    }
    Ok(log)
}

/// What was said, without what Xen says.
pub(super) fn said(log: &Log) -> impl Iterator<Item = &str> {
    let lines = log.lines.iter().map(String::as_str);
    lines.filter(|line| !line.starts_with("(XEN)"))
}

/// Prints lines, and one more, and nothing in between that another boot says.
pub(super) fn tell<'a>(lines: impl Iterator<Item = &'a str>, last: Arguments<'_>) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{last}")?;
    Ok(())
}

/// A word as the shell takes it.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted("--json"), "'--json'");
        assert_eq!(quoted("it's $x"), "'it'\\''s $x'");
    }

    #[test]
    fn an_arena_for_each_vcpu() {
        let frames = vgpu_frames(3);
        assert_eq!(frames.last().unwrap(), "400000-40c000");
    }
}
