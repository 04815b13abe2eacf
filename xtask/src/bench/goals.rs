// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is fast enough: the highest ratio to vm-device, which looks up without any lock and cannot change meanwhile.

use super::figures::Row;

/// The highest ratio of two threads' time for a write, taken together, to one thread's: 1.85 times the throughput.
pub(crate) const TWO_THREADS: f64 = 1.0 / 1.85;

/// The most nanoseconds, where the goal is none of ratio.
pub(crate) fn nanoseconds(ours: &Row) -> Option<f64> {
    match (ours.name.as_str(), ours.pattern.as_str()) {
        ("a tracked page leaves and comes back", _) => Some(130.0),
        ("adding a million pages, per page", "cold") => Some(10.0),
        ("adding a million pages, per page", "warm") => Some(4.0),
        _ => None,
    }
}

/// The goal of ours against that peer, if there is one.
pub(crate) fn of(ours: &Row, other: &Row) -> Option<f64> {
    let real = other.contender == "vm-device";
    // A million ranges cannot be registered with vm-device itself, so pages are measured against its tree.
    let tree = other.contender == "vm-device's tree";
    if ours.threads != 1 {
        return None;
    }
    let (n, pattern) = (ours.n, ours.pattern.as_str());
    match ours.name.as_str() {
        "ports" | "ranges, page-aligned" | "ranges, several in a page" if real => {
            match (n, pattern) {
                (_, "hot") | (8, "random") => Some(0.70),
                (256, "random") => Some(0.45),
                (8192, "random") if ours.name == "ranges, page-aligned" => Some(0.45),
                (8192, "random") => Some(0.55),
                _ => None,
            }
        }
        "tracked pages, 8 handlers" | "tracked pages, a handler each" if tree && n == 1_000_000 => {
            let alone = ours.contender == "ours, look-up alone";
            let shared = ours.name == "tracked pages, 8 handlers";
            match (pattern, shared, alone) {
                ("random", true, true) => Some(0.30),
                ("random", true, false) => Some(0.35),
                ("random", false, true) => Some(0.50),
                ("random", false, false) => Some(0.55),
                ("hot", ..) => Some(0.40),
                _ => None,
            }
        }
        _ => None,
    }
}
