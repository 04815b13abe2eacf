// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The namespace (DSDT): devices that a guest cannot find by itself.

use std::ops::RangeInclusive;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate, Scope,
};

use crate::layout::SOFT_OFF;

/// What the device model provides, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// A 16550 at port 0x3f8 with interrupt 4.
    pub com1: bool,
    /// A PCI host bridge, by configuration mechanism 1.
    pub pci: Option<PciHost>,
    /// Virtio devices by MMIO.
    pub virtio_mmio: Vec<VirtioMmio>,
}

/// A PCI host bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciHost {
    /// Where memory BARs may be.
    pub memory: RangeInclusive<u32>,
    /// Where I/O BARs may be.
    pub ports: RangeInclusive<u16>,
    /// Slots whose functions have pin A.
    pub slots: Vec<u8>,
}

/// A virtio device's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Their page.
    pub address: u32,
    /// The global system interrupt of the line that it drives.
    pub gsi: u32,
}

/// The global system interrupt that Xen wires pin A of a slot to (`hvm_pci_intx_gsi`).
///
/// ```
/// assert_eq!(linux_boot::acpi::gsi_of_slot(1), 20);
/// assert_eq!(linux_boot::acpi::gsi_of_slot(3), 28);
/// ```
#[must_use]
pub fn gsi_of_slot(slot: u8) -> u32 {
    let slot = u32::from(slot & 31);
    (((slot << 2) + (slot >> 3)) & 31) + 16
}

/// The contents of the DSDT.
pub(super) fn definition(devices: &Devices) -> Vec<u8> {
    let mut bytes = Vec::new();
    let zero = 0_u8;
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&SOFT_OFF, &SOFT_OFF, &zero, &zero]),
    )
    .to_aml_bytes(&mut bytes);
    let mut add = |device: &dyn Aml| {
        Scope::new(Path::new("_SB_"), vec![device]).to_aml_bytes(&mut bytes);
    };
    if devices.com1 {
        add(&Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &1_u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &IO::new(0x3f8, 0x3f8, 1, 8),
                        &Interrupt::new(true, true, false, false, 4),
                    ]),
                ),
            ],
        ));
    }
    if let Some(pci) = &devices.pci {
        let (memory, ports) = (&pci.memory, &pci.ports);
        let not_cacheable = AddressSpaceCacheable::NotCacheable;
        // Of each slot: all its functions, pin A, no link device, the interrupt.
        let routes = pci.slots.iter();
        let routes: Vec<(u32, u32)> = routes
            .map(|slot| (u32::from(*slot) << 16 | 0xffff, gsi_of_slot(*slot)))
            .collect();
        let routes = routes.iter();
        let routes: Vec<Package<'_>> = routes
            .map(|(slot, gsi)| Package::new(vec![slot, &zero, &zero, gsi]))
            .collect();
        let routes = routes.iter().map(|route| route as &dyn Aml).collect();
        add(&Device::new(
            Path::new("PCI0"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
                &Name::new(Path::new("_UID"), &zero),
                &Name::new(Path::new("_BBN"), &zero),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &AddressSpace::new_bus_number(0_u16, 0),
                        &IO::new(0xcf8, 0xcf8, 1, 8),
                        &AddressSpace::new_io(*ports.start(), *ports.end(), None),
                        &AddressSpace::new_memory(
                            not_cacheable,
                            true,
                            *memory.start(),
                            *memory.end(),
                            None,
                        ),
                    ]),
                ),
                &Name::new(Path::new("_PRT"), &Package::new(routes)),
            ],
        ));
    }
    for (number, virtio) in (0_u8..).zip(&devices.virtio_mmio) {
        let name = format!("VR{number:02}");
        add(&Device::new(
            Path::new(&name),
            vec![
                // What Linux' virtio_mmio binds to.
                &Name::new(Path::new("_HID"), &"LNRO0005"),
                &Name::new(Path::new("_UID"), &number),
                &Name::new(Path::new("_CCA"), &1_u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, virtio.address, 0x1000),
                        &Interrupt::new(true, false, false, false, virtio.gsi),
                    ]),
                ),
            ],
        ));
    }
    bytes
}
