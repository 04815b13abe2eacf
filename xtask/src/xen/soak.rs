// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The soak in dom0 of a real Xen, and after it what else can be had there: servers' processes that are killed, and the main job.

use std::time::Duration;

use anyhow::{Context, Result};

use super::boot::Boot;
use super::job::said;
use super::parts::Parts;
use super::program;
use super::release::Release;
use super::suite::is_crash;

/// One for dom0, one for the domains.
const PROCESSORS: u8 = 2;
/// Memory of the machine: dom0's, the main job's domain and those of the soak.
const MEMORY: u32 = 2560;
/// How long nothing may be said.
const PATIENCE: Duration = Duration::from_secs(240);

/// After the soak, in the same boot: kills, and the main job's guest.
const AFTER: &str = " && /bin/kills && /bin/run_guest --image /bin/guest --vcpus 2 FRAMES -- \
 /bin/vgpu --hypervisor xen --vcpus 2 --submissions 40 --rounds 80";

/// Boots and soaks; `alone` without anything after it.
pub(crate) fn soak(
    release: Release,
    (name, value): (&str, &str),
    options: &[String],
    alone: bool,
) -> Result<()> {
    let parts = Parts::ready(release)?;
    let frames: Vec<String> = super::job::vgpu_frames(2)
        .iter()
        .map(|part| format!("--frames {part}"))
        .collect();
    let after = match alone {
        true => String::new(),
        false => AFTER.replace("FRAMES", &frames.join(" ")),
    };
    let job = format!(
        "{name}={value} /bin/soak --hypervisor xen {}{after}",
        options.join(" ")
    );
    let mut boot = Boot::new(&parts, PROCESSORS)
        .memory(MEMORY)
        .program("soak", &program::package_binary("soak", "soak")?);
    if !alone {
        boot = boot
            .program("kills", &program::example("xen-rig", "kills")?)
            .program("run_guest", &program::example("xen-rig", "run_guest")?)
            .program("guest", &program::vgpu_guest()?)
            .program("vgpu", &program::facade_example("vgpu")?);
    }
    let log = boot.job(&job).run(PATIENCE)?;
    for line in said(&log) {
        println!("{line}");
    }
    println!("soak: {}, {}", log.version, log.end);
    let crashes = log.lines.iter().filter(|line| is_crash(line)).count();
    println!("soak: Xen told of {crashes} crashes of domains");
    log.succeeded().context("soak")
}
