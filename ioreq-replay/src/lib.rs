// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Records what the servers of a device model are asked, and all else that their devices take in, and plays it to the same devices on the
//! hypervisor model: whether they answer the same, raise the same interrupts, and store the same.
//!
//! A recording is a file (see [`Recording`]) that anybody can play who can make the same device model: no Xen, no guest, no second of
//! waiting. It is a bug report, and a test of a changed device.
//!
//! A [`Tape`] goes through the device model when it is made. What takes part:
//!
//! * **servers** ([`Tape::attach`]): each request, what handlers read and write of guest memory while they serve it (by
//!   [`Context::ram`](ioreq_core::handler::Context::ram)), and its answer, at once or later. Nothing of this costs a server without a tape
//!   anything.
//! * **interrupts** ([`Tape::interrupts`]).
//! * **sources** ([`Tape::source`]): what the host gives a device, beside requests.
//! * **threads** of devices ([`Tape::thread`]): when a step of work begins and ends, and what it reads of guest memory. The memory of a
//!   step ([`StepMemory`]) gives a device copies, so that what is recorded is what it read, whatever the guest stores meanwhile.
//!
//! All that takes part is in one order: requests, inputs, beginnings and ends of steps exclude each other, when recorded and when played. So
//! what is played meets its devices in the states that they had.
//!
//! Not recorded, and not to be relied upon by devices whose recordings are to be played: clocks, random numbers (but by
//! [`Step::take_in`]), what devices read of guest memory by other ways, in which order writes of a device's thread to *tracked* pages come
//! between others, when a page is marked or unmarked, and what a process did that was taken over.

mod act;
mod effects;
mod file;
mod interrupts;
mod memory;
#[cfg(feature = "sim")]
mod play;
mod player;
mod recorder;
mod server;
mod step;
mod tape;
#[cfg(all(test, feature = "sim"))]
mod tests;

pub use file::{Recording, RecordingError, checksum};
pub use memory::StepMemory;
#[cfg(feature = "sim")]
pub use play::{Play, Played, Stimulus};
pub use player::Mismatch;
pub use step::{DeviceThread, Step};
pub use tape::{Source, Tape};
