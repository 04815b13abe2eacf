// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A deferred request that another thread completes while the server stops: answered once, and its vCPU notified.

use std::sync::Mutex;
use std::time::Duration;

use loom::sync::mpsc::{self, Receiver, Sender};
use loom::thread;

use super::world::World;
use super::{model, serve_until_done};
use crate::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
use crate::range::PortRange;

/// Where reads are deferred, and what they are answered with.
pub(super) const DEFERRED: PortRange = match PortRange::new(0, 0) {
    Ok(range) => range,
    Err(_) => panic!("a port"),
};
pub(super) const VALUE: u64 = 0x55;
const FAILED: u64 = 0xff;

/// Lets another thread answer reads.
pub(super) struct Later(Mutex<Sender<Completion<u64>>>);

impl Later {
    pub(super) fn new() -> (Self, Receiver<Completion<u64>>) {
        let (send, wanted) = mpsc::channel();
        (Later(Mutex::new(send)), wanted)
    }
}

impl Handler for Later {
    fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
        let (deferred, completion) = cx.defer_read(Duration::MAX);
        let sender = self.0.lock().unwrap().clone();
        sender.send(completion).unwrap();
        ReadOutcome::Defer(deferred)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

/// Plain: the completing thread answers the vCPU itself. What ends is the service, and another begins: the next request is the
/// vCPU's own. Bound: two requests, 3 preemptions.
#[test]
fn loom_a_deferred_read_is_answered_once_while_the_service_ends() {
    model(3, || {
        let world = World::new();
        let server = world.server();
        let (handler, wanted) = Later::new();
        server.route("later", DEFERRED, handler).unwrap();
        let seven = super::sleep::Seven;
        server
            .route("seven", PortRange::new(1, 1).unwrap(), seven)
            .unwrap();
        let guest = thread::spawn({
            let world = world.clone();
            move || {
                let values = (world.port_read(0), world.port_read(1));
                world.finish();
                values
            }
        });
        while server.core().serve_unserved() == 0 {
            thread::yield_now();
        }
        let completer = thread::spawn(move || wanted.recv().unwrap().complete(VALUE));
        server.core().expire_deferred();
        let (first, second) = serve_until_done(&server, &world, guest);
        let in_time = completer.join().unwrap();
        assert_eq!(first, if in_time { VALUE } else { FAILED });
        assert_eq!(second, 8, "an answer struck the next request");
    });
}

/// Of several elements: the reply goes by the group. Bound: two elements, 2 preemptions.
#[test]
fn loom_a_deferred_element_is_answered_once_while_the_service_ends() {
    model(2, || {
        let world = World::new();
        let server = world.server();
        let (handler, wanted) = Later::new();
        server.route("later", DEFERRED, handler).unwrap();
        let guest = thread::spawn({
            let world = world.clone();
            move || {
                world.port_read_repeated(0, 2);
                world.finish();
            }
        });
        while server.core().serve_unserved() == 0 {
            thread::yield_now();
        }
        let first = wanted.recv().unwrap();
        let completer = thread::spawn(move || first.complete(VALUE));
        server.core().expire_deferred();
        // The second element: nobody completes it.
        drop(wanted);
        while !world.is_done() {
            server.core().serve_unserved();
            server.core().expire_deferred();
            thread::yield_now();
        }
        guest.join().unwrap();
        let in_time = completer.join().unwrap();
        let expected = if in_time { VALUE } else { FAILED };
        assert_eq!(world.word(0) & FAILED, expected);
        assert_eq!(world.word(0) >> 8, FAILED);
    });
}

/// The whole server ends, its event channels first: whoever answers, the vCPU is notified. Bound: one request, 3 preemptions.
#[test]
fn loom_a_deferred_read_is_notified_before_the_server_ends() {
    model(3, || {
        let world = World::new();
        let server = world.server();
        let (handler, wanted) = Later::new();
        server.route("later", DEFERRED, handler).unwrap();
        let guest = thread::spawn({
            let world = world.clone();
            move || world.port_read(0)
        });
        while server.core().serve_unserved() == 0 {
            thread::yield_now();
        }
        let completion = wanted.recv().unwrap();
        let completer = thread::spawn(move || completion.complete(VALUE));
        drop(server);
        let first = guest.join().unwrap();
        let in_time = completer.join().unwrap();
        assert_eq!(first, if in_time { VALUE } else { FAILED });
    });
}
