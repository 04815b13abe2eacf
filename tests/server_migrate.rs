// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device model is replaced under load, again and again: quiesced, saved, written, left; taken over by another process's server,
//! read, restored. The guest goes on, and nothing is lost.
#![cfg(feature = "serde")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::backends::register_bank::{Register, RegisterBank};
use ioreq::claim::{MemTypeClaim, PageTracker, Tracker};
use ioreq::handler::{Context, Handler, PageHandler, PageOutcome, PageWrite};
use ioreq::server::{IoreqServer, Running, SavedServer};
use ioreq::sim::{Cpu, CpuFault, Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::snapshot::{Snapshot, Versioned};
use ioreq::{DomId, Gfn, GfnRange, GuestMap, GuestRam, MmioRange, ShutdownReason, VcpuId, Width};
use vm_memory::{Bytes, GuestAddress};

const MMIO: u64 = 0xfe00_0000;
const PAGES: u64 = 8;
const FIRST: u64 = 0x100;
const WORDS: u64 = 512;
const BOUND: Duration = Duration::from_secs(30);

/// What it derives from its page: a copy of every word.
struct Mirror {
    gfn: u64,
    words: Mutex<Vec<u64>>,
}

impl Mirror {
    /// From the page as it is: only once it is tracked.
    fn read(&self, ram: &dyn GuestRam) {
        let mut words = self.words.lock().unwrap();
        for (at, word) in (0..).zip(words.iter_mut()) {
            let addr = GuestAddress((self.gfn << 12) + 8 * at);
            *word = ram.load(addr, Width::B8).unwrap();
        }
    }
}

impl PageHandler for Mirror {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        assert_eq!((write.gfn(), write.width()), (Gfn(self.gfn), Width::B8));
        self.words.lock().unwrap()[usize::from(write.offset() / 8)] = write.value();
        write.apply()
    }
}

fn bank() -> RegisterBank {
    // What a vCPU writes is added up: a write that is lost, or served twice, shows.
    let sum = |name, offset| {
        Register::new(name, offset, Width::B8).on_write(|values, write| {
            values.set(write.offset, write.old.wrapping_add(write.new));
        })
    };
    RegisterBank::new(0x10, [sum("first", 0), sum("second", 8)]).unwrap()
}

/// One process's device model.
struct Model {
    server: IoreqServer<SimHypervisor>,
    claim: MemTypeClaim<SimHypervisor>,
    tracker: Tracker<SimHypervisor>,
    running: Option<Running<SimHypervisor>>,
    bank: Arc<Mutex<RegisterBank>>,
    mirrors: Vec<Arc<Mirror>>,
}

impl Model {
    fn over(server: IoreqServer<SimHypervisor>) -> Self {
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("mirrors");
        let bank = Arc::new(Mutex::new(bank()));
        let mirrors = (FIRST..FIRST + PAGES).map(|gfn| {
            let words = Mutex::new(vec![0; 512]);
            Arc::new(Mirror { gfn, words })
        });
        Model {
            mirrors: mirrors.collect(),
            server,
            claim,
            tracker,
            running: None,
            bank,
        }
    }

    fn new(server: IoreqServer<SimHypervisor>) -> Self {
        let model = Self::over(server);
        let mmio = MmioRange::sized(MMIO, 0x10).unwrap();
        model
            .server
            .route("bank", mmio, Arc::clone(&model.bank))
            .unwrap();
        model.track(GfnRange::sized(FIRST, PAGES).unwrap());
        model.serve()
    }

    fn track(&self, pages: GfnRange) {
        for gfn in pages.iter() {
            let mirror = &self.mirrors[usize::try_from(gfn.0 - FIRST).unwrap()];
            self.tracker
                .track(gfn.into(), Arc::clone(mirror) as _)
                .unwrap();
            mirror.read(&*self.server.hypervisor().memory());
        }
    }

    fn serve(mut self) -> Self {
        self.running = Some(self.server.start().unwrap());
        self
    }

    /// Everything it knows, as text; with `leave` the server stays for another process.
    fn end(mut self, leave: bool) -> String {
        self.running.take().unwrap().stop().unwrap();
        let quiesced = self.server.quiesce(BOUND).unwrap();
        assert_eq!((quiesced.expired(), self.claim.marked_pages()), (0, 0));
        let state = (
            Versioned(quiesced.save()),
            Versioned(Snapshot::save(&*self.bank)),
        );
        let text = serde_json::to_string(&state).unwrap();
        if leave {
            quiesced.leave().unwrap();
        }
        text
    }

    fn restored(server: IoreqServer<SimHypervisor>, text: &str) -> Self {
        let (Versioned(saved), Versioned(registers)) =
            serde_json::from_str::<(Versioned<SavedServer>, _)>(text).unwrap();
        let model = Self::over(server);
        Snapshot::restore(&*model.bank, registers).unwrap();
        let restored = saved.restore_routes(&model.server, |name, _| {
            assert_eq!(name, "bank");
            Some(Arc::new(Arc::clone(&model.bank)) as Arc<dyn Handler>)
        });
        assert_eq!(restored.unwrap().len(), 1);
        assert!(saved.claimed());
        saved.pages("mirrors").for_each(|pages| model.track(pages));
        model.serve()
    }
}

/// What a vCPU has done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Done {
    rounds: u64,
    sum: u64,
}

fn place(vcpu: u64, round: u64) -> u64 {
    let word = round * 7 % (PAGES * WORDS / 2);
    (FIRST << 12) + 16 * word + 8 * vcpu
}

/// One round of a vCPU.
fn round(cpu: &mut Cpu, vcpu: u64, done: &mut Done) -> Result<(), CpuFault> {
    let next = done.rounds + 1;
    cpu.store64(place(vcpu, next), next << 8 | vcpu)?;
    cpu.store64(MMIO + 8 * vcpu, next)?;
    *done = Done {
        rounds: next,
        sum: done.sum.wrapping_add(next),
    };
    Ok(())
}

/// RAM, registers and mirrors, against what the vCPUs say that they did.
fn check(domain: &Domain, model: &Model, done: [Done; 2]) {
    let ram = domain.memory();
    let mut expected = std::collections::BTreeMap::new();
    for (vcpu, done) in (0..).zip(done) {
        for round in 1..=done.rounds {
            expected.insert(place(vcpu, round), round << 8 | vcpu);
        }
        let register = model.bank.lock().unwrap().get(8 * vcpu);
        assert_eq!(
            register,
            Some(done.sum),
            "vCPU {vcpu}, {} rounds",
            done.rounds
        );
    }
    for mirror in &model.mirrors {
        for (at, word) in (0..).zip(mirror.words.lock().unwrap().iter()) {
            let addr = (mirror.gfn << 12) + 8 * at;
            let stored: u64 = ram.read_obj(GuestAddress(addr)).unwrap();
            assert_eq!(
                stored,
                expected.get(&addr).copied().unwrap_or(0),
                "{addr:#x}"
            );
            assert_eq!(*word, stored, "what was derived, of {addr:#x}");
        }
    }
}

struct Record(PathBuf);

impl Drop for Record {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_running_guests_device_model_is_replaced_and_nothing_is_lost() {
    let record = Record(std::env::temp_dir().join(format!("ioreq-migrate-{}", std::process::id())));
    let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
    let first = IoreqServer::builder(domain.hypervisor()).record(&record.0);
    let mut model = Model::new(first.build().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let progress = Arc::new([const { AtomicU64::new(0) }; 2]);
    let rounds = || [0, 1].map(|vcpu: usize| progress[vcpu].load(Ordering::SeqCst));
    let guests = [0_u64, 1].map(|vcpu| {
        let (stop, progress) = (Arc::clone(&stop), Arc::clone(&progress));
        let own = usize::try_from(vcpu).unwrap();
        let program = move |cpu: &mut Cpu| {
            let mut done = Done::default();
            while !stop.load(Ordering::SeqCst) {
                round(cpu, vcpu, &mut done)?;
                progress[own].fetch_add(1, Ordering::SeqCst);
            }
            Ok(done)
        };
        let vcpu = VcpuId(u32::try_from(vcpu).unwrap());
        domain.spawn(vcpu, program).unwrap()
    });
    for _ in 0..12 {
        // Each vCPU is seen to go on, however seldom a busy machine lets one of them run.
        let before = rounds();
        while (rounds().iter().zip(before)).any(|(now, before)| *now < before + 20) {
            std::thread::yield_now();
        }
        let text = model.end(true);
        let next = IoreqServer::builder(domain.hypervisor()).take_over(&record.0);
        model = Model::restored(next.build().unwrap(), &text);
    }
    stop.store(true, Ordering::SeqCst);
    let done = guests.map(|guest| guest.join().unwrap());
    model.running.take().unwrap().stop().unwrap();
    check(&domain, &model, done);
    drop(model);
    assert!(domain.leaks().is_clean());
}

/// A migration: log-dirty mode while the guest runs, then the domain is suspended, its memory copied, and it goes on in another one.
#[test]
fn a_guest_goes_on_in_another_domain_and_nothing_is_lost() {
    let machine = Machine::new();
    let here = machine.create_domain(DomainConfig::new(2)).unwrap();
    let model = Model::new(IoreqServer::builder(here.hypervisor()).build().unwrap());
    let run = |domain: &Domain, done: [Done; 2], rounds: u64| {
        let guests = [0_u64, 1].map(|vcpu| {
            let mut done = done[usize::try_from(vcpu).unwrap()];
            let program = move |cpu: &mut Cpu| {
                (0..rounds).try_for_each(|_| round(cpu, vcpu, &mut done))?;
                Ok(done)
            };
            let vcpu = VcpuId(u32::try_from(vcpu).unwrap());
            domain.spawn(vcpu, program).unwrap()
        });
        guests.map(|guest| guest.join().unwrap())
    };
    let done = run(&here, [Done::default(); 2], 150);
    // Pre-copy: nothing is marked, the server is at work.
    here.set_log_dirty(true).unwrap_err();
    model.claim.suspend(BOUND).unwrap();
    here.set_log_dirty(true).unwrap();
    model.server.set_dirty_logging(true).unwrap();
    let done = run(&here, done, 150);
    here.shutdown(ShutdownReason::Suspend);
    let text = model.end(false);

    let there = machine.create_domain(DomainConfig::new(2)).unwrap();
    assert_ne!(there.domid(), DomId(here.domid().0));
    let mut page = vec![0; 4096];
    for gfn in 0..FIRST + PAGES {
        here.memory()
            .read_slice(&mut page, GuestAddress(gfn << 12))
            .unwrap();
        there
            .memory()
            .write_slice(&page, GuestAddress(gfn << 12))
            .unwrap();
    }
    here.destroy();
    let server = IoreqServer::builder(there.hypervisor()).build().unwrap();
    let mut model = Model::restored(server, &text);
    let done = run(&there, done, 150);
    model.running.take().unwrap().stop().unwrap();
    check(&there, &model, done);
    assert_eq!(done[0].rounds, 450);
    drop(model);
    assert!(there.leaks().is_clean());
}
