// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sets everything up and runs it: hypervisor model, server, vGPU, guest drivers.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ioreq::backends::vgpu::{Engine, LinearMap, OutOfSync, Pvinfo, Root, Shadow};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine, XenVersion};
use ioreq::{GfnRange, GuestMap, GuestRam, MmioRange, Op, VcpuId};

use crate::checker::{Page, Tally, walk, walk_directories};
use crate::driver::{self, APERTURE, Done, ENGINE, PVINFO, Task};
use crate::frames::Arena;
use crate::options::{Options, Version};
use crate::report::{Report, cpu_seconds};
use crate::reserve;

/// How far host addresses are from guest addresses.
const DISTANCE: u64 = 0x10_0000_0000;
/// Frames of memory below the aperture, for what drivers share.
const LOW: u64 = 0x1000;
/// First frame of the reservation: behind the aperture.
const RESERVED: u64 = APERTURE + (1 << 18);
/// First frame of the drivers' arenas: behind any reservation, beyond 4 GiB, so that both halves of an entry matter.
const ARENAS: u64 = 1 << 22;
/// The least frames of an arena, 256 MiB, and what a context may take: half of it in single pages, half in runs of 2 MiB.
const ARENA: u64 = 1 << 16;
const PER_CONTEXT: u64 = 2048;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

pub(crate) fn run(options: &Options, policy: OutOfSync) -> Result<Report, Failure> {
    let cpu_before = cpu_seconds();
    let version = match options.xen {
        Version::V4_17 => XenVersion::V4_17,
        Version::V4_20 => XenVersion::V4_20,
    };
    let machine = Machine::builder().version(version).build();
    let mut config = DomainConfig::new(options.vcpus);
    config = config.memory(GfnRange::sized(0, LOW)?);
    let high = (1 << 18) + reserve::frames(options.pages);
    config = config.memory(GfnRange::sized(APERTURE, high)?);
    let arenas = u64::from(options.vcpus) * arena_frames(options);
    config = config.memory(GfnRange::sized(ARENAS, arenas)?);
    let domain = machine.create_domain(config)?;

    let server = IoreqServer::builder(domain.hypervisor())
        .sample_latency(1)
        .build()?;
    let claim = server.claim_mem_type()?;
    let tracker = Arc::new(claim.tracker("ppgtt"));
    let ram: Arc<dyn GuestRam> = server.hypervisor().memory();
    let frames = LinearMap::new(Arc::clone(&ram), DISTANCE);
    let shadow = Shadow::builder(tracker.clone(), Arc::clone(&ram), Arc::new(frames.clone()))
        .most_tables(1 << 21)
        .out_of_sync(policy)
        .build()?;

    let tally = Arc::new(Tally::default());
    let engine = engine(&shadow, &frames, &ram, &tally, server.hypervisor().clone())?;
    let pvinfo = Mutex::new(Pvinfo::new(shadow.clone(), 1));
    server.route("pvinfo", MmioRange::sized(PVINFO, 4096)?, pvinfo)?;
    server.route(
        "engine",
        MmioRange::sized(ENGINE, 4096)?,
        Arc::clone(&engine),
    )?;
    let running = server.start()?;

    let started = Instant::now();
    let reserved = if options.pages > 0 {
        let pages = options.pages;
        let vcpu = domain.spawn(VcpuId(0), move |cpu| reserve::make(cpu, RESERVED, pages))?;
        Some(vcpu.join()?)
    } else {
        None
    };
    let tracked_reserved = claim.marked_pages();

    let progress = Arc::new(AtomicU64::new(0));
    let alive = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let mut vcpus = Vec::new();
    let arena = arena_frames(options);
    for vcpu in 0..options.vcpus {
        let task = Task {
            vcpu: VcpuId(vcpu),
            contexts: options.contexts_of(vcpu),
            submissions: options.submissions_of(vcpu),
            seed: options
                .seed
                .wrapping_mul(1000)
                .wrapping_add(u64::from(vcpu)),
            arena: Arena::new(ARENAS + u64::from(vcpu) * arena, arena),
            ram: Arc::clone(&ram),
            tally: Arc::clone(&tally),
            progress: Arc::clone(&progress),
            alive: Arc::clone(&alive),
        };
        vcpus.push(domain.spawn(VcpuId(vcpu), move |cpu| driver::run(cpu, task))?);
    }
    let bar = bar(options);
    while vcpus.iter().any(|vcpu| !vcpu.is_finished()) {
        bar.set_position(progress.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(20));
    }
    bar.finish_and_clear();
    let mut done = Vec::new();
    for vcpu in vcpus {
        done.push(vcpu.join()?);
    }
    if let Some(root) = reserved {
        domain
            .spawn(VcpuId(0), move |cpu| reserve::end(cpu, root))?
            .join()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let unmarked = claim.settle(Duration::from_secs(30))?;
    if claim.marked_pages() > 0 {
        tally.wrong(&format!(
            "{} pages still marked: {:?}",
            claim.marked_pages(),
            unmarked.deferred
        ));
    }
    if shadow.stats().tables > 0 {
        tally.wrong("shadow tables left over");
    }
    running.stop()?;
    if domain.counts().dmop(Op::InjectMsi) != engine.stats().submissions {
        tally.wrong("not every command was told by an interrupt");
    }
    let stats = server.stats();
    let report = Report {
        hypervisor: format!(
            "model of Xen {}",
            if options.xen == Version::V4_17 {
                "4.17"
            } else {
                "4.20"
            }
        ),
        seconds,
        cpu_seconds: cpu_seconds() - cpu_before,
        stats,
        shadow: shadow.stats(),
        engine: engine.stats(),
        contexts_alive: alive.1.load(Ordering::Relaxed),
        tracked: claim.marked_pages(),
        tracked_reserved,
        tracked_peak: claim.marked_pages_peak(),
        interrupts: domain.counts().dmop(Op::InjectMsi),
        handled: tracker.stats().writes,
        mark_calls: domain.counts().dmop(Op::SetMemType),
        done: sum(&done),
        tally,
    };
    drop(claim);
    server.destroy().map_err(|err| err.error)?;
    let leaks = domain.leaks();
    if !leaks.is_clean() {
        report.tally.wrong(&format!("left behind: {leaks:?}"));
    }
    Ok(report)
}

/// Frames of each driver's arena. The first driver has the most contexts.
fn arena_frames(options: &Options) -> u64 {
    ARENA.max(u64::from(options.contexts_of(0)) * PER_CONTEXT)
}

fn engine(
    shadow: &Shadow,
    frames: &LinearMap,
    ram: &Arc<dyn GuestRam>,
    tally: &Arc<Tally>,
    interrupts: Arc<ioreq::sim::SimHypervisor>,
) -> Result<Arc<Engine>, Failure> {
    let (watched, tally, guest) = (shadow.clone(), Arc::clone(tally), Arc::clone(ram));
    let engine = Engine::new(shadow.clone(), Arc::new(frames.clone()), Arc::clone(ram))
        .interrupt(interrupts, 0xfee0_0000, 0x41)
        .observer(move |id, root| {
            let expected = match root {
                Root::L4(pml4) => walk(&*guest, pml4.0 << 12),
                Root::L3(directories) => {
                    tally.narrow.fetch_add(1, Ordering::Relaxed);
                    let at = directories.map(|gfn| gfn.map_or(0, |gfn| gfn.0 << 12));
                    walk_directories(&*guest, at)
                }
            };
            let shown: Vec<Page> = watched
                .mappings(id)
                .into_iter()
                .map(|(gpu, to)| Page {
                    gpu,
                    guest: if to.scratch {
                        u64::MAX
                    } else {
                        to.host.0 - DISTANCE
                    },
                    bytes: to.size.bytes(),
                    writable: to.writable,
                })
                .collect();
            tally.compare(&expected, &shown);
        });
    Ok(Arc::new(engine.start()?))
}

fn bar(options: &Options) -> ProgressBar {
    let bar = ProgressBar::new(options.submissions);
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} submissions, {per_sec}, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn sum(done: &[Done]) -> Done {
    done.iter().fold(Done::default(), |sum, one| Done {
        wide_created: sum.wide_created + one.wide_created,
        narrow_created: sum.narrow_created + one.narrow_created,
        streams_created: sum.streams_created + one.streams_created,
        tables_freed: sum.tables_freed + one.tables_freed,
        tables_reused: sum.tables_reused + one.tables_reused,
        moved: sum.moved + one.moved,
        common_turns: sum.common_turns + one.common_turns,
        window_writes: sum.window_writes + one.window_writes,
        window_time: sum.window_time + one.window_time,
    })
}
