// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: executes code that it wrote itself, from a page that is write-tracked: where a vCPU stands still until it is rescued.

use std::error::Error;
use std::time::Instant;

use linux_dm::watcher::Command;

use crate::memory::Pages;
use crate::ports::Watcher;
use crate::track::frames;

/// `mov eax, 0x12345678; ret`
const CODE: [u8; 6] = [0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3];

/// Executes from a tracked page; the page is not tracked any more afterwards.
pub(crate) fn execute() -> Result<String, Box<dyn Error>> {
    let watcher = Watcher::open()?;
    let mut page = Pages::executable(1)?;
    page[..CODE.len()].copy_from_slice(&CODE);
    let frame = frames(&page)?[0];
    // SAFETY: the page can be executed, and holds a function of that type.
    let code: extern "C" fn() -> u32 = unsafe { std::mem::transmute(page.as_ptr()) };
    watcher.ask(Command::Track, frame, 1)?;
    let began = Instant::now();
    let result = code();
    let seconds = began.elapsed().as_secs_f32();
    let before = watcher.ask(Command::Count, 0, 0)?;
    page[100] = 1;
    let traps = watcher.ask(Command::Count, 0, 0)?.wrapping_sub(before);
    match (result, traps) {
        (0x1234_5678, 0) => Ok(format!(
            "execute: came back from a tracked page after {seconds:.3} s"
        )),
        _ => Err(format!("it gave {result:#x}, and the page is tracked: {traps}").into()),
    }
}
