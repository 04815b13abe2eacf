// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is good enough: the highest ratio to vm-device, which looks up without any lock and cannot change meanwhile; to raw
//! programs; and the most that a figure by itself may be.

use super::figures::Row;

/// Of two threads' time for a write, taken together, to one thread's: 1.85 times the throughput. Who writes the same tracked page
/// waits for its order, so together they need only be about as fast as one.
fn two_threads(ours: &Row) -> f64 {
    let takes_turns = ours.contender == "ours" && ours.name.starts_with("tracked pages");
    match ours.pattern.as_str() {
        "hot" if takes_turns => 1.0 / 0.9,
        _ => 1.0 / 1.85,
    }
}

/// Of the time for a write beside an updater to the time without one: what is kept of the rate.
fn beside_updater(ours: &Row) -> f64 {
    match ours.n {
        8192 => 1.0 / 0.75,
        _ => 1.0 / 0.85,
    }
}

/// Of ours to what it was measured in turns with. Beside an updater it is of one whose ranges come and go; one that replaces what the
/// dispatcher uses besides, and one that changes another map, are for comparison.
pub(crate) fn in_turns(ours: &Row, other: &str) -> Option<f64> {
    match (other, ours.pattern.as_str()) {
        ("one thread", _) => Some(two_threads(ours)),
        ("no updater", "updater") => Some(beside_updater(ours)),
        _ => None,
    }
}

/// The most that a figure may be, where the goal is none of ratio, and what it is of.
pub(crate) fn of_itself(ours: &Row) -> Option<(&'static str, f64)> {
    match (ours.name.as_str(), ours.pattern.as_str()) {
        ("a tracked page leaves and comes back", _) => Some(("a nanosecond", 130.0)),
        ("adding a million pages, per page", "cold") => Some(("a nanosecond", 10.0)),
        ("adding a million pages, per page", "warm") => Some(("a nanosecond", 4.0)),
        // One in 512 waits is a sleep, to see whether polling still helps.
        ("a worker's system calls a request", "the vCPU spins") => Some(("a call", 0.02)),
        ("a worker's system calls a request", "the vCPU sleeps, the worker polls") => {
            Some(("a call", 1.02))
        }
        ("changes of types to unmark a page", "every other page") => None,
        ("changes of types to unmark a page", _) => Some(("a call", 1.0 / 64.0)),
        ("grace periods to unmark 1024 pages", "a page a call" | "1024 a call, meanwhile") => {
            Some(("a call", 1.0))
        }
        // 9 bytes; of the leaf at the end an eighth is used.
        ("memory a tracked page, 8 handlers", _) => Some(("a byte", 9.01)),
        ("memory a tracked page, a handler each", _) => Some(("a byte", 17.0)),
        ("a tracked page by itself", _) => Some(("a byte", 4608.0)),
        ("the root of tracked pages", _) => Some(("a mebibyte", 8.0)),
        ("an idle server, CPU time of 10 s", _) => Some(("a millisecond", 10.0)),
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
    let raw = other.contender == "raw program";
    match ours.name.as_str() {
        "round trip, polling" if raw => Some(3.0),
        "round trip, sleeping" if raw => Some(1.3),
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
