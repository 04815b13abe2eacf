// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: Valgrind's client requests are instructions that do nothing outside of Valgrind.
//!
//! Windows for callgrind: instructions are collected between READY seen and RESP_READY stored, and nowhere else. Run the
//! program under `valgrind --tool=callgrind --collect-atstart=no`.

use std::cell::Cell;

/// `VG_USERREQ__TOGGLE_COLLECT` of valgrind/callgrind.h: the tool's base 'C' 'T', and 2.
const TOGGLE_COLLECT: u64 = 0x4354_0002;

thread_local! {
    static OPEN: Cell<bool> = const { Cell::new(false) };
}

fn toggle_collect() {
    let request: [u64; 6] = [TOGGLE_COLLECT, 0, 0, 0, 0, 0];
    // SAFETY: the rotations add up to two whole turns and the exchange is of a register with itself, so that no register
    // changes. Valgrind, which knows the sequence, reads the request that rax points to, and answers in rdx.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") request.as_ptr(),
            inout("rdx") 0_u64 => _,
            options(nostack),
        );
    }
}

/// A request was seen.
#[inline(always)]
pub(crate) fn open() {
    if !OPEN.replace(true) {
        toggle_collect();
    }
}

/// It was answered.
#[inline(always)]
pub(crate) fn close() {
    if OPEN.replace(false) {
        toggle_collect();
    }
}

/// A window with nothing in it: what opening and closing one costs by itself, to be subtracted.
#[inline(never)]
pub fn empty_window() {
    open();
    close();
}
