// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The framework beside a C server on libxen* (`xen-rig/c/server.c`), on the same guest in the same boot. Prints `BENCH` lines,
//! which `cargo xtask xen bench` makes a table of.
//!
//! `bench calls REQUESTS` counts system calls, `bench times ROUNDS AT_MOST` takes times, `bench marks ROUNDS` changes pages' types.
//! (`bench serve` and `bench mark` are our side's own processes.)

mod contender;
mod load;
mod ratios;
mod serve;
mod times;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioreq_core::DomId;
use xen_rig::{Calls, Guest, Kind, Privcmd};

use contender::{Server, Stack};
use load::Load;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// Guest memory: 16 MiB without the VGA window.
const RAM: [std::ops::Range<u64>; 2] = [0..0xa0, 0xc0..0x1000];
/// Pages that are marked: the first, and how many.
const MARKED: (u64, u64) = (0x400, 2048);
/// In batches of so many.
const BATCHES: [u64; 3] = [1, 32, 1024];
/// Accesses before those that are measured: whatever adapts, adapts.
const WARM_UP: u64 = 30;
/// For how long ours polls when the guest is busy. Everything takes a hundred times longer here than on hardware.
const POLLING: Duration = Duration::from_millis(20);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = arguments
        .iter()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let domid = |number: u64| u16::try_from(number).map(DomId);
    match (arguments.first().map(String::as_str), numbers.as_slice()) {
        (Some("serve"), [id, polling @ ..]) => {
            let polling = polling.first().map(|micros| Duration::from_micros(*micros));
            serve::serve(domid(*id)?, polling)
        }
        (Some("mark"), [id, first, pages, batch]) => {
            serve::mark(domid(*id)?, *first, *pages, *batch)
        }
        (Some("calls"), [requests]) => Bench::new()?.calls(*requests),
        (Some("times"), [rounds, at_most]) => Bench::new()?.times(*rounds, *at_most),
        (Some("marks"), [rounds]) => Bench::new()?.marks(*rounds),
        _ => Err("see the head of the file".into()),
    }
}

/// Whether the guest's next access comes at once, or when the server sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Busy,
    Sleeping,
}

impl Mode {
    const BOTH: [Mode; 2] = [Mode::Busy, Mode::Sleeping];

    fn name(self) -> &'static str {
        match self {
            Mode::Busy => "busy",
            Mode::Sleeping => "sleeping",
        }
    }

    /// Of our side, where it is not what it does by itself.
    fn polling(self) -> Option<Duration> {
        (self == Mode::Busy).then_some(POLLING)
    }

    fn loads(self) -> impl Iterator<Item = Load> {
        // Nobody waits for a posted write, so how long a sleeping server takes does not show.
        let all = Load::ALL.into_iter();
        all.filter(move |load| self == Mode::Busy || !load.is_posted())
    }
}

struct Bench {
    guest: Guest,
    /// Turns of the guest's empty loop in a millisecond, about.
    turns: u64,
}

impl Bench {
    fn new() -> Result<Self, Failure> {
        let xen = Arc::new(Privcmd::open()?);
        let kind = Kind {
            vcpus: 1,
            hap: true,
            full: true,
        };
        let guest = Guest::create(&xen, kind, &RAM)?;
        // One look at the counter, and another one half a second later.
        let start = (load::time_stamp(&guest)?, Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let ticks = load::time_stamp(&guest)? - start.0;
        let micros = u64::try_from(start.1.elapsed().as_micros())?;
        println!("BENCH clock ticks={ticks} micros={micros}");
        let turns = 1_000_000;
        let looked = load::calibrate(&guest, turns)?;
        Ok(Bench {
            guest,
            turns: turns * ticks * 1000 / micros / looked.max(1),
        })
    }

    /// Turns between two accesses: long enough that a server sleeps.
    fn pause(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Busy => 0,
            Mode::Sleeping => 2 * self.turns,
        }
    }

    fn calls(&self, requests: u64) -> Result<(), Failure> {
        for stack in Stack::BOTH {
            for mode in Mode::BOTH {
                let requests = if mode == Mode::Busy {
                    requests
                } else {
                    requests / 4
                };
                let server = stack.serve(&self.guest, mode.polling())?;
                let pause = self.pause(mode);
                let mut made = Made::default();
                for load in mode.loads() {
                    let warm_up = load::start(&self.guest, (stack, load), WARM_UP, pause)?;
                    warm_up.wait()?;
                    let running = load::start(&self.guest, (stack, load), requests, pause)?;
                    let calls = xen_rig::count_calls(server.pid(), || Ok(running.is_finished()))?;
                    running.wait()?;
                    made.add(load, WARM_UP + requests);
                    let (serving, others): (Vec<&Calls>, Vec<&Calls>) =
                        calls.iter().partition(|calls| serves(calls));
                    println!(
                        "BENCH calls stack={} mode={} load={} requests={requests} calls={} others={} vectors={} of={}",
                        stack.name(),
                        mode.name(),
                        load.name(),
                        total(&serving),
                        total(&others),
                        serving.iter().map(|calls| calls.vectors).sum::<u64>(),
                        by_name(&serving)
                    );
                }
                made.check(stack, server)?;
            }
        }
        Ok(())
    }

    fn marks(&self, rounds: u64) -> Result<(), Failure> {
        for batch in BATCHES {
            for stack in Stack::BOTH {
                let mut server = stack.mark(&self.guest, MARKED, batch)?;
                for step in ["mark", "unmark"] {
                    let calls = server.traced_step()?;
                    let calls: Vec<&Calls> = calls.iter().collect();
                    println!(
                        "BENCH dmops stack={} step={step} batch={batch} pages={} dmops={}",
                        stack.name(),
                        MARKED.1,
                        named(&calls, "dm_op")
                    );
                }
                for round in 0..rounds {
                    for step in ["mark", "unmark"] {
                        let said = server.step()?;
                        println!(
                            "BENCH marks stack={} step={step} batch={batch} round={round} pages={} seconds={}",
                            stack.name(),
                            MARKED.1,
                            said.get("seconds").ok_or("no time")?
                        );
                    }
                }
                if server.end()?.get("marked") != Some(&0.0) {
                    return Err("pages stay marked".into());
                }
            }
        }
        Ok(())
    }
}

/// What the guest has done, for the server's own account.
#[derive(Default)]
struct Made {
    accesses: u64,
    sum: u64,
}

impl Made {
    fn add(&mut self, load: Load, accesses: u64) {
        self.accesses += accesses;
        self.sum += accesses * load.adds();
    }

    /// Ends the server, and checks that it served what the guest did.
    ///
    /// With two processors Xen may lose an advance of the ring's read pointer while it rewinds the ring, and the entry is there once more (row
    /// `ring-lost-advance` of the suite). The C server takes it twice, as all do that add to the pointer and look no further.
    fn check(self, stack: Stack, server: Server) -> Result<(), Failure> {
        let said = server.end()?;
        let number = |name: &str| said.get(name).copied().unwrap_or(-1.0);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (accesses, sum, value) = (
            self.accesses as f64,
            self.sum as f64,
            Load::VgaWrite.adds() as f64,
        );
        let twice = number("served") + number("posted") - accesses;
        let possible = match stack {
            Stack::C => (0.0..=number("posted")).contains(&twice),
            Stack::Ours => twice == 0.0,
        };
        if !possible || number("sum") != sum + twice * value {
            let what = format!(
                "{accesses} accesses, {sum} in sum, but {} says {said:?}",
                stack.name()
            );
            return Err(what.into());
        }
        if twice > 0.0 {
            println!("BENCH twice stack={} entries={twice}", stack.name());
        }
        Ok(())
    }
}

/// A thread that serves requests; ours has one that sees to other things, whatever the guest does, and the main one, which sleeps.
fn serves(calls: &Calls) -> bool {
    calls.thread == "cserver" || calls.thread.contains("-w")
}

fn total(calls: &[&Calls]) -> u64 {
    calls.iter().map(|calls| calls.total()).sum()
}

/// A call's name: those that matter here.
fn name(number: u64, request: u64) -> String {
    const NAMES: [(i64, &str); 6] = [
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_restart_syscall, "restart"),
    ];
    // `_IOC(NONE, type, number, size)`: the type and the number.
    match (number, request & 0xffff) {
        (number, 0x4504) if number == libc::SYS_ioctl.unsigned_abs() => "notify".into(),
        (number, 0x5005) if number == libc::SYS_ioctl.unsigned_abs() => "dm_op".into(),
        _ => NAMES
            .iter()
            .find(|(known, _)| known.unsigned_abs() == number)
            .map_or_else(
                || format!("{number}/{request:#x}"),
                |(_, name)| (*name).into(),
            ),
    }
}

fn named(calls: &[&Calls], wanted: &str) -> u64 {
    let all = calls.iter().flat_map(|calls| &calls.counts);
    all.filter(|((number, request), _)| name(*number, *request) == wanted)
        .map(|(_, count)| count)
        .sum()
}

fn by_name(calls: &[&Calls]) -> String {
    let all = calls.iter().flat_map(|calls| &calls.counts);
    let words: Vec<String> = all
        .map(|((number, request), count)| format!("{}:{count}", name(*number, *request)))
        .collect();
    words.join(",")
}
