// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Servers' processes that are killed, on a real Xen: at five chosen points of their work, three times each, and at random moments.
//! Another process takes over each time; the guest reads back what it writes all along, and its memory is at the end as its
//! programs say. `tests/server_kill_points.rs` does the same on the model.
//!
//! Runs in dom0, as root. Without arguments it is the judge; it starts itself again as the process that is killed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ioreq_core::claim::{PageState, PageTracker, Tracker};
use ioreq_core::server::{IoreqServer, ServerRecord, Workers};
use ioreq_core::slot::Slots;
use ioreq_core::{
    DomId, DomainState, ErrorKind, Gfn, GfnRange, GuestMap, PortRange, Transport, VcpuId,
};
use ioreq_xen::XenHypervisor;
use vm_memory::{Bytes, GuestAddress};
use xen_rig::checks::{BOUND, Failure, guest, holds};
use xen_rig::{
    Done, Fuse, Guest, Instr, KillPoint, Mortal, MortalDevice, Privcmd, Program, Sigkill,
};

const PORT: u16 = 0x510;
/// The tracked pages: first and number of those that are tracked together.
const RUNS: [(u64, u64); 3] = [(0x300, 4), (0x304, 3), (0x307, 1)];
const PAGES: u64 = 8;
/// Words of each page that each vCPU writes: neighbours are the other's.
const WORDS: u64 = 16;
const VCPUS: u32 = 2;
/// Kills at each point.
const EACH: u32 = 3;
/// Kills at random moments.
const RANDOM: u32 = 20;
const RECORD: &str = "/run-record";

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => judge(),
        [domid, point, skip, choice] => {
            let point = match point {
                "never" => None,
                name => Some(name.parse()?),
            };
            let fuse = Fuse::new(point, skip.parse()?, choice.parse()?, Sigkill);
            serve(DomId(domid.parse()?), &fuse)
        }
        _ => Err("for the judge: no arguments".into()),
    }
}

/// A small generator of numbers, so that a seed says all that is chosen.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One vCPU: a program after the other, and what must come of them.
struct Writer {
    vcpu: u32,
    random: Random,
    /// What it wrote, by address.
    written: BTreeMap<u64, u32>,
    running: Option<(Program, Vec<Done>)>,
}

impl Writer {
    fn new(vcpu: u32) -> Self {
        Writer {
            vcpu,
            random: Random(u64::from(vcpu) + 1),
            written: BTreeMap::new(),
            running: None,
        }
    }

    /// Writes by all kinds of instructions, each followed by a load of the word, and a port whose answer is a value.
    fn program(&mut self) -> (Vec<Instr>, Vec<Done>) {
        let (mut program, mut expected) = (Vec::new(), Vec::new());
        let width = 4;
        // A few pages for a while: a page that is written all the time cannot be unmarked.
        let near = self.random.below(PAGES);
        for _ in 0..24 {
            let (first, _) = RUNS[0];
            let page = (first + (near + self.random.below(3)) % PAGES) << 12;
            let page = page + u64::from(self.vcpu) * 4 * WORDS;
            let addr = page + 4 * self.random.below(WORDS);
            let word = u32::try_from(self.random.next() & 0xffff_ffff).unwrap_or_default();
            let value = u64::from(word);
            let old = self.written.get(&addr).copied().unwrap_or_default();
            match self.random.below(8) {
                0 => {
                    program.push(Instr::In { port: PORT, width });
                    expected.push(Done::Value(u64::from(PORT) ^ 0xff));
                }
                1 => {
                    program.push(Instr::LockAdd { addr, width, value });
                    expected.push(Done::Plain);
                    self.written.insert(addr, old.wrapping_add(word));
                }
                2 => {
                    let count = WORDS;
                    program.push(Instr::RepStos {
                        addr: page,
                        width,
                        value,
                        count,
                    });
                    expected.push(Done::Plain);
                    let words = (0..count).map(|at| (page + 4 * at, word));
                    self.written.extend(words);
                }
                _ => {
                    program.push(Instr::Store { addr, width, value });
                    expected.push(Done::Plain);
                    self.written.insert(addr, word);
                }
            }
            program.push(Instr::Load { addr, width });
            let now = self.written.get(&addr).copied().unwrap_or_default();
            expected.push(Done::Value(now.into()));
        }
        (program, expected)
    }

    /// Looks after the program, and starts the next one if `more` are wanted; whether one runs.
    fn go_on(&mut self, guest: &Guest, more: bool) -> Result<bool, Failure> {
        if let Some((program, expected)) = &self.running {
            if !program.is_finished() {
                return Ok(true);
            }
            let results = program.results();
            let pairs = (0..).zip(results.iter().zip(expected));
            if let Some((at, (got, wanted))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
                let what = format!(
                    "vCPU {}, instruction {at}: {got:?}, not {wanted:?}",
                    self.vcpu
                );
                return Err(what.into());
            }
            holds(
                "results of all instructions",
                results.len() == expected.len(),
            )?;
            self.running = None;
        }
        if more {
            let (program, expected) = self.program();
            self.running = Some((guest.start(self.vcpu, &program)?, expected));
        }
        Ok(more)
    }
}

/// The guest and its writers.
struct Judge {
    guest: Guest,
    hv: XenHypervisor,
    writers: Vec<Writer>,
    states: [u32; 4],
}

impl Judge {
    /// Keeps the guest writing until `done`.
    fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let end = Instant::now() + BOUND;
        loop {
            if let Some(result) = done()? {
                return Ok(result);
            }
            for writer in &mut self.writers {
                writer.go_on(&self.guest, true)?;
            }
            holds(what, Instant::now() < end)?;
            thread::sleep(Duration::from_micros(300));
        }
    }

    /// States of all slots.
    fn slots(&mut self) -> Result<Vec<u8>, Failure> {
        let id = ServerRecord::read(Path::new(RECORD))?.server;
        let slots = Slots::new(self.hv.ioreq_page(id)?, VCPUS)?;
        let state = |vcpu| slots.get(VcpuId(vcpu)).map_or(0, |slot| slot.state());
        let states: Vec<u8> = (0..VCPUS).map(state).collect();
        for state in &states {
            self.states[usize::from(state & 3)] += 1;
        }
        Ok(states)
    }

    /// A process that dies at `point`, unless it is none, when it has passed it `skip` times.
    fn server(&self, point: Option<KillPoint>, skip: u64, choice: u64) -> Result<Child, Failure> {
        let point = point.map_or("never".into(), |point| point.to_string());
        let numbers = [u64::from(self.guest.domid()), skip, choice].map(|n| n.to_string());
        let [domid, skip, choice] = &numbers;
        let mut child = Command::new("/proc/self/exe")
            .args([domid, &point, skip, choice])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut out = child.stdout.take().ok_or("no output")?;
        let up = out.read_exact(&mut [0; 1]);
        // One that dies early has said nothing.
        if up.is_err() && !killed(child.wait()?) {
            return Err("the server's process did not come up".into());
        }
        Ok(child)
    }

    /// A process dies where it is to; the next one finds what it left.
    fn dies_at(&mut self, point: KillPoint, skip: u64, choice: u64) -> Result<(), Failure> {
        let mut server = self.server(Some(point), skip, choice)?;
        let what = format!("a kill at {point}");
        let status = self.until(&what, || Ok(server.try_wait()?))?;
        holds(&format!("{what}: {status}"), killed(status))?;
        let states = self.slots()?;
        let state = match point {
            KillPoint::Ready => 1,
            KillPoint::InProcess => 2,
            KillPoint::Answered => 3,
            KillPoint::Marking | KillPoint::Unmarking => return Ok(()),
        };
        holds(
            &format!("{what}: slots {states:?}"),
            states.contains(&state),
        )
    }

    /// A process is killed after so long.
    fn dies_after(&mut self, time: Duration) -> Result<(), Failure> {
        let mut server = self.server(None, 0, 0)?;
        let end = Instant::now() + time;
        self.until("time", || Ok((Instant::now() >= end).then_some(())))?;
        server.kill()?;
        server.wait()?;
        self.slots()?;
        Ok(())
    }
}

/// By signal 9.
fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

fn judge() -> Result<(), Failure> {
    let xen = Arc::new(Privcmd::open()?);
    let (guest, domid) = guest(&xen, VCPUS)?;
    let mut judge = Judge {
        guest,
        hv: XenHypervisor::open(domid)?,
        writers: (0..VCPUS).map(Writer::new).collect(),
        states: [0; 4],
    };
    let mut random = Random(2026);
    let mut kills = BTreeMap::new();
    for round in 0..EACH {
        for point in KillPoint::ALL {
            let (skip, choice) = (random.below(6), random.next());
            judge
                .dies_at(point, skip, choice)
                .map_err(|why| format!("round {round}, {point}, {skip}, {choice}: {why}"))?;
            *kills.entry(point).or_insert(0) += 1;
        }
    }
    println!(
        "kills: at {kills:?}; slots then (none, ready, in process, answered): {:?}",
        judge.states
    );
    holds(
        "every point, so often",
        KillPoint::ALL
            .iter()
            .all(|point| kills.get(point) == Some(&EACH)),
    )?;
    judge.states = [0; 4];
    for _ in 0..RANDOM {
        judge.dies_after(Duration::from_millis(random.below(40)))?;
    }
    println!(
        "kills: {RANDOM} at random moments; slots then: {:?}",
        judge.states
    );
    end(judge)
}

/// The last process goes in peace, and all is as the guest wrote it.
fn end(mut judge: Judge) -> Result<(), Failure> {
    let mut server = judge.server(None, 0, 0)?;
    let end = Instant::now() + BOUND;
    loop {
        let mut running = false;
        for writer in &mut judge.writers {
            running |= writer.go_on(&judge.guest, false)?;
        }
        if !running {
            break;
        }
        holds("the guest's programs end", Instant::now() < end)?;
        thread::sleep(Duration::from_micros(300));
    }
    let id = ServerRecord::read(Path::new(RECORD))?.server;
    // Closes its input: the process unmarks, gives up and ends.
    drop(server.stdin.take());
    holds("the last process ends well", server.wait()?.success())?;
    let memory = judge.hv.memory();
    let mut words = 0;
    for (addr, value) in judge.writers.iter().flat_map(|writer| &writer.written) {
        let got: u32 = memory.read_obj(GuestAddress(*addr))?;
        holds(
            &format!("{addr:#x}: {got:#x}, not {value:#x}"),
            got == *value,
        )?;
        words += 1;
    }
    println!("kills: {words} words are as the guest wrote them");
    let marked = judge.hv.marked_pages(GfnRange::sized(RUNS[0].0, PAGES)?)?;
    holds(&format!("marked: {marked:?}"), marked.is_empty())?;
    let kind = judge.hv.server_info(id).map_err(|err| err.kind());
    holds(
        "the server is gone",
        kind.err() == Some(ErrorKind::NoSuchServer),
    )?;
    holds("no record", !Path::new(RECORD).exists())?;
    holds(
        "the domain runs",
        judge.hv.domain_state()? == DomainState::Running,
    )
}

/// The process that is killed: serves, and marks and unmarks its pages, until its input is closed.
fn serve(domid: DomId, fuse: &Arc<Fuse>) -> Result<(), Failure> {
    let hv = Mortal::new(XenHypervisor::open(domid)?, fuse);
    let builder = IoreqServer::builder(hv)
        .identity("the rig's domain")
        .workers(Workers::PerVcpu);
    let server = match Path::new(RECORD).exists() {
        true => builder.take_over(RECORD).build()?,
        false => builder.record(RECORD).build()?,
    };
    let device = Arc::new(MortalDevice::new(fuse));
    server.route("port", PortRange::sized(PORT, 8)?, Arc::clone(&device))?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("pages");
    let marked = XenHypervisor::open(domid)?.marked_pages(GfnRange::sized(RUNS[0].0, PAGES)?)?;
    for pages in marked {
        tracker.adopt(pages, Arc::clone(&device) as _)?;
    }
    fuse.light();
    let running = server.start()?;
    std::io::stdout().write_all(b"1")?;
    std::io::stdout().flush()?;
    let told = thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut turns = RUNS.into_iter().cycle();
    while let Some((first, count)) = turns.next().filter(|_| !told.is_finished()) {
        change(first..first + count, &tracker, &device)?;
        claim.settle(Duration::from_millis(5))?;
        thread::sleep(Duration::from_millis(1));
    }
    drop((tracker, claim));
    running.stop()?;
    Ok(())
}

/// Untracks pages that are all tracked; else tracks those of them that are not, as many at once as can be.
fn change(
    mut pages: std::ops::Range<u64>,
    tracker: &Tracker<Mortal<XenHypervisor>>,
    device: &Arc<MortalDevice>,
) -> Result<(), Failure> {
    let state = |gfn| tracker.state(Gfn(gfn));
    if pages.clone().all(|gfn| state(gfn) == PageState::Tracked) {
        return Ok(tracker.untrack(GfnRange::new(pages.start, pages.end - 1)?)?);
    }
    while let Some(first) = pages.find(|gfn| state(*gfn) != PageState::Tracked) {
        let same = (first..pages.end).take_while(|gfn| state(*gfn) == state(first));
        let run = GfnRange::sized(first, same.count() as u64)?;
        tracker.track(run, Arc::clone(device) as _)?;
    }
    Ok(())
}
