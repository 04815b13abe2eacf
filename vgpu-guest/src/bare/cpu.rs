// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vCPU that this runs on.
//!
//! UNSAFETY: accesses of guest-physical addresses, which are this program's, and instructions that no language has.

use core::arch::asm;
use core::convert::Infallible;
use core::fmt::{self, Write as _};

use vgpu_guest::Vcpu;
use vgpu_guest::control::{self, COMPLAINTS, PROGRESS, TEXT, TEXT_BYTES};

/// `__HYPERVISOR_sched_op`, whose operation 0 yields.
const SCHED_OP: u64 = 29;
/// `MSR_TSC_AUX`: a vCPU's own, where its number is kept.
const TSC_AUX: u32 = 0xc000_0103;

/// The vCPU, as the driver uses it.
#[derive(Debug)]
pub(crate) struct Bare {
    vcpu: u32,
}

impl Bare {
    /// At the start of the vCPU.
    pub(crate) fn new(vcpu: u32) -> Self {
        // SAFETY: the register is a vCPU's own, and software's to use; privilege level 0.
        unsafe { asm!("wrmsr", in("ecx") TSC_AUX, in("eax") vcpu, in("edx") 0, options(nostack)) };
        Bare { vcpu }
    }

    /// The one that this runs on, anywhere.
    pub(crate) fn current() -> Self {
        let vcpu: u32;
        // SAFETY: as in `new`.
        unsafe {
            asm!("rdmsr", in("ecx") TSC_AUX, out("eax") vcpu, out("edx") _, options(nostack))
        };
        Bare { vcpu }
    }

    pub(crate) fn id(&self) -> u32 {
        self.vcpu
    }

    /// 8 bytes of memory or MMIO.
    pub(crate) fn get(&self, addr: u64) -> u64 {
        let value;
        // SAFETY: all addresses that the program uses are mapped; what is there it does not use as Rust objects.
        unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) addr, options(nostack)) };
        value
    }

    /// Stores 8 bytes.
    pub(crate) fn put(&mut self, addr: u64, value: u64) {
        // SAFETY: as in `get`.
        unsafe { asm!("mov [{}], {}", in(reg) addr, in(reg) value, options(nostack)) };
    }

    /// Stores into the vCPU's control block.
    pub(crate) fn control(&mut self, offset: u64, value: u64) {
        self.put(control::block(self.vcpu) + offset, value);
    }

    /// A new task: nothing has been complained of.
    pub(crate) fn begin(&mut self) {
        self.control(COMPLAINTS, 0);
        self.control(PROGRESS, 0);
    }

    /// Lets Xen run another vCPU.
    pub(crate) fn yield_now(&mut self) {
        // SAFETY: a hypercall by its number, in rax, and its arguments, in rdi and rsi, reads and writes no memory here.
        unsafe {
            asm!("vmmcall", inout("rax") SCHED_OP => _, inout("rdi") 0_u64 => _, inout("rsi") 0_u64 => _, options(nostack));
        }
    }

    /// Sleeps until something happens.
    pub(crate) fn halt(&mut self) {
        // SAFETY: privilege level 0.
        unsafe { asm!("hlt", options(nostack)) };
    }

    /// Complains, and keeps the text of the first time.
    pub(crate) fn complain_with(&mut self, what: fmt::Arguments<'_>) {
        let block = control::block(self.vcpu);
        let before = self.get(block + COMPLAINTS);
        if before == 0 {
            let mut text = Text {
                bytes: [0; TEXT_BYTES],
                len: 0,
            };
            // What does not fit is cut off.
            let _cut = text.write_fmt(what);
            for (at, word) in (block + TEXT..).step_by(8).zip(text.bytes.chunks_exact(8)) {
                let word = word
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte));
                self.put(at, word);
            }
        }
        self.put(block + COMPLAINTS, before + 1);
    }
}

/// Text of a bounded length, with a 0 at its end.
struct Text {
    bytes: [u8; TEXT_BYTES],
    len: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len + 1 >= self.bytes.len() {
                return Err(fmt::Error);
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

impl Vcpu for Bare {
    type Fault = Infallible;

    fn load32(&mut self, addr: u64) -> Result<u32, Infallible> {
        let value;
        // SAFETY: as in `get`.
        unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) addr, options(nostack)) };
        Ok(value)
    }

    fn load64(&mut self, addr: u64) -> Result<u64, Infallible> {
        Ok(self.get(addr))
    }

    fn store32(&mut self, addr: u64, value: u32) -> Result<(), Infallible> {
        // SAFETY: as in `get`.
        unsafe { asm!("mov [{}], {:e}", in(reg) addr, in(reg) value, options(nostack)) };
        Ok(())
    }

    fn store64(&mut self, addr: u64, value: u64) -> Result<(), Infallible> {
        self.put(addr, value);
        Ok(())
    }

    fn xchg32(&mut self, addr: u64, value: u32) -> Result<u32, Infallible> {
        let old;
        // SAFETY: as in `get`.
        unsafe { asm!("xchg [{}], {:e}", in(reg) addr, inout(reg) value => old, options(nostack)) };
        Ok(old)
    }

    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), Infallible> {
        // SAFETY: `addr` is mapped, and `buf` is as long as it says.
        unsafe {
            asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) buf.len() % 8,
                inout("rsi") addr => _, inout("rdi") buf.as_mut_ptr() => _,
                inout("rcx") buf.len() / 8 => _, options(nostack));
        }
        Ok(())
    }

    fn relax(&mut self) -> Result<(), Infallible> {
        self.yield_now();
        Ok(())
    }

    fn interrupts(&mut self) -> Result<u64, Infallible> {
        Ok(crate::interrupts::taken(self))
    }

    fn ticks(&mut self) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: it reads a counter.
        unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack)) };
        u64::from(high) << 32 | u64::from(low)
    }

    fn complain(&mut self, what: &str) {
        self.complain_with(format_args!("{what}"));
    }

    fn progress(&mut self, submissions: u64) {
        self.control(PROGRESS, submissions);
    }
}
