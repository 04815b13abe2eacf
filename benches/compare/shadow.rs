// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vGPU's shadow page tables on the model, in one thread: requests are put into the slot as Xen does it, and served by hand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ioreq::backends::vgpu::{LinearMap, Root, RootId, Shadow};
use ioreq::claim::{MemTypeClaim, PageTracker, Tracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq::server::IoreqServer;
use ioreq::sim::{Domain, DomainConfig, HostileSlots, Machine, SimHypervisor};
use ioreq::{Gfn, GfnRange, GuestMap, GuestRam, VcpuId, Width, abi};
use vm_memory::GuestAddress;

use crate::calm::{Patience, Watch};
use crate::clock::{each, pin};
use crate::row::Row;
use crate::slices::{Figure, figure};

/// How far host addresses are from guest addresses.
const DISTANCE: u64 = 0x10_0000_0000;
/// First of a context's tables: one of each higher level, then page tables.
const TABLES: u64 = 0x100;
/// Page tables of the context whose entries are written.
const WRITTEN: u64 = 16;
/// Writes of a slice.
const WRITES: u32 = 500;
/// A page that is tracked by somebody who does nothing.
const PLAIN: u64 = 0x80;

struct Nothing;

impl PageHandler for Nothing {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    claim: MemTypeClaim<SimHypervisor>,
    tracker: Arc<Tracker<SimHypervisor>>,
    ram: Arc<dyn GuestRam>,
    shadow: Shadow,
    slots: HostileSlots,
}

impl Rig {
    fn new() -> ioreq::Result<Self> {
        let frames = GfnRange::sized(0, 0x2000)?;
        let domain = Machine::new().create_domain(DomainConfig::new(1).memory(frames))?;
        let server = IoreqServer::builder(domain.hypervisor()).build()?;
        let claim = server.claim_mem_type()?;
        let tracker = Arc::new(claim.tracker("ppgtt"));
        let ram: Arc<dyn GuestRam> = server.hypervisor().memory();
        let host = Arc::new(LinearMap::new(Arc::clone(&ram), DISTANCE));
        let shadow = Shadow::builder(tracker.clone(), ram.clone(), host).build()?;
        let slots = domain.hostile().slots(server.id()).expect("acquired");
        Ok(Rig {
            domain,
            server,
            claim,
            tracker,
            ram,
            shadow,
            slots,
        })
    }

    fn entry(&self, table: u64, index: u64, entry: u64) {
        let at = GuestAddress((table << 12) + index * 8);
        self.ram.store(at, Width::B8, entry).expect("guest memory");
    }

    /// Tables of a context with so many full page tables; its root.
    fn tables(&self, page_tables: u64) -> Root {
        for level in 0..2 {
            self.entry(TABLES + level, 0, (TABLES + level + 1) << 12 | 3);
        }
        for table in 0..page_tables {
            let page_table = TABLES + 3 + table;
            self.entry(TABLES + 2, table, page_table << 12 | 3);
            for index in 0..512 {
                self.entry(page_table, index, frame(table + index) << 12 | 3);
            }
        }
        Root::L4(Gfn(TABLES))
    }

    /// One trapped 8-byte write, as Xen sends it.
    fn write(&self, addr: u64, value: u64) -> ioreq::Result<()> {
        let slot = self.slots.slot(VcpuId(0)).expect("a vCPU");
        slot.addr.store(addr, Ordering::Relaxed);
        slot.data.store(value, Ordering::Relaxed);
        slot.count.store(1, Ordering::Relaxed);
        slot.size.store(8, Ordering::Relaxed);
        slot.kind.store(abi::IOREQ_TYPE_COPY, Ordering::Relaxed);
        slot.flags.store(abi::STATE_IOREQ_READY, Ordering::Release);
        assert_eq!(self.server.poll()?, 1);
        let state = slot.flags.load(Ordering::Acquire) & abi::IOREQ_STATE_MASK;
        assert_eq!(state, abi::STATE_IORESP_READY);
        slot.flags.store(abi::STATE_IOREQ_NONE, Ordering::Release);
        Ok(())
    }

    fn leads_to(&self, root: RootId, addr: u64) -> u64 {
        let target = self.shadow.lookup(root, addr).expect("mapped");
        target.host.0 - DISTANCE
    }
}

/// A frame that an entry leads to.
fn frame(number: u64) -> u64 {
    0x1000 + number % 0x800
}

/// Entries of page tables are written; beside it, writes to a tracked page whose handler does nothing.
fn entries(rig: &Rig, root: RootId, rounds: u32) -> ioreq::Result<[Row; 2]> {
    let (mut shadow, mut plain) = (Vec::new(), Vec::new());
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..rounds {
        let mut time = |tables: Option<u64>| {
            let mut patience = Patience::much();
            figure(|| {
                let writes: Vec<(u64, u64, u64)> = (0..WRITES)
                    .map(|_| (random.u64(..WRITTEN), random.u64(..512), random.u64(..)))
                    .collect();
                patience.wait();
                let (watch, started) = (Watch::begin(), Instant::now());
                for (table, index, value) in &writes {
                    let page = tables.map_or(PLAIN, |first| first + table);
                    let addr = (page << 12) + index * 8;
                    let served = rig.write(addr, frame(*value) << 12 | 3);
                    served.expect("a server that lives");
                }
                let elapsed = started.elapsed();
                let unrest = watch.end();
                // Last writes first: what was written before is written over.
                let mut seen = std::collections::HashSet::new();
                for (table, index, value) in writes.iter().rev() {
                    if tables.is_some() && seen.insert((table, index)) {
                        let leads_to = rig.leads_to(root, table << 21 | index << 12);
                        assert_eq!(leads_to, frame(*value) << 12, "the shadow follows");
                    }
                }
                (each(elapsed, WRITES), unrest)
            })
        };
        shadow.push(time(Some(TABLES + 3)));
        plain.push(time(None));
    }
    let row = |contender, figures: &[Figure]| {
        let name = "a write to a GPU page table, on the model";
        Row::new(name, WRITTEN * 512, "random", contender, figures)
    };
    Ok([row("ours", &shadow), row("no shadow", &plain)])
}

/// A whole context comes and goes, and its pages are unmarked. Per entry that leads somewhere.
fn contexts(rig: &Rig, rounds: u32) -> ioreq::Result<[Row; 3]> {
    let root = rig.tables(WRITTEN);
    let live = u32::try_from(WRITTEN).unwrap_or(0) * 512;
    let mut series: [Vec<Figure>; 3] = Default::default();
    for _ in 0..rounds {
        let once = || -> ioreq::Result<[f64; 3]> {
            let started = Instant::now();
            let id = rig.shadow.create(root)?;
            let created = started.elapsed();
            assert_eq!(rig.shadow.mappings(id).len(), live as usize);
            let started = Instant::now();
            rig.shadow.destroy(id)?;
            let destroyed = started.elapsed();
            let started = Instant::now();
            rig.claim.settle(Duration::from_secs(10))?;
            let unmarked = started.elapsed();
            assert_eq!(rig.claim.marked_pages(), 1, "the plain page");
            Ok([created, destroyed, unmarked].map(|time| each(time, live)))
        };
        let mut runs = (0..15).map(|_| once()).collect::<ioreq::Result<Vec<_>>>()?;
        for (part, series) in series.iter_mut().enumerate() {
            runs.sort_by(|a, b| a[part].total_cmp(&b[part]));
            let ns = runs[runs.len() / 2][part];
            series.push(Figure {
                ns,
                disturbed: false,
            });
        }
    }
    let row = |part: usize, name| Row::new(name, live.into(), "per entry", "ours", &series[part]);
    Ok([
        row(0, "a GPU context is created"),
        row(1, "a GPU context is destroyed"),
        row(2, "its tables are unmarked"),
    ])
}

/// All of it.
pub(crate) fn rows(rounds: u32) -> Vec<Row> {
    let measure = || -> ioreq::Result<Vec<Row>> {
        pin(0);
        let rig = Rig::new()?;
        let plain = rig.tracker.track(Gfn(PLAIN).into(), Arc::new(Nothing) as _);
        plain.expect("a free page");
        let root = rig.shadow.create(rig.tables(WRITTEN))?;
        let mut rows: Vec<Row> = entries(&rig, root, rounds)?.into();
        rig.shadow.destroy(root)?;
        rig.claim.settle(Duration::from_secs(10))?;
        rows.extend(contexts(&rig, rounds)?);
        assert_eq!(rig.domain.crash_reason(), None);
        Ok(rows)
    };
    measure().expect("the model refuses nothing of this")
}
