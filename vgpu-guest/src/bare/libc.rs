// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The functions of C that compiled Rust code calls, where there is no C library. In assembly, or the compiler would make them call
//! themselves.
//!
//! UNSAFETY: functions of C's names, with C's preconditions.

use core::arch::asm;

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise. Words, then the bytes that are left: a repeated instruction is no faster for being of bytes.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) count % 8,
            inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count / 8 => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: the caller's promise, and an upward copy overwrites nothing that is still to be copied.
        return unsafe { memcpy(to, from, count) };
    }
    let last = count.wrapping_sub(1);
    let (end, from) = (to.wrapping_add(last), from.wrapping_add(last));
    // SAFETY: the caller's promise; downward, because the target begins within the source.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rdi") end => _, inout("rsi") from => _, inout("rcx") count => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    let [byte, ..] = byte.to_le_bytes();
    let word = u64::from_ne_bytes([byte; 8]);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosq", "mov rcx, {rest}", "rep stosb", rest = in(reg) count % 8,
            in("rax") word, inout("rdi") to => _, inout("rcx") count / 8 => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    let difference;
    // SAFETY: the caller's promise. Words up to the first that differs, then bytes: of that word, or those that are left.
    unsafe {
        asm!(
            "xor eax, eax",
            "repe cmpsq",
            "je 2f",
            "sub rsi, 8",
            "sub rdi, 8",
            "mov {rest}, 8",
            "2:",
            "mov rcx, {rest}",
            "xor eax, eax",
            "repe cmpsb",
            "je 3f",
            "movzx eax, byte ptr [rsi - 1]",
            "movzx ecx, byte ptr [rdi - 1]",
            "sub eax, ecx",
            "3:",
            rest = inout(reg) count % 8 => _,
            inout("rsi") one => _,
            inout("rdi") other => _,
            inout("rcx") count / 8 => _,
            out("eax") difference,
            options(nostack),
        );
    }
    difference
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(one, other, count) }
}
