// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults of the world around a server, on the model: events that are lost, late, doubled or about nothing, rings that overflow, calls
//! that are interrupted, domains that pause or die under load, servers that are disabled or fight for the claim. What the guest
//! asked for is answered, once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::claim::{MemTypeClaim, PageTracker};
use ioreq::handler::{
    Access, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome,
    WriteOutcome,
};
use ioreq::server::{Exit, IoreqServer, Polling, Running, Workers};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor, VcpuExit};
use ioreq::{BufIoreq, ErrorKind, GfnRange, MmioRange, PortRange, Transport, VcpuId};

const MMIO: u64 = 0xe000_0000;

/// Adds what is written; reads give the sum.
#[derive(Default)]
struct Sum(AtomicU64);

impl Handler for Sum {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.load(Ordering::Relaxed).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.fetch_add(value, Ordering::Relaxed);
        WriteOutcome::Done
    }
}

impl PageHandler for Sum {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::Relaxed);
        PageOutcome::Apply
    }
}

fn domain(vcpus: u32) -> Domain {
    let config = DomainConfig::new(vcpus)
        .vga(true)
        .memory(GfnRange::sized(0, 0xa0).unwrap());
    Machine::new().create_domain(config).unwrap()
}

/// A worker that never polls: it hears of requests by events alone.
fn server(domain: &Domain) -> IoreqServer<SimHypervisor> {
    let server = IoreqServer::builder(domain.hypervisor())
        .workers(Workers::Count(1))
        .buffered(BufIoreq::Atomic)
        .polling(Polling::off())
        .build()
        .unwrap();
    let mmio = MmioRange::sized(MMIO, 0x1000).unwrap();
    server.route("sum", mmio, Sum::default()).unwrap();
    let vga = MmioRange::new(0xa_0000, 0xb_ffff).unwrap();
    server.route("vga", vga, Sum::default()).unwrap();
    server
}

/// Runs a guest that adds `times` ones, and gives what it then reads.
fn add(domain: &Domain, times: u32) -> u32 {
    let guest = domain.spawn(VcpuId(0), move |cpu| {
        (0..times).try_for_each(|_| cpu.store32(MMIO, 1))?;
        cpu.load32(MMIO)
    });
    guest.unwrap().join().unwrap()
}

#[test]
fn a_request_whose_event_is_lost_is_served() {
    let domain = domain(1);
    let server = server(&domain);
    let running = server.start().unwrap();
    // One that comes while the worker looks anyway is not missed.
    let mut sum = 0;
    while server.stats().overlooked == 0 {
        domain.faults().lose_events(1);
        sum += 1;
        assert_eq!(add(&domain, 1), sum);
    }
    running.stop().unwrap();
}

#[test]
fn a_posted_write_whose_event_is_lost_is_served() {
    let domain = domain(1);
    let server = server(&domain);
    let running = server.start().unwrap();
    domain.faults().lose_events(1);
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.store8(0xa_0000, 3));
    guest.unwrap().join().unwrap();
    while server.stats().buffered == 0 {
        std::thread::yield_now();
    }
    running.stop().unwrap();
}

/// Events that are held back come when their requests have been found otherwise: they are about nothing then.
#[test]
fn late_and_spurious_events_cost_no_request() {
    let domain = domain(1);
    let server = server(&domain);
    let running = server.start().unwrap();
    domain.faults().delay_events();
    let mut sum = 0;
    while server.stats().overlooked == 0 {
        sum += 1;
        assert_eq!(add(&domain, 1), sum);
    }
    domain.faults().release_events();
    assert_eq!(add(&domain, 50), sum + 50);
    running.stop().unwrap();
}

#[test]
fn doubled_events_cost_no_request() {
    let domain = domain(1);
    let server = server(&domain);
    let running = server.start().unwrap();
    domain.faults().double_events(50);
    assert_eq!(add(&domain, 100), 100);
    running.stop().unwrap();
    assert_eq!(server.stats().mmio_writes, 100, "each is served once");
}

#[test]
fn an_event_ring_that_overflows_is_recovered_and_costs_no_request() {
    let domain = domain(1);
    let server = server(&domain);
    let running = server.start().unwrap();
    let mut sum = 0;
    while server.stats().event_overflows < 5 {
        domain.faults().overflow_events(1);
        sum += 3;
        assert_eq!(add(&domain, 3), sum);
    }
    running.stop().unwrap();
}

#[test]
fn reads_of_events_that_are_interrupted_are_made_again() {
    for errno in [libc::EINTR, libc::EAGAIN] {
        let domain = domain(1);
        let server = server(&domain);
        let running = server.start().unwrap();
        domain.faults().fail_event_reads(20, errno);
        assert_eq!(add(&domain, 50), 50);
        running.stop().unwrap();
    }
}

/// Tells which thread serves it.
struct Tells(Sender<u32>);
impl Handler for Tells {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        // SAFETY: no argument and no effect.
        let thread = unsafe { libc::gettid() };
        self.0.send(thread.try_into().unwrap()).unwrap();
        0.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

/// Signals hit a worker wherever it is, in its sleep most of the time.
#[test]
fn signals_cost_no_request() {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = nothing as extern "C" fn(libc::c_int);
    // SAFETY: a handler that does nothing is async-signal-safe, and no other test of this process uses the signal.
    let old = unsafe { libc::signal(libc::SIGUSR1, action as libc::sighandler_t) };
    assert_ne!(old, libc::SIG_ERR);
    let domain = domain(1);
    let server = server(&domain);
    let (send, serves) = channel();
    let port = PortRange::new(0x500, 0x500).unwrap();
    server.route("tells", port, Tells(send)).unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500)).unwrap();
    guest.join().unwrap();
    let worker = serves.recv().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let signals = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let mut sent = 0_u64;
            while !done.load(Ordering::Relaxed) {
                // SAFETY: sends a signal whose handler does nothing to a thread of this process, which ends after this one.
                let sent_one = unsafe {
                    libc::syscall(libc::SYS_tgkill, std::process::id(), worker, libc::SIGUSR1)
                };
                assert_eq!(sent_one, 0);
                sent += 1;
                std::thread::yield_now();
            }
            sent
        }
    });
    assert_eq!(add(&domain, 500), 500);
    done.store(true, Ordering::Relaxed);
    assert!(signals.join().unwrap() > 0);
    assert_eq!(running.stop().unwrap(), Exit::Stopped);
}

fn claimed(
    server: &IoreqServer<SimHypervisor>,
    handler: &Arc<Sum>,
) -> ioreq::Result<MemTypeClaim<SimHypervisor>> {
    let claim = server.claim_mem_type()?;
    let pages = GfnRange::sized(0x10, 8).unwrap();
    let tracker = claim.tracker("pages");
    tracker.track(pages, Arc::clone(handler) as _).unwrap();
    Ok(claim)
}

/// Writers on every vCPU, ports and pages; then the domain goes. Nothing of it is left, and the server says why it ended.
#[test]
fn a_guest_destroyed_under_load_takes_nothing_with_it() {
    for round in 0..20_u64 {
        let domain = domain(3);
        let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
        let mmio = MmioRange::sized(MMIO, 0x1000).unwrap();
        server.route("sum", mmio, Sum::default()).unwrap();
        let handler = Arc::new(Sum::default());
        let claim = claimed(&server, &handler).unwrap();
        let running = server.start().unwrap();
        let guests: Vec<_> = (0..3)
            .map(|vcpu| {
                let program = move |cpu: &mut ioreq::sim::Cpu| -> Result<(), ioreq::sim::CpuFault> {
                    loop {
                        cpu.store32(MMIO, 1)?;
                        cpu.store64(0x1_0000 + u64::from(vcpu) * 8, 1)?;
                    }
                };
                domain.spawn(VcpuId(vcpu), program).unwrap()
            })
            .collect();
        while server.stats().page_writes < 10 + round * 7 {
            std::thread::yield_now();
        }
        domain.destroy();
        assert_eq!(running.wait().unwrap(), Exit::DomainGone);
        for guest in guests {
            assert_eq!(guest.join(), Err(VcpuExit::DomainDestroyed));
        }
        drop(claim);
        server.destroy().unwrap();
        let leaks = domain.leaks();
        assert!(
            leaks.servers.is_empty() && leaks.claim.is_none(),
            "{leaks:?}"
        );
        assert_eq!(leaks.bound_ports, 0);
    }
}

/// Lets the test answer reads.
struct Later(Mutex<Sender<Completion<u64>>>);
impl Handler for Later {
    fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
        let (deferred, completion) = cx.defer_read(Duration::from_secs(600));
        self.0.lock().unwrap().send(completion).unwrap();
        ReadOutcome::Defer(deferred)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

type Deferring = (
    IoreqServer<SimHypervisor>,
    Running<SimHypervisor>,
    std::sync::mpsc::Receiver<Completion<u64>>,
);

fn deferring(domain: &Domain) -> Deferring {
    let server = server(domain);
    let (send, wanted) = channel();
    let port = PortRange::new(0x500, 0x500).unwrap();
    server
        .route("later", port, Later(Mutex::new(send)))
        .unwrap();
    let running = server.start().unwrap();
    (server, running, wanted)
}

#[test]
fn a_guest_paused_in_mid_request_has_its_answer_when_it_goes_on() {
    let domain = domain(1);
    let (_server, running, wanted) = deferring(&domain);
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500)).unwrap();
    let completion = wanted.recv().unwrap();
    domain.pause();
    assert!(completion.complete(7));
    running.stop().unwrap();
    assert!(!guest.is_finished(), "it is paused");
    domain.unpause();
    assert_eq!(guest.join().unwrap(), 7);
}

/// What was asked is answered; what is asked then goes to nobody, until the server is enabled again.
#[test]
fn a_server_disabled_in_mid_request_answers_it() {
    let domain = domain(1);
    let (server, running, wanted) = deferring(&domain);
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500)).unwrap();
    let completion = wanted.recv().unwrap();
    server
        .hypervisor()
        .set_server_state(server.id(), false)
        .unwrap();
    assert!(completion.complete(7));
    assert_eq!(guest.join().unwrap(), 7);
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.load32(MMIO)).unwrap();
    assert_eq!(guest.join().unwrap(), u32::MAX, "nobody's");
    server
        .hypervisor()
        .set_server_state(server.id(), true)
        .unwrap();
    assert_eq!(add(&domain, 3), 3);
    running.stop().unwrap();
}

/// Two servers take the type from one another under a guest that writes: one has it at a time, and no write is lost.
#[test]
fn two_servers_that_fight_for_the_claim_lose_no_write() {
    const ROUNDS: u32 = 15;
    let domain = domain(1);
    let done = Arc::new(AtomicBool::new(false));
    let guest = domain.spawn(VcpuId(0), {
        let done = Arc::clone(&done);
        move |cpu| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                for page in 0..8_u64 {
                    let at = (0x10 + page) << 12;
                    cpu.store64(at, last + 1)?;
                    assert_eq!(cpu.load64(at)?, last + 1);
                }
                last += 1;
            }
            Ok(last)
        }
    });
    let owners = Arc::new(AtomicU64::new(0));
    let fighters = [0, 1].map(|_| {
        let (domain, owners) = (domain.clone(), Arc::clone(&owners));
        std::thread::spawn(move || {
            let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
            let running = server.start().unwrap();
            let handler = Arc::new(Sum::default());
            let (mut won, mut refused) = (0, 0_u64);
            while won < ROUNDS {
                match claimed(&server, &handler) {
                    Ok(claim) => {
                        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two own it");
                        let seen = handler.0.load(Ordering::Relaxed);
                        while handler.0.load(Ordering::Relaxed) < seen + 10 {
                            std::thread::yield_now();
                        }
                        won += 1;
                        owners.fetch_sub(1, Ordering::SeqCst);
                        drop(claim);
                    }
                    Err(err) => {
                        assert_eq!(err.kind(), ErrorKind::AlreadyClaimed);
                        refused += 1;
                        std::thread::yield_now();
                    }
                }
            }
            running.stop().unwrap();
            server.destroy().unwrap();
            refused
        })
    });
    let refused: u64 = fighters.map(|fighter| fighter.join().unwrap()).iter().sum();
    done.store(true, Ordering::Relaxed);
    let last = guest.unwrap().join().unwrap();
    assert!(last > 0 && refused > 0, "they met");
    assert!(domain.leaks().is_clean());
}
