// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Running programs, and where the workspace is.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A cargo command in `dir`, without the settings that this process was started with by cargo.
pub(crate) fn cargo(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(dir);
    for (name, _) in std::env::vars() {
        let of_run = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if of_run || name == "CARGO" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end; an error unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// What a command that was given a time came to.
pub(crate) enum Outcome {
    /// It ended by itself.
    Ended {
        /// How.
        status: ExitStatus,
        /// Its standard output and standard error.
        output: String,
    },
    /// It was killed when its time was up.
    TimedOut,
}

/// Runs a command for at most `limit`, and captures what it says.
pub(crate) fn capture(command: &mut Command, limit: Duration) -> Result<Outcome> {
    use std::os::unix::process::CommandExt;
    let log = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    // A group of its own, so that a test that hangs is ended with the cargo that runs it.
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Outcome::Ended {
                status,
                output: read_all(log)?,
            });
        }
        if started.elapsed() > limit {
            let group = format!("-{}", child.id());
            let _already_gone = Command::new("kill").args(["-KILL", "--", &group]).status();
            child.wait()?;
            return Ok(Outcome::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read_all(mut log: std::fs::File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    log.rewind()?;
    log.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Files that git tracks or would, below `under`, by the end of their name.
pub(crate) fn files(under: &str, ending: &str) -> Result<Vec<PathBuf>> {
    let root = root();
    let output = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            under,
        ])
        .current_dir(&root)
        .output()
        .context("cannot run git")?;
    let names = String::from_utf8(output.stdout).context("file names in UTF-8")?;
    let files = names
        .lines()
        .filter(|name| name.ends_with(ending))
        .map(|name| root.join(name));
    Ok(files.filter(|path| path.is_file()).collect())
}
