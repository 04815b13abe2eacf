// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The bank: declared registers, their values, and what an access does to them.

use std::fmt;
use std::sync::Arc;

use ioreq_core::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};
use ioreq_core::{Error, ErrorKind, Op, Result, Width};

use super::values::Cell;
use super::{Register, RegisterRead, RegisterWrite, Values};

/// What an access meets where there is no register.
///
/// ```
/// use ioreq_backends::register_bank::Gaps;
/// assert_eq!(Gaps::default(), Gaps::Zeros);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gaps {
    /// Bytes of no register read as 0; writes to them do nothing.
    #[default]
    Zeros,
    /// Bytes of no register read as 0xff; writes to them do nothing.
    Ones,
    /// An access that touches a byte of no register is refused as a whole: it touches no register either.
    Refuse,
}

/// A register's name, place and value, in a snapshot.
///
/// ```
/// use ioreq_backends::register_bank::{Register, RegisterBank};
/// use ioreq_core::Width;
/// let bank = RegisterBank::new(4, [Register::new("id", 0, Width::B2).read_only().reset(0x1af4)])?;
/// assert_eq!(bank.snapshot()[0].to_string(), "id@0x0 = 0x1af4");
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisterValue {
    /// The register's name.
    pub name: Arc<str>,
    /// Where it is in the bank.
    pub offset: u64,
    /// Its width.
    pub width: Width,
    /// Its value.
    pub value: u64,
}

impl fmt::Display for RegisterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:#x} = {:#x}", self.name, self.offset, self.value)
    }
}

/// Registers that a guest reads and writes. See the [module](super) for what an access does.
///
/// It has plain state: in a `Mutex` it is a [`Handler`](ioreq_core::handler::Handler), and an `Arc` of that is shared
/// between the route and the device's other threads.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use ioreq_backends::register_bank::{Register, RegisterBank};
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, Space};
/// use ioreq_core::{DomId, VcpuId, Width};
///
/// const SCRATCH: u64 = 0x8;
/// let bank = RegisterBank::new(0x10, [
///     Register::new("id", 0x0, Width::B4).read_only().reset(0x4f52_4551),
///     Register::new("scratch", SCRATCH, Width::B4),
/// ])?;
/// let bank = Arc::new(Mutex::new(bank)); // server.route("regs", MmioRange::sized(0xfe00_0000, 0x10)?, bank.clone())
///
/// let ram = vm_memory::GuestRegionCollection::<ioreq_core::memory::MappedRegion>::new();
/// let cx = Context::detached(DomId(1), VcpuId(0), &ram);
/// let byte = Access { space: Space::Mmio, addr: 0xfe00_0009, offset: 0x9, width: Width::B1 };
/// let _ = bank.write(&cx, byte, 0x12);
/// assert_eq!(bank.lock().unwrap().get(SCRATCH), Some(0x1200));
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub struct RegisterBank {
    len: u64,
    gaps: Gaps,
    values: Values,
    /// Of the registers in `values`, in the same order.
    registers: Vec<Register>,
}

impl RegisterBank {
    /// The longest bank, in bytes.
    pub const MAX_LEN: u64 = 1 << 24;

    /// A bank of `len` bytes with these registers, in any order, at their reset values.
    ///
    /// # Errors
    /// `InvalidArgument`, with what is wrong: a length of 0 or above [`MAX_LEN`](Self::MAX_LEN); a register that is not all
    /// inside the bank, overlaps another, or has a value or mask wider than itself; bits both writable and clearable.
    pub fn new(len: u64, registers: impl IntoIterator<Item = Register>) -> Result<Self> {
        if len == 0 || len > Self::MAX_LEN {
            let what = format!(
                "a register bank of {len:#x} bytes: 1 to {:#x} are possible",
                Self::MAX_LEN
            );
            return Err(Error::new(Op::Configure, ErrorKind::InvalidArgument).about(what));
        }
        let mut registers: Vec<Register> = registers.into_iter().collect();
        for register in &registers {
            register.check(len)?;
        }
        registers.sort_by_key(|register| register.offset);
        for (one, next) in registers.iter().zip(registers.iter().skip(1)) {
            if one.offset + one.width.bytes() > next.offset {
                return Err(next.bad(format!(
                    "at {:#x}, it overlaps register {:?} at {:#x}",
                    next.offset, one.name, one.offset
                )));
            }
        }
        let cells = registers.iter().map(|register| Cell {
            offset: register.offset,
            width: register.width,
            value: register.reset,
        });
        Ok(RegisterBank {
            len,
            gaps: Gaps::default(),
            values: Values::new(cells.collect()),
            registers,
        })
    }

    /// What an access meets where there is no register; [`Gaps::Zeros`] by default.
    #[must_use]
    pub fn gaps(mut self, gaps: Gaps) -> Self {
        self.gaps = gaps;
        self
    }

    /// Length in bytes: the length of the range to route.
    #[must_use]
    #[allow(
        clippy::len_without_is_empty,
        reason = "a bank has at least one byte, whatever registers are in it"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The value of the register at `offset`, all its bits; `None` if none starts there.
    #[must_use]
    pub fn get(&self, offset: u64) -> Option<u64> {
        self.values.get(offset)
    }

    /// Gives the register at `offset` a value, cut to its width: the device's side, so no mask applies and no hook runs. False
    /// if none starts there.
    pub fn set(&mut self, offset: u64, value: u64) -> bool {
        self.values.set(offset, value)
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// All values, to change: the device's side.
    pub fn values_mut(&mut self) -> &mut Values {
        &mut self.values
    }

    /// All registers back to their reset values. Runs no hook.
    pub fn reset(&mut self) {
        for (index, register) in self.registers.iter().enumerate() {
            if let Some(cell) = self.values.cell_mut(index) {
                cell.value = register.reset;
            }
        }
    }

    /// Every register's name, place and value, in ascending order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<RegisterValue> {
        let cells = self.values.cells().iter();
        cells
            .zip(&self.registers)
            .map(|(cell, register)| RegisterValue {
                name: Arc::clone(&register.name),
                offset: cell.offset,
                width: cell.width,
                value: cell.value,
            })
            .collect()
    }

    /// Puts a snapshot's values back. Runs no hook. Registers that the snapshot does not name keep their value.
    ///
    /// # Errors
    /// `InvalidArgument` if a register of the snapshot is not there, with that name, place and width; nothing is changed then.
    pub fn restore(&mut self, snapshot: &[RegisterValue]) -> Result<()> {
        for saved in snapshot {
            let register = self
                .values
                .position(saved.offset)
                .and_then(|index| self.registers.get(index));
            let known = register
                .is_some_and(|known| known.name == saved.name && known.width == saved.width);
            if !known || saved.width.cut(saved.value) != saved.value {
                let what = format!(
                    "snapshot of {saved}, {} bytes wide: the bank has no such register",
                    saved.width.bytes()
                );
                return Err(Error::new(Op::Configure, ErrorKind::InvalidArgument).about(what));
            }
        }
        for saved in snapshot {
            self.values.set(saved.offset, saved.value);
        }
        Ok(())
    }

    /// Whether every byte of the access belongs to a register.
    fn is_covered(&self, access: Access) -> bool {
        let Some(end) = access.offset.checked_add(access.width.bytes()) else {
            return false;
        };
        let mut next = access.offset;
        let first = self.values.first_touching(access.offset);
        for cell in self.values.cells().iter().skip(first) {
            if next >= end || cell.offset > next {
                break;
            }
            next = cell.offset + cell.width.bytes();
        }
        next >= end
    }

    /// The registers that an access touches, by index, in ascending order.
    fn touched(&self, access: Access) -> std::ops::Range<usize> {
        let first = self.values.first_touching(access.offset);
        let end = access.offset.saturating_add(access.width.bytes());
        let cells = self.values.cells().iter().skip(first);
        let count = cells.take_while(|cell| cell.offset < end).count();
        first..first + count
    }
}

/// `value`, of bytes that start at `from`, at its place among bytes that start at `to`.
fn moved(value: u64, from: u64, to: u64) -> u64 {
    // The two have a byte in common, so they are less than 8 bytes apart.
    if from >= to {
        value << ((from - to) * 8 % 64)
    } else {
        value >> ((to - from) * 8 % 64)
    }
}

impl MutHandler for RegisterBank {
    fn read(&mut self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        if self.gaps == Gaps::Refuse && !self.is_covered(access) {
            return ReadOutcome::Refused("part of the access is to no register");
        }
        let mut result = match self.gaps {
            Gaps::Ones => access.width.all_ones(),
            Gaps::Zeros | Gaps::Refuse => 0,
        };
        for index in self.touched(access) {
            let (Some(cell), Some(register)) =
                (self.values.cell(index), self.registers.get_mut(index))
            else {
                break;
            };
            let all = cell.width.all_ones();
            let lanes = moved(access.width.all_ones(), access.offset, cell.offset) & all;
            let value = match &mut register.on_read {
                None => cell.value,
                Some(hook) => {
                    let read = RegisterRead {
                        cx,
                        offset: cell.offset,
                        value: cell.value,
                        lanes,
                    };
                    hook(&mut self.values, &read)
                }
            };
            let taken = moved(lanes, cell.offset, access.offset);
            let value = moved(value & register.readable & all, cell.offset, access.offset);
            result = (result & !taken) | (value & taken);
        }
        access.width.cut(result).into()
    }

    fn write(&mut self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        if self.gaps == Gaps::Refuse && !self.is_covered(access) {
            return WriteOutcome::Refused("part of the access is to no register");
        }
        let value = access.width.cut(value);
        for index in self.touched(access) {
            let (Some(cell), Some(register)) =
                (self.values.cell_mut(index), self.registers.get_mut(index))
            else {
                break;
            };
            let all = cell.width.all_ones();
            let lanes = moved(access.width.all_ones(), access.offset, cell.offset) & all;
            let value = moved(value, access.offset, cell.offset) & lanes;
            let taken = register.writable_bits() & lanes;
            let old = cell.value;
            let new = ((old & !taken) | (value & taken)) & !(value & register.clearable);
            cell.value = new;
            if let Some(hook) = &mut register.on_write {
                let write = RegisterWrite {
                    cx,
                    offset: register.offset,
                    old,
                    new,
                    value,
                    lanes,
                };
                hook(&mut self.values, &write);
            }
        }
        WriteOutcome::Done
    }
}

impl fmt::Debug for RegisterBank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterBank")
            .field("len", &format_args!("{:#x}", self.len))
            .field("gaps", &self.gaps)
            .field("values", &self.snapshot())
            .finish()
    }
}
