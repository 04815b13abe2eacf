// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sets everything up and runs it: server, vGPU, guest drivers. The same on every hypervisor.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ioreq::backends::vgpu::{OutOfSync, Pvinfo, Shadow};
use ioreq::server::IoreqServer;
use ioreq::{GuestMap, GuestRam, MmioRange, Width};
use vgpu_guest::layout::{ARENAS, CONTROL, ENGINE, LOCK, MOST_ALIVE, PVINFO};
use vgpu_guest::{Done, Task};
use vm_memory::GuestAddress;

use crate::checker::Tally;
use crate::host::{Frames, engine};
use crate::options::{On, Options};
use crate::platform::{Failure, Platform};
use crate::report::{Report, cpu_seconds};
use crate::witness::{Counted, Seen, Witness};

/// Frames that a context may take of an arena: half of them single pages, half in runs of 2 MiB.
const PER_CONTEXT: u64 = 2048;

pub(crate) fn run<P: Platform>(
    platform: &P,
    options: &Options,
    policy: OutOfSync,
) -> Result<Report, Failure> {
    let cpu_before = cpu_seconds();
    let server = IoreqServer::<P::Hv>::builder(platform.hypervisor())
        .sample_latency(1)
        .build()?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("ppgtt");
    let seen = Seen::new(options.vcpus);
    let witness = Arc::new(Witness::new(tracker.clone(), Arc::clone(&seen)));
    let ram: Arc<dyn GuestRam> = server.hypervisor().memory();
    let frames = Frames(platform.memory());
    let shadow = Shadow::builder(witness, Arc::clone(&ram), Arc::new(frames))
        .most_tables(1 << 21)
        .out_of_sync(policy)
        .build()?;

    let tally = Arc::new(Tally::default());
    let interrupts = Counted::new(Arc::clone(server.hypervisor()));
    let engine = engine(&shadow, &ram, &tally, interrupts.clone())?;
    let pvinfo = Mutex::new(Pvinfo::new(shadow.clone(), 1));
    server.route("pvinfo", MmioRange::sized(PVINFO, 4096)?, pvinfo)?;
    server.route(
        "engine",
        MmioRange::sized(ENGINE, 4096)?,
        Arc::clone(&engine),
    )?;
    let running = server.start()?;

    // Where drivers meet and lock nobody is.
    ram.write(
        GuestAddress(LOCK),
        &vec![0; usize::try_from(CONTROL - LOCK)?],
    )?;
    let started = Instant::now();
    let reserved = match options.pages {
        0 => None,
        pages => Some(platform.reserve(pages)?),
    };
    let tracked_reserved = claim.marked_pages();
    let bar = bar(options);
    let tasks = tasks(options, arena_frames(options, platform.arena()));
    let driven = Instant::now();
    let done = platform.drive(&tasks, &|submissions| bar.set_position(submissions))?;
    let driven = driven.elapsed();
    bar.finish_and_clear();
    if let Some(root) = reserved {
        platform.unreserve(root)?;
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
    if interrupts.sent() != engine.stats().submissions {
        tally.wrong("not every command was told by an interrupt");
    }
    let window_seconds = done
        .iter()
        .map(|done| {
            let tick = driven.as_secs_f64() / done.ticks.max(1) as f64;
            platform.tick().unwrap_or(tick) * done.window_ticks as f64
        })
        .sum();
    let done = done.iter().fold(Done::default(), |sum, done| sum.and(done));
    tally.bytes(done.bytes, done.wrong_bytes);
    if done.wrong > 0 {
        tally.wrong(&format!("the guest complained {} times", done.wrong));
    }
    let report = Report {
        hypervisor: platform.name(),
        seconds,
        cpu_seconds: cpu_seconds() - cpu_before,
        stats: server.stats(),
        shadow: shadow.stats(),
        engine: engine.stats(),
        contexts_alive: ram.load(GuestAddress(MOST_ALIVE), Width::B8)?,
        tracked: claim.marked_pages(),
        tracked_reserved,
        tracked_peak: claim.marked_pages_peak(),
        interrupts: interrupts.sent(),
        handled: tracker.stats().writes,
        by_vcpu: seen.by_vcpu(),
        shared: seen.shared(),
        unmarked,
        mark_calls: platform.mark_calls(),
        window_seconds,
        done,
        tally,
    };
    drop(claim);
    server.destroy().map_err(|err| err.error)?;
    if let Some(left) = platform.left_behind() {
        report.tally.wrong(&format!("left behind: {left}"));
    }
    Ok(report)
}

/// Frames of each driver's arena, `least` at least. The first driver has the most contexts.
pub(crate) fn arena_frames(options: &Options, least: u64) -> u64 {
    least.max(u64::from(options.contexts_of(0)) * PER_CONTEXT)
}

fn tasks(options: &Options, arena: u64) -> Vec<Task> {
    let task = |vcpu: u32| Task {
        vcpu: vcpu.into(),
        vcpus: options.vcpus.into(),
        contexts: options.contexts_of(vcpu).into(),
        submissions: options.submissions_of(vcpu),
        rounds: options.rounds(),
        after: options.after(),
        seed: options.seed.wrapping_mul(1000).wrapping_add(vcpu.into()),
        arena_first: ARENAS + u64::from(vcpu) * arena,
        arena_frames: arena,
    };
    (0..options.vcpus).map(task).collect()
}

fn bar(options: &Options) -> ProgressBar {
    if options.hypervisor == On::Xen {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(options.submissions());
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} submissions, {per_sec}, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
