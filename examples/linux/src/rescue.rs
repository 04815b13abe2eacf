// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rescue of a vCPU that executes from a tracked page.
//!
//! Xen has no way to fetch an instruction from such a page: the vCPU faults on it again and again, and no request tells of it. What can be
//! seen is that nothing comes while pages are tracked. Then its place is looked up, through the guest's own page tables, and the page
//! given back. A device model needs the toolstack's rights for that (to pause the domain and read its registers), so the framework
//! cannot do it by itself.

use ioreq::{Gfn, GuestRam, Width};
use vm_memory::GuestAddress;

/// Bits of an entry: it is there; it is a page, not a table.
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The longest instruction has so many bytes, and may lie in two pages.
const INSTRUCTION: u64 = 15;

/// The frame of a virtual address, by 4-level page tables in guest memory.
#[must_use]
pub fn frame_of(ram: &dyn GuestRam, cr3: u64, address: u64) -> Option<Gfn> {
    let mut table = cr3 & ADDRESS;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let at = GuestAddress(table + 8 * (address >> shift & 511));
        let entry = ram.load(at, Width::B8).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || (level < 3 && entry & LARGE != 0) {
            let within = (1_u64 << shift) - 1;
            return Some(Gfn((entry & ADDRESS & !within | address & within) >> 12));
        }
        table = entry & ADDRESS;
    }
    None
}

/// The frames that the instruction at `rip` may lie in.
#[must_use]
pub fn frames_at(ram: &dyn GuestRam, cr3: u64, rip: u64) -> Vec<Gfn> {
    let ends = [rip, rip.wrapping_add(INSTRUCTION - 1)];
    let mut frames: Vec<Gfn> = ends
        .iter()
        .filter_map(|address| frame_of(ram, cr3, *address))
        .collect();
    frames.dedup();
    frames
}

#[cfg(test)]
mod tests {
    use ioreq::GuestMap;
    use ioreq::sim::{DomainConfig, Machine};

    use super::*;

    const ROOT: u64 = 0x1000;

    #[test]
    fn an_address_is_found_in_tables_of_all_levels() {
        let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
        let memory = domain.hypervisor().memory();
        let ram: &dyn GuestRam = &*memory;
        let put = |table: u64, index: u64, entry: u64| {
            let at = GuestAddress(table + 8 * index);
            ram.store(at, Width::B8, entry).unwrap();
        };
        // 0x8000_0020_3xxx: a page; 0x8000_0040_0000: 2 MiB; 0x8000_4000_0000: 1 GiB.
        put(ROOT, 256, 0x2000 | PRESENT);
        put(0x2000, 0, 0x3000 | PRESENT | 1 << 63);
        put(0x2000, 1, 0x4000_0000 | PRESENT | LARGE);
        put(0x3000, 1, 0x4000 | PRESENT);
        put(0x3000, 2, 0x60_0000 | PRESENT | LARGE);
        put(0x4000, 3, 0x7000 | PRESENT | 1 << 63);
        let find = |address| frame_of(ram, ROOT | 0x18, address);
        let base = 0xffff_8000_0000_0000_u64;
        assert_eq!(find(base + 0x20_3abc), Some(Gfn(7)));
        assert_eq!(find(base + 0x40_5000), Some(Gfn(0x605)));
        assert_eq!(find(base + 0x4012_3000), Some(Gfn(0x4_0123)));
        assert_eq!(find(base + 0x20_4000), None, "not present");
        assert_eq!(find(0), None);
        assert_eq!(frame_of(ram, 1 << 45, base), None, "no memory there");

        let frames = |rip| frames_at(ram, ROOT, rip);
        assert_eq!(frames(base + 0x20_3000), [Gfn(7)]);
        assert_eq!(frames(base + 0x20_3ff8), [Gfn(7)], "the next is not there");
        assert_eq!(frames(base + 0x40_0ffc), [Gfn(0x600), Gfn(0x601)]);
    }
}
