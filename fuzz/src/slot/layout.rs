// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What there is: routes, tracked pages, memory.

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Bytes of guest memory, from 0 on.
pub(super) const RAM: usize = 8 * 4096;

/// How a handler behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// A value of its own; writes are stored.
    Plain,
    /// The same, in batches where it can.
    Batch,
    /// Refuses.
    Refuse,
    /// Panics.
    Panic,
    /// Replies later.
    Defer,
    /// Rewrites the slot that it serves; a page's stores something else.
    Rewrite,
}

/// Address spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Port,
    Mmio,
    /// By segment, bus, device, function: the upper half of a request's address.
    Pci,
}

/// A range with a handler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) space: Space,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) behaviour: Behaviour,
}

const fn route(space: Space, first: u64, last: u64, behaviour: Behaviour) -> Route {
    Route {
        space,
        first,
        last,
        behaviour,
    }
}

/// All routes: alone and side by side, a byte long, at the ends of their spaces, beyond the index.
pub(super) const ROUTES: &[Route] = &[
    route(Space::Port, 0x100, 0x10f, Behaviour::Plain),
    route(Space::Port, 0x110, 0x110, Behaviour::Batch),
    route(Space::Port, 0x111, 0x11f, Behaviour::Defer),
    route(Space::Port, 0xfff8, 0xffff, Behaviour::Rewrite),
    route(Space::Mmio, 0xe000_0000, 0xe000_0fff, Behaviour::Batch),
    route(Space::Mmio, 0xe000_1000, 0xe000_101f, Behaviour::Plain),
    route(Space::Mmio, 0xe000_1020, 0xe000_1027, Behaviour::Refuse),
    route(Space::Mmio, 0xe000_1028, 0xe000_102b, Behaviour::Panic),
    route(Space::Mmio, 0xe000_1080, 0xe000_10ff, Behaviour::Defer),
    route(Space::Mmio, 0xe000_2000, 0xe03f_ffff, Behaviour::Rewrite),
    route(Space::Mmio, 0xa_0000, 0xb_ffff, Behaviour::Plain),
    route(
        Space::Mmio,
        0x700_0000_0000,
        0x700_0000_00ff,
        Behaviour::Batch,
    ),
    route(Space::Mmio, u64::MAX - 0xff, u64::MAX, Behaviour::Plain),
    route(Space::Pci, 0x18, 0x18, Behaviour::Batch),
    route(Space::Pci, 0x19, 0x19, Behaviour::Refuse),
    route(Space::Pci, 0xffff_ffff, 0xffff_ffff, Behaviour::Plain),
];

/// Tracked frames.
pub(super) const PAGES: &[(u64, Behaviour)] = &[
    (2, Behaviour::Plain),
    (3, Behaviour::Rewrite),
    (4, Behaviour::Refuse),
    (5, Behaviour::Panic),
    (7, Behaviour::Defer),
];

/// What a route's handler reads at an address.
pub(super) fn mix(route: usize, addr: u64) -> u64 {
    (route as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ addr.wrapping_mul(0xff51_afd7_ed55_8ccd)
}
