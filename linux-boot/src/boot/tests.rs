// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loading into the memory of the model's domain.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use ioreq_core::{GfnRange, GuestMap};
use ioreq_sim::{DomainConfig, Machine};

use super::*;
use crate::layout;

const MIB: u64 = 64;

fn memory() -> impl std::ops::Deref<Target = impl GuestMemoryBackend> {
    let config = layout::frames(MIB)
        .into_iter()
        .fold(DomainConfig::new(1), |config, part| {
            config.memory(GfnRange::new(part.start, part.end - 1).unwrap())
        });
    let domain = Machine::new().create_domain(config).unwrap();
    domain.hypervisor().memory()
}

/// A file without a name.
fn file(bytes: &[u8]) -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("linux-boot-{}-{number}", std::process::id()));
    File::create(&path).unwrap().write_all(bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// An ELF file with one part of 3 bytes in the file and 0x1000 in memory, at 16 MiB.
fn elf() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [0x100_0000_u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    for word in [
        120_u64,
        0xffff_ffff_8100_0000,
        0x100_0000,
        3,
        0x1000,
        0x1000,
    ] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0xf4, 0xeb, 0xfd]);
    bytes
}

/// A bzImage with 512 bytes of setup and three of kernel.
fn bz_image(xloadflags: u16) -> Vec<u8> {
    let header = setup_header {
        setup_sects: 1,
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        code32_start: 0x10_0000,
        xloadflags,
        init_size: 0x20_0000,
        ..setup_header::default()
    };
    let mut bytes = vec![0; 1024];
    let header = vm_memory::ByteValued::as_slice(&header);
    bytes[0x1f1..0x1f1 + header.len()].copy_from_slice(header);
    bytes.extend([1, 2, 3]);
    bytes
}

fn boot<'a>(
    kernel: &[u8],
    ram_disk: Option<&[u8]>,
    line: &'a str,
    devices: &'a Devices,
) -> Boot<'a> {
    Boot {
        kernel: file(kernel),
        ram_disk: ram_disk.map(file),
        command_line: line,
        mib: MIB,
        vcpus: 1,
        devices,
    }
}

#[test]
fn an_elf_kernel_is_loaded_with_all_that_it_is_told() {
    let memory = memory();
    let devices = Devices::default();
    let boot = boot(&elf(), Some(&[7; 5000]), "console=ttyS0", &devices);
    let loaded = boot.load(&*memory).unwrap();
    assert_eq!((loaded.entry, loaded.kernel_end), (0x100_0000, 0x100_1000));
    assert_eq!(loaded.ram_disk, (62 << 20, 5000));

    let bytes = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    assert_eq!(bytes(0x100_0000, 4), [0xf4, 0xeb, 0xfd, 0]);
    assert_eq!(bytes(62 << 20, 5001), [&[7; 5000][..], &[0]].concat());
    assert_eq!(bytes(COMMAND_LINE, 14), b"console=ttyS0\0");
    assert_eq!(bytes(ACPI.start, 8), b"RSD PTR ");

    // The zero page, by the offsets of the boot protocol.
    let word = |at: u64| {
        memory
            .read_obj::<u32>(GuestAddress(BOOT_PARAMS + at))
            .unwrap()
    };
    assert_eq!(word(0x202), 0x5372_6448);
    assert_eq!((word(0x218), word(0x21c)), (62 << 20, 5000));
    assert_eq!(u64::from(word(0x228)), COMMAND_LINE);
    assert_eq!(u64::from(word(0x70)), ACPI.start);
    assert_eq!(
        bytes(BOOT_PARAMS + 0x1e8, 1),
        [6],
        "entries of the memory map"
    );
    let high = BOOT_PARAMS + 0x2d0 + 3 * 20;
    assert_eq!(memory.read_obj::<u64>(GuestAddress(high)).unwrap(), HIGH);
    assert_eq!(
        memory.read_obj::<u64>(GuestAddress(high + 8)).unwrap(),
        (MIB << 20) - HIGH
    );
}

#[test]
fn page_tables_map_the_first_gib_at_its_own_addresses() {
    let memory = memory();
    let devices = Devices::default();
    boot(&elf(), None, "", &devices).load(&*memory).unwrap();
    let entry = |table: u64, index: u64| {
        let at = GuestAddress(table + 8 * index);
        memory.read_obj::<u64>(at).unwrap()
    };
    for address in [0, 0x7000, 0x100_0000, (1 << 30) - 1] {
        let [mut table, mut page] = [layout::PAGE_TABLES, 0];
        for level in (1..=3).rev() {
            page = entry(table, address >> (12 + 9 * level) & 511);
            assert_eq!(page & 3, 3, "present and writable");
            table = page & !0xfff;
        }
        assert_eq!(page & 0x80, 0x80, "2 MiB");
        assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
    }
    assert_eq!(entry(layout::PAGE_TABLES, 1), 0, "nothing else is mapped");
}

#[test]
fn a_bz_image_is_entered_at_its_64_bit_entry() {
    let memory = memory();
    let devices = Devices::default();
    let loaded = boot(&bz_image(HAS_64_BIT_ENTRY), None, "", &devices)
        .load(&*memory)
        .unwrap();
    assert_eq!((loaded.entry, loaded.kernel_end), (0x10_0200, 0x30_0000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_0002)).unwrap(), 3);
    let old = boot(&bz_image(0), None, "", &devices).load(&*memory);
    assert!(matches!(old, Err(LoadError::No64BitEntry)), "{old:?}");
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let memory = memory();
    let devices = Devices::default();
    let load = |kernel: &[u8], ram_disk: Option<&[u8]>, line: &str| {
        boot(kernel, ram_disk, line, &devices).load(&*memory)
    };
    assert!(matches!(load(b"", None, ""), Err(LoadError::Read(..))));
    assert!(matches!(
        load(&[0; 4096], None, ""),
        Err(LoadError::Kernel(_))
    ));
    for len in 4..120 {
        assert!(load(&elf()[..len], None, "").is_err(), "{len}");
    }
    let large = vec![0; 50 << 20];
    let result = load(&elf(), Some(&large), "");
    assert!(
        matches!(result, Err(LoadError::TooLarge { .. })),
        "{result:?}"
    );
    let long = "x".repeat(COMMAND_LINE_SIZE);
    for line in [long.as_str(), "\u{7}"] {
        let result = load(&elf(), None, line);
        assert!(
            matches!(result, Err(LoadError::CommandLine(_))),
            "{result:?}"
        );
    }
    assert!(load(&elf(), None, &long[..COMMAND_LINE_SIZE - 1]).is_ok());
}
