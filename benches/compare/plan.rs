// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is compared with what.

use std::sync::{Arc, Mutex, RwLock};

use crate::support::contender::Contender;
use crate::support::layout::Layout;
use crate::support::ours::{BarePages, Pages, Ports, Ranges};
use crate::support::peers::{
    Direct, MutexVmDevice, Papaya, RwHash, RwTree, RwVmDevice, VmDevice, VmDevicePorts,
    VmDeviceTree, io_manager,
};
use crate::support::walk::Pattern::{self, Chained, Hot, Random, Sequential};

/// A contender and what the table calls it.
pub(crate) type Named = (&'static str, Box<dyn Contender>);

/// Contenders for the same writes.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) layout: Layout,
    pub(crate) patterns: &'static [Pattern],
    /// Those of them that two threads make, too.
    pub(crate) by_two: &'static [Pattern],
    /// Random ones with cold caches, too.
    pub(crate) cold: bool,
    pub(crate) make: fn(Layout) -> Vec<Named>,
}

fn boxed(contender: impl Contender + 'static) -> Box<dyn Contender> {
    Box::new(contender)
}

/// Every peer that can serve ranges of any size.
fn ranges(layout: Layout) -> Vec<Named> {
    vec![
        ("ours", boxed(Ranges::new(layout))),
        ("direct call", boxed(Direct::new(layout))),
        ("vm-device", boxed(VmDevice(io_manager(layout)))),
        (
            "vm-device + RwLock",
            boxed(RwVmDevice(RwLock::new(io_manager(layout)))),
        ),
        (
            "vm-device + Mutex",
            boxed(MutexVmDevice(Mutex::new(io_manager(layout)))),
        ),
        ("RwLock<BTreeMap>", boxed(RwTree::new(layout))),
    ]
}

/// The same, and the maps that are keyed by page.
fn aligned_ranges(layout: Layout) -> Vec<Named> {
    let mut all = ranges(layout);
    all.push(("RwLock<HashMap>", boxed(RwHash::new(layout))));
    all.push(("papaya", boxed(Papaya::new(layout))));
    all.push(("vm-device's tree", boxed(VmDeviceTree::new(layout))));
    all
}

fn ports(layout: Layout) -> Vec<Named> {
    vec![
        ("ours", boxed(Ports::new(layout))),
        ("vm-device", boxed(VmDevicePorts::new(layout))),
    ]
}

fn pages(layout: Layout) -> Vec<Named> {
    let pages = Arc::new(Pages::new(layout));
    vec![
        ("ours, look-up alone", boxed(BarePages(Arc::clone(&pages)))),
        ("ours", boxed(pages)),
        ("direct call", boxed(Direct::new(layout))),
        ("vm-device's tree", boxed(VmDeviceTree::new(layout))),
        ("RwLock<BTreeMap>", boxed(RwTree::new(layout))),
        ("RwLock<HashMap>", boxed(RwHash::new(layout))),
        ("papaya", boxed(Papaya::new(layout))),
    ]
}

/// Everything.
pub(crate) fn groups() -> Vec<Group> {
    let mut groups = Vec::new();
    for count in [8, 256] {
        groups.push(Group {
            name: "ports",
            layout: Layout::ports(count),
            patterns: &[Hot, Random, Chained],
            by_two: &[],
            cold: false,
            make: ports,
        });
    }
    for count in [8, 256, 8192] {
        groups.push(Group {
            name: "ranges, page-aligned",
            layout: Layout::aligned(count),
            patterns: &[Hot, Sequential, Random, Chained],
            by_two: if count == 256 { &[Hot, Random] } else { &[] },
            cold: true,
            make: aligned_ranges,
        });
        groups.push(Group {
            name: "ranges, several in a page",
            layout: Layout::small(count),
            patterns: &[Hot, Random, Chained],
            by_two: &[],
            cold: false,
            make: ranges,
        });
    }
    for count in [8, 256, 8192, 1_000_000] {
        groups.push(Group {
            name: "tracked pages, 8 handlers",
            layout: Layout::pages(count, 8),
            patterns: &[Hot, Sequential, Random, Chained],
            by_two: if count == 1_000_000 {
                &[Hot, Random]
            } else {
                &[]
            },
            cold: count == 1_000_000,
            make: pages,
        });
        if count > 8 {
            groups.push(Group {
                name: "tracked pages, a handler each",
                layout: Layout::pages(count, count),
                patterns: &[Hot, Sequential, Random, Chained],
                by_two: &[],
                cold: count == 1_000_000,
                make: pages,
            });
        }
    }
    groups
}
