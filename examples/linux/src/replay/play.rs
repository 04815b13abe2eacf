// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A board on the model, to which a recording is played.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write, copy};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ioreq::GfnRange;
use ioreq::replay::{Play, Played, Recording, RecordingError, Stimulus, Tape, checksum};
use ioreq::sim::{DomainConfig, Machine};

use super::{MODEL, Settings};
use crate::board::{Board, CONSOLE, DISK, Failure, Parts, RANDOM, Servers};
use crate::virtio::Fuse;

/// A recording whose answers are all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// What was compared.
    pub played: Played,
    /// What the recording was made with.
    pub settings: Settings,
    /// Whether what the disk stored into guest memory was compared: its image was there.
    pub stores: bool,
    /// Whether the recording has an end; if not, the device model was killed.
    pub closed: bool,
    /// The recording's length in bytes.
    pub bytes: u64,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes recorded)", self.played, self.bytes)?;
        if !self.stores {
            write!(
                f,
                "; what the disk read is not compared: no image was given"
            )?;
        }
        if !self.closed {
            write!(f, "; the recording ends there: its device model was killed")?;
        }
        Ok(())
    }
}

/// Plays a recording to a board on the model, with a copy of `disk`; without one, the disk is zeros, and what it stores is not
/// compared. The console prints to `out`.
///
/// # Errors
/// When it is no recording of such a board, `disk` is another one, or the board does something else: a
/// [`Mismatch`](ioreq::replay::Mismatch).
pub fn play(
    recording: impl Read,
    disk: Option<&Path>,
    out: Box<dyn Write + Send>,
) -> Result<Replayed, Failure> {
    let recording = Recording::read(recording)?;
    if recording.model() != MODEL {
        return Err(RecordingError::Settings(recording.model().to_owned()).into());
    }
    let settings: Settings = recording.settings()?;
    let (closed, bytes) = (recording.is_closed(), recording.bytes());
    let pages = settings
        .mib
        .checked_mul(256)
        .filter(|pages| (1 << 12..1 << 20).contains(pages));
    let pages = pages.ok_or_else(|| format!("{} MiB are no board's memory", settings.mib))?;
    let config = DomainConfig::new(settings.vcpus)
        .memory(GfnRange::new(0, 0x9f)?)
        .memory(GfnRange::new(0xc0, pages - 1)?);
    let domain = Machine::new().create_domain(config)?;
    let tape = match disk {
        Some(_) => Tape::play(recording),
        None => Tape::play_without_stores(recording),
    };
    let parts = Parts {
        disk: scratch(&settings, disk)?,
        mib: settings.mib,
        out,
        fuse: Fuse::never(),
        // The recording says when it is over.
        end: Box::new(|_| ()),
        servers: Servers::Unrecorded,
        tape: tape.clone(),
    };
    let board = Board::new(&Arc::new(domain.hypervisor()), parts)?;
    let serving = board.start()?;
    let servers = board.servers();
    let played = Play::new(&domain, &servers).run(&tape, |stimulus| match stimulus {
        Stimulus::Input {
            source: CONSOLE,
            bytes,
        } => {
            board.console().type_in(bytes, Duration::ZERO);
        }
        Stimulus::Wake { thread: DISK } => board.disk().wake(),
        Stimulus::Wake { thread: RANDOM } => board.entropy().wake(),
        // Nobody of this board: it is missed.
        _ => {}
    });
    serving.stop()?;
    Ok(Replayed {
        played: played?,
        settings,
        stores: disk.is_some(),
        closed,
        bytes,
    })
}

/// A file without a name that a replayed guest may write to: a copy of `disk`, which must be as it was when the recording was made, or zeros.
fn scratch(settings: &Settings, disk: Option<&Path>) -> Result<File, Failure> {
    let name = format!("linux-dm-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true);
    let mut to = options.open(&path)?;
    fs::remove_file(path)?;
    if let Some(disk) = disk {
        let open = || File::open(disk).map_err(|err| format!("{}: {err}", disk.display()));
        if copy(&mut open()?, &mut to)? != settings.disk || checksum(open()?)? != settings.sum {
            let what = format!(
                "{} is not the disk's image as it was when this was recorded ({} bytes, checksum {:#010x}): copy it before you record",
                disk.display(),
                settings.disk,
                settings.sum
            );
            return Err(what.into());
        }
    }
    to.set_len(settings.disk)?;
    Ok(to)
}
