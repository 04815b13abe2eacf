// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The state in which vCPUs start: 64-bit mode, identity mapping, interrupts off (`hvm/save.h`).

/// `HVM_SAVE_CODE` and length of a record.
const END: u16 = 0;
const CPU: u16 = 2;
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

/// The context to load: the header that the domain has, and its vCPUs.
pub(crate) fn initial(current: &[u8], starts: impl Iterator<Item = Start>) -> Vec<u8> {
    // The header is the first record: a descriptor of 8 bytes with its length, and its contents.
    let length = current
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let mut bytes = current
        .get(..8 + length as usize)
        .unwrap_or_default()
        .to_vec();
    for (instance, start) in (0..).zip(starts) {
        bytes.extend(descriptor(CPU, instance, CPU_SIZE));
        bytes.extend(cpu(start));
    }
    bytes.extend(descriptor(END, 0, 0));
    bytes
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
}
