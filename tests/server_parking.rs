// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest does in the very moment in which its page is unmarked.

#[path = "support/wrapped.rs"]
mod wrapped;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ioreq::claim::{PageState, PageTracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{Gfn, GfnRange, VcpuId};

use wrapped::Wrapped;

struct Apply;

impl PageHandler for Apply {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// The answer to a write that traps now would be looked at under the new type.
#[test]
fn no_write_is_answered_while_its_pages_type_changes() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let hv = Arc::new(Wrapped::new(&domain));
    let server = IoreqServer::<Wrapped>::builder(Arc::clone(&hv))
        .build()
        .unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("test");
    let page = GfnRange::from(Gfn(0x10));
    tracker.track(page, Arc::new(Apply)).unwrap();
    let running = server.start().unwrap();

    let (done, through): (_, Receiver<u64>) = channel();
    let (tell, told) = channel();
    let guest = domain.clone();
    *hv.before_unmark.lock().unwrap() = Some(Box::new(move || {
        let vcpu = guest.spawn(VcpuId(0), move |cpu| {
            cpu.store64(0x1_0000, 7)?;
            let _listens = done.send(cpu.load64(0x1_0000)?);
            Ok(())
        });
        tell.send((
            vcpu.unwrap(),
            through.recv_timeout(Duration::from_millis(200)).is_err(),
            through,
        ))
        .unwrap();
    }));
    tracker.untrack(page).unwrap();
    let (vcpu, waited, through) = told.recv().unwrap();
    assert!(waited, "the worker answered");
    assert_eq!(through.recv().unwrap(), 7);
    vcpu.join().unwrap();
    let report = claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!((report.unmarked, report.contended), (1, 1));
    assert_eq!(tracker.state(Gfn(0x10)), PageState::Untracked);
    running.stop().unwrap();
}
