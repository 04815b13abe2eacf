// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What tracked pages take: bytes asked of the allocator, orders included. Counted, not timed.

use ioreq::dispatch::{Grace, PageMap};
use ioreq::{Gfn, GfnRange};

use crate::counting::held_by;
use crate::row::Row;
use crate::support::device::Device;
use crate::support::layout::Layout;
use crate::support::ours::{PageRoute, Pages};
use crate::support::peers::{Papaya, RwHash, RwTree};

const MANY: u64 = 1_000_000;
/// Pages that are alone in their leaf.
const LONE: u64 = 1000;
/// The last frame of 2^40 bytes.
const LAST: Gfn = Gfn((1 << 28) - 1);

#[allow(clippy::cast_precision_loss, reason = "some hundred million at most")]
fn per_page(bytes: isize, pages: u64) -> f64 {
    bytes as f64 / pages as f64
}

/// Bytes of the devices that every contender makes; no contender's.
fn devices(layout: Layout) -> isize {
    let (bytes, _devices) = held_by(|| Device::new(0));
    bytes * isize::try_from(layout.devices).unwrap_or(isize::MAX)
}

/// Bytes a page that each contender holds for a million pages side by side; of so many devices.
fn dense(name: &'static str, devices_of: u64) -> Vec<Row> {
    let layout = Layout::pages(MANY, devices_of);
    let row = |contender, bytes: isize| {
        let each = per_page(bytes - devices(layout), MANY);
        Row::of("bytes", (name, MANY, "side by side", contender), vec![each])
    };
    let pages = Pages::empty(layout);
    let (ours, ()) = held_by(|| pages.fill(layout));
    vec![
        row("ours", ours),
        row("RwLock<BTreeMap>", held_by(|| RwTree::new(layout)).0),
        row("RwLock<HashMap>", held_by(|| RwHash::new(layout)).0),
        row("papaya", held_by(|| Papaya::new(layout)).0),
    ]
}

/// The root of a map for 2^40 bytes of guest, and what a page costs that is alone in its leaf.
fn root_and_lone() -> [Row; 2] {
    let (root, map) = held_by(|| PageMap::<PageRoute>::new(LAST, Grace::new()));
    let map = map.expect("as large as any");
    let route = Pages::route(0);
    let (bytes, ()) = held_by(|| {
        for page in 0..LONE {
            let frame = GfnRange::from(Gfn(page << 10));
            map.insert(frame, &route).expect("nothing is there");
        }
    });
    let mebi = per_page(root, 1 << 20);
    let root = ("the root of tracked pages", LAST.0 + 1, "virtual", "ours");
    let lone = ("a tracked page by itself", LONE, "far apart", "ours");
    [
        Row::of("MiB", root, vec![mebi]),
        Row::of("bytes", lone, vec![per_page(bytes, LONE)]),
    ]
}

/// All of it.
pub(crate) fn rows(_: u32) -> Vec<Row> {
    let mut rows = dense("memory a tracked page, 8 handlers", 8);
    rows.extend(dense("memory a tracked page, a handler each", MANY));
    rows.extend(root_and_lone());
    rows
}
