// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts, which are taken where the program says so and only counted, and exceptions, which end it.
//!
//! UNSAFETY: the interrupt descriptor table, and what it leads to.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use vgpu_guest::Vcpu as _;
use vgpu_guest::layout::{APIC, MOST_VCPUS};

use crate::cpu::Bare;
use crate::start::fail;

/// Of the local APIC: the spurious-interrupt register, whose bit 8 turns it on.
const SPURIOUS: u64 = APIC + 0xf0;
const SPURIOUS_ON: u32 = 0x1ff;

/// Interrupts that each vCPU took.
static TAKEN: [AtomicU64; MOST_VCPUS as usize] = [const { AtomicU64::new(0) }; MOST_VCPUS as usize];

/// A table of 256 interrupt gates, two words each. The same for all vCPUs, which write the same into it.
static GATES: [[AtomicU64; 2]; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

// An interrupt is counted by whoever opened the window for it: the handler only tells, in r11, and the local APIC, at its EOI register.
// An exception comes with or without an error code; what is on the stack is shown as it is.
global_asm!(
    ".balign 16",
    "vgpu_guest_interrupt:",
    "inc r11",
    "push rax",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    ".balign 16",
    "vgpu_guest_exception:",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {exception}",
    exception = sym exception,
);

unsafe extern "C" {
    static vgpu_guest_interrupt: u8;
    static vgpu_guest_exception: u8;
}

extern "sysv64" fn exception(stack: *const [u64; 3]) -> ! {
    let cr2: u64;
    // SAFETY: privilege level 0.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nostack)) };
    // SAFETY: the processor has pushed five words at least, aligned.
    let [first, second, third] = unsafe { stack.read() };
    fail(format_args!(
        "an exception: on the stack {first:#x}, {second:#x}, {third:#x}, cr2 {cr2:#x}"
    ))
}

/// Loads the table, and turns the local APIC on. Interrupts stay off.
pub(crate) fn set_up(cpu: &mut Bare) {
    let (exception, interrupt) = (
        (&raw const vgpu_guest_exception).addr() as u64,
        (&raw const vgpu_guest_interrupt).addr() as u64,
    );
    for (vector, gate) in GATES.iter().enumerate() {
        let handler = if vector < 32 { exception } else { interrupt };
        // An interrupt gate: offset 15:0, selector 8, type 0x8e, offset 31:16; the program is below 4 GiB.
        let low = handler & 0xffff | 8 << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
        // Relaxed: the processor reads it, after the fence that `lidt` is.
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(0, Ordering::Relaxed);
    }
    let table = GATES.as_ptr() as u64;
    let limit: u16 = 256 * 16 - 1;
    // The operand of `lidt`: a limit of 2 bytes and a base of 8.
    let operand = [u64::from(limit) << 48, table];
    // SAFETY: privilege level 0; the operand is read from its sixth byte on, the table is static.
    unsafe { asm!("lidt [{}]", in(reg) operand.as_ptr().cast::<u8>().wrapping_add(6)) };
    let Ok(()) = cpu.store32(SPURIOUS, SPURIOUS_ON);
}

/// Takes the interrupts that are pending; how many this vCPU has taken so far.
pub(crate) fn taken(cpu: &Bare) -> u64 {
    let new: u64;
    // Without `nostack` nothing is kept below the stack's end, where the processor pushes. The instruction after `sti` comes before
    // any interrupt.
    // SAFETY: the handler changes r11 alone.
    unsafe { asm!("sti", "nop", "nop", "cli", inout("r11") 0_u64 => new) };
    let Some(count) = TAKEN.get(cpu.id() as usize) else {
        return 0;
    };
    // Relaxed: this vCPU's alone.
    count.fetch_add(new, Ordering::Relaxed) + new
}
