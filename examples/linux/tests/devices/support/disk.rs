// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver of the disk: PCI, virtio, and its requests.

use ioreq::sim::{Cpu, CpuFault};
use ioreq::{Sbdf, Width};
use linux_dm::board::DISK_SLOT;

use super::ring::{AVAILABLE, DESCRIPTORS, Part, Ring, SIZE, USED};

/// Where the driver puts the device.
pub(crate) const BAR: u64 = 0xe000_0000;
/// What its interrupts are: an address and data, of the queue.
pub(crate) const MESSAGE: (u64, u32) = (0xfee0_0000, 0x51);
/// Where header, status and data of a request are.
const HEADER: u64 = 0x30_0000;
const STATUS: u64 = 0x30_0100;
pub(crate) const DATA: u64 = 0x30_1000;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;

/// The disk's function.
pub(crate) fn function() -> Sbdf {
    Sbdf::new(0, 0, DISK_SLOT, 0).unwrap()
}

/// A driver that has the device running.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) bar: u64,
    pub(crate) ring: Ring,
}

impl Disk {
    /// Finds the device, places its BAR, agrees on features and starts it, with interrupts by MSI-X.
    pub(crate) fn start(cpu: &mut Cpu) -> Result<Self, CpuFault> {
        place(cpu, BAR)?;
        // MSI-X: on, with the message of vector 0.
        let msix = capability(cpu, 0x11)?;
        for (at, value) in [(0, MESSAGE.0), (8, MESSAGE.1.into()), (12, 0)] {
            cpu.store32(BAR + 0x4000 + at, u32::try_from(value).unwrap())?;
        }
        cpu.pci_config_write(function(), msix + 2, Width::B2, 0x8000)?;
        let mut disk = Disk {
            bar: BAR,
            ring: Ring::default(),
        };
        disk.restart(cpu)?;
        Ok(disk)
    }

    /// Resets and starts it, with empty rings.
    pub(crate) fn restart(&mut self, cpu: &mut Cpu) -> Result<(), CpuFault> {
        self.ring = Ring::default();
        self.set8(cpu, 0x14, 0)?;
        assert_eq!(cpu.load8(self.bar + 0x14)?, 0, "reset");
        self.set8(cpu, 0x14, 3)?;
        cpu.store32(self.bar, 1)?;
        assert_eq!(cpu.load32(self.bar + 4)?, 1, "virtio 1");
        cpu.store32(self.bar + 8, 1)?;
        cpu.store32(self.bar + 0xc, 1)?;
        self.set8(cpu, 0x14, 11)?;
        assert_eq!(cpu.load8(self.bar + 0x14)?, 11, "features are agreed");
        cpu.store16(self.bar + 0x16, 0)?;
        cpu.store16(self.bar + 0x18, SIZE)?;
        cpu.store16(self.bar + 0x1a, 0)?;
        for (at, addr) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            cpu.store64(self.bar + at, addr)?;
        }
        for at in [AVAILABLE, USED] {
            cpu.store32(at, 0)?;
        }
        cpu.store16(self.bar + 0x1c, 1)?;
        self.set8(cpu, 0x14, 15)?;
        assert_eq!(cpu.load8(self.bar + 0x14)?, 15, "it runs");
        Ok(())
    }

    fn set8(&self, cpu: &mut Cpu, register: u64, value: u8) -> Result<(), CpuFault> {
        cpu.store8(self.bar + register, value)
    }

    /// Offers a request of these parts, behind its header and before its status, and rings.
    pub(crate) fn offer(
        &mut self,
        cpu: &mut Cpu,
        kind: u32,
        sector: u64,
        data: &[Part],
    ) -> Result<(), CpuFault> {
        cpu.store32(HEADER, kind)?;
        cpu.store64(HEADER + 8, sector)?;
        cpu.store8(STATUS, 0xee)?;
        let parts = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
        self.ring.offer(cpu, &parts)?;
        self.ring_bell(cpu)
    }

    pub(crate) fn ring_bell(&self, cpu: &mut Cpu) -> Result<(), CpuFault> {
        cpu.store16(self.bar + 0x3000, 0)
    }

    /// The same, and waits for it: status, and how many bytes the device says that it wrote.
    pub(crate) fn request(
        &mut self,
        cpu: &mut Cpu,
        kind: u32,
        sector: u64,
        data: &[Part],
    ) -> Result<(u8, u32), CpuFault> {
        self.offer(cpu, kind, sector, data)?;
        let written = self.ring.wait(cpu)?;
        Ok((cpu.load8(STATUS)?, written))
    }
}

/// Sizes the BAR and places it.
pub(crate) fn place(cpu: &mut Cpu, bar: u64) -> Result<(), CpuFault> {
    let config = |cpu: &mut Cpu, register, width| cpu.pci_config_read(function(), register, width);
    assert_eq!(
        config(cpu, 0, Width::B4)?,
        0x1042_1af4,
        "a virtio block device"
    );
    cpu.pci_config_write(function(), 0x10, Width::B4, 0xffff_ffff)?;
    assert_eq!(config(cpu, 0x10, Width::B4)?, 0xffff_8000, "32 KiB");
    cpu.pci_config_write(function(), 0x10, Width::B4, bar)?;
    cpu.pci_config_write(function(), 0x04, Width::B2, 6)
}

/// Where the first capability with an id is.
pub(crate) fn capability(cpu: &mut Cpu, id: u64) -> Result<u8, CpuFault> {
    let mut at = cpu.pci_config_read(function(), 0x34, Width::B1)?;
    while at != 0 {
        let register = u8::try_from(at).unwrap();
        if cpu.pci_config_read(function(), register, Width::B1)? == id {
            return Ok(register);
        }
        at = cpu.pci_config_read(function(), register + 1, Width::B1)?;
    }
    panic!("no capability {id:#x}");
}

/// Stores bytes of one number each, so that a sector can be told from others.
pub(crate) fn fill(cpu: &mut Cpu, at: u64, len: u64, number: u64) -> Result<(), CpuFault> {
    for word in (0..len).step_by(8) {
        cpu.store64(at + word, number << 32 | word)?;
    }
    Ok(())
}
