// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What serves writes, and the check that it serves the right ones.

use super::device::taken;
use super::layout::Layout;
use super::walk::{Pattern, Walk};

/// Finds the device of an address and calls it.
pub(crate) trait Contender: Send + Sync {
    /// Serves the next `writes` of the walk.
    fn serve(&self, walk: &mut Walk, writes: u32);

    /// Serves one 4-byte write.
    fn serve_one(&self, addr: u64);
}

/// Serves, and panics unless the right devices took the right values.
pub(crate) fn serve_checked(contender: &dyn Contender, walk: &mut Walk, writes: u32) {
    let mut replay = walk.clone();
    let before = taken();
    contender.serve(walk, writes);
    let sum = taken().wrapping_sub(before);
    let made = walk.made();
    assert_eq!(sum, replay.expected(made), "a wrong device ran, or none");
}

/// Panics if what lies outside all ranges reaches a device, or what lies inside does not.
pub(crate) fn check(name: &str, contender: &dyn Contender, layout: Layout) {
    for pattern in [
        Pattern::Hot,
        Pattern::Sequential,
        Pattern::Random,
        Pattern::Chained,
    ] {
        serve_checked(contender, &mut Walk::new(layout, pattern, 0), 1000);
    }
    let mut outside = vec![layout.first(0) - 4, layout.end(), layout.end() + 0x1000];
    if layout.stride > layout.len {
        outside.extend([0, layout.count / 2].map(|range| layout.behind(range)));
    }
    for addr in outside {
        let before = taken();
        contender.serve_one(addr);
        assert_eq!(
            taken(),
            before,
            "{name}: {addr:#x} is outside of all ranges"
        );
    }
}
