// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: loads and stores the processor's vector registers, to see whether they are still this process's.
//!
//! Whether a process of dom0 keeps its vector registers while another domain runs in between. Copies of memory go through them: where they
//! are lost, a device model hands the guest what another domain had in its own.

use std::arch::asm;
use std::time::{Duration, Instant};

/// Bytes of the 16 registers.
const BYTES: usize = 16 * 16;
/// Turns of the loop between loading and storing: longer than a domain waits for the processor.
const TURNS: u64 = 20_000;

#[repr(align(16))]
#[derive(Clone, PartialEq, Eq)]
struct Registers([u8; BYTES]);

/// What is in the registers some time after `loaded` was.
fn keep(loaded: &Registers) -> Registers {
    let mut stored = Registers([0; BYTES]);
    // SAFETY: reads and writes the 256 bytes of each, which are aligned as `movaps` wants them; says which registers it changes.
    unsafe {
        asm!(
            "movaps xmm0, [{from}]", "movaps xmm1, [{from} + 16]", "movaps xmm2, [{from} + 32]", "movaps xmm3, [{from} + 48]",
            "movaps xmm4, [{from} + 64]", "movaps xmm5, [{from} + 80]", "movaps xmm6, [{from} + 96]", "movaps xmm7, [{from} + 112]",
            "movaps xmm8, [{from} + 128]", "movaps xmm9, [{from} + 144]", "movaps xmm10, [{from} + 160]", "movaps xmm11, [{from} + 176]",
            "movaps xmm12, [{from} + 192]", "movaps xmm13, [{from} + 208]", "movaps xmm14, [{from} + 224]", "movaps xmm15, [{from} + 240]",
            "2: dec {turns}", "jnz 2b",
            "movaps [{to}], xmm0", "movaps [{to} + 16], xmm1", "movaps [{to} + 32], xmm2", "movaps [{to} + 48], xmm3",
            "movaps [{to} + 64], xmm4", "movaps [{to} + 80], xmm5", "movaps [{to} + 96], xmm6", "movaps [{to} + 112], xmm7",
            "movaps [{to} + 128], xmm8", "movaps [{to} + 144], xmm9", "movaps [{to} + 160], xmm10", "movaps [{to} + 176], xmm11",
            "movaps [{to} + 192], xmm12", "movaps [{to} + 208], xmm13", "movaps [{to} + 224], xmm14", "movaps [{to} + 240], xmm15",
            from = in(reg) loaded,
            to = in(reg) &mut stored,
            turns = inout(reg) TURNS => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack),
        );
    }
    stored
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).ok_or("for how many seconds?")?;
    let until = Instant::now() + Duration::from_secs(seconds.parse()?);
    let (mut rounds, mut lost) = (0_u64, 0_u64);
    while Instant::now() < until {
        let byte = rounds.to_le_bytes()[0] | 1;
        let loaded = Registers([byte; BYTES]);
        lost += u64::from(keep(&loaded) != loaded);
        rounds += 1;
    }
    println!("registers: {lost} times lost in {rounds} rounds");
    if lost > 0 {
        return Err("another domain's vector registers were in this process".into());
    }
    Ok(())
}
