// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A job in memory that is write-tracked meanwhile, page by page, on and off all the time.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use linux_dm::watcher::Command;

use crate::memory::{PAGE, Pages};
use crate::ports::Watcher;

/// Pages that the job works in.
const PAGES: usize = 32;
/// Bytes that it reads from the disk into them now and then.
const FROM_DISK: usize = 2 * PAGE;

/// Between two changes of what is tracked.
const PAUSE: Duration = Duration::from_millis(1);

/// Runs the job in tracked memory, while what is tracked changes `marks` times and until `writes` writes have trapped, then as long in
/// ordinary memory, and compares.
pub(crate) fn track(device: &str, writes: u32, marks: u32) -> Result<String, Box<dyn Error>> {
    let watcher = Watcher::open()?;
    let mut disk = File::options();
    let disk = disk.read(true).custom_flags(libc::O_DIRECT).open(device)?;
    let (mut tracked, mut plain) = (Pages::new(PAGES)?, Pages::new(PAGES)?);
    tracked.fill(1);
    plain.fill(1);
    let frames = frames(&tracked)?;
    let before = watcher.ask(Command::Count, 0, 0)?;

    let done = AtomicBool::new(false);
    let (worked, changes) = thread::scope(|scope| {
        let marker = scope.spawn(|| {
            let changes = change(&watcher, &frames, marks, before.wrapping_add(writes));
            // Relaxed: a flag, looked at again and again.
            done.store(true, Ordering::Relaxed);
            changes
        });
        let on = |_| !done.load(Ordering::Relaxed);
        let worked = work(&mut tracked, &disk, on);
        (worked, marker.join())
    });
    let rounds = worked?;
    let changes = changes.map_err(|_| "the thread that marks panicked")??;
    let differ = watcher.ask(Command::Compare, 0, 0)?;
    let trapped = watcher.ask(Command::Count, 0, 0)?.wrapping_sub(before);
    work(&mut plain, &disk, |round| round < rounds)?;
    if *tracked != *plain {
        let at = tracked.iter().zip(&*plain).position(|(is, was)| is != was);
        return Err(format!("byte {at:?} of the tracked memory is wrong").into());
    }
    if differ != 0 {
        return Err(format!("the watcher saw {differ} bytes otherwise than they are").into());
    }
    if self::frames(&tracked)? != frames {
        return Err("the kernel moved a page: the run says nothing".into());
    }
    for frame in frames {
        watcher.ask(Command::Untrack, frame, 1)?;
    }
    Ok(format!(
        "track: {trapped} writes trapped, {changes} marks and unmarks, all memory right"
    ))
}

/// Tracks and untracks pages at random, so often and until so many writes are counted.
fn change(watcher: &Watcher, frames: &[u64], least: u32, writes: u32) -> io::Result<u32> {
    let mut random = Rng::with_seed(3);
    let mut tracked = vec![false; frames.len()];
    let mut changes = 0;
    while changes < least || watcher.ask(Command::Count, 0, 0)? < writes {
        let page = random.usize(..frames.len());
        let command = match tracked[page] {
            false => Command::Track,
            true => Command::Untrack,
        };
        watcher.ask(command, frames[page], 1)?;
        tracked[page] = !tracked[page];
        changes += 1;
        thread::sleep(PAUSE);
    }
    // What is tracked at the end is compared.
    for (frame, _) in frames
        .iter()
        .zip(&tracked)
        .filter(|(_, tracked)| !**tracked)
    {
        watcher.ask(Command::Track, *frame, 1)?;
        changes += 1;
    }
    Ok(changes)
}

/// Writes of all sizes, at all places, each by what is there already; copies, and bytes from a disk. As long as `on` says of the
/// number of rounds so far, which it returns.
fn work(memory: &mut [u8], disk: &File, on: impl Fn(u32) -> bool) -> io::Result<u32> {
    let mut random = Rng::with_seed(9);
    let mut round = 0;
    while on(round) {
        let at = random.usize(..memory.len() - 64);
        let from = random.usize(..memory.len() - 64);
        match random.u8(..16) {
            0 => memory.copy_within(from..from + 64, at),
            1 => memory[at..at + 24].fill(random.u8(..)),
            2..4 => memory[at] = memory[at].rotate_left(3) ^ memory[from],
            4..6 => change_word::<2>(memory, at, from),
            6..10 => change_word::<4>(memory, at, from),
            _ => change_word::<8>(memory, at, from),
        }
        if round % 1024 == 0 {
            let page = random.usize(..(memory.len() - FROM_DISK) / PAGE) * PAGE;
            let sector = u64::from(random.u8(..)) * PAGE as u64;
            disk.read_exact_at(&mut memory[page..page + FROM_DISK], sector)?;
        }
        round += 1;
    }
    Ok(round)
}

fn change_word<const BYTES: usize>(memory: &mut [u8], at: usize, from: usize) {
    let mut word = [0; 8];
    word[..BYTES].copy_from_slice(&memory[at..at + BYTES]);
    let mut other = [0; 8];
    other[..BYTES].copy_from_slice(&memory[from..from + BYTES]);
    let word = u64::from_le_bytes(word).rotate_left(5) ^ u64::from_le_bytes(other);
    memory[at..at + BYTES].copy_from_slice(&word.to_le_bytes()[..BYTES]);
}

/// The guest frames of a process's pages (`/proc/self/pagemap`).
pub(crate) fn frames(pages: &[u8]) -> io::Result<Vec<u64>> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let map = File::open("/proc/self/pagemap")?;
    let mut frames = Vec::new();
    for page in pages.chunks(PAGE) {
        let mut entry = [0; 8];
        map.read_exact_at(&mut entry, page.as_ptr() as u64 / PAGE as u64 * 8)?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            return Err(io::Error::other("the kernel does not tell where a page is"));
        }
        frames.push(entry & FRAME);
    }
    Ok(frames)
}
