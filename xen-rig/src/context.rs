// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The state in which vCPUs start: 64-bit mode, identity mapping, interrupts off (`hvm/save.h`).

use std::io;

/// `HVM_SAVE_CODE` and length of a record.
const END: u16 = 0;
const CPU: u16 = 2;
const LAPIC_REGS: u16 = 6;
/// `sizeof(struct hvm_hw_cpu)`
const CPU_SIZE: u32 = 1032;

/// Bytes of one record, written in order.
struct Record(Vec<u8>);

impl Record {
    fn u32s(&mut self, values: &[u32]) {
        for value in values {
            self.0.extend(value.to_le_bytes());
        }
    }

    fn u64s(&mut self, values: &[u64]) {
        for value in values {
            self.0.extend(value.to_le_bytes());
        }
    }
}

/// What differs between the starts of vCPUs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Start {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) r15: u64,
    /// The root of the page tables.
    pub(crate) cr3: u64,
    /// The global descriptor table: code at selector 8, data at 16.
    pub(crate) gdt: u64,
    /// The interrupt descriptor table; 0 for none yet.
    pub(crate) idt: u64,
}

fn descriptor(code: u16, instance: u16, length: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(code.to_le_bytes());
    bytes.extend(instance.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes
}

/// `struct hvm_hw_cpu` of a vCPU.
fn cpu(start: Start) -> Vec<u8> {
    let mut record = Record(vec![0; 512]); // fpu_regs: not initialised
    record.u64s(&[0, 0, 0, 0, 0]); // rax, rbx, rcx, rdx, rbp
    record.u64s(&[start.rsi, start.rdi, start.rsp]);
    record.u64s(&[0; 7]); // r8 to r14
    record.u64s(&[start.r15]);
    record.u64s(&[start.rip, 2]); // rip, rflags
    // cr0: PG, ET, PE; cr3; cr4: OSXMMEXCPT, OSFXSR, PAE
    record.u64s(&[0x8000_0011, 0, start.cr3, 0x620]);
    record.u64s(&[0, 0, 0, 0, 0xffff_0ff0, 0x400]); // dr0 to dr3, dr6, dr7
    record.u32s(&[8, 16, 16, 16, 16, 16, 0, 0]); // cs, ds, es, fs, gs, ss, tr, ldtr
    record.u32s(&[u32::MAX; 6]);
    record.u32s(&[0x67, 0, 0xfff, 23]); // limits of tr, ldtr, idtr, gdtr
    record.u64s(&[0; 8]);
    record.u64s(&[start.idt, start.gdt]);
    let (code, data) = (0xa9b, 0xc93);
    record.u32s(&[code, data, data, data, data, data, 0x8b, 0]);
    record.u64s(&[0, 0, 0, 0]); // sysenter, shadow_gs
    record.u64s(&[0, 0, 0, 0, 0]); // msr_flags, lstar, star, cstar, syscall_mask
    record.u64s(&[0x500, 0, 0]); // efer: LMA, LME; tsc_aux; tsc
    record.u32s(&[0, 0, 0, 0]); // pending event, error code, flags, pad
    debug_assert_eq!(record.0.len(), CPU_SIZE as usize);
    record.0
}

/// The first record from the beginning of `bytes`: its code and instance, and all of it, with its descriptor of 8 bytes.
fn record(bytes: &[u8]) -> Option<(u16, u16, &[u8])> {
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let all = bytes.get(..8 + length as usize)?;
    Some((half(0)?, half(2)?, all))
}

/// The context to load: the header that the domain has, which is the first record, and its vCPUs.
pub(crate) fn initial(current: &[u8], starts: impl Iterator<Item = Start>) -> Vec<u8> {
    let header = record(current).map_or(&[][..], |(.., all)| all);
    let mut bytes = header.to_vec();
    for (instance, start) in (0..).zip(starts) {
        bytes.extend(descriptor(CPU, instance, CPU_SIZE));
        bytes.extend(cpu(start));
    }
    bytes.extend(descriptor(END, 0, 0));
    bytes
}

/// Where a vCPU is: its instruction pointer, and the root of its page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The next instruction's address.
    pub rip: u64,
    /// The root's guest-physical address, with its low bits.
    pub cr3: u64,
}

/// Where a record of a vCPU has its registers: after the descriptor, the FPU's 512 bytes and 16 others, rip, rflags, cr0, cr2, cr3.
const RIP: usize = 8 + 512 + 16 * 8;
const RFLAGS: usize = RIP + 8;
const CR3: usize = RIP + 4 * 8;

/// The records of vCPUs, with their descriptors.
fn cpus(mut context: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let records = std::iter::from_fn(move || {
        let (code, instance, all) = record(context)?;
        context = &context[all.len()..];
        Some((code, instance, all))
    });
    records.filter_map(|(code, instance, all)| (code == CPU).then_some((instance.into(), all)))
}

fn cpu_of(context: &[u8], vcpu: u32) -> Option<&[u8]> {
    cpus(context).find_map(|(instance, all)| (instance == vcpu).then_some(all))
}

fn register(cpu: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(cpu.get(at..at + 8)?.try_into().ok()?))
}

/// Where a vCPU is, by a domain's context.
pub(crate) fn place(context: &[u8], vcpu: u32) -> Option<Place> {
    let cpu = cpu_of(context, vcpu)?;
    Some(Place {
        rip: register(cpu, RIP)?,
        cr3: register(cpu, CR3)?,
    })
}

/// The context to load for a vCPU to be as it is in `current`, but at `rip`, with interrupts on. The others are in it as they are: Xen
/// lets only those run that a context has.
pub(crate) fn moved(current: &[u8], vcpu: u32, rip: u64) -> Option<Vec<u8>> {
    const INTERRUPTS: u64 = 1 << 9;
    let rflags = register(cpu_of(current, vcpu)?, RFLAGS)? | INTERRUPTS;
    let mut bytes = initial(current, std::iter::empty());
    bytes.truncate(bytes.len() - descriptor(END, 0, 0).len());
    for (instance, cpu) in cpus(current) {
        let start = bytes.len();
        bytes.extend(cpu);
        if instance == vcpu {
            bytes[start + RIP..][..8].copy_from_slice(&rip.to_le_bytes());
            bytes[start + RFLAGS..][..8].copy_from_slice(&rflags.to_le_bytes());
        }
    }
    bytes.extend(descriptor(END, 0, 0));
    Some(bytes)
}

/// What firmware programs in the local APIC of the first vCPU, as register and value: it is on, LINT0 takes the PIC's interrupts
/// ("virtual wire"), LINT1 non-maskable ones. Xen's begins with both masked, and an operating system that has not set up its
/// I/O APIC yet would get no timer interrupt.
const VIRTUAL_WIRE: [(usize, u32); 3] = [(0xf0, 0x1ff), (0x350, 0x700), (0x360, 0x400)];

/// The context to load for an operating system: its first vCPU starts, with its local APIC as firmware leaves it; the others wait for
/// the operating system to wake them.
pub(crate) fn after_firmware(current: &[u8], start: Start) -> io::Result<Vec<u8>> {
    let mut bytes = initial(current, std::iter::once(start));
    bytes.truncate(bytes.len() - descriptor(END, 0, 0).len());
    let mut rest = current;
    while let Some((code, instance, all)) = record(rest) {
        if (code, instance) == (LAPIC_REGS, 0) {
            let mut all = all.to_vec();
            for (register, value) in VIRTUAL_WIRE {
                let place = all.get_mut(8 + register..12 + register);
                place
                    .ok_or_else(|| io::Error::other("the local APIC's record is too short"))?
                    .copy_from_slice(&value.to_le_bytes());
            }
            bytes.extend(all);
            bytes.extend(descriptor(END, 0, 0));
            return Ok(bytes);
        }
        rest = rest.get(all.len()..).unwrap_or_default();
    }
    Err(io::Error::other("the domain has no local APIC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_header_vcpus_and_end() {
        let mut current = descriptor(1, 0, 16);
        current.extend([7; 16]);
        current.extend(descriptor(CPU, 0, 4));
        let start = Start {
            rsi: 0x500,
            r15: 0x1000,
            ..Start::default()
        };
        let bytes = initial(&current, [start, start].into_iter());
        assert_eq!(bytes.len(), 24 + 2 * (8 + CPU_SIZE as usize) + 8);
        assert_eq!(bytes[..24], current[..24]);
        // r15 is the sixteenth register after 512 bytes.
        let rsi = 24 + 8 + 512 + 5 * 8;
        assert_eq!(bytes[rsi..rsi + 8], 0x500_u64.to_le_bytes());
        let r15 = 24 + 8 + 512 + 15 * 8;
        assert_eq!(bytes[r15..r15 + 8], 0x1000_u64.to_le_bytes());
        assert_eq!(
            bytes[24 + 8 + CPU_SIZE as usize + 2],
            1,
            "the second instance"
        );
    }

    #[test]
    fn a_vcpu_is_where_it_starts() {
        let start = |rip| Start {
            rip,
            cr3: rip + 1,
            ..Start::default()
        };
        let header = [descriptor(1, 0, 16), vec![0; 16]].concat();
        let bytes = initial(&header, [start(0x1000), start(0x2000)].into_iter());
        for (vcpu, rip) in [(0, 0x1000), (1, 0x2000)] {
            let cr3 = rip + 1;
            assert_eq!(place(&bytes, vcpu), Some(Place { rip, cr3 }));
        }
        assert_eq!(place(&bytes, 2), None);
        assert_eq!(place(&bytes[..100], 0), None);
    }

    #[test]
    fn a_vcpu_that_is_moved_is_as_before_but_for_its_place() {
        let start = |rip| Start {
            rip,
            r15: rip + 5,
            ..Start::default()
        };
        let header = [descriptor(1, 0, 16), vec![0; 16]].concat();
        let before = initial(&header, [start(0x1000), start(0x2000)].into_iter());
        let after = moved(&before, 1, 0x3000).unwrap();
        assert_eq!(cpu_of(&after, 0), cpu_of(&before, 0));
        let (old, new) = (cpu_of(&before, 1).unwrap(), cpu_of(&after, 1).unwrap());
        assert_eq!(new[RIP..RIP + 8], 0x3000_u64.to_le_bytes());
        assert_eq!(new[RFLAGS..RFLAGS + 8], 0x202_u64.to_le_bytes());
        assert_eq!(
            (&old[..RIP], &old[CR3 - 16..]),
            (&new[..RIP], &new[CR3 - 16..])
        );
        assert_eq!(after.len(), before.len());
        assert_eq!(moved(&before, 2, 0x3000), None);
    }

    #[test]
    fn an_operating_system_gets_one_vcpu_with_its_apic_on() {
        let mut current = descriptor(1, 0, 16);
        current.extend([7; 16]);
        for instance in [1_u8, 0] {
            current.extend(descriptor(LAPIC_REGS, instance.into(), 1024));
            current.extend([instance; 1024]);
        }
        let bytes = after_firmware(&current, Start::default()).unwrap();
        let apic = 24 + 8 + CPU_SIZE as usize;
        assert_eq!(bytes.len(), apic + 8 + 1024 + 8);
        assert_eq!(
            record(&bytes[apic..]).map(|(code, instance, _)| (code, instance)),
            Some((LAPIC_REGS, 0))
        );
        let register = |at: usize| &bytes[apic + 8 + at..][..4];
        assert_eq!(register(0x350), 0x700_u32.to_le_bytes());
        assert_eq!(register(0x340), [0; 4], "what firmware leaves alone");

        assert!(after_firmware(&current[..24], Start::default()).is_err());
        let short = [&descriptor(LAPIC_REGS, 0, 4)[..], &[0; 4]].concat();
        assert!(after_firmware(&short, Start::default()).is_err());
        assert!(
            after_firmware(&current[..current.len() - 1], Start::default()).is_err(),
            "cut off"
        );
    }
}
