// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many pages tracked by one call, each with a handler of its own; and what a tracker may do to another's pages.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq::server::IoreqServer;
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{ErrorKind, Gfn, GfnRange, Op, P2mType, VcpuId};

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    claim: MemTypeClaim<SimHypervisor>,
    tracker: Tracker<SimHypervisor>,
}

impl Rig {
    fn new() -> Self {
        let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
        let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("each");
        Rig {
            domain,
            server,
            claim,
            tracker,
        }
    }

    fn calls(&self) -> u64 {
        self.domain.counts().dmop(Op::SetMemType)
    }

    fn is_marked(&self, gfn: u64) -> bool {
        self.domain.mem_type(Gfn(gfn)) == Some(P2mType::IoreqServer)
    }
}

fn pages(first: u64, len: u64) -> GfnRange {
    GfnRange::sized(first, len).unwrap()
}

/// Counts its page's writes.
#[derive(Default)]
struct Count(AtomicU64);

impl PageHandler for Count {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::Relaxed);
        PageOutcome::Apply
    }
}

type Given = Vec<(Gfn, Arc<dyn PageHandler>)>;

fn counting(gfns: impl IntoIterator<Item = u64>) -> Given {
    let one = |gfn| -> (Gfn, Arc<dyn PageHandler>) { (Gfn(gfn), Arc::<Count>::default()) };
    gfns.into_iter().map(one).collect()
}

#[test]
fn neighbours_share_a_hypercall_and_every_page_has_its_own_handler() {
    struct Told(Gfn, Arc<Mutex<Vec<(Gfn, Gfn)>>>);
    impl PageHandler for Told {
        fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
            self.1.lock().unwrap().push((self.0, write.gfn()));
            PageOutcome::Apply
        }
    }
    let rig = Rig::new();
    let told = Arc::default();
    // In no order: a run of 1500, one alone, and a run of two.
    let gfns = (0x100..0x100 + 1500).rev().chain([0x20, 0x31, 0x30]);
    let given = gfns.map(|gfn| -> (Gfn, Arc<dyn PageHandler>) {
        (Gfn(gfn), Arc::new(Told(Gfn(gfn), Arc::clone(&told))))
    });
    rig.tracker.track_each(given.collect()).unwrap();
    assert_eq!(rig.calls(), 2 + 1 + 1, "at most 1024 a call");
    assert_eq!(rig.claim.marked_pages(), 1503);
    let written = [
        0x20,
        0x30,
        0x31,
        0x100,
        0x100 + 1023,
        0x100 + 1024,
        0x100 + 1499,
    ];
    let running = rig.server.start().unwrap();
    let guest = rig.domain.spawn(VcpuId(0), move |cpu| {
        written
            .iter()
            .try_for_each(|gfn: &u64| cpu.store64(gfn << 12, *gfn))
    });
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    let expected = written.map(|gfn| (Gfn(gfn), Gfn(gfn)));
    assert_eq!(*told.lock().unwrap(), expected);
}

#[test]
fn a_conflict_or_a_page_given_twice_changes_nothing() {
    let rig = Rig::new();
    let other = rig.claim.tracker("other");
    other
        .track(pages(0x31, 1), Arc::<Count>::default())
        .unwrap();
    let before = rig.calls();
    let err = rig
        .tracker
        .track_each(counting([0x10, 0x30, 0x31]))
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::RouteConflict);
    assert!(
        err.to_string().contains("\"each\"") && err.to_string().contains("\"other\""),
        "{err}"
    );
    assert_eq!(err.untouched, [pages(0x10, 1), pages(0x30, 2)]);
    assert!(err.done.is_empty() && err.unknown.is_empty());
    let err = rig
        .tracker
        .track_each(counting([0x12, 0x11, 0x12]))
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    assert_eq!(err.untouched.len(), 3);
    assert_eq!(rig.calls(), before);
    for gfn in [0x10, 0x11, 0x12, 0x30] {
        assert_eq!(rig.tracker.state(Gfn(gfn)), PageState::Untracked);
    }
    rig.tracker.track_each(Vec::new()).unwrap();
    drop(rig.claim);
    let late = rig.tracker.track_each(counting([0x10])).unwrap_err();
    assert_eq!(
        (late.kind(), late.untouched.as_slice()),
        (ErrorKind::WrongState, &[pages(0x10, 1)][..])
    );
}

#[test]
fn a_failure_in_the_middle_says_what_became_of_every_page() {
    let rig = Rig::new();
    // Memory ends at frame 0x1000, in the middle of the second run.
    let gfns = [0x10, 0x11, 0xffe, 0xfff, 0x1000, 0x1001, 0x1003];
    let err = rig.tracker.track_each(counting(gfns)).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::WrongState);
    assert_eq!(err.done, [pages(0x10, 2)]);
    assert_eq!(err.unknown, [pages(0xffe, 4)]);
    assert_eq!(err.untouched, [pages(0x1003, 1)]);
    assert_eq!(rig.tracker.state(Gfn(0x10)), PageState::Tracked);
    assert_eq!(rig.tracker.state(Gfn(0x1003)), PageState::Untracked);
    // Nobody knows which of the four are marked: until they are unmarked for certain, they cannot be had.
    for gfn in [0xffe, 0x1001] {
        assert_eq!(rig.tracker.state(Gfn(gfn)), PageState::Leaving);
        let again = rig.tracker.track(pages(gfn, 1), Arc::<Count>::default());
        assert_eq!(again.unwrap_err().kind(), ErrorKind::Retry);
        let again = rig.tracker.track_each(counting([0x20, gfn])).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Retry);
        assert_eq!(again.untouched.len(), 2);
    }
    rig.claim.settle(Duration::from_secs(5)).unwrap();
    assert!(!rig.is_marked(0xffe));
    rig.tracker.track_each(counting([0x20, 0xffe])).unwrap();
    assert!(rig.is_marked(0xffe), "marked for certain this time");
    // Beyond what can be tracked at all: nothing of its run is left behind.
    let last = (1 << 28) - 1;
    let err = rig.tracker.track_each(counting([0x40, last, last + 1]));
    let err = err.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    assert_eq!(err.done, [pages(0x40, 1)]);
    assert_eq!(err.untouched, [pages(last, 2)]);
    assert_eq!(rig.tracker.state(Gfn(last)), PageState::Untracked);
    assert_eq!(rig.claim.marked_pages(), 2 + 2 + 1);
}

#[test]
fn pages_on_their_way_out_are_taken_back_without_a_hypercall() {
    let rig = Rig::new();
    rig.tracker
        .track(pages(0x10, 4), Arc::<Count>::default())
        .unwrap();
    rig.tracker.untrack(pages(0x11, 2)).unwrap();
    let before = rig.calls();
    let count = Arc::<Count>::default();
    let mut given = counting([0x12, 0x18, 0x19]);
    given.push((Gfn(0x11), Arc::<Count>::clone(&count)));
    rig.tracker.track_each(given).unwrap();
    assert_eq!(rig.calls(), before + 1, "for the two that were not marked");
    rig.claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!(rig.claim.marked_pages(), 6);
    rig.tracker.untrack(pages(0x18, 2)).unwrap();
    rig.claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!(
        (rig.claim.marked_pages(), rig.claim.marked_pages_peak()),
        (4, 6)
    );
    let running = rig.server.start().unwrap();
    let guest = rig
        .domain
        .spawn(VcpuId(0), |cpu| cpu.store64(0x11 << 12, 1));
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_tracker_ends_and_replaces_only_what_it_tracks() {
    let rig = Rig::new();
    let other = rig.claim.tracker("other");
    let theirs = Arc::<Count>::default();
    other
        .track(pages(0x11, 1), Arc::<Count>::clone(&theirs))
        .unwrap();
    rig.tracker.track_each(counting([0x10, 0x12])).unwrap();
    let err = rig.tracker.replace(pages(0x10, 2), Arc::<Count>::default());
    assert_eq!(err.unwrap_err().kind(), ErrorKind::NoSuchRoute);
    rig.tracker.untrack(pages(0x10, 3)).unwrap();
    let states = [0x10, 0x11, 0x12].map(|gfn| rig.tracker.state(Gfn(gfn)));
    assert_eq!(
        states,
        [PageState::Leaving, PageState::Tracked, PageState::Leaving]
    );
    let running = rig.server.start().unwrap();
    let guest = rig
        .domain
        .spawn(VcpuId(0), |cpu| cpu.store64(0x11 << 12, 1));
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    assert_eq!(theirs.0.load(Ordering::Relaxed), 1);
}
