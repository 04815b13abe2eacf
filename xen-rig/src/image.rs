// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A program for a domain: a static ELF file, and what a vCPU needs to be in it.

use std::io;
use std::ops::Range;

use crate::context::Start;
use crate::hypercall::Privcmd;

/// The most vCPUs that have a stack.
pub(crate) const MOST_VCPUS: u32 = 16;
/// The global descriptor table.
const GDT: u64 = 0x10_0000;
/// The page tables: a root, a table of 1 GiB entries, and a table of 2 MiB entries for each GiB.
const PML4: u64 = 0x10_1000;
const GIBS: u64 = 32;
/// Where the first vCPU's stack begins.
const STACKS: u64 = 0x13_0000;
const STACK: u64 = 0x8000;

const _: () = assert!(PML4 + (2 + GIBS) * 0x1000 <= STACKS);
const _: () = assert!(STACKS + STACK * MOST_VCPUS as u64 <= 0x20_0000);

/// A program: a static x86-64 ELF file, as far as it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    entry: u64,
    /// Where its bytes go, page-aligned, and where its zeros end.
    first: u64,
    end: u64,
    bytes: Vec<u8>,
}

/// The most that a program's file may hold, so that addresses in it cannot ask for more.
const MOST_BYTES: u64 = 64 << 20;
const PT_LOAD: u32 = 1;

impl Image {
    /// Reads a file's contents.
    ///
    /// # Errors
    /// `InvalidData` unless it is a static ELF file for x86-64 below 4 GiB.
    pub fn parse(file: &[u8]) -> io::Result<Self> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let part = |at: u64, len: u64| {
            let range = usize::try_from(at).ok()?..usize::try_from(at.checked_add(len)?).ok()?;
            file.get(range)
        };
        let number = |at: u64, len: u64| -> io::Result<u64> {
            let bytes = part(at, len).ok_or_else(|| bad("the file is cut off"))?;
            let little = bytes.iter().rev();
            Ok(little.fold(0, |number, byte| number << 8 | u64::from(*byte)))
        };
        // 64 bits, little-endian, ET_EXEC, EM_X86_64
        if part(0, 6) != Some(b"\x7fELF\x02\x01") || number(16, 4)? != 0x003e_0002 {
            return Err(bad("no static ELF file for x86-64"));
        }
        let (entry, table) = (number(24, 8)?, number(32, 8)?);
        let (size, count) = (number(54, 2)?, number(56, 2)?);
        let mut loads = Vec::new();
        for header in 0..count {
            // p_type u32 @0, p_offset u64 @8, p_vaddr u64 @16, p_filesz u64 @32, p_memsz u64 @40
            let at = table.saturating_add(header * size);
            let field = |offset: u64, len: u64| number(at.saturating_add(offset), len);
            if field(0, 4)? != u64::from(PT_LOAD) {
                continue;
            }
            let (offset, address) = (field(8, 8)?, field(16, 8)?);
            let (in_file, in_memory) = (field(32, 8)?, field(40, 8)?);
            let bytes = part(offset, in_file).ok_or_else(|| bad("the file is cut off"))?;
            let fits = |len: u64| address.checked_add(len).is_some_and(|end| end <= 1 << 32);
            if in_file > in_memory || !fits(in_memory) {
                return Err(bad("a part of the program is not below 4 GiB"));
            }
            loads.push((address, bytes, address + in_memory));
        }
        let first = loads.iter().map(|(address, ..)| *address).min();
        let first = first.ok_or_else(|| bad("nothing to load"))? / 4096 * 4096;
        let end = loads.iter().map(|(_, _, end)| *end).max().unwrap_or(first);
        let mut image = Vec::new();
        for (address, bytes, _) in loads {
            let range = address - first..address - first + bytes.len() as u64;
            if range.end > MOST_BYTES {
                return Err(bad("the program is too large"));
            }
            let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap_or(0));
            image.resize(image.len().max(end), 0);
            image[start..end].copy_from_slice(bytes);
        }
        if !(first..end).contains(&entry) {
            return Err(bad("the entry is not in the program"));
        }
        Ok(Image {
            entry,
            first,
            end,
            bytes: image,
        })
    }

    /// Guest-physical addresses that it takes, zeros at its end included.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.first..self.end
    }
}

/// Puts the program and its surroundings into a new domain, whose memory is zeros.
pub(crate) fn install(xen: &Privcmd, domid: u16, program: &Image) -> io::Result<()> {
    let frames =
        |range: Range<u64>| (range.start >> 12..range.end.div_ceil(4096)).collect::<Vec<_>>();
    let end = program.first + program.bytes.len() as u64;
    let memory = xen.map(domid, &frames(program.first..end))?;
    memory.put(0, &program.bytes);
    let memory = xen.map(domid, &frames(GDT..STACKS))?;
    let at = |address: u64| usize::try_from(address - GDT).unwrap_or(usize::MAX);
    memory.write(at(GDT + 8), 0x00af_9b00_0000_ffff);
    memory.write(at(GDT + 16), 0x00cf_9300_0000_ffff);
    // Present and writable; the last level with pages of 2 MiB.
    memory.write(at(PML4), (PML4 + 0x1000) | 3);
    for gib in 0..GIBS {
        let table = PML4 + 0x2000 + gib * 0x1000;
        memory.write(at(PML4 + 0x1000 + 8 * gib), table | 3);
        for entry in 0..512 {
            memory.write(at(table + 8 * entry), gib << 30 | entry << 21 | 0x83);
        }
    }
    Ok(())
}

/// How a vCPU starts.
pub(crate) fn start(program: &Image, vcpu: u32, vcpus: u32) -> Start {
    Start {
        rip: program.entry,
        // As after a call, by the convention for where the stack is aligned.
        rsp: STACKS + STACK * (u64::from(vcpu) + 1) - 8,
        rdi: vcpu.into(),
        rsi: vcpus.into(),
        cr3: PML4,
        gdt: GDT,
        ..Start::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these parts: address, bytes, size in memory.
    fn file(entry: u64, parts: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [entry, 64, 0] {
            file.extend(u64::to_le_bytes(word));
        }
        for half in [0, 0, 64, 56, u16::try_from(parts.len()).unwrap(), 0, 0, 0] {
            file.extend(u16::to_le_bytes(half));
        }
        let mut offset = 64 + 56 * parts.len() as u64;
        for (address, bytes, size) in parts {
            let words = [
                1,
                offset,
                *address,
                *address,
                bytes.len() as u64,
                *size,
                4096,
            ];
            words
                .iter()
                .for_each(|word| file.extend(word.to_le_bytes()));
            offset += bytes.len() as u64;
        }
        parts.iter().for_each(|(_, bytes, _)| file.extend(*bytes));
        file
    }

    #[test]
    fn parts_are_placed_by_their_addresses() {
        let parts: &[(u64, &[u8], u64)] = &[(0x20_0010, &[1, 2], 2), (0x20_1000, &[3], 0x5000)];
        let image = Image::parse(&file(0x20_0011, parts)).unwrap();
        assert_eq!(
            (image.range(), image.entry),
            (0x20_0000..0x20_6000, 0x20_0011)
        );
        assert_eq!(image.bytes.len(), 0x1001);
        assert_eq!(
            (image.bytes[0x10], image.bytes[0x11], image.bytes[0x1000]),
            (1, 2, 3)
        );
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let good = file(0x20_0000, &[(0x20_0000, &[1], 1)]);
        assert!(Image::parse(&good).is_ok());
        for len in 0..good.len() {
            assert!(Image::parse(&good[..len]).is_err(), "{len}");
        }
        let bad: [&[(u64, &[u8], u64)]; 4] = [
            &[],
            &[(0x20_0000, &[1, 2], 1)],
            &[(u64::MAX, &[1], 1)],
            &[(0x20_0000, &[1], 1), ((1 << 32) - 1, &[1], 2)],
        ];
        for parts in bad {
            assert!(Image::parse(&file(0x20_0000, parts)).is_err(), "{parts:x?}");
        }
        assert!(Image::parse(&file(0x1f_0000, &[(0x20_0000, &[1], 1)])).is_err());
        let far: &[(u64, &[u8], u64)] = &[(0x20_0000, &[1], 1), (0xfff0_0000, &[1], 1)];
        assert!(Image::parse(&file(0x20_0000, far)).is_err(), "too large");
    }
}
