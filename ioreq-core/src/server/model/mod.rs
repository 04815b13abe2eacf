// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loom models of whole servers: the very source of worker, waker, deferral and claim, on a hypervisor of loom's locks.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p ioreq-core --release --target-dir target/loom --lib server::model
//! ```
//!
//! One vCPU, which sleeps until its event channel fires, as Xen's do, so an answer without a notification is a deadlock; one
//! worker or caller that serves; one more thread. A worker's sleep has no bound here (`Service::patience`), so what only a
//! clock would end is a deadlock, too. Event channels are loom's mutex and condition variable. Not modelled: polling
//! (workers sleep whenever nothing is there), the buffered ring, several groups. Bounds are in each model.

mod claim;
mod deferred;
mod sleep;
mod world;

use std::sync::Arc;

use loom::sync::mpsc;
use loom::thread::{self, JoinHandle};

use super::exit::Exit;
use super::ioreq_server::IoreqServer;
use super::run::Stop;
use world::{Hv, World};

type Server = Arc<IoreqServer<Hv>>;

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 50_000;
    model.check(body);
}

/// A worker thread, as [`Running`](super::Running) makes it. It has its group's lock when this returns: loom 0.7 puts a thread to
/// sleep that is about to *try* a lock which another one gets, and a worker never gives it back.
fn worker(server: &Server) -> (Arc<Stop>, JoinHandle<()>) {
    let stop = Arc::new(Stop::default());
    let (up, ready) = mpsc::channel();
    let thread = thread::spawn({
        let (server, stop) = (Arc::clone(server), Arc::clone(&stop));
        move || {
            let core = server.core();
            let mut group = core.groups[0].lock().unwrap();
            up.send(()).unwrap();
            assert!(group.work(core, &stop).is_none(), "ended by itself");
        }
    });
    ready.recv().unwrap();
    (stop, thread)
}

/// As [`Running`](super::Running) ends.
fn stop(server: &Server, (stop, worker): (Arc<Stop>, JoinHandle<()>)) {
    stop.end(server.core(), Exit::Stopped);
    worker.join().unwrap();
    server.core().expire_deferred();
}

/// Serves in the calling thread until `guest` has ended, and joins it.
fn serve_until_done<T>(server: &Server, world: &World, guest: JoinHandle<T>) -> T {
    while !world.is_done() {
        server.core().serve_unserved();
        thread::yield_now();
    }
    guest.join().unwrap()
}
