// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A bank of device registers, declared rather than programmed.
//!
//! A [`Register`] says where it is, how wide, what it holds after reset, which bits the guest can read, write, or clear by
//! writing 1, and what happens when it does. A [`RegisterBank`] of them is a
//! [`MutHandler`](ioreq_core::handler::MutHandler): in a `Mutex` it can be routed, and shared with the rest of the device.
//!
//! # What an access does
//! * Registers are little-endian. An access may be narrower or wider than a register, start anywhere, and touch several: it
//!   is the same as one access to each register it touches, in ascending order, of the bytes that it touches.
//! * A write changes the touched bytes only: writable bits take the written value, then clearable bits written as 1 become 0;
//!   then the register's write hook runs, then the next register is written.
//! * A read calls the register's read hook once, then takes the touched bytes of what it returns. Bits that are not readable
//!   read as 0.
//! * Bytes of no register are [`Gaps`].

mod bank;
mod hooks;
mod register;
mod saved;
mod values;

pub use bank::{Gaps, RegisterBank, RegisterValue};
pub use hooks::{RegisterRead, RegisterWrite};
pub use register::Register;
pub use saved::SavedRegisters;
pub use values::Values;
