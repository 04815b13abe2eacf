// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where things are in the guest's memory. Everything below 1 MiB is used while the kernel starts, and free afterwards, but for the
//! ACPI tables.

use std::ops::Range;

/// The global descriptor table.
pub const GDT: u64 = 0x6000;
/// The boot parameters ("zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// The first vCPU's stack ends here.
pub const STACK: u64 = 0x9000;
/// The page tables: a root, a table of GiBs, and a table of 2 MiB pages for the first of them.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The most bytes of it, its end included (Linux' `COMMAND_LINE_SIZE` on x86).
pub const COMMAND_LINE_SIZE: usize = 2048;
/// Where memory below 1 MiB ends.
pub const LOW_END: u64 = 0x9_fc00;
/// The ACPI tables.
pub const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// Where memory goes on.
pub const HIGH: u64 = 0x10_0000;

/// The first I/O APIC, and the local ones.
pub const IO_APIC: u32 = 0xfec0_0000;
/// See [`IO_APIC`].
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// First port of the power-management events, where Xen emulates them ([`domain`](crate::domain) says that to Xen).
pub const PM_EVENTS: u16 = 0xb000;
/// The power-management control register: the device model's.
pub const PM_CONTROL: u16 = 0xb004;
/// The ACPI timer: Xen's.
pub const PM_TIMER: u16 = 0xb008;
/// The reset register of the ACPI tables: the device model's.
pub const RESET: u16 = 0xcf9;
/// What is written there.
pub const RESET_VALUE: u8 = 6;
/// The sleep type of "soft off" in the power-management control register.
pub const SOFT_OFF: u8 = 5;

/// The frames of a guest with so many MiB of memory: all but the VGA window, which is a hole.
///
/// # Panics
/// Unless it is at least 64 MiB, a multiple of 2 MiB, and below where devices begin (3 GiB).
#[must_use]
pub fn frames(mib: u64) -> [Range<u64>; 2] {
    assert!((64..3072).contains(&mib) && mib.is_multiple_of(2));
    [0..0xa0, 0xc0..mib << 8]
}
