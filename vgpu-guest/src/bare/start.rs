// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the start of a vCPU to its tasks, and what ends it.
//!
//! UNSAFETY: the entry, which is called by nobody.

use core::panic::PanicInfo;

use vgpu_guest::control::{self, FAILED, FINISHED, GO, READY};
use vgpu_guest::layout::MOST_VCPUS;
use vgpu_guest::{Done, Task};

use crate::cpu::Bare;
use crate::interrupts;

/// Where each vCPU starts: as a function that was called with these arguments, but for a return address, which it has no use for.
///
/// # Safety
/// For the builder of the domain alone.
#[unsafe(no_mangle)]
unsafe extern "sysv64" fn _start(vcpu: u32, _vcpus: u32) -> ! {
    let mut cpu = Bare::new(vcpu);
    interrupts::set_up(&mut cpu);
    if vcpu < MOST_VCPUS {
        cpu.control(control::STATE, READY);
        loop {
            serve(&mut cpu, vcpu);
        }
    }
    halt(&mut cpu)
}

/// Waits for a task, and does it.
fn serve(cpu: &mut Bare, vcpu: u32) {
    let block = control::block(vcpu);
    while cpu.get(block + control::STATE) != GO {
        cpu.yield_now();
    }
    let mut words = [0; Task::WORDS];
    for (at, word) in (block + control::TASK..).step_by(8).zip(&mut words) {
        *word = cpu.get(at);
    }
    cpu.begin();
    let done: Done = match vgpu_guest::run(cpu, Task::from_words(words)) {
        Ok(done) => done,
        Err(never) => match never {},
    };
    for (at, word) in (block + control::DONE..).step_by(8).zip(done.to_words()) {
        cpu.put(at, word);
    }
    cpu.control(control::STATE, FINISHED);
}

/// Sleeps for good.
pub(crate) fn halt(cpu: &mut Bare) -> ! {
    loop {
        cpu.halt();
    }
}

/// The program ends: says why, and where.
pub(crate) fn fail(why: core::fmt::Arguments<'_>) -> ! {
    let mut cpu = Bare::current();
    // The first complaint is what is read: this one counts more.
    cpu.begin();
    cpu.complain_with(why);
    cpu.control(control::STATE, FAILED);
    halt(&mut cpu)
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}

/// What is called when a panic unwinds, which none does here; the libraries that come with the compiler name it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
