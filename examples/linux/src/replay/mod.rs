// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Recordings of a board: what has to be known to make the same one again, and a board on the model that a recording is played to.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use ioreq::replay::{Tape, checksum};
use serde::{Deserialize, Serialize};

#[cfg(feature = "replay")]
mod play;
#[cfg(feature = "replay")]
pub use play::{Replayed, play};

/// The device model's name in its recordings.
const MODEL: &str = "linux-dm";

/// What a board was made of, as its recording has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Memory of the guest in MiB.
    pub mib: u64,
    /// The length of the disk's image in bytes.
    pub disk: u64,
    /// The checksum of the image as it was before the guest used it.
    pub sum: u32,
}

impl Settings {
    /// Those of a board that is about to be made.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn of(vcpus: u32, mib: u64, disk: &Path) -> io::Result<Self> {
        let image = File::open(disk)?;
        Ok(Settings {
            vcpus,
            mib,
            disk: image.metadata()?.len(),
            sum: checksum(&image)?,
        })
    }

    /// A tape that records a board of these into a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&self, to: impl Write + Send + 'static) -> io::Result<Tape> {
        Tape::record(to, MODEL, self)
    }
}
