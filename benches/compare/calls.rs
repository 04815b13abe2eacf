// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls of a worker for a request, counted with ptrace in a process of its own, which is this program again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use ioreq::server::Polling;
use ioreq::sim::VcpuWait;

use crate::guest::{Kind, Served};
use crate::row::Row;

/// Requests that are counted.
const REQUESTS: u32 = 10_000;
/// The tracer stops the vCPU at each of its own calls, so the next request comes later than the default would wait for.
const LONGEST: Duration = Duration::from_millis(20);

/// How vCPU and worker wait.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Waiting {
    /// The vCPU spins, the worker polls.
    Spinning,
    /// The vCPU sleeps, the worker polls.
    Polling,
    /// Both sleep.
    Sleeping,
}

impl Waiting {
    const ALL: [Waiting; 3] = [Waiting::Spinning, Waiting::Polling, Waiting::Sleeping];

    fn name(self) -> &'static str {
        match self {
            Waiting::Spinning => "the vCPU spins",
            Waiting::Polling => "the vCPU sleeps, the worker polls",
            Waiting::Sleeping => "both sleep",
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Waiting::Spinning => "spinning",
            Waiting::Polling => "polling",
            Waiting::Sleeping => "sleeping",
        }
    }
}

/// The process whose calls are counted: makes requests when it is told to, after some that are not counted.
pub(crate) fn traced(waiting: Waiting) -> ioreq::Result<()> {
    let (wait, polling) = match waiting {
        Waiting::Spinning => (VcpuWait::Spin, Polling::up_to(LONGEST)),
        Waiting::Polling => (VcpuWait::Sleep, Polling::up_to(LONGEST)),
        Waiting::Sleeping => (VcpuWait::Sleep, Polling::off()),
    };
    let served = Served::new(1, wait, |builder| builder.polling(polling))?;
    served.pin(1)?;
    crate::clock::pin(0);
    let mut guests = served.guests(Kind::MmioWrite)?;
    let mut make = |requests: u32| (0..requests).for_each(|_| guests[0].trip(1));
    make(2000);
    println!("ready");
    for _line in std::io::stdin().lines() {
        make(REQUESTS);
        println!("done");
    }
    drop(guests);
    served.stop()
}

/// The worker's calls for a request.
fn count(waiting: Waiting) -> std::io::Result<f64> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--traced", waiting.argument()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let missing = || std::io::Error::other("a pipe is missing");
    let mut orders = child.stdin.take().ok_or_else(missing)?;
    let mut said = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
    let mut expect = |what: &str| match said.next() {
        Some(Ok(line)) if line == what => Ok(()),
        other => Err(std::io::Error::other(format!("{other:?} for {what}"))),
    };
    expect("ready")?;
    let done = AtomicBool::new(false);
    let calls = std::thread::scope(|scope| {
        scope.spawn(|| {
            let result = expect("done");
            done.store(true, Ordering::Release);
            result
        });
        let mut ordered = false;
        xen_rig::count_calls(child.id(), || {
            if !ordered {
                // Attached: now.
                ordered = true;
                orders.write_all(b"go\n")?;
            }
            Ok(done.load(Ordering::Acquire))
        })
    })?;
    drop(orders);
    if !child.wait()?.success() {
        return Err(std::io::Error::other("what was counted failed"));
    }
    let workers = calls.iter().filter(|calls| calls.thread.ends_with("-w0"));
    let total = workers.map(xen_rig::Calls::total).sum::<u64>();
    #[allow(clippy::cast_precision_loss, reason = "some thousands")]
    let each = total as f64 / f64::from(REQUESTS);
    Ok(each)
}

/// All of it, once: it is counted, not timed.
pub(crate) fn rows(_: u32) -> Vec<Row> {
    let row = |waiting: Waiting| {
        let each = count(waiting).expect("this process may trace its own");
        let what = (
            "a worker's system calls a request",
            1,
            waiting.name(),
            "ours",
        );
        // None would be no figure.
        Row::of("calls", what, vec![each.max(1e-4)])
    };
    Waiting::ALL.map(row).into()
}
