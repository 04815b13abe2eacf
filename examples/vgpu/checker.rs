// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An independent walk of the guest's tables. It shares no code with the backend: own constants, own decoding, own recursion.

use std::sync::atomic::{AtomicU64, Ordering};

use ioreq::GuestRam;
use vm_memory::GuestAddress;

/// A page that the guest's tables map: GPU address, guest-physical address, bytes, writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) gpu: u64,
    pub(crate) guest: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
}

/// What the guest's tables map, from the PML4 at guest-physical `root` on, in the order of GPU addresses.
pub(crate) fn walk(ram: &dyn GuestRam, root: u64) -> Vec<Page> {
    let mut found = Vec::new();
    table(ram, root, 39, false, 0, &mut found);
    found
}

/// The same for a 32-bit address space: each of the `directories` (guest-physical, 0 for none) is a GiB.
pub(crate) fn walk_directories(ram: &dyn GuestRam, directories: [u64; 4]) -> Vec<Page> {
    let mut found = Vec::new();
    for (number, directory) in (0_u64..).zip(directories) {
        if directory != 0 {
            table(ram, directory, 21, false, number << 30, &mut found);
        }
    }
    found
}

/// `bit` is the lowest address bit that selects an entry: 39, 30, 21 or 12.
fn table(ram: &dyn GuestRam, at: u64, bit: u32, wide: bool, base: u64, found: &mut Vec<Page>) {
    let mut bytes = [0_u8; 4096];
    if ram.read(GuestAddress(at), &mut bytes).is_err() {
        return;
    }
    for (index, bytes) in (0_u64..).zip(bytes.chunks_exact(8)) {
        let entry = bytes
            .iter()
            .rev()
            .fold(0_u64, |entry, byte| (entry << 8) + u64::from(*byte));
        if entry % 2 == 0 || (wide && index % 16 != 0) {
            continue;
        }
        let gpu = base + (index << bit);
        let address = entry & 0x0000_3fff_ffff_f000;
        let is_page = bit == 12 || (bit != 39 && entry & 0x80 != 0);
        if is_page {
            let bytes = if wide { 0x1_0000 } else { 1_u64 << bit };
            let guest = address / bytes * bytes;
            found.push(Page {
                gpu,
                guest,
                bytes,
                writable: entry & 2 != 0,
            });
        } else {
            table(
                ram,
                address,
                bit - 9,
                bit == 21 && entry & 0x800 != 0,
                gpu,
                found,
            );
        }
    }
}

/// Counts what was compared and what was wrong.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) entries: AtomicU64,
    pub(crate) wrong_entries: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) wrong_bytes: AtomicU64,
    /// By page size: 4 KiB, 64 KiB, 2 MiB, 1 GiB.
    pub(crate) sizes: [AtomicU64; 4],
    /// Comparisons of 32-bit address spaces.
    pub(crate) narrow: AtomicU64,
}

impl Tally {
    /// Compares what the guest's tables map with what the shadow maps.
    pub(crate) fn compare(&self, guest: &[Page], shadow: &[Page]) {
        let wrong = guest.iter().zip(shadow).filter(|(a, b)| a != b).count()
            + guest.len().abs_diff(shadow.len());
        self.entries
            .fetch_add(guest.len() as u64, Ordering::Relaxed);
        self.wrong_entries
            .fetch_add(wrong as u64, Ordering::Relaxed);
        for page in guest {
            let size = match page.bytes {
                0x1000 => &self.sizes[0],
                0x1_0000 => &self.sizes[1],
                0x20_0000 => &self.sizes[2],
                _ => &self.sizes[3],
            };
            size.fetch_add(1, Ordering::Relaxed);
        }
        if wrong > 0 {
            let difference = guest.iter().zip(shadow).find(|(a, b)| a != b);
            eprintln!(
                "vgpu: {wrong} entries wrong: guest {} shadow {}, {difference:x?}",
                guest.len(),
                shadow.len()
            );
        }
    }

    /// Counts bytes that the guest compared, and those of them that were wrong.
    pub(crate) fn bytes(&self, compared: u64, wrong: u64) {
        self.bytes.fetch_add(compared, Ordering::Relaxed);
        self.wrong_bytes.fetch_add(wrong, Ordering::Relaxed);
    }

    /// Counts something else that went wrong.
    pub(crate) fn wrong(&self, what: &str) {
        eprintln!("vgpu: {what}");
        self.wrong_entries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn mismatches(&self) -> u64 {
        self.wrong_entries.load(Ordering::Relaxed) + self.wrong_bytes.load(Ordering::Relaxed)
    }
}
