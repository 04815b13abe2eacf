// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What one vCPU waits for its answers while others do all sorts of things, and what a server costs that has nothing to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ioreq::server::Workers;
use ioreq::sim::{Cpu, CpuFault, VcpuThread, VcpuWait};
use ioreq::{VcpuId, Width};

use crate::guest::{Kind, Served, page_of};
use crate::row::Row;
use crate::slices::Figure;

/// vCPUs, the measured one included.
const VCPUS: u32 = 4;
/// Of each round.
const TIME: Duration = Duration::from_millis(700);
/// For how long an idle server is watched.
const IDLE: Duration = Duration::from_secs(10);

/// Bursts with pauses in between.
fn load(served: &Served, vcpu: u32, stop: &Arc<AtomicBool>) -> ioreq::Result<VcpuThread<()>> {
    let stop = Arc::clone(stop);
    served.domain.spawn(VcpuId(vcpu), move |cpu| {
        let mut random = fastrand::Rng::with_seed(vcpu.into());
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..random.u32(1..100) {
                access(cpu, &mut random, vcpu)?;
            }
            std::thread::sleep(Duration::from_micros(random.u64(0..500)));
        }
        Ok(())
    })
}

/// An access of any kind; what it reads has to be right.
fn access(cpu: &mut Cpu, random: &mut fastrand::Rng, vcpu: u32) -> Result<(), CpuFault> {
    let page = page_of(vcpu).0 * 0x1000;
    let (at, value) = (page + random.u64(..512) * 8, random.u64(..));
    match random.u32(..10) {
        0..3 => {
            cpu.store64(at, value)?;
            assert_eq!(cpu.load64(at)?, value, "the guest reads what it wrote");
        }
        3 => {
            cpu.rep_stos(page, Width::B8, value, 16)?;
            assert_eq!(cpu.load64(page + 120)?, value);
        }
        4..7 => Served::check_read(cpu, random.u64(..1000))?,
        7 => cpu.outl(Served::PORT, 1)?,
        _ => Served::check_port(cpu, random.u64(..1000))?,
    }
    Ok(())
}

/// Latencies of MMIO reads, in nanoseconds.
fn measure() -> ioreq::Result<Histogram<u64>> {
    let served = Served::new(VCPUS, VcpuWait::default(), |builder| {
        builder.workers(Workers::Auto)
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let others = (1..VCPUS).map(|vcpu| load(&served, vcpu, &stop));
    let others = others.collect::<ioreq::Result<Vec<_>>>()?;
    let measured = served.domain.spawn(VcpuId(0), |cpu| {
        // Up to a minute, with three digits.
        let bounds = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3);
        let mut latencies = bounds.expect("three digits");
        let mut random = fastrand::Rng::with_seed(0);
        let until = Instant::now() + TIME;
        while Instant::now() < until {
            for _ in 0..random.u32(1..100) {
                let started = Instant::now();
                Served::check_read(cpu, random.u64(..1000))?;
                let taken = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                latencies.saturating_record(taken);
            }
            std::thread::sleep(Duration::from_micros(random.u64(0..500)));
        }
        Ok(latencies)
    })?;
    let latencies = measured.join().expect("the domain lives");
    stop.store(true, Ordering::Relaxed);
    for other in others {
        other.join().expect("the domain lives");
    }
    served.stop()?;
    Ok(latencies)
}

/// What one vCPU waits for an MMIO read.
pub(crate) fn rows(rounds: u32) -> Vec<Row> {
    let rounds = (0..rounds).map(|_| measure().expect("the model refuses nothing of this"));
    let rounds: Vec<_> = rounds.collect();
    let quantiles = [("median", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
    let rows = quantiles.map(|(pattern, quantile)| {
        #[allow(clippy::cast_precision_loss, reason = "some milliseconds")]
        let figure = |latencies: &Histogram<u64>| Figure {
            ns: latencies.value_at_quantile(quantile) as f64,
            disturbed: false,
        };
        let figures: Vec<_> = rounds.iter().map(figure).collect();
        let name = "an MMIO read under mixed load";
        Row::new(name, VCPUS.into(), pattern, "ours", &figures)
    });
    rows.into()
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure that it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert_eq!(result, 0, "the kernel counts processes' time");
    let of = |time: libc::timeval| {
        let micros = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// What a server with nothing to do takes, after it has had something to do.
pub(crate) fn idle(_: u32) -> Vec<Row> {
    let measure = || -> ioreq::Result<f64> {
        let served = Served::new(VCPUS, VcpuWait::default(), |builder| {
            builder.workers(Workers::PerVcpu)
        })?;
        for guest in &mut served.guests(Kind::MmioRead)? {
            (0..1000).for_each(|value| guest.trip(value));
        }
        let before = cpu_time();
        std::thread::sleep(IDLE);
        let taken = cpu_time() - before;
        served.stop()?;
        Ok(taken.as_secs_f64() * 1e3)
    };
    let taken = measure().expect("the model refuses nothing of this");
    let what = (
        "an idle server, CPU time of 10 s",
        VCPUS.into(),
        "idle",
        "ours",
    );
    vec![Row::of("ms", what, vec![taken.max(1e-3)])]
}
