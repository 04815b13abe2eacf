// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The declaration of one register.

use std::fmt;
use std::sync::Arc;

use ioreq_core::{Error, ErrorKind, Op, Result, Width};

use super::hooks::{ReadHook, WriteHook};
use super::{RegisterRead, RegisterWrite, Values};

/// Declares a register of a [`RegisterBank`](super::RegisterBank).
///
/// ```
/// use ioreq_backends::register_bank::Register;
/// use ioreq_core::Width;
///
/// let status = Register::new("status", 0x04, Width::B4)
///     .reset(0x8000_0000)       // ready
///     .writable(0x0000_ff00)    // the guest's own bits
///     .clearable(0x0000_000f);  // events, cleared by writing 1
/// # let _ = status;
/// ```
#[must_use]
pub struct Register {
    pub(super) name: Arc<str>,
    pub(super) offset: u64,
    pub(super) width: Width,
    pub(super) reset: u64,
    pub(super) readable: u64,
    /// `None`: all bits that are not clearable.
    writable: Option<u64>,
    pub(super) clearable: u64,
    pub(super) on_read: Option<ReadHook>,
    pub(super) on_write: Option<WriteHook>,
}

impl Register {
    /// A register of `width` at `offset` in its bank: 0 after reset, and the guest can read and write all of it. `name` is for
    /// errors and snapshots.
    pub fn new(name: &str, offset: u64, width: Width) -> Self {
        Register {
            name: name.into(),
            offset,
            width,
            reset: 0,
            readable: width.all_ones(),
            writable: None,
            clearable: 0,
            on_read: None,
            on_write: None,
        }
    }

    /// What it holds after reset.
    pub fn reset(mut self, value: u64) -> Self {
        self.reset = value;
        self
    }

    /// The bits that the guest can read; the others read as 0.
    pub fn readable(mut self, mask: u64) -> Self {
        self.readable = mask;
        self
    }

    /// The bits that the guest can write; by default all that are not [clearable](Self::clearable).
    pub fn writable(mut self, mask: u64) -> Self {
        self.writable = Some(mask);
        self
    }

    /// The guest can write none of it.
    pub fn read_only(self) -> Self {
        self.writable(0)
    }

    /// The bits that the guest clears by writing 1 to them (RW1C).
    pub fn clearable(mut self, mask: u64) -> Self {
        self.clearable = mask;
        self
    }

    /// Runs after each of the guest's writes to the register, also to its read-only bits. It may change any register's value;
    /// those changes run no hooks.
    pub fn on_write(
        mut self,
        hook: impl FnMut(&mut Values, &RegisterWrite<'_>) + Send + 'static,
    ) -> Self {
        self.on_write = Some(Box::new(hook));
        self
    }

    /// Runs before each of the guest's reads of the register; the guest sees what it returns, as far as it is readable. It may
    /// change any register's value, its own too.
    pub fn on_read(
        mut self,
        hook: impl FnMut(&mut Values, &RegisterRead<'_>) -> u64 + Send + 'static,
    ) -> Self {
        self.on_read = Some(Box::new(hook));
        self
    }

    pub(super) fn writable_bits(&self) -> u64 {
        self.writable
            .unwrap_or(self.width.all_ones() & !self.clearable)
    }

    /// Checks all that can be said of a register alone.
    pub(super) fn check(&self, len: u64) -> Result<()> {
        let Register { offset, width, .. } = *self;
        let bytes = width.bytes();
        if offset > len || len - offset < bytes {
            return Err(self.bad(format!(
                "its {bytes} bytes at {offset:#x} are not all inside a bank of {len:#x} bytes"
            )));
        }
        let masks = [
            ("reset value", self.reset),
            ("readable mask", self.readable),
            ("writable mask", self.writable_bits()),
            ("clearable mask", self.clearable),
        ];
        for (what, value) in masks {
            if width.cut(value) != value {
                return Err(self.bad(format!("{what} {value:#x} does not fit its {bytes} bytes")));
            }
        }
        let both = self.writable_bits() & self.clearable;
        if both != 0 {
            return Err(self.bad(format!(
                "bits {both:#x} are both writable and clearable: choose one"
            )));
        }
        Ok(())
    }

    pub(super) fn bad(&self, what: String) -> Error {
        let what = format!("register {:?}: {what}", self.name);
        Error::new(Op::Configure, ErrorKind::InvalidArgument).about(what)
    }
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Register")
            .field("name", &self.name)
            .field("offset", &format_args!("{:#x}", self.offset))
            .field("width", &self.width)
            .field("reset", &format_args!("{:#x}", self.reset))
            .field("readable", &format_args!("{:#x}", self.readable))
            .field("writable", &format_args!("{:#x}", self.writable_bits()))
            .field("clearable", &format_args!("{:#x}", self.clearable))
            .finish_non_exhaustive()
    }
}
