// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The operations as the bytes that a device model hands to Xen.

use ioreq_core::abi::dm_op::{
    self, CreateIoreqServer, DestroyIoreqServer, DmOp, DmOpBytes, GetIoreqServerInfo, MapIoRange,
    MapMemType, ModifiedMemory, ModifiedMemoryExtent, NrVcpus, PinMemoryCacheattr,
    SetIoreqServerState, SetMemType, TrackDirtyVram, UnmapIoRange,
};
use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{Sbdf, VcpuId};
use libc::{E2BIG, EINVAL, EOPNOTSUPP};

use crate::interrupts::Injected;
use crate::raw::{BUFFER_MAX, RawDmop};

type Errno<T> = Result<T, i32>;

/// `XEN_DMOP_nr_vcpus`, the last operation.
const LAST: u32 = 20;

/// A line's level: 0 or 1.
fn level(byte: u8) -> Errno<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(EINVAL),
    }
}

impl RawDmop {
    /// An operation as the bytes of `struct xen_dm_op` (op u32, pad u32, 24 bytes of union), as the ioctl takes it; answers
    /// are written into it. `buffer` is the second buffer of the operations that have one.
    ///
    /// relocate_memory is not modelled: EOPNOTSUPP.
    ///
    /// ```
    /// use ioreq_sim::{DomainConfig, Machine};
    /// let domain = Machine::new().create_domain(DomainConfig::new(3))?;
    /// let mut op = [0; 32];
    /// op[0] = 20; // nr_vcpus
    /// domain.hypervisor().raw().dm_op(&mut op, &mut []).unwrap();
    /// assert_eq!(op[8], 3);
    /// # Ok::<(), ioreq_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Xen's errno; E2BIG for a buffer of more than 4096 bytes.
    pub fn dm_op(&self, bytes: &mut DmOpBytes, buffer: &mut [u8]) -> Errno<()> {
        if buffer.len() > BUFFER_MAX {
            return Err(E2BIG); // the kernel's answer
        }
        let [number, pad] =
            [0, 4].map(|at| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i])));
        if number == 0 || number > LAST {
            return self.unknown(number);
        }
        if pad != 0 {
            return self.padded(number, pad);
        }
        match number {
            1 => {
                let op = CreateIoreqServer::decode(bytes);
                let [a, b, c] = op.pad;
                let id = self.create(op.handle_bufioreq, a | b | c)?;
                *bytes = CreateIoreqServer { id, ..op }.encode();
            }
            2 => {
                let op = GetIoreqServerInfo::decode(bytes);
                let (ioreq_gfn, bufioreq_gfn, bufioreq_port) = self.get_info(op.id, op.flags)?;
                *bytes = GetIoreqServerInfo {
                    bufioreq_port,
                    ioreq_gfn,
                    bufioreq_gfn,
                    ..op
                }
                .encode();
            }
            3 => {
                let op = MapIoRange::decode(bytes);
                self.map_range(op.id, op.kind, op.start, op.end, op.pad)?;
            }
            4 => {
                let op = UnmapIoRange::decode(bytes);
                self.unmap_range(op.id, op.kind, op.start, op.end, op.pad)?;
            }
            5 => {
                let op = SetIoreqServerState::decode(bytes);
                self.set_state(op.id, op.enabled, op.pad)?;
            }
            6 => {
                let op = DestroyIoreqServer::decode(bytes);
                self.destroy(op.id, op.pad)?;
            }
            7 => {
                let op = TrackDirtyVram::decode(bytes);
                self.track_dirty_vram(op.first_pfn, op.nr, op.pad, buffer)?;
            }
            8..=10 | 13 | 14 => self.interrupt(number, bytes)?,
            11 => self.modified(ModifiedMemory::decode(bytes).nr_extents, buffer)?,
            12 => {
                let op = SetMemType::decode(bytes);
                self.set_mem_type(u32::from(op.mem_type), op.pad, op.first_pfn, op.nr)?;
            }
            15 => {
                let op = MapMemType::decode(bytes);
                self.map_mem_type(op.id, op.kind, op.flags, op.opaque)?;
            }
            16 => {
                // Xen cuts the reason down to its field of the domain.
                let [reason, ..] = dm_op::RemoteShutdown::decode(bytes).reason.to_le_bytes();
                self.remote_shutdown(reason)?;
            }
            18 => {
                let op = PinMemoryCacheattr::decode(bytes);
                self.pin_memory_cacheattr(op.start, op.end, op.kind, op.pad)?;
            }
            20 => {
                let vcpus = self.nr_vcpus()?;
                *bytes = NrVcpus { vcpus }.encode();
            }
            _ => {
                self.target(number, &[])?;
                return Err(EOPNOTSUPP);
            }
        }
        Ok(())
    }

    fn interrupt(&self, number: u32, bytes: &DmOpBytes) -> Errno<()> {
        let domain = self.target(number, &[])?;
        domain.inject(match number {
            8 => {
                let op = dm_op::SetPciIntxLevel::decode(bytes);
                let pins = [Intx::A, Intx::B, Intx::C, Intx::D];
                let pin = pins.get(usize::from(op.intx)).ok_or(EINVAL)?;
                if op.domain != 0 || op.bus != 0 {
                    return Err(EINVAL);
                }
                Injected::Intx {
                    function: Sbdf::new(0, 0, op.device, 0).ok_or(EINVAL)?,
                    pin: *pin,
                    asserted: level(op.level)?,
                }
            }
            9 => {
                let op = dm_op::SetIsaIrqLevel::decode(bytes);
                let irq = Some(op.isa_irq).filter(|irq| *irq <= 15);
                Injected::Isa {
                    irq: irq.ok_or(EINVAL)?,
                    asserted: level(op.level)?,
                }
            }
            10 => {
                let dm_op::SetPciLinkRoute { link, isa_irq } =
                    dm_op::SetPciLinkRoute::decode(bytes);
                if link > 3 || isa_irq > 15 {
                    return Err(EINVAL);
                }
                Injected::LinkRoute { link, irq: isa_irq }
            }
            13 => {
                let op = dm_op::InjectEvent::decode(bytes);
                if op.pad0 != 0 || op.pad1 != 0 {
                    return Err(EINVAL);
                }
                let event = InjectedEvent {
                    vector: op.vector,
                    kind: op.kind,
                    error_code: (op.error_code != u32::MAX).then_some(op.error_code),
                    insn_len: op.insn_len,
                    cr2: op.cr2,
                };
                return domain.inject_event(VcpuId(op.vcpuid), event);
            }
            _ => {
                let op = dm_op::InjectMsi::decode(bytes);
                if op.pad != 0 {
                    return Err(EINVAL);
                }
                Injected::Msi {
                    addr: op.addr,
                    data: op.data,
                }
            }
        });
        Ok(())
    }

    /// `modified_memory`: the last extent first, as Xen takes them.
    fn modified(&self, extents: u32, buffer: &[u8]) -> Errno<()> {
        let domain = self.target(11, &[])?;
        if !domain.logs() {
            return Ok(());
        }
        let count = usize::try_from(extents).map_err(|_| EINVAL)?;
        let (extents, _) = buffer.as_chunks::<16>();
        for extent in extents.get(..count).ok_or(EINVAL)?.iter().rev() {
            let extent = ModifiedMemoryExtent::from_bytes(extent);
            if extent.pad != 0 {
                return Err(EINVAL);
            }
            domain.modified_memory(extent.first_pfn, extent.nr)?;
        }
        Ok(())
    }
}
