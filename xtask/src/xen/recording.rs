// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A recording on its way out of dom0, which has nothing but its console: packed, and in hexadecimal. Then it is played here, without the
//! disk's image.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::boot::Log;
use crate::run::{cargo, root, succeed};

/// What dom0 does to tell `/tmp/recording`.
pub(super) const TELL: &str = "gzip -c /tmp/recording | xxd -p | sed 's/^/RECORDING: /'\n";
const PREFIX: &str = "RECORDING: ";

/// Whether a line is of a recording.
pub(super) fn is_told(line: &str) -> bool {
    line.starts_with(PREFIX)
}

/// The bytes that were told.
fn told<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for line in lines.filter_map(|line| line.strip_prefix(PREFIX)) {
        let digits = line.trim().as_bytes();
        for pair in digits.chunks(2) {
            let pair = str::from_utf8(pair).unwrap_or_default();
            let byte = u8::from_str_radix(pair, 16)
                .ok()
                .filter(|_| pair.len() == 2);
            bytes.push(byte.with_context(|| format!("linux: {line:?} is no part of a recording"))?);
        }
    }
    Ok(bytes)
}

/// What is in an archive.
fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip");
    let output = gzip
        .arg("-dc")
        .arg(path)
        .output()
        .context("cannot run gzip")?;
    if !output.status.success() {
        bail!(
            "linux: the recording did not come whole: {}",
            path.display()
        );
    }
    Ok(output.stdout)
}

/// Keeps what was told, and plays it.
pub(super) fn play(log: &Log) -> Result<()> {
    let path = log.path.with_file_name("linux.recording");
    let packed = path.with_extension("recording.gz");
    fs::write(&packed, told(log.lines.iter().map(String::as_str))?)?;
    let recording = unpacked(&packed)?;
    fs::write(&path, &recording)?;
    let place = path.display().to_string();
    println!("linux: {} bytes in {place}", recording.len());
    let replay = ["run", "--quiet", "--example", "replay", &place];
    succeed(&mut cargo(&root(), &replay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_was_recorded() {
        let lines = [
            "guest: hello",
            "RECORDING: 1f8b08",
            "(XEN) RECORDING: 00",
            "RECORDING: ff",
        ];
        assert_eq!(told(lines.into_iter()).unwrap(), [0x1f, 0x8b, 8, 0xff]);
        for bad in ["RECORDING: 1", "RECORDING: xy", "RECORDING: 1f8"] {
            assert!(told([bad].into_iter()).is_err(), "{bad}");
        }
        assert!(unpacked(Path::new("/dev/null/none")).is_err());
    }
}
