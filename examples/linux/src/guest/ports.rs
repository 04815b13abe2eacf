// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: I/O ports, by the instructions. The watcher's registers, as `linux_dm::watcher` has them.

use std::arch::asm;
use std::io;

use linux_dm::watcher::{Command, FAILED};

const FIRST: u16 = 0x520;

/// The right to use the watcher's ports, of this thread.
#[derive(Debug)]
pub(crate) struct Watcher(());

impl Watcher {
    /// Asks the kernel for the right. Threads that are started later have it, too.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: it takes no pointer.
        match unsafe { libc::ioperm(FIRST.into(), 12, 1) } {
            0 => Ok(Watcher(())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has a command carried out on frames; its result.
    pub(crate) fn ask(&self, command: Command, first: u64, count: u32) -> io::Result<u32> {
        let first = u32::try_from(first).map_err(io::Error::other)?;
        out(FIRST + 4, first);
        out(FIRST + 8, count);
        out(FIRST, command as u32);
        match inl(FIRST) {
            FAILED => Err(io::Error::other(format!(
                "{command:?} of frame {first:#x} failed"
            ))),
            result => Ok(result),
        }
    }
}

fn out(port: u16, value: u32) {
    // SAFETY: a port of the watcher, which `open` gave the right to; its device stores into no memory of this process.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}
