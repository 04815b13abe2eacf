// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Deferred completion on the model: a request is answered later, from another thread, once, whatever becomes of whoever owes it.

use std::sync::mpsc;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use ioreq::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::server::{Budget, IoreqServer};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{GuestRam, MmioRange, P2mType, PortRange, VcpuId, Width};
use vm_memory::GuestAddress;

const MMIO: u64 = 0xe000_0000;
/// So long that no test sees it.
const PATIENT: Duration = Duration::from_secs(3600);

fn domain(vcpus: u32) -> Domain {
    Machine::new()
        .create_domain(DomainConfig::new(vcpus))
        .unwrap()
}

fn server(domain: &Domain) -> IoreqServer<SimHypervisor> {
    IoreqServer::builder(domain.hypervisor()).build().unwrap()
}

fn mmio(len: u64) -> MmioRange {
    MmioRange::sized(MMIO, len).unwrap()
}

/// Answers at once: reads give 1.
struct Now;

impl Handler for Now {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        1.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

/// The completion of a read, or of a write.
type Halves = (Option<Completion<u64>>, Option<Completion<()>>);

/// Defers, and hands its completions out. A request is overdue after so long.
struct Later(mpsc::Sender<Halves>, Duration);

impl Handler for Later {
    fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
        let (deferred, completion) = cx.defer_read(self.1);
        self.0.send((Some(completion), None)).unwrap();
        ReadOutcome::Defer(deferred)
    }
    fn write(&self, cx: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        let (deferred, completion) = cx.defer_write(self.1);
        self.0.send((None, Some(completion))).unwrap();
        WriteOutcome::Defer(deferred)
    }
}

#[test]
fn deferred_accesses_are_answered_from_other_threads_while_others_are_served() {
    let domain = domain(2);
    let server = server(&domain);
    let (tx, rx) = mpsc::channel();
    server
        .route("later", mmio(0x1000), Later(tx, PATIENT))
        .unwrap();
    server
        .route("now", PortRange::sized(0x80, 1).unwrap(), Now)
        .unwrap();
    let running = server.start().unwrap();
    let first = domain.spawn(VcpuId(0), |cpu| {
        cpu.store32(MMIO, 1)?;
        Ok((cpu.load32(MMIO)?, cpu.load16(MMIO)?))
    });
    let first = first.unwrap();
    let (_, write) = rx.recv().unwrap();
    // The vCPU waits; another one does not.
    let second = domain.spawn(VcpuId(1), |cpu| cpu.inb(0x80)).unwrap();
    assert_eq!(second.join().unwrap(), 1);
    assert!(!first.is_finished());
    assert!(write.unwrap().complete(()));
    let (read, _) = rx.recv().unwrap();
    assert!(read.unwrap().complete(0x1_2345_6789));
    let (read, _) = rx.recv().unwrap();
    drop(read); // a completion that is lost answers all-ones
    assert_eq!(first.join().unwrap(), (0x2345_6789, 0xffff));
    running.stop().unwrap();
    assert_eq!(server.stats().deferred, 3);
}

#[test]
fn stopping_answers_what_is_deferred() {
    let domain = domain(1);
    let server = server(&domain);
    let (tx, rx) = mpsc::channel();
    server
        .route("later", mmio(0x1000), Later(tx, PATIENT))
        .unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.load32(MMIO)).unwrap();
    let (read, _) = rx.recv().unwrap();
    running.stop().unwrap();
    assert_eq!(guest.join().unwrap(), u32::MAX);
    assert!(!read.unwrap().complete(1), "it was answered already");
}

#[test]
fn an_element_that_is_deferred_holds_the_rest_of_its_instruction() {
    let domain = domain(1);
    let server = server(&domain);
    let (tx, rx) = mpsc::channel();
    server
        .route("later", mmio(0x1000), Later(tx, PATIENT))
        .unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.rep_movs(0x5000, MMIO, Width::B4, 3)?;
        (0..3)
            .map(|index| cpu.load32(0x5000 + index * 4))
            .collect::<Result<Vec<_>, _>>()
    });
    for value in [10, 20, 30] {
        let (read, _) = rx.recv().unwrap();
        assert!(
            rx.try_recv().is_err(),
            "the next element was asked for too early"
        );
        assert!(read.unwrap().complete(value));
    }
    assert_eq!(guest.unwrap().join().unwrap(), [10, 20, 30]);
    running.stop().unwrap();
}

/// A server with one device that defers, each request overdue at once.
fn impatient(domain: &Domain) -> (IoreqServer<SimHypervisor>, mpsc::Receiver<Halves>) {
    let server = server(domain);
    let (tx, rx) = mpsc::channel();
    let range = mmio(0x1000);
    server
        .route("later", range, Later(tx, Duration::ZERO))
        .unwrap();
    (server, rx)
}

#[test]
fn an_overdue_request_is_told_once_and_waited_for_all_the_same() {
    let domain = domain(1);
    let (server, rx) = impatient(&domain);
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| Ok((cpu.load32(MMIO)?, cpu.load32(MMIO)?)));
    for told in [1, 2] {
        let (read, _) = rx.recv().unwrap();
        while server.stats().overruns < told {
            std::thread::yield_now();
        }
        assert!(read.unwrap().complete(told));
    }
    assert_eq!(guest.unwrap().join().unwrap(), (1, 2));
    running.stop().unwrap();
    assert_eq!(server.stats().overruns, 2);
}

#[test]
fn an_event_loop_tells_of_overdue_requests_too() {
    let domain = domain(1);
    let (server, rx) = impatient(&domain);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(server.subscriber(Budget::default()).unwrap());
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.load32(MMIO)).unwrap();
    let read = loop {
        manager.run_with_timeout(100).unwrap();
        if let Ok((read, _)) = rx.try_recv() {
            break read.unwrap();
        }
    };
    while server.stats().overruns == 0 {
        manager.run_with_timeout(100).unwrap();
    }
    assert!(read.complete(7));
    assert_eq!(guest.join().unwrap(), 7);
    assert_eq!(server.stats().overruns, 1);
}

#[test]
fn a_request_in_time_is_not_told() {
    let domain = domain(1);
    let server = server(&domain);
    let (tx, rx) = mpsc::channel();
    server.route("later", mmio(4), Later(tx, PATIENT)).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.load32(MMIO)).unwrap();
    let read = loop {
        server.poll().unwrap();
        if let Ok((read, _)) = rx.try_recv() {
            break read.unwrap();
        }
    };
    for _ in 0..100 {
        server.poll().unwrap();
    }
    assert!(read.complete(7));
    assert_eq!(guest.join().unwrap(), 7);
    assert_eq!(server.stats().overruns, 0);
}

/// A device's range may lie over guest memory: what is written there is the device's, not memory's, also when nobody answers.
#[test]
fn a_write_to_a_device_over_memory_that_nobody_completes_is_dropped() {
    const OVER: u64 = 0x5000;
    let domain = domain(1);
    let server = server(&domain);
    let (tx, rx) = mpsc::channel();
    let range = MmioRange::sized(OVER, 0x1000).unwrap();
    server.route("over", range, Later(tx, PATIENT)).unwrap();
    let running = server.start().unwrap();
    // The type of a page that a device model emulates, with memory behind it.
    let hv = server.hypervisor();
    hv.raw()
        .set_mem_type(P2mType::MmioDm.raw(), 0, OVER >> 12, 1)
        .unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.store32(OVER, 7)?;
        cpu.rep_stos(OVER, Width::B4, 7, 3)
    });
    for _ in 0..4 {
        let (_, write) = rx.recv().unwrap();
        drop(write);
    }
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    let stored = domain
        .memory()
        .load(GuestAddress(OVER), Width::B8)
        .unwrap_or(0);
    assert_eq!((stored, server.stats().data_faults), (0, 0));
}
