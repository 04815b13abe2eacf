// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A worker that keeps a tracked page's order from one write to the next makes nobody wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq::server::{IoreqServer, Polling, Workers};
use ioreq::sim::{Cpu, Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{Gfn, GfnRange, MmioRange, VcpuId};

/// A worker with nothing to do goes on polling for so long.
const LONG: Duration = Duration::from_secs(1);
/// Much longer than a look, and much shorter than that.
const SOON: Duration = Duration::from_millis(500);

const PAGE: u64 = 0x10;
const DEVICE: u64 = 0xf000_0000;

#[derive(Default)]
struct Count(AtomicU64);

impl PageHandler for Count {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::Relaxed);
        PageOutcome::Apply
    }
}

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    _claim: MemTypeClaim<SimHypervisor>,
    tracker: Tracker<SimHypervisor>,
    count: Arc<Count>,
}

impl Rig {
    fn new() -> Self {
        let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
        let builder = IoreqServer::builder(domain.hypervisor()).workers(Workers::PerVcpu);
        let server = builder.polling(Polling::up_to(LONG)).build().unwrap();
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("test");
        let count = Arc::new(Count::default());
        tracker.track(Self::page(), count.clone()).unwrap();
        Rig {
            domain,
            server,
            _claim: claim,
            tracker,
            count,
        }
    }

    fn page() -> GfnRange {
        Gfn(PAGE).into()
    }

    /// The vCPU writes the page so often that its worker polls, and keeps the order; then `after`.
    fn write(&self, vcpu: u32, after: impl FnOnce(&mut Cpu) + Send + 'static) {
        let program = move |cpu: &mut Cpu| {
            (0..200).try_for_each(|value| cpu.store64(PAGE << 12, value))?;
            after(cpu);
            Ok(())
        };
        let guest = self.domain.spawn(VcpuId(vcpu), program).unwrap();
        guest.join().unwrap();
    }
}

#[test]
fn a_page_is_unmarked_while_its_last_writer_polls() {
    let rig = Rig::new();
    let running = rig.server.start().unwrap();
    for round in 1..=3 {
        rig.write(0, |_| ());
        let started = Instant::now();
        rig.tracker.untrack(Rig::page()).unwrap();
        while rig.tracker.state(Gfn(PAGE)) != PageState::Untracked {
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        assert_eq!(rig.count.0.load(Ordering::Relaxed), round * 200);
        rig.tracker.track(Rig::page(), rig.count.clone()).unwrap();
    }
    running.stop().unwrap();
}

#[test]
fn another_workers_vcpu_writes_the_page_while_its_last_writer_polls() {
    let rig = Rig::new();
    let running = rig.server.start().unwrap();
    for vcpu in [0, 1, 0, 1] {
        let started = Instant::now();
        rig.write(vcpu, |_| ());
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }
    running.stop().unwrap();
    assert_eq!(rig.count.0.load(Ordering::Relaxed), 800);
}

/// A device that takes its time: until it is told, or nobody does.
struct Slow {
    begun: Mutex<Sender<()>>,
    told: Mutex<Receiver<()>>,
    waited_in_vain: AtomicU64,
}

impl Slow {
    fn wait(&self) {
        self.begun.lock().unwrap().send(()).unwrap();
        let told = self.told.lock().unwrap();
        if told.recv_timeout(Duration::from_secs(5)).is_err() {
            self.waited_in_vain.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Handler for Slow {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.wait();
        ReadOutcome::Value(0)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.wait();
        WriteOutcome::Done
    }
}

/// Of each way to a handler: plain, and with data in memory.
#[test]
fn another_workers_vcpu_writes_the_page_while_its_last_writer_is_in_a_long_handler() {
    let rig = Rig::new();
    let (begun, has_begun) = channel();
    let (tell, told) = channel();
    let slow = Arc::new(Slow {
        begun: Mutex::new(begun),
        told: Mutex::new(told),
        waited_in_vain: AtomicU64::new(0),
    });
    let range = MmioRange::sized(DEVICE, 0x1000).unwrap();
    let _route = rig.server.route("slow", range, slow.clone()).unwrap();
    let running = rig.server.start().unwrap();
    let ways: [fn(&mut Cpu); 2] = [
        |cpu| cpu.store32(DEVICE, 7).unwrap(),
        |cpu| assert_eq!(cpu.load32(DEVICE).unwrap(), 0),
    ];
    for way in ways {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| rig.write(0, way));
            has_begun.recv().unwrap();
            rig.write(1, |_| ());
            tell.send(()).unwrap();
            first.join().unwrap();
        });
    }
    running.stop().unwrap();
    assert_eq!(slow.waited_in_vain.load(Ordering::Relaxed), 0);
    assert_eq!(rig.count.0.load(Ordering::Relaxed), 800);
}
