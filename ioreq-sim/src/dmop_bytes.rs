// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The operations as the bytes that a device model hands to Xen.

use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{Sbdf, VcpuId};
use libc::{E2BIG, EINVAL, EOPNOTSUPP};

use crate::interrupts::Injected;
use crate::raw::RawDmop;

type Errno<T> = Result<T, i32>;

/// `XEN_DMOP_nr_vcpus`, the last operation.
const LAST: u32 = 20;

/// Largest buffer of an operation that the kernel passes on.
const BUFFER_MAX: usize = 4096;

/// The bytes of `struct xen_dm_op`, read and written field by field.
#[derive(Debug)]
struct Fields<'a>(&'a mut [u8; 32]);

impl Fields<'_> {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        // Offsets are constants of the layout, inside the 32 bytes.
        std::array::from_fn(|i| self.0[at + i])
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

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
    /// relocate_memory and pin_memory_cacheattr are not modelled: EOPNOTSUPP.
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
    pub fn dm_op(&self, op: &mut [u8; 32], buffer: &mut [u8]) -> Errno<()> {
        if buffer.len() > BUFFER_MAX {
            return Err(E2BIG); // the kernel's answer
        }
        let mut op = Fields(op);
        let (number, pad) = (op.u32(0), op.u32(4));
        if number == 0 || number > LAST {
            return self.unknown(number);
        }
        if pad != 0 {
            return self.padded(number, pad);
        }
        match number {
            1 => {
                let pad = op.u8(9) | op.u8(10) | op.u8(11);
                let id = self.create(op.u8(8), pad)?;
                op.put(12, &id.to_le_bytes());
            }
            2 => {
                let (ioreq, buffered, port) = self.get_info(op.u16(8), op.u16(10))?;
                op.put(12, &port.to_le_bytes());
                op.put(16, &ioreq.to_le_bytes());
                op.put(24, &buffered.to_le_bytes());
            }
            3 => self.map_range(op.u16(8), op.u32(12), op.u64(16), op.u64(24), op.u16(10))?,
            4 => self.unmap_range(op.u16(8), op.u32(12), op.u64(16), op.u64(24), op.u16(10))?,
            5 => self.set_state(op.u16(8), op.u8(10), op.u8(11))?,
            6 => self.destroy(op.u16(8), op.u16(10))?,
            7 => self.vram(op.u64(16), op.u32(8), buffer)?,
            8..=10 | 13 | 14 => self.interrupt(number, &op)?,
            11 => self.modified(op.u32(8), buffer)?,
            12 => self.set_mem_type(u32::from(op.u16(8)), op.u16(10), op.u64(16), op.u32(12))?,
            15 => self.map_mem_type(op.u16(8), op.u16(10), op.u32(12), op.u64(16))?,
            16 => self.remote_shutdown(op.u8(8))?,
            20 => {
                let vcpus = self.nr_vcpus()?;
                op.put(8, &vcpus.to_le_bytes());
            }
            _ => {
                self.target(number, &[])?;
                return Err(EOPNOTSUPP);
            }
        }
        Ok(())
    }

    /// No bit of the bitmap is ever set: the model has no display.
    fn vram(&self, first: u64, nr: u32, bitmap: &mut [u8]) -> Errno<()> {
        let bytes = usize::try_from(nr.div_ceil(8)).map_err(|_| EINVAL)?;
        self.track_dirty_vram(first, nr)?;
        bitmap.get_mut(..bytes).ok_or(EINVAL)?.fill(0);
        Ok(())
    }

    fn interrupt(&self, number: u32, op: &Fields<'_>) -> Errno<()> {
        let domain = self.target(number, &[])?;
        domain.inject(match number {
            8 => {
                let (segment, bus) = (op.u16(8), op.u8(10));
                let pins = [Intx::A, Intx::B, Intx::C, Intx::D];
                let pin = pins.get(usize::from(op.u8(12))).ok_or(EINVAL)?;
                if segment != 0 || bus != 0 {
                    return Err(EINVAL);
                }
                Injected::Intx {
                    function: Sbdf::new(0, 0, op.u8(11), 0).ok_or(EINVAL)?,
                    pin: *pin,
                    asserted: level(op.u8(13))?,
                }
            }
            9 => {
                let irq = Some(op.u8(8)).filter(|irq| *irq <= 15);
                Injected::Isa {
                    irq: irq.ok_or(EINVAL)?,
                    asserted: level(op.u8(9))?,
                }
            }
            10 => {
                let (link, irq) = (op.u8(8), op.u8(9));
                if link > 3 || irq > 15 {
                    return Err(EINVAL);
                }
                Injected::LinkRoute { link, irq }
            }
            13 => {
                let vcpu = VcpuId(op.u32(8));
                if vcpu.0 >= domain.config.vcpus {
                    return Err(EINVAL);
                }
                let error_code = op.u32(16);
                let event = InjectedEvent {
                    vector: op.u8(12),
                    kind: op.u8(13),
                    error_code: (error_code != u32::MAX).then_some(error_code),
                    insn_len: op.u8(14),
                    cr2: op.u64(24),
                };
                Injected::Event { vcpu, event }
            }
            _ => {
                if op.u32(12) != 0 {
                    return Err(EINVAL);
                }
                Injected::Msi {
                    addr: op.u64(16),
                    data: op.u32(8),
                }
            }
        });
        Ok(())
    }

    /// `modified_memory`: extents of {nr u32, pad u32, first_pfn u64}, the last one first, as Xen takes them.
    fn modified(&self, extents: u32, buffer: &[u8]) -> Errno<()> {
        let domain = self.target(11, &[])?;
        if !domain.is_log_dirty() {
            return Ok(());
        }
        let count = usize::try_from(extents).map_err(|_| EINVAL)?;
        let (extents, _) = buffer.as_chunks::<16>();
        for extent in extents.get(..count).ok_or(EINVAL)?.iter().rev() {
            let word = |at: usize| std::array::from_fn(|i| extent[at + i]);
            let [nr, pad] = [0, 4].map(|at| u32::from_le_bytes(word(at)));
            let first = u64::from_le_bytes(std::array::from_fn(|i| extent[8 + i]));
            if pad != 0 {
                return Err(EINVAL);
            }
            domain.modified_memory(first, nr)?;
        }
        Ok(())
    }
}
