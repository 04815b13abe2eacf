// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a vCPU needs to be in 64-bit mode: descriptors, and page tables that map the first GiB at its own addresses.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{GDT, PAGE_TABLES};

/// Flat 64-bit code and data, as at the selectors of [`xen_rig::Entry`].
const DESCRIPTORS: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Present and writable.
const TABLE: u64 = 0x3;
/// The same, a page of 2 MiB.
const PAGE: u64 = 0x83;

pub(crate) fn write(memory: &impl GuestMemoryBackend) -> Result<(), GuestMemoryError> {
    let words = |at: u64, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(at))
    };
    let (gibs, pages) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    words(GDT, &DESCRIPTORS)?;
    words(PAGE_TABLES, &[gibs | TABLE])?;
    words(gibs, &[pages | TABLE])?;
    let identity: Vec<u64> = (0..512).map(|page| page << 21 | PAGE).collect();
    words(pages, &identity)
}
