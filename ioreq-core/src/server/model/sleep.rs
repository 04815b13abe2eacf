// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A worker's sleep against what ends it: requests, replies of other threads, the stop. A wake-up that is lost is a deadlock.

use std::sync::Arc;

use loom::thread;

use super::deferred::{DEFERRED, Later, VALUE};
use super::world::{PAGE, World};
use super::{model, serve_until_done, stop, worker};
use crate::claim::PageTracker;
use crate::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use crate::range::PortRange;

/// Reads give the port and seven.
pub(super) struct Seven;
impl Handler for Seven {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        (access.addr + 7).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

struct Ignores;
impl PageHandler for Ignores {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// Bound: two requests, 3 preemptions.
#[test]
fn loom_no_request_is_slept_through() {
    model(3, || {
        let world = World::new();
        let server = world.server();
        server
            .route("seven", PortRange::new(0, 1).unwrap(), Seven)
            .unwrap();
        let worker = worker(&server);
        let guest = thread::spawn({
            let world = world.clone();
            move || (world.port_read(0), world.port_read(1))
        });
        assert_eq!(guest.join().unwrap(), (7, 8));
        stop(&server, worker);
    });
}

/// The stop comes at any moment of a request, which the worker or the caller after it serves. Bound: one request, 2 preemptions.
#[test]
fn loom_a_stop_is_not_slept_through() {
    model(2, || {
        let world = World::new();
        let server = world.server();
        server
            .route("seven", PortRange::new(0, 0).unwrap(), Seven)
            .unwrap();
        let worker = worker(&server);
        let guest = thread::spawn({
            let world = world.clone();
            move || {
                let value = world.port_read(0);
                world.finish();
                value
            }
        });
        stop(&server, worker);
        assert_eq!(serve_until_done(&server, &world, guest), 7);
    });
}

/// Whoever finds a wake-up under way leaves it at that: the worker looks after it. Bound: 2 preemptions.
#[test]
fn loom_a_stop_beside_another_wake_up_is_not_slept_through() {
    model(2, || {
        let world = World::new();
        let server = world.server();
        let worker = worker(&server);
        let other = thread::spawn({
            let server = server.clone();
            move || server.core().wake_all()
        });
        stop(&server, worker);
        other.join().unwrap();
    });
}

/// A page is parked for a moment: who holds a write to it back is woken. Bound: one write, 2 preemptions.
#[test]
fn loom_the_end_of_parking_is_not_slept_through() {
    model(2, || {
        let world = World::new();
        let server = world.server();
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("page");
        tracker.track(PAGE.into(), Arc::new(Ignores)).unwrap();
        let worker = worker(&server);
        let guest = thread::spawn({
            let world = world.clone();
            move || world.store(5)
        });
        if server.core().pages.park(PAGE) {
            server.core().unpark(PAGE);
        }
        guest.join().unwrap();
        stop(&server, worker);
        assert_eq!(world.word(0), 5);
    });
}

/// Each element's reply is of another thread, and finds the worker asleep or on its way. Bound: two elements, 2 preemptions.
#[test]
fn loom_no_reply_is_slept_through() {
    model(2, || {
        let world = World::new();
        let server = world.server();
        let (handler, wanted) = Later::new();
        server.route("later", DEFERRED, handler).unwrap();
        let worker = worker(&server);
        let completer = thread::spawn(move || {
            for _ in 0..2 {
                let completion = wanted.recv().unwrap();
                assert!(completion.complete(VALUE));
            }
        });
        world.port_read_repeated(0, 2);
        completer.join().unwrap();
        stop(&server, worker);
        assert_eq!(world.word(0), VALUE << 8 | VALUE);
    });
}
