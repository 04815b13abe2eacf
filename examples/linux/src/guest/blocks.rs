// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random writes to a disk, the same ones each time, so that whoever knows their number knows what must be on it.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use fastrand::Rng;

use crate::memory::{PAGE, Pages};

/// The part of the disk that is written: behind the file system that the same disk has.
const FIRST: u64 = 8 << 20;
const LEN: usize = 4 << 20;
const SECTOR: usize = 512;
/// The most sectors of a write: more than the device copies at once.
const MOST: usize = 192;
/// One of so many writes is read back at once.
const READ_BACK: u32 = 8;
/// Contents that are looked for where others were expected.
const MOST_WRITES: u32 = 1000;
const SEED: u64 = 0x10e9;

/// A write: where in the part, and how much.
struct Write {
    start: usize,
    len: usize,
    contents: Rng,
}

/// The writes, in order.
fn plan(count: u32) -> impl Iterator<Item = Write> {
    let mut random = Rng::with_seed(SEED);
    (0..count).map(move |_| {
        // Mostly small, as a file system's are.
        let most = if random.u8(..4) == 0 { MOST } else { 16 };
        let len = random.usize(1..=most) * SECTOR;
        let start = random.usize(..=(LEN - len) / SECTOR) * SECTOR;
        Write {
            start,
            len,
            contents: random.fork(),
        }
    })
}

/// Writes, with the guest's cache out of the way, and sees that it is there.
pub(crate) fn write(device: &str, count: u32) -> Result<String, Box<dyn Error>> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let disk = options.custom_flags(libc::O_DIRECT).open(device)?;
    let mut expected = vec![0; LEN];
    let mut buffer = Pages::new(MOST * SECTOR / PAGE)?;
    // Whatever a guest before this one was doing.
    for place in (FIRST..FIRST + LEN as u64).step_by(buffer.len()) {
        let left = usize::try_from(FIRST + LEN as u64 - place)?;
        disk.write_all_at(&buffer[..left.min(MOST * SECTOR)], place)?;
    }
    let mut bytes = 0;
    for (number, mut write) in (0..count).zip(plan(count)) {
        let range = write.start..write.start + write.len;
        let part = &mut buffer[..write.len];
        write.contents.fill(part);
        disk.write_all_at(part, FIRST + write.start as u64)?;
        disk.sync_all()?;
        expected[range.clone()].copy_from_slice(part);
        bytes += write.len;
        if number % READ_BACK == 0 {
            part.fill(0);
            disk.read_exact_at(part, FIRST + write.start as u64)?;
            if *part != expected[range] {
                return Err(format!("write {number} is not on the disk").into());
            }
        }
    }
    compare(&disk, &expected, &mut buffer)?;
    Ok(format!(
        "blocks: {count} writes of {bytes} bytes, read back right"
    ))
}

/// Whether an image holds what the writes leave.
pub(crate) fn verify(image: &str, count: u32) -> Result<String, Box<dyn Error>> {
    let mut expected = vec![0; LEN];
    for mut write in plan(count) {
        let part = &mut expected[write.start..write.start + write.len];
        write.contents.fill(part);
    }
    compare(&File::open(image)?, &expected, &mut vec![0; MOST * SECTOR])?;
    Ok(format!("blocks: {count} writes are in the image"))
}

/// Compares all of the part.
fn compare(disk: &File, expected: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    let mut wrong = Vec::new();
    for (place, expected) in (FIRST..)
        .step_by(buffer.len())
        .zip(expected.chunks(buffer.len()))
    {
        let part = &mut buffer[..expected.len()];
        disk.read_exact_at(part, place)?;
        let sectors = part.chunks(SECTOR).zip(expected.chunks(SECTOR));
        for (at, (is, was)) in (place..).step_by(SECTOR).zip(sectors) {
            if is != was {
                wrong.push((at, is[..16].to_vec()));
            }
        }
    }
    let (Some((first, found)), Some((last, _))) = (wrong.first(), wrong.last()) else {
        return Ok(());
    };
    // Where the bytes belong tells what went wrong.
    let from = plan(MOST_WRITES)
        .zip(0..)
        .find_map(|(mut write, number): (Write, u32)| {
            let mut contents = vec![0; write.len];
            write.contents.fill(&mut contents);
            let at = contents
                .windows(found.len())
                .position(|part| part == found)?;
            Some(format!(
                "byte {at:#x} of write {number}, to {:#x}",
                FIRST + write.start as u64
            ))
        });
    let sectors = wrong.len();
    let from = from.unwrap_or_else(|| "no write's".to_owned());
    Err(io::Error::other(format!(
        "{sectors} sectors of the disk are not what was written, from {first:#x} to {last:#x}: \
         the first has {found:02x?}, {from}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_right_or_wrong() {
        let path = std::env::temp_dir().join(format!("blocks-{}", std::process::id()));
        let name = path.to_str().unwrap();
        let image = File::create(&path).unwrap();
        image.set_len(FIRST + LEN as u64).unwrap();
        assert!(verify(name, 1).is_err(), "nothing is written");
        let mut last = (0, 0);
        for mut write in plan(50) {
            let mut bytes = vec![0; write.len];
            write.contents.fill(&mut bytes);
            image
                .write_all_at(&bytes, FIRST + write.start as u64)
                .unwrap();
            last = (write.start, bytes[0]);
        }
        verify(name, 50).unwrap();
        assert!(verify(name, 49).is_err() && verify(name, 51).is_err());
        image
            .write_all_at(&[!last.1], FIRST + last.0 as u64)
            .unwrap();
        assert!(verify(name, 50).is_err(), "a byte differs");
        std::fs::remove_file(path).unwrap();
    }
}
