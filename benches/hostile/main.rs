// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a hostile vCPU takes from another one of the same worker: `cargo bench --bench hostile`. The well-behaved vCPU reads a register as fast
//! as it can, beside nobody, beside one that does the same, and beside hostile ones, in turn; medians of all rounds are told. On a
//! machine with fewer than three processors threads take each other's time, in every case alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::server::{IoreqServer, Workers};
use ioreq::sim::{Domain, DomainConfig, Machine, RawSlot};
use ioreq::{MmioRange, VcpuId, abi};

const MMIO: u64 = 0xe000_0000;

/// Who is beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    /// One that does the same.
    Benign,
    /// One that makes absurd requests, each when the last is answered.
    Hostile,
    /// One that rewrites its slot all the time, whatever it holds.
    Rewriting,
}

const ALL: [Beside; 4] = [
    Beside::Nobody,
    Beside::Benign,
    Beside::Hostile,
    Beside::Rewriting,
];

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Of each case in each round, in milliseconds.
    #[arg(long, default_value_t = 300)]
    time: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Register;

impl Handler for Register {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        7.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

/// What the well-behaved vCPU saw in one round.
#[derive(Debug, Clone, Copy)]
struct Seen {
    per_second: f64,
    /// The longest that it waited for one answer, in microseconds.
    longest: f64,
    /// Notifications of the worker for each request that it served, whoever made it, and times that it slept.
    notifies: f64,
    sleeps: f64,
}

/// Reads until told to stop: how many, and the longest.
fn read(
    domain: &Domain,
    vcpu: VcpuId,
    stop: Arc<AtomicBool>,
) -> ioreq::sim::VcpuThread<(u64, Duration)> {
    let program = move |cpu: &mut ioreq::sim::Cpu| {
        let (mut count, mut longest) = (0, Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            cpu.load32(MMIO)?;
            longest = longest.max(started.elapsed());
            count += 1;
        }
        Ok((count, longest))
    };
    domain.spawn(vcpu, program).expect("an idle vCPU")
}

/// Makes its slot READY with an absurd request; `waits` for the answer each time.
fn absurd(slot: &RawSlot, waits: bool, stop: &AtomicBool) {
    let mut turn = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        turn = turn.wrapping_add(1);
        let (addr, count, size) = match turn % 4 {
            0 => (MMIO, u32::MAX, 4),
            1 => (MMIO, 1, 3),
            2 => (u64::MAX, 2, 8),
            _ => (MMIO, 0, 4),
        };
        slot.addr.store(addr, Ordering::Relaxed);
        slot.count.store(count, Ordering::Relaxed);
        slot.size.store(size, Ordering::Relaxed);
        slot.kind.store(abi::IOREQ_TYPE_COPY, Ordering::Relaxed);
        slot.flags.store(
            abi::STATE_IOREQ_READY | abi::IOREQ_DIR_READ,
            Ordering::Release,
        );
        let state = || slot.flags.load(Ordering::Acquire) & abi::IOREQ_STATE_MASK;
        while waits && state() != abi::STATE_IORESP_READY && !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }
}

fn round(beside: Beside, time: Duration) -> Result<Seen, Box<dyn std::error::Error>> {
    let domain = Machine::new().create_domain(DomainConfig::new(2))?;
    let server = IoreqServer::builder(domain.hypervisor())
        .workers(Workers::Count(1))
        .build()?;
    server.route("register", MmioRange::sized(MMIO, 0x1000)?, Register)?;
    let running = server.start()?;
    let stop = Arc::new(AtomicBool::new(false));
    let slots = domain.hostile().slots(server.id()).ok_or("not acquired")?;
    let (count, longest) = std::thread::scope(|scope| {
        let well = read(&domain, VcpuId(0), Arc::clone(&stop));
        let other = match beside {
            Beside::Nobody => None,
            Beside::Benign => Some(read(&domain, VcpuId(1), Arc::clone(&stop))),
            Beside::Hostile | Beside::Rewriting => {
                let (slots, stop) = (&slots, &stop);
                scope.spawn(move || {
                    if let Some(slot) = slots.slot(VcpuId(1)) {
                        absurd(slot, beside == Beside::Hostile, stop);
                    }
                });
                None
            }
        };
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        if let Some(other) = other {
            other.join()?;
        }
        well.join()
    })?;
    running.stop()?;
    let stats = server.stats();
    let each = |number: u64| number as f64 / stats.requests().max(1) as f64;
    Ok(Seen {
        per_second: count as f64 / time.as_secs_f64(),
        longest: longest.as_secs_f64() * 1e6,
        notifies: each(stats.notifies),
        sleeps: each(stats.sleeps),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Args { rounds, time, .. } = Args::parse();
    let mut seen: [Vec<Seen>; ALL.len()] = Default::default();
    for _ in 0..rounds.max(1) {
        for (beside, seen) in ALL.into_iter().zip(&mut seen) {
            seen.push(round(beside, Duration::from_millis(time))?);
        }
    }
    let benign = median(seen[1].iter().map(|seen| seen.per_second).collect());
    println!(
        "{:10} {:>10} {:>10} {:>12} {:>9} {:>7}",
        "beside", "requests/s", "of benign", "longest µs", "notifies", "sleeps"
    );
    for (beside, seen) in ALL.into_iter().zip(&seen) {
        let of = |what: fn(&Seen) -> f64| median(seen.iter().map(what).collect());
        let rate = of(|seen| seen.per_second);
        println!(
            "{:10} {rate:10.0} {:9.1}% {:12.0} {:9.3} {:7.4}",
            format!("{beside:?}").to_lowercase(),
            100.0 * rate / benign,
            of(|seen| seen.longest),
            of(|seen| seen.notifies),
            of(|seen| seen.sleeps)
        );
    }
    Ok(())
}
