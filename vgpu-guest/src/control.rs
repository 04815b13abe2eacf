// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How a driver on a real vCPU is told what to do, and tells what it did: a block of plain guest memory for each vCPU.
//!
//! The device model's process writes the [`Task`] and then [`GO`] into [`STATE`]; the vCPU, which polls that, runs the driver,
//! writes [`Done`], and then [`FINISHED`]; or, when the program ends otherwise, a text and [`FAILED`]. After `FINISHED` the same
//! vCPU takes another task.

use crate::layout::CONTROL;
use crate::task::{Done, Task};

/// Bytes of a vCPU's block.
pub const BLOCK: u64 = 0x400;
/// Offset of a u64: one of the states below.
pub const STATE: u64 = 0;
/// Offset of a u64: submissions done.
pub const PROGRESS: u64 = 8;
/// Offset of a u64: the number of complaints so far.
pub const COMPLAINTS: u64 = 16;
/// Offset of the task, as u64s.
pub const TASK: u64 = 0x40;
/// Offset of what was done, as u64s.
pub const DONE: u64 = 0x100;
/// Offset of the first complaint: text, with a 0 at its end.
pub const TEXT: u64 = 0x200;
/// The most bytes of it.
pub const TEXT_BYTES: usize = 0x200;

/// The vCPU is not up yet.
pub const ABSENT: u64 = 0;
/// It waits for a task.
pub const READY: u64 = 1;
/// It has a task.
pub const GO: u64 = 2;
/// The task is done.
pub const FINISHED: u64 = 3;
/// The program ended before that.
pub const FAILED: u64 = 4;

const _: () = assert!(TASK + 8 * Task::WORDS as u64 <= DONE);
const _: () = assert!(DONE + 8 * Done::WORDS as u64 <= TEXT);
const _: () = assert!(TEXT + TEXT_BYTES as u64 <= BLOCK);

/// Guest-physical address of a vCPU's block.
#[must_use]
pub const fn block(vcpu: u32) -> u64 {
    CONTROL + BLOCK * vcpu as u64
}
