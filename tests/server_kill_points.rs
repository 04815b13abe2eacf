// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A hundred kills of a server's process, each at a chosen point of its work: a request READY, INPROCESS, answered and not
//! notified, in the middle of marking, in the middle of unmarking. Another process takes over each time, and guest memory is at
//! the end as the guest's own account of what it wrote. Deterministic: a seed says all.
//!
//! `xen-rig/examples/kills.rs` does the same to processes of a real Xen's dom0.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::server::{IoreqServer, ServerRecord};
use ioreq::sim::{
    Cpu, CpuFault, Domain, DomainConfig, Machine, Place, Schedule, SimHypervisor, XenVersion,
};
use ioreq::slot::Slots;
use ioreq::{Gfn, GfnRange, GuestRam, P2mType, PortRange, Transport, VcpuId, Width};
use vm_memory::GuestAddress;
use xen_rig::{Fuse, KillPoint, Life, Mortal, MortalDevice};

const PORT: u16 = 0x500;
const FIRST: u64 = 0x200;
const PAGES: u64 = 8;
/// First and number of the pages that are tracked together.
const RUNS: [(u64, u64); 3] = [(0, 4), (4, 3), (7, 1)];
/// Words of each page that each vCPU writes: neighbours are the other's.
const WORDS: u64 = 16;
const VCPUS: u32 = 2;
/// Guests; each sees its server's process killed once at every point.
const GUESTS: u64 = 20;
/// Steps of the servers of one guest, far more than any takes.
const MOST_STEPS: u32 = 200_000;

type Server = Mortal<SimHypervisor>;

fn pages() -> GfnRange {
    GfnRange::sized(FIRST, PAGES).unwrap()
}

/// What the schedule tells a process.
enum Told {
    /// Do a step, in this place of the schedule.
    Go(Place),
    /// Give up all and end.
    Stop,
}

/// What a process tells.
enum Said {
    /// It has done a step, and maybe got something done.
    Stepped(bool),
    Died,
    Stopped,
}

/// A process of the model: a thread, which can be stopped for good anywhere.
#[derive(Clone)]
struct Thread {
    hv: SimHypervisor,
    say: Sender<Said>,
}

/// The fuse's end of it.
struct Mortality(Thread);

impl Life for Mortality {
    fn ends(&self) -> Infallible {
        self.0.hv.kill();
        let _nobody_waits = self.0.say.send(Said::Died);
        // A dead process runs no destructor and gives no lock back.
        loop {
            thread::park();
        }
    }
}

/// Where and when a process is to die.
#[derive(Debug, Clone, Copy)]
struct Plan {
    point: Option<KillPoint>,
    skip: u32,
    choice: u64,
    seed: u64,
}

/// A process, as the schedule sees it.
struct Process {
    fuse: Arc<Fuse>,
    tell: Sender<Told>,
    heard: Receiver<Said>,
}

impl Process {
    fn start(domain: &Domain, place: PathBuf, plan: Plan, first: bool) -> Self {
        let (say, heard) = channel();
        let (tell, told) = channel();
        let hv = domain.hypervisor();
        let thread = Thread { hv, say };
        let life = Mortality(thread.clone());
        let fuse = Fuse::new(plan.point, plan.skip, plan.choice, life);
        let (domain, own) = (domain.clone(), Arc::clone(&fuse));
        thread::spawn(move || {
            let process = Running {
                domain: &domain,
                plan,
                fuse: &own,
                thread: &thread,
                told,
            };
            process.serve(&place, first);
            thread.say.send(Said::Stopped).unwrap();
        });
        Process { fuse, tell, heard }
    }

    /// Has it do a step.
    fn step(&self) -> Said {
        let place = Place::current().expect("the schedule's own thread");
        self.tell.send(Told::Go(place)).unwrap();
        self.hear()
    }

    fn hear(&self) -> Said {
        self.heard.recv().expect("it says how it ends")
    }
}

/// A process, as it sees itself.
struct Running<'a> {
    domain: &'a Domain,
    plan: Plan,
    fuse: &'a Arc<Fuse>,
    thread: &'a Thread,
    told: Receiver<Told>,
}

impl Running<'_> {
    /// Waits for its turn.
    fn turn(&self) -> Option<Place> {
        match self.told.recv() {
            Ok(Told::Go(place)) => Some(place),
            Ok(Told::Stop) | Err(_) => None,
        }
    }

    /// Serves, and marks and unmarks some of its pages, until it is told to stop.
    fn serve(&self, record: &Path, first: bool) {
        let mut random = fastrand::Rng::with_seed(self.plan.seed);
        let server = match first {
            true => self.set_up(record, first),
            // In its place: other processes' vCPUs go on meanwhile.
            false => {
                let place = self.turn().expect("a turn to begin with");
                place.with(|| self.set_up(record, first))
            }
        };
        let (server, claim, tracker, device) = server;
        self.fuse.light();
        self.thread.say.send(Said::Stepped(true)).unwrap();
        while let Some(place) = self.turn() {
            let served = place.with(|| {
                let served = server.poll().unwrap();
                if random.u8(0..3) == 0 {
                    change(&mut random, &tracker, &device);
                }
                served
            });
            self.thread.say.send(Said::Stepped(served > 0)).unwrap();
        }
        drop((tracker, claim));
        server.destroy().unwrap();
    }

    fn set_up(
        &self,
        record: &Path,
        first: bool,
    ) -> (
        IoreqServer<Server>,
        MemTypeClaim<Server>,
        Tracker<Server>,
        Arc<MortalDevice>,
    ) {
        let hv = Mortal::new(self.thread.hv.clone(), self.fuse);
        let builder = IoreqServer::builder(hv).last_gfn(Gfn(0xfff));
        let server = match first {
            true => builder.record(record),
            false => builder.take_over(record),
        };
        let server = server.build().unwrap();
        let device = Arc::new(MortalDevice::new(self.fuse));
        let ports = PortRange::sized(PORT, 4).unwrap();
        server.route("port", ports, Arc::clone(&device)).unwrap();
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("pages");
        let marked = |gfn: &Gfn| self.domain.mem_type(*gfn) == Some(P2mType::IoreqServer);
        for gfn in pages().iter().filter(marked) {
            let handler = Arc::clone(&device);
            tracker.adopt(gfn.into(), handler as _).unwrap();
        }
        (server, claim, tracker, device)
    }
}

/// Untracks a run of pages that are all tracked; else tracks those of them that are not, as many at once as can be.
fn change(random: &mut fastrand::Rng, tracker: &Tracker<Server>, device: &Arc<MortalDevice>) {
    let (from, count) = RUNS[random.usize(0..RUNS.len())];
    let mut pages = FIRST + from..FIRST + from + count;
    let state = |gfn| tracker.state(Gfn(gfn));
    if pages.clone().all(|gfn| state(gfn) == PageState::Tracked) {
        let run = GfnRange::sized(pages.start, count).unwrap();
        return tracker.untrack(run).unwrap();
    }
    while let Some(first) = pages.find(|gfn| state(*gfn) != PageState::Tracked) {
        let same = (first..pages.end).take_while(|gfn| state(*gfn) == state(first));
        let run = GfnRange::sized(first, same.count() as u64).unwrap();
        tracker.track(run, Arc::clone(device) as _).unwrap();
    }
}

/// What one guest's vCPU wrote where.
type Account = Arc<Mutex<BTreeMap<u64, u32>>>;

/// Writes to its own words by all kinds of instructions, reads each back, and keeps account of it, until it is told to end.
fn guest(
    seed: u64,
    end: Arc<AtomicBool>,
    account: Account,
) -> impl FnOnce(&mut Cpu) -> Result<(), CpuFault> + Send {
    move |cpu| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut written = BTreeMap::new();
        let mut turns = 0;
        let own = u64::from(cpu.id().0) * 4 * WORDS;
        while !end.load(Ordering::SeqCst) || written.len() < 8 {
            let word = random.u64(0..WORDS);
            // A few pages for a while: a page that is written all the time cannot be unmarked.
            let near = turns / 16 + random.u64(0..3);
            turns += 1;
            let page = (FIRST + near % PAGES) << 12 | own;
            let at = page + 4 * word;
            let value = random.u32(..);
            let old: u32 = written.get(&at).copied().unwrap_or_default();
            let mut wrote = |at, value| written.insert(at, value);
            match random.u8(0..8) {
                0 => {
                    assert_eq!(u32::from(PORT) ^ 0xff, cpu.inl(PORT)?);
                }
                1 => {
                    cpu.lock_add(at, Width::B4, value.into())?;
                    wrote(at, old.wrapping_add(value));
                }
                2 => {
                    let got = cpu.xchg(at, Width::B4, value.into())?;
                    assert_eq!(got, u64::from(old));
                    wrote(at, value);
                }
                3 => {
                    cpu.rep_stos(page, Width::B4, value.into(), WORDS)?;
                    (0..WORDS).for_each(|word| {
                        wrote(page + 4 * word, value);
                    });
                }
                4 => {
                    let byte = random.u8(..);
                    cpu.store8(at, byte)?;
                    wrote(at, old & !0xff | u32::from(byte));
                }
                _ => {
                    cpu.store32(at, value)?;
                    wrote(at, value);
                }
            }
            let expected = written.get(&at).copied().unwrap_or_default();
            assert_eq!(cpu.load32(at)?, expected, "{at:#x}");
        }
        *account.lock().unwrap() = written;
        Ok(())
    }
}

/// What a guest's servers saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Kills by point.
    kills: BTreeMap<KillPoint, u32>,
    /// Kills at which some, but not all, pages of a call had been changed.
    halfway: BTreeMap<KillPoint, u32>,
    /// Who took which turn.
    trace: u64,
}

/// One guest, whose server's process is killed at each of the points, in an order that the seed says.
fn run(seed: u64, version: XenVersion) -> Seen {
    let mut random = fastrand::Rng::with_seed(seed);
    let name = format!("ioreq-kill-points-{seed}-{}", std::process::id());
    let place = std::env::temp_dir().join(name);
    let machine = Machine::builder().version(version).build();
    let domain = machine.create_domain(DomainConfig::new(VCPUS)).unwrap();
    let mut points = KillPoint::ALL;
    random.shuffle(&mut points);
    let mut points = points.into_iter();
    let mut plan = || Plan {
        point: points.next(),
        skip: random.u32(0..8),
        choice: random.u64(..),
        seed: random.u64(..),
    };
    let mut now = plan();
    let mut process = Process::start(&domain, place.clone(), now, true);
    let Said::Stepped(_) = process.hear() else {
        panic!("seed {seed}: the first process does not come up");
    };

    let end = Arc::new(AtomicBool::new(false));
    let accounts: [Account; VCPUS as usize] = Default::default();
    let mut schedule = Schedule::new(seed);
    for (vcpu, account) in (0..).zip(&accounts) {
        let program = guest(
            seed << 8 | u64::from(vcpu),
            Arc::clone(&end),
            Arc::clone(account),
        );
        schedule = schedule.vcpu(&domain, VcpuId(vcpu), program);
    }
    let mut seen = Seen::default();
    let mut steps = 0;
    let report = schedule.run(|| {
        steps += 1;
        assert!(steps < MOST_STEPS, "seed {seed}: {now:?} is never reached");
        match process.step() {
            Said::Stepped(served) => served,
            Said::Died => {
                let point = now.point.expect("only those die that are to");
                *seen.kills.entry(point).or_default() += 1;
                check(&domain, &place, point);
                if let Some((some, all)) = process.fuse.changed()
                    && (1..all).contains(&some)
                {
                    *seen.halfway.entry(point).or_default() += 1;
                }
                now = plan();
                process = Process::start(&domain, place.clone(), now, false);
                end.store(now.point.is_none(), Ordering::SeqCst);
                true
            }
            Said::Stopped => unreachable!("nobody told it to"),
        }
    });
    let report = report.unwrap();
    for exit in &report.exits {
        assert_eq!(*exit, Ok(()), "seed {seed}, {version:?}, {seen:?}, {now:?}");
    }
    process.tell.send(Told::Stop).unwrap();
    let Said::Stopped = process.hear() else {
        panic!("seed {seed}: the last process does not end");
    };
    let memory = domain.memory();
    for (at, value) in accounts.iter().flat_map(|a| a.lock().unwrap().clone()) {
        let got = GuestRam::load(&*memory, GuestAddress(at), Width::B4).unwrap();
        assert_eq!(got, u64::from(value), "seed {seed}: {at:#x}");
    }
    assert!(
        domain.leaks().is_clean(),
        "seed {seed}: {:?}",
        domain.leaks()
    );
    assert!(!place.exists(), "the record goes with its server");
    seen.trace = report.trace;
    seen
}

/// The process died where it was to.
fn check(domain: &Domain, place: &Path, point: KillPoint) {
    let id = ServerRecord::read(place).unwrap().server;
    let hv = domain.hypervisor();
    let slots = Slots::new(hv.ioreq_page(id).unwrap(), VCPUS).unwrap();
    let states: Vec<u8> = (0..VCPUS)
        .map(|vcpu| slots.get(VcpuId(vcpu)).unwrap().state())
        .collect();
    let state = match point {
        KillPoint::Ready => 1,
        KillPoint::InProcess => 2,
        KillPoint::Answered => 3,
        KillPoint::Marking | KillPoint::Unmarking => return,
    };
    assert!(states.contains(&state), "killed at {point}: {states:?}");
}

#[test]
fn a_hundred_kills_at_five_points_and_memory_is_as_the_guest_wrote_it() {
    let mut kills = BTreeMap::new();
    let mut halfway = BTreeMap::new();
    for seed in 0..GUESTS {
        let seen = run(seed, XenVersion::ALL[(seed % 2) as usize]);
        for (sum, part) in [(&mut kills, seen.kills), (&mut halfway, seen.halfway)] {
            for (point, count) in part {
                *sum.entry(point).or_insert(0) += count;
            }
        }
    }
    println!("kills: {kills:?}; with a call's pages half changed: {halfway:?}");
    for point in KillPoint::ALL {
        assert_eq!(kills.get(&point), Some(&20), "{point}");
    }
    for point in [KillPoint::Marking, KillPoint::Unmarking] {
        let count = halfway.get(&point).copied().unwrap_or_default();
        assert!(count >= 5, "{point}: {count} calls were cut in half");
    }
}

#[test]
fn the_same_seed_kills_in_the_same_places() {
    let again = |version| run(1000, version);
    for version in XenVersion::ALL {
        assert_eq!(again(version), again(version));
    }
}
