// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The peers. vm-device is used as it is; papaya as a map from pages to devices; `RwLock<BTreeMap>` and `RwLock<HashMap>` have
//! the shape of the buses in virtual machine monitors: look up under a read lock, take a counted reference out, call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vm_device::DeviceMmio;
use vm_device::bus::{BusRange, MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};

use super::contender::Contender;
use super::device::Device;
use super::layout::Layout;
use super::walk::Walk;

pub(crate) type DynDevice = Arc<dyn DeviceMmio + Send + Sync>;

/// One object a device, as many pointers to it as it has ranges.
fn devices(layout: Layout) -> impl Iterator<Item = (u64, DynDevice)> {
    let mut last: Option<(u64, DynDevice)> = None;
    (0..layout.count).map(move |range| {
        let id = layout.device(range);
        let device = match &last {
            Some((same, device)) if *same == id => Arc::clone(device),
            _ => Device::new(id) as DynDevice,
        };
        last = Some((id, Arc::clone(&device)));
        (range, device)
    })
}

pub(crate) fn bus_range(layout: Layout, range: u64) -> MmioRange {
    bus_range_at(layout.first(range), layout.len)
}

pub(crate) fn bus_range_at(base: u64, len: u64) -> MmioRange {
    BusRange::new(MmioAddress(base), len).expect("in the space")
}

/// vm-device, whoever protects it.
pub(crate) fn io_manager(layout: Layout) -> IoManager {
    let mut manager = IoManager::new();
    for (range, device) in devices(layout) {
        manager
            .register_mmio(bus_range(layout, range), device)
            .expect("ranges are disjoint");
    }
    manager
}

/// The floor: the device's pointer at a place that is computed from the address, no check.
pub(crate) struct Direct {
    layout: Layout,
    devices: Vec<DynDevice>,
}

impl Direct {
    pub(crate) fn new(layout: Layout) -> Self {
        let devices = devices(layout).map(|(_, device)| device).collect();
        Direct { layout, devices }
    }
}

impl Contender for Direct {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        // A shift for the strides that are powers of two, as a compiler would make of a constant.
        let (base, stride) = (self.layout.first(0), self.layout.stride);
        let shift = stride.is_power_of_two().then(|| stride.trailing_zeros());
        walk.each(writes, |addr, value| {
            let range = match shift {
                Some(shift) => (addr - base) >> shift,
                None => (addr - base) / stride,
            };
            #[allow(clippy::cast_possible_truncation, reason = "below the count")]
            let device = &self.devices[range as usize];
            let offset = addr - base - range * stride;
            device.mmio_write(MmioAddress(addr - offset), offset, &value.to_le_bytes());
        });
    }
    fn serve_one(&self, _: u64) {}
}

/// vm-device without a lock: nothing can change while it runs.
pub(crate) struct VmDevice(pub(crate) IoManager);

impl Contender for VmDevice {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| {
            let _missed = self.0.mmio_write(MmioAddress(addr), &value.to_le_bytes());
        });
    }
    fn serve_one(&self, addr: u64) {
        let _missed = self.0.mmio_write(MmioAddress(addr), &[0; 4]);
    }
}

/// vm-device behind a readers-writer lock.
pub(crate) struct RwVmDevice(pub(crate) RwLock<IoManager>);

impl Contender for RwVmDevice {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| {
            let manager = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let _missed = manager.mmio_write(MmioAddress(addr), &value.to_le_bytes());
        });
    }
    fn serve_one(&self, addr: u64) {
        let manager = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let _missed = manager.mmio_write(MmioAddress(addr), &[0; 4]);
    }
}

/// vm-device behind a mutex.
pub(crate) struct MutexVmDevice(pub(crate) Mutex<IoManager>);

impl Contender for MutexVmDevice {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| {
            let manager = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let _missed = manager.mmio_write(MmioAddress(addr), &value.to_le_bytes());
        });
    }
    fn serve_one(&self, addr: u64) {
        let manager = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _missed = manager.mmio_write(MmioAddress(addr), &[0; 4]);
    }
}

/// vm-device's ports.
pub(crate) struct VmDevicePorts(IoManager);

fn port(addr: u64) -> PioAddress {
    PioAddress(u16::try_from(addr).expect("a port"))
}

impl VmDevicePorts {
    pub(crate) fn new(layout: Layout) -> Self {
        let mut manager = IoManager::new();
        for range in 0..layout.count {
            let len = u16::try_from(layout.len).expect("a few ports");
            let ports = PioRange::new(port(layout.first(range)), len).expect("in the space");
            manager
                .register_pio(ports, Device::new(layout.device(range)))
                .expect("ranges are disjoint");
        }
        VmDevicePorts(manager)
    }
}

impl Contender for VmDevicePorts {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| {
            #[allow(clippy::cast_possible_truncation, reason = "the layout is of ports")]
            let _missed = self
                .0
                .pio_write(PioAddress(addr as u16), &value.to_le_bytes());
        });
    }
    fn serve_one(&self, addr: u64) {
        let _missed = self.0.pio_write(port(addr), &[0; 4]);
    }
}

/// vm-device's tree, key and look-up, filled without its registration, which compares with every range that is there: for a
/// million pages that is 5 * 10^11 comparisons. Its cost next to the real one is a row of its own.
pub(crate) struct VmDeviceTree(BTreeMap<MmioRange, DynDevice>);

impl VmDeviceTree {
    pub(crate) fn new(layout: Layout) -> Self {
        let entries = devices(layout);
        VmDeviceTree(
            entries
                .map(|(range, device)| (bus_range(layout, range), device))
                .collect(),
        )
    }

    #[inline]
    fn write(&self, addr: u64, data: [u8; 4]) {
        let Ok(access) = BusRange::new(MmioAddress(addr), data.len() as u64) else {
            return;
        };
        let below = self
            .0
            .range(..=BusRange::unit(MmioAddress(addr)))
            .next_back();
        if let Some((range, device)) = below
            && range.last() >= access.last()
        {
            device.mmio_write(range.base(), addr - range.base().0, &data);
        }
    }
}

impl Contender for VmDeviceTree {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| self.write(addr, value.to_le_bytes()));
    }
    fn serve_one(&self, addr: u64) {
        self.write(addr, [0; 4]);
    }
}

/// papaya, from a page's number to its device; one pin for all, which is its best case.
pub(crate) struct Papaya(pub(crate) papaya::HashMap<u64, DynDevice>);

impl Papaya {
    pub(crate) fn new(layout: Layout) -> Self {
        let map = papaya::HashMap::new();
        for (range, device) in devices(layout) {
            map.pin().insert(layout.first(range) >> 12, device);
        }
        Papaya(map)
    }
}

impl Contender for Papaya {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        let pinned = self.0.pin();
        walk.each(writes, |addr, value| {
            if let Some(device) = pinned.get(&(addr >> 12)) {
                device.mmio_write(
                    MmioAddress(addr & !0xfff),
                    addr & 0xfff,
                    &value.to_le_bytes(),
                );
            }
        });
    }
    fn serve_one(&self, addr: u64) {
        if let Some(device) = self.0.pin().get(&(addr >> 12)) {
            device.mmio_write(MmioAddress(addr & !0xfff), addr & 0xfff, &[0; 4]);
        }
    }
}

/// `RwLock<BTreeMap>` by first address.
pub(crate) struct RwTree(pub(crate) RwLock<BTreeMap<u64, (u64, DynDevice)>>);

impl RwTree {
    pub(crate) fn new(layout: Layout) -> Self {
        let entries = devices(layout);
        let map = entries.map(|(range, device)| (layout.first(range), (layout.len, device)));
        RwTree(RwLock::new(map.collect()))
    }

    #[inline]
    fn write(&self, addr: u64, data: [u8; 4]) {
        let found = {
            let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
            map.range(..=addr)
                .next_back()
                .filter(|(first, (len, _))| addr - **first + 4 <= *len)
                .map(|(first, (_, device))| (*first, Arc::clone(device)))
        };
        if let Some((first, device)) = found {
            device.mmio_write(MmioAddress(first), addr - first, &data);
        }
    }
}

impl Contender for RwTree {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| self.write(addr, value.to_le_bytes()));
    }
    fn serve_one(&self, addr: u64) {
        self.write(addr, [0; 4]);
    }
}

/// `RwLock<HashMap>` by page, with std's hasher.
pub(crate) struct RwHash(pub(crate) RwLock<HashMap<u64, DynDevice>>);

impl RwHash {
    pub(crate) fn new(layout: Layout) -> Self {
        let entries = devices(layout);
        let map = entries.map(|(range, device)| (layout.first(range) >> 12, device));
        RwHash(RwLock::new(map.collect()))
    }

    #[inline]
    fn write(&self, addr: u64, data: [u8; 4]) {
        let found = {
            let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
            map.get(&(addr >> 12)).map(Arc::clone)
        };
        if let Some(device) = found {
            device.mmio_write(MmioAddress(addr & !0xfff), addr & 0xfff, &data);
        }
    }
}

impl Contender for RwHash {
    fn serve(&self, walk: &mut Walk, writes: u32) {
        walk.each(writes, |addr, value| self.write(addr, value.to_le_bytes()));
    }
    fn serve_one(&self, addr: u64) {
        self.write(addr, [0; 4]);
    }
}
