// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guide's device in dom0 of a real Xen, against the judge `xen-rig/examples/guide.rs`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::boot::Boot;
use super::parts::Parts;
use super::release::Release;
use super::{PROCESSORS, job, program, suite};

/// How long nothing may be said.
const PATIENCE: Duration = Duration::from_secs(120);

/// Builds the crate in `folder` statically, boots, and has its program judged.
pub(crate) fn guide(release: Release, folder: &Path, name: &str, target: &Path) -> Result<()> {
    let parts = Parts::ready(release)?;
    let log = Boot::new(&parts, PROCESSORS)
        .program("judge", &program::example("xen-rig", "guide")?)
        .program(name, &program::of_crate(folder, name, target)?)
        .job(&format!("/bin/judge /bin/{name}"))
        .run(PATIENCE)?;
    for line in job::said(&log) {
        println!("{line}");
    }
    println!("guide: {}, {}", log.version, log.end);
    log.succeeded().context("guide")?;
    match log.lines.iter().find(|line| suite::is_crash(line)) {
        Some(crash) => bail!("guide: {crash}"),
        None => Ok(()),
    }
}
