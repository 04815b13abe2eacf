// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a server over a restricted handle is told of its domain's life, and when.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use ioreq::claim::{MemTypeClaim, PageTracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq::server::{Budget, Exit, IoreqServer, life_line};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{DomainState, GfnRange, ShutdownReason, Transport};

fn restricted() -> (Domain, SimHypervisor) {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let hv = domain.hypervisor();
    hv.restrict();
    (domain, hv)
}

#[test]
fn by_itself_it_notices_death_and_no_shutdown() {
    let (domain, hv) = restricted();
    let server = IoreqServer::builder(hv.clone()).build().unwrap();
    let running = server.start().unwrap();
    domain.shutdown(ShutdownReason::Reboot);
    assert_eq!(hv.domain_state().unwrap(), DomainState::Running);
    let privileged = domain.hypervisor().domain_state().unwrap();
    assert_eq!(privileged, DomainState::Shutdown(ShutdownReason::Reboot));
    std::thread::sleep(Duration::from_millis(250));
    assert!(!running.is_finished());
    domain.destroy();
    assert_eq!(running.wait().unwrap(), Exit::DomainGone);
}

#[test]
fn who_may_ask_tells_it_of_every_end() {
    for reason in [
        ShutdownReason::PowerOff,
        ShutdownReason::Reboot,
        ShutdownReason::Suspend,
        ShutdownReason::Crash,
    ] {
        let (domain, hv) = restricted();
        let (watch, notice) = life_line().unwrap();
        let privileged = domain.hypervisor();
        let watching = std::thread::spawn(move || watch.run(&privileged));
        let server = IoreqServer::builder(hv)
            .domain_notice(notice)
            .build()
            .unwrap();
        let running = server.start().unwrap();
        domain.shutdown(reason);
        assert_eq!(running.wait().unwrap(), Exit::Shutdown(reason));
        drop(server);
        // With the server its end of the line is gone; what is told next finds nobody.
        domain.destroy();
        watching.join().unwrap().unwrap_err();
    }
}

#[test]
fn death_is_told_by_either() {
    let (domain, hv) = restricted();
    let (watch, notice) = life_line().unwrap();
    let server = IoreqServer::builder(hv)
        .domain_notice(notice)
        .build()
        .unwrap();
    let mut manager = EventManager::new().unwrap();
    let subscriber = server.subscriber(Budget::default()).unwrap();
    let exit = subscriber.exit();
    manager.add_subscriber(subscriber);
    manager.run_with_timeout(200).unwrap();
    assert_eq!(exit.get(), None);
    drop(watch); // nobody tells
    domain.destroy();
    while exit.get().is_none() {
        manager.run_with_timeout(100).unwrap();
    }
    assert_eq!(exit.get(), Some(Exit::DomainGone));

    // And where the handle says that it runs, what is told counts.
    let (_domain, hv) = restricted();
    let (watch, notice) = life_line().unwrap();
    let server = IoreqServer::builder(hv)
        .domain_notice(notice)
        .build()
        .unwrap();
    let running = server.start().unwrap();
    watch.tell(DomainState::Gone).unwrap();
    assert_eq!(running.wait().unwrap(), Exit::DomainGone);
}

/// Thread-local values of the framework may have gone before: none is needed to end.
#[test]
fn a_server_may_end_with_the_thread_that_owns_it() {
    thread_local! {
        static OWNED: RefCell<Option<(MemTypeClaim<SimHypervisor>, IoreqServer<SimHypervisor>)>> =
            const { RefCell::new(None) };
    }
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let hv = domain.hypervisor();
    let thread = std::thread::spawn(move || {
        // Before anything else of this thread: so it goes last.
        OWNED.with(|owned| {
            let server = IoreqServer::builder(hv).build().unwrap();
            let claim = server.claim_mem_type().unwrap();
            let page = GfnRange::sized(0x10, 1).unwrap();
            claim.tracker("page").track(page, Arc::new(Pass)).unwrap();
            server.poll().unwrap();
            *owned.borrow_mut() = Some((claim, server));
        });
    });
    thread.join().unwrap();
    assert!(domain.leaks().is_clean());
}

struct Pass;

impl PageHandler for Pass {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}
