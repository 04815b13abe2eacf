// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What hooks are told.

use ioreq_core::handler::Context;

use super::Values;

/// Runs after a register was written.
pub(super) type WriteHook = Box<dyn FnMut(&mut Values, &RegisterWrite<'_>) + Send>;
/// Runs before a register is read, and says what the guest sees.
pub(super) type ReadHook = Box<dyn FnMut(&mut Values, &RegisterRead<'_>) -> u64 + Send>;

/// A guest's write to a register, after it took effect.
///
/// ```
/// use ioreq_backends::register_bank::{Register, RegisterBank, RegisterWrite};
/// use ioreq_core::Width;
///
/// /// Writing 1 to bit 0 of the command register starts the device: bit 7 of the status register tells.
/// const COMMAND: u64 = 0;
/// const STATUS: u64 = 4;
/// let started = |write: &RegisterWrite<'_>| write.value & 1 != 0;
/// let bank = RegisterBank::new(8, [
///     Register::new("status", STATUS, Width::B4).read_only(),
///     Register::new("command", COMMAND, Width::B4).on_write(move |values, write| {
///         if started(write) {
///             values.set(STATUS, 0x80);
///         }
///     }),
/// ])?;
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct RegisterWrite<'a> {
    /// The request's surroundings.
    pub cx: &'a Context<'a>,
    /// Where the register is in the bank.
    pub offset: u64,
    /// The value before the write.
    pub old: u64,
    /// The value after it.
    pub new: u64,
    /// What the guest wrote, at its place in the register; 0 outside of `lanes`.
    pub value: u64,
    /// The bits of the bytes that were written.
    pub lanes: u64,
}

/// A guest's read of a register, before it is answered.
///
/// ```
/// use ioreq_backends::register_bank::{Register, RegisterBank, RegisterRead};
/// use ioreq_core::Width;
///
/// /// Reading the events register empties it.
/// const EVENTS: u64 = 0;
/// let bank = RegisterBank::new(4, [
///     Register::new("events", EVENTS, Width::B4).read_only().on_read(|values, read: &RegisterRead<'_>| {
///         values.set(EVENTS, read.value & !read.lanes);
///         read.value
///     }),
/// ])?;
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct RegisterRead<'a> {
    /// The request's surroundings.
    pub cx: &'a Context<'a>,
    /// Where the register is in the bank.
    pub offset: u64,
    /// The register's value.
    pub value: u64,
    /// The bits of the bytes that are read.
    pub lanes: u64,
}
