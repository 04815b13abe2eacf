// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server's process dies at any point of a request; another one takes the server over by its record. On the model, which
//! keeps what Xen keeps.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::abi::STATE_IOREQ_READY;
use ioreq::claim::{MemTypeClaim, PageTracker};
use ioreq::handler::{
    Access, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome,
    Verdict, WriteOutcome,
};
use ioreq::server::{IoreqServer, ServerRecord};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor, XenVersion};
use ioreq::slot::Slots;
use ioreq::{
    BufIoreq, ErrorKind, Gfn, GfnRange, GuestRam, MarkAuthority, MemTypes, MmioRange, P2mType,
    PortRange, Transport, VcpuId, Width,
};
use vm_memory::GuestAddress;

const PORT: u16 = 0x500;
const PAGE: u64 = 0x200;

fn domain() -> Domain {
    Machine::new().create_domain(DomainConfig::new(1)).unwrap()
}

/// A file name of its own for each test; the file goes with it.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let name = format!("ioreq-take-over-{test}-{}", std::process::id());
        Place(std::env::temp_dir().join(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn ports() -> PortRange {
    PortRange::sized(PORT, 4).unwrap()
}

fn page() -> GfnRange {
    GfnRange::sized(PAGE, 1).unwrap()
}

/// What the first process does with a request.
#[derive(Clone, Copy)]
enum Fate {
    /// It takes the request, and dies before it answers.
    Takes,
    /// It answers, and dies before it notifies.
    Answers,
}

/// The handler in which the first process dies.
struct Dies {
    hv: SimHypervisor,
    fate: Fate,
    /// Completions that nobody will complete: a dead process does not.
    pending: Mutex<Vec<Completion<u64>>>,
}

impl Handler for Dies {
    fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
        self.hv.kill();
        match self.fate {
            Fate::Answers => 7.into(),
            Fate::Takes => {
                let (deferred, completion) = cx.defer_read(Duration::from_secs(3600));
                self.pending.lock().unwrap().push(completion);
                ReadOutcome::Defer(deferred)
            }
        }
    }

    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

struct Answers(u64);

impl Handler for Answers {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.into()
    }

    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

#[derive(Default)]
struct Counts(AtomicU64);

impl PageHandler for Counts {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        Verdict::Apply.into()
    }
}

type Server = IoreqServer<SimHypervisor>;

/// Serves in this thread until the process has been killed in a handler.
fn serve_until_dead(server: &Server, hv: &SimHypervisor) {
    while hv.vcpus().is_ok() {
        server.poll().unwrap();
        std::thread::yield_now();
    }
}

/// A process that is dead runs no destructor.
fn bury<T>(value: T) {
    std::mem::forget(value);
}

fn reads_with(fate: Fate, place: &Place) -> u64 {
    let domain = domain();
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .record(&place.0)
        .build()
        .unwrap();
    let handler = Arc::new(Dies {
        hv: hv.clone(),
        fate,
        pending: Mutex::default(),
    });
    first.route("port", ports(), Arc::clone(&handler)).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inl(PORT)).unwrap();
    serve_until_dead(&first, &hv);
    bury((first, handler));

    let second = IoreqServer::builder(domain.hypervisor())
        .take_over(&place.0)
        .build()
        .unwrap();
    second.route("port", ports(), Answers(8)).unwrap();
    let running = second.start().unwrap();
    let value = guest.join().unwrap();
    running.stop().unwrap();
    drop(second);
    assert!(domain.leaks().is_clean(), "{:?}", domain.leaks());
    assert!(!place.0.exists(), "the record goes with its server");
    value.into()
}

#[test]
fn a_request_that_was_taken_is_served_again() {
    assert_eq!(reads_with(Fate::Takes, &Place::new("takes")), 8);
}

#[test]
fn an_answer_that_was_not_notified_reaches_the_guest() {
    assert_eq!(reads_with(Fate::Answers, &Place::new("answers")), 7);
}

#[test]
fn a_request_that_nobody_took_is_served() {
    let place = Place::new("ready");
    let domain = domain();
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .record(&place.0)
        .build()
        .unwrap();
    first.route("port", ports(), Answers(7)).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inl(PORT)).unwrap();
    hv.kill();
    bury(first);
    let second = IoreqServer::builder(domain.hypervisor())
        .take_over(&place.0)
        .build()
        .unwrap();
    second.route("port", ports(), Answers(8)).unwrap();
    let running = second.start().unwrap();
    assert_eq!(guest.join().unwrap(), 8);
    running.stop().unwrap();
}

/// A server whose claim has one page, and whose process then dies.
fn dead_owner(domain: &Domain, place: &Place) -> SimHypervisor {
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .record(&place.0)
        .build()
        .unwrap();
    assert!(!ServerRecord::read(&place.0).unwrap().claimed);
    let claim = first.claim_mem_type().unwrap();
    assert!(ServerRecord::read(&place.0).unwrap().claimed);
    let tracker = claim.tracker("first");
    tracker.track(page(), Arc::new(Counts::default())).unwrap();
    hv.kill();
    bury((first, claim, tracker));
    hv
}

fn word(domain: &Domain, addr: u64) -> u64 {
    let memory = domain.memory();
    GuestRam::load(&*memory, GuestAddress(addr), Width::B4).unwrap()
}

#[test]
fn marked_pages_are_adopted_and_then_unmarked_safely() {
    let place = Place::new("pages");
    let domain = domain();
    dead_owner(&domain, &place);
    let guest = domain
        .spawn(VcpuId(0), |cpu| cpu.store32(PAGE << 12 | 8, 5))
        .unwrap();

    let second = IoreqServer::builder(domain.hypervisor())
        .take_over(&place.0)
        .build()
        .unwrap();
    let claim: MemTypeClaim<_> = second.claim_mem_type().unwrap();
    let tracker = claim.tracker("second");
    let counts = Arc::new(Counts::default());
    tracker.adopt(page(), Arc::clone(&counts) as _).unwrap();
    let twice = tracker.adopt(page(), Arc::clone(&counts) as _).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::RouteConflict);
    assert_eq!(claim.marked_pages(), 1);
    let running = second.start().unwrap();
    guest.join().unwrap();
    assert_eq!(word(&domain, PAGE << 12 | 8), 5);
    assert_eq!(counts.0.load(Ordering::SeqCst), 1);

    drop((tracker, claim));
    assert_eq!(domain.mem_type(Gfn(PAGE)), Some(P2mType::RamRw));
    assert!(!ServerRecord::read(&place.0).unwrap().claimed);
    running.stop().unwrap();
    drop(second);
    assert!(domain.leaks().is_clean(), "{:?}", domain.leaks());
}

/// The first process dies when it has changed the page's type, and not yet seen the write that trapped just before.
#[test]
fn a_page_that_was_just_unmarked_under_a_write_is_marked_again() {
    for version in XenVersion::ALL {
        let place = Place::new(&format!("half-unmarked-{version:?}"));
        let machine = Machine::builder().version(version).build();
        let domain = machine.create_domain(DomainConfig::new(1)).unwrap();
        let hv = domain.hypervisor();
        let first = IoreqServer::builder(hv.clone()).record(&place.0);
        let first = first.build().unwrap();
        first.route("port", ports(), Answers(7)).unwrap();
        let claim = first.claim_mem_type().unwrap();
        let tracker = claim.tracker("first");
        let counts = Arc::new(Counts::default());
        tracker.track(page(), Arc::clone(&counts) as _).unwrap();
        let guest = domain.spawn(VcpuId(0), |cpu| {
            cpu.rep_stos(PAGE << 12, Width::B4, 5, 8)?;
            // An answer that was never consumed would be in the way of this.
            cpu.inl(PORT)
        });
        let slots = Slots::new(hv.ioreq_page(first.id()).unwrap(), 1).unwrap();
        while slots.get(VcpuId(0)).unwrap().state() != STATE_IOREQ_READY {
            std::thread::yield_now();
        }
        let authority = MarkAuthority::for_conformance_tests();
        let changed = hv.set_mem_type(&authority, P2mType::RamRw, page());
        changed.unwrap();
        hv.kill();
        bury((first, claim, tracker));

        let second = IoreqServer::builder(domain.hypervisor());
        let second = second.take_over(&place.0).build().unwrap();
        assert_eq!(domain.mem_type(Gfn(PAGE)), Some(P2mType::IoreqServer));
        second.route("port", ports(), Answers(8)).unwrap();
        let claim = second.claim_mem_type().unwrap();
        let tracker = claim.tracker("second");
        tracker.adopt(page(), Arc::clone(&counts) as _).unwrap();
        let running = second.start().unwrap();
        assert_eq!(guest.unwrap().join(), Ok(8), "{version:?}");
        assert_eq!(counts.0.load(Ordering::SeqCst), 8, "{version:?}");
        drop((tracker, claim));
        running.stop().unwrap();
        drop(second);
        assert!(domain.leaks().is_clean(), "{:?}", domain.leaks());
    }
}

#[test]
fn a_write_to_a_page_that_was_not_adopted_is_the_guests() {
    let place = Place::new("unknown");
    let domain = domain();
    dead_owner(&domain, &place);
    let second = IoreqServer::builder(domain.hypervisor())
        .take_over(&place.0)
        .build()
        .unwrap();
    let running = second.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.store32(PAGE << 12, 6));
    guest.unwrap().join().unwrap();
    assert_eq!(word(&domain, PAGE << 12), 6);
    running.stop().unwrap();
    // Its claim is still to be taken up: a claim that adopts nothing gives the type back.
    drop(second.claim_mem_type().unwrap());
    assert_eq!(domain.mem_type(Gfn(PAGE)), Some(P2mType::RamRw));
}

#[test]
fn a_claim_of_somebody_else_is_not_taken() {
    let place = Place::new("claim");
    let domain = domain();
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .record(&place.0)
        .build()
        .unwrap();
    hv.kill();
    bury(first);
    let other = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let claim = other.claim_mem_type().unwrap();
    let second = IoreqServer::builder(domain.hypervisor())
        .take_over(&place.0)
        .build()
        .unwrap();
    let err = second.claim_mem_type().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::AlreadyClaimed);
    assert!(!ServerRecord::read(&place.0).unwrap().claimed);
    drop(claim);
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let place = Place::new("refused");
    let domain = domain();
    let build = |identity: &str| {
        IoreqServer::builder(domain.hypervisor())
            .identity(identity)
            .take_over(&place.0)
            .build()
            .map(drop)
            .map_err(|err| err.kind())
    };
    assert_eq!(build("a"), Err(ErrorKind::NoSuchServer), "no record");
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .identity("a")
        .record(&place.0)
        .build()
        .unwrap();
    first.route("port", ports(), Answers(7)).unwrap();
    assert_eq!(build("a"), Err(ErrorKind::InvalidArgument), "it lives");
    assert_eq!(build("b"), Err(ErrorKind::InvalidArgument), "another");
    // And it still serves.
    let running = first.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inl(PORT)).unwrap();
    assert_eq!(guest.join().unwrap(), 7);
    running.stop().unwrap();
    hv.create_server(BufIoreq::Off).unwrap(); // e.g. QEMU's
    drop(first);
    assert_eq!(build("a"), Err(ErrorKind::NoSuchServer), "destroyed");
    assert_eq!(domain.leaks().servers.len(), 1, "{:?}", domain.leaks());
}

/// Of a process that is dead, so that nothing but the record says no.
#[test]
fn a_record_of_another_boot_domain_or_incarnation_is_refused() {
    let place = Place::new("checked");
    let domain = domain();
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .identity("a")
        .record(&place.0)
        .build()
        .unwrap();
    hv.kill();
    bury(first);
    let build = |identity: &str| {
        IoreqServer::builder(domain.hypervisor())
            .identity(identity)
            .take_over(&place.0)
            .build()
    };
    let refusal = |identity| {
        let err = build(identity).map(drop).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument);
        err.to_string()
    };
    assert!(refusal("b").contains("another domain has the id"));
    let record = std::fs::read_to_string(&place.0).unwrap();
    let with = |key: &str, value: &str| {
        let line = |line: &str| match line.starts_with(key) {
            true => format!("{key} {value}\n"),
            false => format!("{line}\n"),
        };
        let changed: String = record.lines().map(line).collect();
        assert_ne!(changed, record);
        std::fs::write(&place.0, changed).unwrap();
    };
    with("boot:", "00000000-0000-0000-0000-000000000000");
    assert!(refusal("a").contains("restarted"));
    with("domid:", "4321");
    assert!(refusal("a").contains("4321"));
    std::fs::write(&place.0, &record).unwrap();
    build("a").unwrap();
}

/// The guest writes numbers to a tracked page, a port and MMIO; processes die at random moments, each after a few requests.
#[test]
fn processes_die_at_random_and_memory_is_as_the_guest_wrote_it() {
    // Few: `server_kill_points.rs` has the chosen points, this one real threads.
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let place = Place::new(&format!("random-{seed}"));
        let domain = domain();
        let guest = domain
            .spawn(VcpuId(0), |cpu| {
                // The first process makes the page a tracked one; until then nothing is sure.
                while cpu.inl(PORT)? != 1 {}
                for n in 0..200_u32 {
                    cpu.store32(PAGE << 12 | u64::from(n % 64 * 4), n)?;
                    cpu.outl(PORT, n)?;
                }
                Ok(())
            })
            .unwrap();
        let mut born = 0;
        loop {
            let hv = domain.hypervisor();
            let builder = IoreqServer::builder(hv.clone()).last_gfn(Gfn(0xffff));
            let server = match born {
                0 => builder.record(&place.0),
                _ => builder.take_over(&place.0),
            };
            let server = server.build().unwrap();
            let lives = random.u64(0..40);
            let handler = Mortal {
                hv: hv.clone(),
                ready: AtomicU64::new(u64::from(born > 0)),
                left: AtomicU64::new(lives),
                immortal: born >= 8,
                pending: Mutex::default(),
            };
            let handler = Arc::new(handler);
            server.route("port", ports(), Arc::clone(&handler)).unwrap();
            let claim = server.claim_mem_type().unwrap();
            let tracker = claim.tracker("pages");
            let track = match born {
                0 => tracker
                    .track(page(), Arc::clone(&handler) as _)
                    .map_err(|err| err.error().clone()),
                _ => tracker.adopt(page(), Arc::clone(&handler) as _),
            };
            track.unwrap();
            handler.ready.store(1, Ordering::SeqCst);
            born += 1;
            while hv.vcpus().is_ok() && !guest.is_finished() {
                server.poll().unwrap();
                std::thread::yield_now();
            }
            if guest.is_finished() {
                drop((tracker, claim, server));
                break;
            }
            bury((server, claim, tracker, handler));
        }
        guest.join().unwrap();
        for n in 136..200_u64 {
            assert_eq!(word(&domain, PAGE << 12 | (n % 64 * 4)), n, "seed {seed}");
        }
        assert!(
            domain.leaks().is_clean(),
            "seed {seed}: {:?}",
            domain.leaks()
        );
    }
}

/// Dies in the middle of its last request, in one of three ways.
struct Mortal {
    hv: SimHypervisor,
    ready: AtomicU64,
    left: AtomicU64,
    immortal: bool,
    pending: Mutex<Vec<Box<dyn Send>>>,
}

impl Mortal {
    /// Whether this request is the last; the process is dead then.
    fn dies(&self) -> bool {
        if self.immortal {
            return false;
        }
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 0 {
            self.hv.kill();
        }
        left == 0
    }

    fn keep(&self, completion: impl Send + 'static) {
        self.pending.lock().unwrap().push(Box::new(completion));
    }
}

impl Handler for Mortal {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.ready.load(Ordering::SeqCst).into()
    }

    fn write(&self, cx: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        if self.dies() && value.is_multiple_of(2) {
            let (deferred, completion) = cx.defer_write(Duration::from_secs(3600));
            self.keep(completion);
            return WriteOutcome::Defer(deferred);
        }
        WriteOutcome::Done
    }
}

impl PageHandler for Mortal {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        if self.dies() && write.value().is_multiple_of(2) {
            let (deferred, completion) = cx.defer_page(Duration::from_secs(3600));
            self.keep(completion);
            return PageOutcome::Defer(deferred);
        }
        Verdict::Apply.into()
    }
}

/// A route's range that Xen still has from before is no conflict, and one that is new is registered.
#[test]
fn routes_of_a_server_that_was_taken_over() {
    let place = Place::new("routes");
    let domain = domain();
    let hv = domain.hypervisor();
    let first = IoreqServer::builder(hv.clone())
        .record(&place.0)
        .build()
        .unwrap();
    first.route("port", ports(), Answers(7)).unwrap();
    hv.kill();
    bury(first);
    let second = IoreqServer::builder(domain.hypervisor())
        .take_over(&place.0)
        .build()
        .unwrap();
    let port = second.route("port", ports(), Answers(8)).unwrap();
    let again = second.route("again", ports(), Answers(9)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::RouteConflict);
    let mmio = MmioRange::sized(0xe000_0000, 4).unwrap();
    second.route("mmio", mmio, Answers(10)).unwrap();
    let running = second.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        Ok((cpu.inl(PORT)?, cpu.load32(0xe000_0000)?))
    });
    assert_eq!(guest.unwrap().join().unwrap(), (8, 10));
    use ioreq::routes::Routes;
    second.control().retract(port).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inl(PORT)).unwrap();
    assert_eq!(guest.join().unwrap(), u32::MAX, "unregistered");
    running.stop().unwrap();
}
