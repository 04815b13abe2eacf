// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A reserved address space: a PML4 whose directories lead to as many empty page tables as asked for. It shows what a million
//! tracked pages cost.

use crate::layout::PVINFO;
use crate::vcpu::Vcpu;

/// Frames that the reservation takes, tables and directories.
#[must_use]
pub fn frames(pages: u64) -> u64 {
    pages + pages.div_ceil(512) + pages.div_ceil(512 * 512) + 1
}

/// Makes it, from frame `first` on; returns the root's frame. Directories are filled before they are linked, so that 512 tables
/// come with one trapped write.
///
/// # Errors
/// The vCPU's.
pub fn make<V: Vcpu>(cpu: &mut V, first: u64, pages: u64) -> Result<u64, V::Fault> {
    let (root, mut next) = (first, first + 1);
    cpu.store32(
        PVINFO + 0x838,
        u32::try_from(root << 12 & 0xffff_ffff).unwrap_or(0),
    )?;
    cpu.store32(PVINFO + 0x83c, u32::try_from(root >> 20).unwrap_or(0))?;
    cpu.store32(PVINFO + 0x818, 4)?;
    let mut take = |frames: u64| {
        next += frames;
        next - frames
    };
    let mut left = pages;
    let mut number = 0_u64;
    let mut pdp = 0;
    while left > 0 {
        if number.is_multiple_of(512) {
            pdp = take(1);
            cpu.store64((root << 12) + number / 512 * 8, pdp << 12 | 3)?;
        }
        let directory = take(1);
        let tables = left.min(512);
        let first_table = take(tables);
        for index in 0..tables {
            cpu.store64(
                (directory << 12) + index * 8,
                (first_table + index) << 12 | 3,
            )?;
        }
        cpu.store64((pdp << 12) + number % 512 * 8, directory << 12 | 3)?;
        left -= tables;
        number += 1;
    }
    Ok(root)
}

/// Ends it.
///
/// # Errors
/// The vCPU's.
pub fn end<V: Vcpu>(cpu: &mut V, root: u64) -> Result<(), V::Fault> {
    cpu.store32(
        PVINFO + 0x838,
        u32::try_from(root << 12 & 0xffff_ffff).unwrap_or(0),
    )?;
    cpu.store32(PVINFO + 0x83c, u32::try_from(root >> 20).unwrap_or(0))?;
    cpu.store32(PVINFO + 0x818, 5)
}
