// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Work that a device does in a thread of its own, step by step: a descriptor chain, a packet, a block.
//!
//! When a step begins and ends relative to requests is recorded, and so is what it reads. In between it runs beside requests. What it
//! changes that a request can see (registers, interrupts) must be changed in [`Step::finish`], or after the step under a lock by something
//! that takes part itself.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{GuestAddress, GuestMemory};

use crate::act::{Act, Ended};
use crate::effects::{Effect, Effects, Reads};
use crate::memory::StepMemory;
use crate::tape::{Inner, Mode};

/// A thread of a device. Made by [`Tape::thread`](crate::Tape::thread).
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
/// use ioreq_core::GuestMap;
/// use ioreq_replay::Tape;
/// use ioreq_sim::{DomainConfig, Machine};
/// use vm_memory::{Bytes, GuestAddress};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// domain.memory().write_obj(5_u32, GuestAddress(0x1000))?;
/// let memory = domain.hypervisor().memory();
/// let thread = Tape::default().thread("worker"); // once
/// let result = AtomicU32::new(0); // a register
///
/// // Is there something to do? Then that begins a step.
/// let step = thread.take(&memory, |memory| {
///     let work: u32 = memory.read_obj(GuestAddress(0x1000)).ok()?;
///     (work != 0).then_some(work)
/// });
/// let (step, work) = step.unwrap();
/// step.finish(|| result.store(work + 1, Ordering::Relaxed));
/// assert_eq!(result.into_inner(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct DeviceThread(Option<(Arc<Inner>, u8)>);

impl DeviceThread {
    pub(crate) fn new(of: Option<(Arc<Inner>, u8)>) -> Self {
        DeviceThread(of)
    }

    /// Looks by `look` whether there is something to do; if there is, that begins a step. `look` is given guest memory for the whole step, and
    /// requests wait while it looks, so that a request that comes before, such as a reset, is seen by it.
    ///
    /// When a recording is played, `look` is called when the recording has a step, and there is nothing to do before.
    pub fn take<M: GuestMemory, T>(
        &self,
        memory: &Arc<M>,
        look: impl FnOnce(&Arc<StepMemory<M>>) -> Option<T>,
    ) -> Option<(Step<M>, T)> {
        let step = |log, memory| Step {
            thread: self.0.clone(),
            log,
            memory,
            finished: false,
        };
        let Some((tape, thread)) = &self.0 else {
            let memory = Arc::new(StepMemory::plain(Arc::clone(memory)));
            let found = look(&memory)?;
            return Some((step(Log::default(), memory), found));
        };
        let act = Act::Take { thread: *thread };
        match &tape.mode {
            Mode::Record(recorder) => {
                recorder.enter(act, false);
                let log = Log::default();
                let memory = Arc::new(StepMemory::logged(Arc::clone(memory), log.clone()));
                let Some(found) = look(&memory) else {
                    recorder.forget();
                    return None;
                };
                recorder.leave(Ended::Done);
                Some((step(log, memory), found))
            }
            Mode::Play(player) => {
                if !player.try_enter(&act) {
                    return None;
                }
                let Some(recorded) = player.log(*thread) else {
                    // Its recorder was killed before it was done.
                    player.leave(&tape.names(), &act, Ended::Done);
                    return None;
                };
                let log = Log::recorded(recorded);
                let memory = Arc::new(StepMemory::logged(Arc::clone(memory), log.clone()));
                let found = look(&memory);
                let ended = match found {
                    Some(_) => Ended::Done,
                    None => Ended::Refused,
                };
                player.leave(&tape.names(), &act, ended);
                let found = found?;
                Some((step(log, memory), found))
            }
        }
    }

    /// Whether there is more to do, if guest memory says `more`: when a recording is played, the recording says that, and
    /// [`take`](Self::take) gives it when it is time.
    #[must_use]
    pub fn more(&self, more: bool) -> bool {
        let is_played = matches!(&self.0, Some((tape, _)) if matches!(tape.mode, Mode::Play(_)));
        more && !is_played
    }
}

impl fmt::Debug for DeviceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.as_ref().map(|(_, number)| number);
        f.debug_tuple("DeviceThread").field(&number).finish()
    }
}

/// A step of a device's thread. Dropped, it is finished, and changed nothing that a request can see.
///
/// ```
/// use ioreq_core::GuestMap;
/// use ioreq_replay::Tape;
/// use ioreq_sim::{DomainConfig, Machine};
/// use vm_memory::{Bytes, GuestAddress};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let thread = Tape::default().thread("entropy");
/// let (step, ()) = thread.take(&domain.hypervisor().memory(), |_| Some(())).unwrap();
/// let mut random = [0; 4];
/// step.take_in(&mut random, |bytes| bytes.fill(4)); // what comes from elsewhere, by way of the tape
/// step.memory().write_slice(&random, GuestAddress(0x1000))?;
/// step.wrote(GuestAddress(0x1000), &random);
/// drop(step);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Step<M> {
    thread: Option<(Arc<Inner>, u8)>,
    log: Log,
    memory: Arc<StepMemory<M>>,
    finished: bool,
}

impl<M: GuestMemory> Step<M> {
    /// Guest memory, as the step finds it. What is read elsewhere is not recorded.
    #[must_use]
    pub fn memory(&self) -> &Arc<StepMemory<M>> {
        &self.memory
    }
}

impl<M> Step<M> {
    /// Fills `buf` with something that comes neither from the guest nor from what a replay has, too (random numbers, the time): by `fill`, or
    /// from the recording.
    pub fn take_in(&self, buf: &mut [u8], fill: impl FnOnce(&mut [u8])) {
        match &self.thread {
            None => fill(buf),
            Some(_) => self.log.take_in(buf, fill),
        }
    }

    /// The step stored these bytes into guest memory: to be compared.
    pub fn wrote(&self, addr: GuestAddress, bytes: &[u8]) {
        if self.thread.is_some() {
            self.log.effects(|effects| effects.wrote(addr.0, bytes));
        }
    }

    /// Ends it: `change` changes what requests see, while none is served.
    pub fn finish<T>(mut self, change: impl FnOnce() -> T) -> T {
        self.end(change)
    }

    fn end<T>(&mut self, change: impl FnOnce() -> T) -> T {
        self.finished = true;
        let Some((tape, thread)) = &self.thread else {
            return change();
        };
        let act = Act::Finish {
            thread: *thread,
            log: self.log.done(),
        };
        tape.act(&act, change)
    }
}

impl<M> Drop for Step<M> {
    fn drop(&mut self) {
        if !self.finished {
            self.end(|| ());
        }
    }
}

impl<M> fmt::Debug for Step<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step")
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

/// What a step reads and writes; and what it read when it was recorded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Logged>>);

#[derive(Debug, Default)]
struct Logged {
    effects: Effects,
    recorded: Option<(Vec<Effect>, Reads)>,
}

impl Log {
    fn recorded(recorded: Vec<Effect>) -> Self {
        Log(Arc::new(Mutex::new(Logged {
            effects: Effects::default(),
            recorded: Some((recorded, Reads::default())),
        })))
    }

    fn with<T>(&self, what: impl FnOnce(&mut Logged) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn effects(&self, add: impl FnOnce(&mut Effects)) {
        self.with(|logged| add(&mut logged.effects));
    }

    fn done(&self) -> Vec<Effect> {
        self.with(|logged| std::mem::take(&mut logged.effects.0))
    }

    /// Fills `buf` with what the recording has read at this place, or else by `memory`.
    pub(crate) fn read(&self, addr: GuestAddress, buf: &mut [u8], memory: impl FnOnce(&mut [u8])) {
        self.with(|logged| {
            let recorded = logged.recorded.as_mut();
            let found =
                recorded.and_then(|(recorded, reads)| reads.next(recorded, addr.0, buf).ok());
            if found != Some(true) {
                // Not recorded: a difference, which is told when the step ends.
                memory(buf);
            }
            logged.effects.read(addr.0, buf);
        });
    }

    fn take_in(&self, buf: &mut [u8], fill: impl FnOnce(&mut [u8])) {
        self.with(|logged| {
            let recorded = logged.recorded.as_mut();
            let found = recorded.and_then(|(recorded, reads)| reads.next_input(recorded).ok());
            match found {
                Some(bytes) if bytes.len() == buf.len() => buf.copy_from_slice(bytes),
                _ => fill(buf),
            }
            logged.effects.push(Effect::TookIn(buf.to_vec()));
        });
    }
}
