// SPDX-License-Identifier: Apache-2.0 OR MIT

//! GPU contexts that come and go, with their shadow page tables: the main job's guest, whose bytes and tables are compared at every
//! submission, under events that get lost and domains that pause.

#[path = "../../../examples/vgpu/checker.rs"]
mod checker;
#[path = "../../../examples/vgpu/host.rs"]
mod host;
#[path = "../../../examples/vgpu/sim.rs"]
mod sim;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::backends::vgpu::{OutOfSync, Pvinfo, Shadow};
use ioreq::sim::{Cpu, Domain, DomainConfig, VcpuThread};
use ioreq::{GfnRange, GuestRam, Interrupts, MmioRange, VcpuId};
use vgpu_guest::layout::{
    APERTURE, APERTURE_FRAMES, ARENAS, CONTROL, ENGINE, LOCK, LOW_FRAMES, PVINFO,
};
use vgpu_guest::{Done, Task};
use vm_memory::GuestAddress;

use self::checker::Tally as Judge;
use self::host::{Frames, engine};
use self::sim::Sim;
use super::devices::builder;
use super::tracking::BOUND;
use super::{Round, clean};
use crate::Failure;
use crate::platform::Platform;
use crate::tally::{Check, Fault};

const VCPUS: u32 = 2;
/// Frames of a driver's arena: 64 MiB.
const ARENA: u64 = 1 << 14;

pub(super) fn round<P: Platform>(round: &Round<'_, P>) -> Result<(), Failure> {
    let model = round.platform.model();
    let model = model.ok_or("its guest is a program for the model's vCPUs")?;
    let mut random = round.random(0);
    let memory = [
        GfnRange::sized(0, LOW_FRAMES)?,
        GfnRange::sized(APERTURE, APERTURE_FRAMES)?,
        GfnRange::sized(ARENAS, u64::from(VCPUS) * ARENA)?,
    ];
    let config = DomainConfig::new(VCPUS);
    let config = memory
        .iter()
        .fold(config, |config, part| config.memory(*part));
    let domain = model.domain(config)?;
    let server = builder(domain.hypervisor(), &mut random).build()?;
    let claim = server.claim_mem_type()?;
    let ram: Arc<dyn GuestRam> = domain.memory();
    let policy = match random.bool() {
        true => OutOfSync::on(),
        false => OutOfSync::off(),
    };
    let tracker = Arc::new(claim.tracker("ppgtt"));
    let shadow = Shadow::builder(tracker, Arc::clone(&ram), Arc::new(Frames(memory.into())))
        .out_of_sync(policy)
        .build()?;
    let judge = Arc::new(Judge::default());
    let interrupts = Arc::clone(server.hypervisor()) as Arc<dyn Interrupts>;
    let engine = engine(&shadow, &ram, &judge, interrupts)?;
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

    let submissions = Arc::new(AtomicU64::new(0));
    let mut drivers = Vec::new();
    for vcpu in 0..VCPUS {
        let task = Task {
            vcpu: vcpu.into(),
            vcpus: VCPUS.into(),
            contexts: random.u64(1..=4),
            submissions: 60,
            rounds: 16,
            after: 40,
            seed: random.u64(..),
            arena_first: ARENAS + u64::from(vcpu) * ARENA,
            arena_frames: ARENA,
        };
        let (ram, submissions) = (Arc::clone(&ram), Arc::clone(&submissions));
        drivers.push(domain.spawn(VcpuId(vcpu), move |cpu: &mut Cpu| {
            let mut cpu = Sim::new(cpu, ram);
            cpu.submissions = submissions;
            vgpu_guest::run(&mut cpu, task)
        })?);
    }
    let done = drive(round, &domain, drivers, &submissions)?;
    claim.settle(BOUND)?;
    let (marked, tables) = (claim.marked_pages(), shadow.stats().tables);
    if marked > 0 || tables > 0 {
        judge.wrong(&format!(
            "{marked} pages marked, {tables} tables shadowed without a context"
        ));
    }
    running.stop()?;
    judge.bytes(done.bytes, done.wrong_bytes);
    let mismatches = judge.mismatches() + done.wrong;
    if mismatches > 0 {
        return Err(format!("{mismatches} entries, bytes or other things were wrong").into());
    }
    if judge.entries.load(Ordering::Relaxed) == 0 || done.bytes == 0 {
        return Err("nothing was compared".into());
    }
    round
        .tally
        .checked(Check::Entries, judge.entries.load(Ordering::Relaxed));
    round
        .tally
        .checked(Check::Narrow, judge.narrow.load(Ordering::Relaxed));
    round.tally.checked(Check::Bytes, done.bytes);
    let stats = server.stats();
    round.tally.requests(stats.requests() + stats.buffered);
    drop((engine, shadow, claim));
    server.destroy().map_err(|err| err.error)?;
    clean(round, &domain)
}

/// Disturbs the drivers until they are through; what they did.
fn drive<P: Platform>(
    round: &Round<'_, P>,
    domain: &Domain,
    drivers: Vec<VcpuThread<Done>>,
    submissions: &AtomicU64,
) -> Result<Done, Failure> {
    let mut random = round.random(1);
    let mut seen = 0;
    while !drivers.iter().all(VcpuThread::is_finished) {
        std::thread::sleep(Duration::from_millis(5));
        let now = submissions.load(Ordering::Relaxed);
        if now != seen {
            seen = now;
            round.pulse.beat();
        }
        if drivers.iter().any(VcpuThread::is_stuck) {
            break;
        }
        match random.u8(0..24) {
            0 => {
                Domain::faults(domain).lose_events(1);
                round.tally.fault(Fault::Lost, 1);
            }
            1 => {
                Domain::faults(domain).double_events(2);
                round.tally.fault(Fault::Doubled, 2);
            }
            2 => {
                Domain::pause(domain);
                std::thread::sleep(Duration::from_millis(1));
                Domain::unpause(domain);
                round.tally.fault(Fault::Paused, 1);
            }
            _ => {}
        }
    }
    let mut sum = Done::default();
    for driver in drivers {
        sum = sum.and(&driver.join()?);
    }
    Ok(sum)
}
