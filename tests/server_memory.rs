// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory that is replaced while a server runs: workers take the new one up, and nobody keeps the old one.

#[path = "support/wrapped.rs"]
mod wrapped;

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use ioreq::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};
use ioreq::server::{Exit, IoreqServer, Polling};
use ioreq::sim::{Domain, DomainConfig, Machine};
use ioreq::{GuestMap, MmioRange, VcpuId};

use wrapped::{Memory, Wrapped};

struct Nothing;

impl MutHandler for Nothing {
    fn read(&mut self, _: &Context<'_>, _: Access) -> ReadOutcome {
        0.into()
    }
    fn write(&mut self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

fn goes(old: &Weak<Memory>) -> bool {
    // A bound for a test that fails; how long it takes does not matter.
    let end = Instant::now() + Duration::from_secs(20);
    while old.strong_count() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    old.strong_count() == 0
}

fn server(vcpus: u32) -> (Domain, Arc<Wrapped>, IoreqServer<Wrapped>) {
    let domain = Machine::new()
        .create_domain(DomainConfig::new(vcpus))
        .unwrap();
    let hv = Arc::new(Wrapped::new(&domain));
    let server = IoreqServer::<Wrapped>::builder(Arc::clone(&hv))
        .polling(Polling::off())
        .build()
        .unwrap();
    let range = MmioRange::sized(0xe000_0000, 8).unwrap();
    server.route("nothing", range, Mutex::new(Nothing)).unwrap();
    (domain, hv, server)
}

#[test]
fn workers_that_sleep_let_go_of_memory_that_was_replaced() {
    let (_domain, hv, server) = server(2);
    let running = server.start().unwrap();
    assert!(goes(&hv.replace()));
    assert!(goes(&hv.replace()), "not the first time only");
    running.stop().unwrap();
}

#[test]
fn a_caller_that_polls_takes_the_new_memory_up_at_its_next_look() {
    let (_domain, hv, server) = server(1);
    let old = hv.replace();
    assert!(old.strong_count() > 0, "the group has it");
    server.poll().unwrap();
    assert_eq!(old.strong_count(), 0);
}

/// The wake-up that a stop sends is consumed by the last look before the sleep; the stop must not be.
#[test]
fn a_stop_in_the_middle_of_a_look_is_not_slept_through() {
    let (_domain, hv, server) = server(1);
    let running = server.start().unwrap();
    // Binding made its event channel pending: past that, nothing but a wake-up wakes the worker.
    assert!(goes(&hv.replace()));
    std::thread::sleep(Duration::from_millis(50));
    let (looking, looked) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let held = move || {
        looking.send(()).unwrap();
        let _until = goes_on.recv();
    };
    // Woken, a worker looks; as there is nothing, it sees whether it is to stop, and looks again. In that look it is held.
    let again = Arc::clone(&hv);
    *hv.on_look.lock().unwrap() = Some(Box::new(move || {
        *again.on_look.lock().unwrap() = Some(Box::new(held));
        again.replace();
    }));
    hv.replace();
    looked.recv().unwrap();
    let stopping = std::thread::spawn(move || running.stop().map(drop));
    // Stop has set its flag and woken the worker by then; if it has not, this tests less, and does not fail.
    std::thread::sleep(Duration::from_millis(50));
    go_on.send(()).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !stopping.is_finished() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(stopping.is_finished(), "the worker sleeps");
    stopping.join().unwrap().unwrap();
}

/// The mappings of a domain that is gone would keep it as a zombie: the server may stay, they may not.
#[test]
fn when_the_domain_is_gone_no_worker_keeps_its_memory() {
    let (domain, hv, server) = server(2);
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.store32(0xe000_0000, 1));
    guest.unwrap().join().unwrap();
    let last = Arc::downgrade(&hv.memory());
    domain.destroy();
    assert!(goes(&last), "before anybody asks how it ended");
    assert_eq!(running.wait().unwrap(), Exit::DomainGone);
    drop(server);
}
