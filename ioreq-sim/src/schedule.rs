// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Deterministic schedules: one participant runs at a time, the next one chosen by a seeded generator.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use ioreq_core::{Result, VcpuId};

use crate::cpu::Cpu;
use crate::domain::Domain;
use crate::fate::{CpuFault, VcpuExit};
use crate::vcpu;

/// Turns in a row in which nobody gets anything done, after which a schedule gives up. Far more than any wait that ends.
const IDLE_TURNS: u64 = 20_000;

thread_local! {
    /// The schedule that this thread takes part in.
    static CURRENT: RefCell<Option<Participant>> = const { RefCell::new(None) };
    /// Whether there is one: nearly always there is none, and a yield point is a look at this.
    static SEATED: Cell<bool> = const { Cell::new(false) };
}

/// From here on this thread takes part in that schedule, or in none.
fn set_current(seat: Option<Participant>) {
    SEATED.set(seat.is_some());
    CURRENT.set(seat);
}

/// A guest program of a schedule.
type Program = Box<dyn FnOnce(&mut Cpu) -> Result<(), CpuFault> + Send>;

/// A deterministic run of guest programs against a device model that is served step by step.
///
/// Guest operations, and the device model's hypercalls, are yield points; at each the seeded generator chooses who goes on:
/// a vCPU or the server. The same seed gives the same interleaving, so a failure can be replayed.
///
/// ```
/// use ioreq_core::{GfnRange, VcpuId};
/// use ioreq_sim::{DomainConfig, Machine, Schedule};
/// use vm_memory::{Bytes, GuestAddress};
///
/// let machine = Machine::new();
/// let domain = machine.create_domain(DomainConfig::new(2))?;
/// let report = Schedule::new(7)
///     .vcpu(&domain, VcpuId(0), |cpu| cpu.store32(0x1000, 1))
///     .vcpu(&domain, VcpuId(1), |cpu| cpu.store32(0x2000, 2))
///     .run(|| false)?; // no server here: it never has anything to do
/// assert!(report.exits.iter().all(Result::is_ok));
/// assert_eq!(domain.memory().read_obj::<u32>(GuestAddress(0x2000))?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Schedule {
    seed: u64,
    programs: Vec<(Domain, VcpuId, Program)>,
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedule")
            .field("seed", &self.seed)
            .field("programs", &self.programs.len())
            .finish()
    }
}

/// What came of a [`Schedule`].
///
/// ```
/// let report = ioreq_sim::Schedule::new(1).run(|| false)?;
/// assert!(report.exits.is_empty() && !report.abandoned);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleReport {
    /// How each program ended, in the order they were added.
    pub exits: Vec<Result<(), VcpuExit>>,
    /// Turns taken.
    pub turns: u64,
    /// A hash of who took which turn: equal for equal interleavings.
    pub trace: u64,
    /// Whether it gave up because nobody could go on.
    pub abandoned: bool,
}

impl Schedule {
    /// An empty schedule with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Schedule {
            seed,
            programs: Vec::new(),
        }
    }

    /// Adds a program for one vCPU.
    #[must_use]
    pub fn vcpu(
        mut self,
        domain: &Domain,
        vcpu: VcpuId,
        program: impl FnOnce(&mut Cpu) -> Result<(), CpuFault> + Send + 'static,
    ) -> Self {
        self.programs
            .push((domain.clone(), vcpu, Box::new(program)));
        self
    }

    /// Runs until every program has ended, calling `step` whenever it is the server's turn: one pass of serving, without
    /// waiting, that says whether it did anything.
    ///
    /// It gives up when nobody gets anything done for a long time (a request that is never answered, an answer without a
    /// notification): the programs then end with [`VcpuExit::Abandoned`].
    ///
    /// # Errors
    /// `InvalidArgument` for a vCPU that the domain lacks or that is already running.
    pub fn run(self, mut step: impl FnMut() -> bool) -> Result<ScheduleReport> {
        let Schedule { seed, programs } = self;
        let count = programs.len();
        let mut cpus = Vec::with_capacity(count);
        for (domain, id, program) in programs {
            cpus.push((domain.cpu(id)?, program));
        }
        let baton = Arc::new(Baton::new(seed, count + 1));
        let threads: Vec<_> = cpus
            .into_iter()
            .enumerate()
            .map(|(me, (mut cpu, program))| {
                let seat = Participant {
                    baton: Arc::clone(&baton),
                    me,
                };
                thread::spawn(move || {
                    let _seat = Seat::take(seat);
                    program(&mut cpu)
                })
            })
            .collect();
        let server = Participant {
            baton: Arc::clone(&baton),
            me: count,
        };
        {
            let _seat = Seat::take(server);
            let mut progress = true;
            while !baton.alone(count) && yield_point(progress) == Turn::Mine {
                progress = step();
            }
        }
        let exits = threads
            .into_iter()
            .map(|t| match t.join() {
                Ok(result) => result.map_err(VcpuExit::from),
                Err(panic) => Err(vcpu::panicked(panic.as_ref())),
            })
            .collect();
        let state = baton.lock();
        Ok(ScheduleReport {
            exits,
            turns: state.turns,
            trace: state.trace,
            abandoned: state.over,
        })
    }
}

/// Whose turn it is after a yield point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// This thread takes part in no schedule.
    Free,
    /// This thread may go on.
    Mine,
    /// The schedule gave up.
    Over,
}

/// A place where a schedule may switch. `progress` says whether the caller got something done since its last.
#[inline]
pub(crate) fn yield_point(progress: bool) -> Turn {
    if SEATED.get() {
        pass_turn(progress)
    } else {
        Turn::Free
    }
}

#[cold]
fn pass_turn(progress: bool) -> Turn {
    let turn = CURRENT.try_with(|current| match &*current.borrow() {
        None => Turn::Free,
        Some(seat) => seat.baton.pass(seat.me, progress),
    });
    // At a thread's very end, where a thread-local value may own a server, it has no place any more.
    turn.unwrap_or(Turn::Free)
}

#[derive(Clone)]
struct Participant {
    baton: Arc<Baton>,
    me: usize,
}

/// A participant's place in a running schedule, for another thread to act in.
///
/// For device-model processes that are threads of their own, so that one can be stopped for good in the middle of a step, as
/// by `kill -9`.
///
/// ```
/// use ioreq_core::{Transport, VcpuId};
/// use ioreq_sim::{DomainConfig, Machine, Place, Schedule};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let step = || {
///     let place = Place::current().expect("in a schedule");
///     std::thread::scope(|scope| {
///         let process = scope.spawn(|| place.with(|| hv.vcpus()));
///         process.join().expect("no panic").is_err()
///     })
/// };
/// let guest = |cpu: &mut ioreq_sim::Cpu| cpu.store32(0x1000, 1);
/// Schedule::new(1).vcpu(&domain, VcpuId(0), guest).run(step)?;
/// assert!(Place::current().is_none());
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Place(Participant);

impl Place {
    /// This thread's place, in a schedule.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone().map(Place))
    }

    /// Does `f` in this thread as whoever's place it is, who must wait until it is done.
    pub fn with<T>(&self, f: impl FnOnce() -> T) -> T {
        set_current(Some(self.0.clone()));
        let result = f();
        set_current(None);
        result
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.0.me).finish()
    }
}

/// Puts the thread into the schedule until dropped.
struct Seat(Participant);

impl Seat {
    fn take(seat: Participant) -> Self {
        set_current(Some(seat.clone()));
        seat.baton.wait_for_turn(seat.me);
        Seat(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        set_current(None);
        self.0.baton.leave(self.0.me);
    }
}

struct Baton {
    state: Mutex<State>,
    turns: Vec<Condvar>,
}

struct State {
    rng: u64,
    current: usize,
    live: Vec<bool>,
    idle: u64,
    turns: u64,
    trace: u64,
    over: bool,
}

impl State {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn choose(&mut self) {
        let live = self.live.iter().filter(|&&l| l).count() as u64;
        if live == 0 {
            return;
        }
        let nth = usize::try_from(self.next() % live).unwrap_or(0);
        let chosen = (0..self.live.len()).filter(|&i| self.live[i]).nth(nth);
        self.current = chosen.unwrap_or(self.current);
        self.turns += 1;
        self.trace = (self.trace ^ self.current as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

impl Baton {
    fn new(seed: u64, participants: usize) -> Self {
        let mut state = State {
            rng: seed,
            current: 0,
            live: vec![true; participants],
            idle: 0,
            turns: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            over: false,
        };
        state.choose();
        Baton {
            state: Mutex::new(state),
            turns: (0..participants).map(|_| Condvar::new()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `me` is the only one left.
    fn alone(&self, me: usize) -> bool {
        let state = self.lock();
        state
            .live
            .iter()
            .enumerate()
            .all(|(i, &live)| i == me || !live)
    }

    fn wait_for_turn(&self, me: usize) {
        let state = self.lock();
        self.wait(state, me);
    }

    fn wait(&self, mut state: MutexGuard<'_, State>, me: usize) -> Turn {
        while state.current != me && !state.over {
            state = self.turns[me]
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.over { Turn::Over } else { Turn::Mine }
    }

    fn pass(&self, me: usize, progress: bool) -> Turn {
        let mut state = self.lock();
        if state.over {
            return Turn::Over;
        }
        state.idle = if progress { 0 } else { state.idle + 1 };
        if state.idle > IDLE_TURNS {
            state.over = true;
            self.turns.iter().for_each(Condvar::notify_all);
            return Turn::Over;
        }
        state.choose();
        self.turns[state.current].notify_all();
        self.wait(state, me)
    }

    fn leave(&self, me: usize) {
        let mut state = self.lock();
        state.live[me] = false;
        state.idle = 0;
        state.choose();
        if let Some(turn) = self.turns.get(state.current) {
            turn.notify_all();
        }
    }
}

/// Whether this thread takes part in a schedule.
pub(crate) fn is_seated() -> bool {
    SEATED.get()
}
