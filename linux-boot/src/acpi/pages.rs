// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tables around the namespace, and where each is.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::Devices;
use super::namespace::definition;
use crate::layout::{
    ACPI, IO_APIC, LOCAL_APIC, PM_CONTROL, PM_EVENTS, PM_TIMER, RESET, RESET_VALUE,
};

const OEM: [u8; 6] = *b"IOREQ ";
const OEM_TABLE: [u8; 8] = *b"IOREQDM ";
const OEM_REVISION: u32 = 1;

/// The interrupt of power-management events. Xen raises it.
const SCI: u16 = 9;
/// The I/O APIC's id; those of local APICs are even.
const IO_APIC_ID: u8 = 1;
/// Bits of the boot architecture: there are legacy devices, there is no VGA. (And no keyboard controller: its bit is not set.)
const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2;

/// Where the tables are: the pointer first, where the boot parameters say it is.
const XSDT_AT: u64 = ACPI.start + 0x80;
const FADT_AT: u64 = ACPI.start + 0x100;
const MADT_AT: u64 = ACPI.start + 0x300;
const FACS_AT: u64 = ACPI.start + 0xf00;
const DSDT_AT: u64 = ACPI.start + 0x1000;

/// All tables, with their addresses.
pub(crate) fn tables(vcpus: u32, devices: &Devices) -> Vec<(u64, Vec<u8>)> {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(FADT_AT);
    xsdt.add_entry(MADT_AT);
    vec![
        (ACPI.start, bytes(&Rsdp::new(OEM, XSDT_AT))),
        (XSDT_AT, bytes(&xsdt)),
        (FADT_AT, fixed()),
        (MADT_AT, interrupt_controllers(vcpus)),
        (FACS_AT, bytes(&FACS::new())),
        (DSDT_AT, table(*b"DSDT", 2, &definition(devices))),
    ]
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the usual header.
fn table(signature: [u8; 4], revision: u8, contents: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(contents);
    table.as_slice().to_vec()
}

/// The fixed hardware (FADT): power management, reset, and what is not there.
fn fixed() -> Vec<u8> {
    let flags = [
        Flags::Wbinvd,
        Flags::ProcC1,
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::TmrValExt,
        Flags::ResetRegSup,
    ];
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(u32::try_from(FACS_AT).unwrap_or(0))
        .dsdt_32(u32::try_from(DSDT_AT).unwrap_or(0));
    fadt = flags.into_iter().fold(fadt, FADTBuilder::flag);
    fadt.x_dsdt = DSDT_AT.into();
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(PM_EVENTS).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    // Deeper idle states are not there.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = 0x32;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        RESET.into(),
    );
    fadt.reset_value = RESET_VALUE;
    bytes(&fadt.finalize())
}

/// The interrupt controllers (MADT): as Xen emulates them.
fn interrupt_controllers(vcpus: u32) -> Vec<u8> {
    let mut contents = LOCAL_APIC.to_le_bytes().to_vec();
    // There are PICs, too.
    contents.extend(1_u32.to_le_bytes());
    for vcpu in 0..vcpus {
        let vcpu = u8::try_from(vcpu).unwrap_or(u8::MAX);
        let apic = ProcessorLocalApic::new(vcpu, vcpu.wrapping_mul(2), EnabledStatus::Enabled);
        apic.to_aml_bytes(&mut contents);
    }
    IoApic::new(IO_APIC_ID, IO_APIC, 0).to_aml_bytes(&mut contents);
    // The ISA timer comes in at pin 2; the power-management interrupt is a level, active high.
    contents.extend(source_override(0, 2, 0));
    contents.extend(source_override(9, SCI.into(), 0xd));
    table(*b"APIC", 3, &contents)
}

/// An ISA interrupt that comes in elsewhere, or otherwise, than the bus says.
fn source_override(irq: u8, gsi: u32, flags: u16) -> [u8; 10] {
    let ([g0, g1, g2, g3], [f0, f1]) = (gsi.to_le_bytes(), flags.to_le_bytes());
    [2, 10, 0, irq, g0, g1, g2, g3, f0, f1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::{PciHost, VirtioMmio};

    fn devices() -> Devices {
        Devices {
            com1: true,
            pci: Some(PciHost {
                memory: 0xe000_0000..=0xefff_ffff,
                ports: 0xc000..=0xcfff,
                slots: vec![3, 4],
            }),
            virtio_mmio: vec![VirtioMmio {
                address: 0xd000_0000,
                gsi: 20,
            }],
        }
    }

    #[test]
    fn tables_are_sound_and_lie_apart() {
        let mut tables = tables(128, &devices());
        tables.sort();
        for pair in tables.windows(2) {
            assert!(
                pair[0].0 + pair[0].1.len() as u64 <= pair[1].0,
                "{:#x}",
                pair[1].0
            );
        }
        let last = tables.last().unwrap();
        assert!(last.0 + last.1.len() as u64 <= ACPI.end);
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        for (at, table) in &tables {
            match &table[..4] {
                b"FACS" => {}
                b"RSD " => assert_eq!((sum(&table[..20]), sum(table)), (0, 0)),
                _ => {
                    assert_eq!(sum(table), 0, "{at:#x}");
                    let len = u32::from_le_bytes(table[4..8].try_into().unwrap());
                    assert_eq!(len as usize, table.len(), "{at:#x}");
                }
            }
        }
    }

    #[test]
    fn pointers_lead_to_their_tables() {
        let tables = tables(2, &devices());
        let at = |address: u64| {
            let found = tables.iter().find(|(at, _)| *at == address);
            &found.unwrap().1
        };
        let pointer = |table: &[u8], offset: usize| {
            u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
        };
        let xsdt = at(pointer(at(ACPI.start), 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let (fadt, madt) = (at(pointer(xsdt, 36)), at(pointer(xsdt, 44)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(&at(pointer(fadt, 140))[..4], b"DSDT");
        // Two local APICs with ids 0 and 2, after 44 bytes.
        assert_eq!((madt[44 + 3], madt[52 + 3], madt[60]), (0, 2, 1));
    }

    #[test]
    fn only_devices_that_are_there_are_in_the_namespace() {
        let has = |devices: &Devices, name: &[u8]| {
            let bytes = definition(devices);
            bytes.windows(name.len()).any(|part| part == name)
        };
        for name in [&b"COM1"[..], b"PCI0", b"VR00", b"LNRO0005"] {
            assert!(has(&devices(), name), "{name:?}");
            assert!(!has(&Devices::default(), name), "{name:?}");
        }
        assert!(has(&Devices::default(), b"_S5_"));
        assert!(!has(&devices(), b"VR01"));
    }
}
