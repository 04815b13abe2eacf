// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A bank's saved state.

use ioreq_core::Width;
use ioreq_core::snapshot::{MutSnapshot, RestoreError, SavedState};

use super::{RegisterBank, RegisterValue};

/// Every register of a [`RegisterBank`], by name, place and width.
///
/// ```
/// use ioreq_backends::register_bank::{Register, RegisterBank};
/// use ioreq_core::{Width, snapshot::MutSnapshot};
/// let bank = || RegisterBank::new(4, [Register::new("scratch", 0, Width::B4)]);
/// let (mut here, mut there) = (bank()?, bank()?);
/// here.set(0, 7);
/// MutSnapshot::restore(&mut there, here.save())?;
/// assert_eq!(there.get(0), Some(7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedRegisters {
    registers: Vec<(String, u64, Width, u64)>,
}

impl SavedState for SavedRegisters {
    const KIND: &'static str = "register bank";
    const VERSION: u32 = 1;
}

/// Runs no hook, neither way.
impl MutSnapshot for RegisterBank {
    type State = SavedRegisters;

    fn save(&self) -> SavedRegisters {
        let registers = self.snapshot().into_iter();
        let saved = registers.map(
            |RegisterValue {
                 name,
                 offset,
                 width,
                 value,
             }| { (String::from(&*name), offset, width, value) },
        );
        SavedRegisters {
            registers: saved.collect(),
        }
    }

    fn restore(&mut self, state: SavedRegisters) -> Result<(), RestoreError> {
        let own = self.values().cells().len();
        if state.registers.len() != own {
            let why = format!(
                "{} registers, and the bank has {own}",
                state.registers.len()
            );
            return Err(RestoreError::of::<SavedRegisters>(why));
        }
        let mut before = None;
        for (name, offset, ..) in &state.registers {
            if before >= Some(*offset) {
                let why = format!("register {name:?} is not in its place");
                return Err(RestoreError::of::<SavedRegisters>(why));
            }
            before = Some(*offset);
        }
        let values = state.registers.into_iter();
        let values: Vec<_> = values
            .map(|(name, offset, width, value)| RegisterValue {
                name: name.into(),
                offset,
                width,
                value,
            })
            .collect();
        let restored = RegisterBank::restore(self, &values);
        restored.map_err(|err| RestoreError::of::<SavedRegisters>(err.to_string()))
    }
}
