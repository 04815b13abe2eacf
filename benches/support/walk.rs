// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: an `asm!` without an instruction.
//!
//! In which order ranges are written to.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use super::device::{mark, taken};
use super::layout::Layout;

/// The order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// One range again and again.
    Hot,
    /// One after the other.
    Sequential,
    /// Any, equally likely.
    Random,
    /// Any, and each address depends on the answer to the write before, as a guest's next access depends on the trap before:
    /// look-ups cannot overlap.
    Chained,
}

impl Pattern {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pattern::Hot => "hot",
            Pattern::Sequential => "sequential",
            Pattern::Random => "random",
            Pattern::Chained => "random, chained",
        }
    }
}

/// Parts of a slice that walks make together. Between two of them they see whether it is over.
const PARTS: u32 = 16;

/// The end of slices that several walks make together: each is over as soon as one of them has made all its writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends(Arc<CachePadded<AtomicUsize>>);

impl Ends {
    /// Whether slices up to this one are over.
    fn passed(&self, slice: usize) -> bool {
        // Relaxed, and in `pass`: it orders nothing, and who sees it late makes a part more.
        self.0.load(Ordering::Relaxed) >= slice
    }

    fn pass(&self, slice: usize) {
        self.0.fetch_max(slice, Ordering::Relaxed);
    }
}

/// The same address, and a compiler does not know that. Not by way of memory, as `black_box` does it: that would be a store and a
/// load of each write.
#[inline(always)]
fn opaque(mut addr: u64) -> u64 {
    // SAFETY: no instruction; it touches nothing but the register that it is told.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) addr, options(nomem, nostack, preserves_flags));
    }
    addr
}

/// An endless row of 4-byte writes.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    layout: Layout,
    pattern: Pattern,
    state: u64,
    /// How the slice under way ends, and its number, if others make it, too.
    together: Option<(Ends, usize)>,
    /// Writes made of the last ones asked for.
    made: u32,
}

impl Walk {
    pub(crate) fn new(layout: Layout, pattern: Pattern, seed: u64) -> Self {
        Walk {
            layout,
            pattern,
            state: seed,
            together: None,
            made: 0,
        }
    }

    /// From now on, `slice` is made together with all other walks that have `ends`.
    #[allow(dead_code, reason = "criterion's benchmarks have one thread")]
    pub(crate) fn together(&mut self, ends: &Ends, slice: usize) {
        self.together = Some((ends.clone(), slice));
    }

    /// From now on, slices are its own.
    #[allow(dead_code, reason = "criterion's benchmarks have one thread")]
    pub(crate) fn by_itself(&mut self) {
        self.together = None;
    }

    /// Writes that were made of the last ones that were asked for.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// The next range in this order, the walk's, and an offset in it. Into loops that are of one order.
    #[inline(always)]
    fn next(&mut self, pattern: Pattern, entropy: u64) -> (u64, u64) {
        let index = match pattern {
            Pattern::Hot => self.layout.count / 2 + entropy,
            Pattern::Sequential => {
                self.state = self.state.wrapping_add(1 + entropy);
                if self.state >= self.layout.count {
                    self.state = 0;
                }
                self.state
            }
            Pattern::Random | Pattern::Chained => {
                // Weyl's sequence, mixed: two multiplications.
                self.state = self.state.wrapping_add(0xa076_1d64_78bd_642f ^ entropy);
                let mixed = u128::from(self.state) * u128::from(self.state ^ 0xe703_7ed1_a0b4_28db);
                #[allow(clippy::cast_possible_truncation, reason = "folds both halves")]
                let mixed = (mixed >> 64) as u64 ^ mixed as u64;
                #[allow(clippy::cast_possible_truncation, reason = "below the count")]
                let index = ((u128::from(mixed) * u128::from(self.layout.count)) >> 64) as u64;
                index
            }
        };
        let offset = (index << 2) & (self.layout.len - 4);
        (index, offset)
    }

    /// Its address.
    #[inline(always)]
    fn next_addr(&mut self, pattern: Pattern, entropy: u64) -> u64 {
        let (index, offset) = self.next(pattern, entropy);
        self.layout.first(index) + offset
    }

    /// Calls `write` with the address and value of each of the next `writes`; fewer, if the slice is made together with others. A
    /// loop for each order, so that what a write's address costs is as little as can be.
    #[inline]
    pub(crate) fn each(&mut self, writes: u32, mut write: impl FnMut(u64, u32)) {
        match self.pattern {
            Pattern::Hot => {
                let addr = self.next_addr(Pattern::Hot, 0);
                self.parts(writes, |_| addr, write);
            }
            Pattern::Sequential => {
                self.parts(writes, |walk| walk.next_addr(Pattern::Sequential, 0), write);
            }
            Pattern::Random => {
                self.parts(writes, |walk| walk.next_addr(Pattern::Random, 0), write);
            }
            Pattern::Chained => {
                // Always zero, which the compiler does not know: so the next address waits for the last answer.
                let nothing = black_box(0_u64);
                for value in 0..writes {
                    write(self.next_addr(Pattern::Chained, taken() & nothing), value);
                }
                self.made = writes;
            }
        }
    }

    /// The writes, with addresses from `next`.
    #[inline(always)]
    fn parts(
        &mut self,
        writes: u32,
        mut next: impl FnMut(&mut Self) -> u64,
        mut write: impl FnMut(u64, u32),
    ) {
        let together = self.together.clone();
        let part = match together {
            Some(_) => writes.div_ceil(PARTS),
            None => writes,
        };
        let mut made = 0;
        while made < writes {
            if let Some((ends, slice)) = &together
                && ends.passed(*slice)
            {
                break;
            }
            let end = writes.min(made + part);
            for value in made..end {
                write(opaque(next(self)), value);
            }
            made = end;
        }
        if let Some((ends, slice)) = together {
            ends.pass(slice);
        }
        self.made = made;
    }

    /// What the devices add up for the next `writes`, which it walks over.
    pub(crate) fn expected(&mut self, writes: u32) -> u64 {
        (0..writes).fold(0, |sum: u64, value| {
            let (index, offset) = self.next(self.pattern, 0);
            sum.wrapping_add(mark(self.layout.device(index), offset, value.into()))
        })
    }
}
