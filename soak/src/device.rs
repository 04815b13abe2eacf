// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device model's handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ioreq::handler::{
    Access, Batch, BatchOutcome, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite,
    ReadOutcome, Space, Verdict, WriteOutcome,
};

use crate::death::Death;
use crate::layout::{ODD, PAGES, odd};
use crate::tally::{Fault, Tally};

/// No answer is to take longer.
const OVERRUN: Duration = Duration::from_secs(600);

/// Registers of 8 bytes, of which the lower half adds up what is written.
#[derive(Debug)]
pub(crate) struct Bank {
    registers: Box<[AtomicU64]>,
    /// Whether every register keeps what is written last: where a request may be served twice.
    keeps: bool,
}

impl Bank {
    pub(crate) fn new(registers: u64) -> Self {
        Bank {
            registers: (0..registers).map(|_| AtomicU64::new(0)).collect(),
            keeps: false,
        }
    }

    /// One that keeps, but does not add.
    pub(crate) fn that_keeps(registers: u64) -> Self {
        Bank {
            keeps: true,
            ..Self::new(registers)
        }
    }

    /// What a register has.
    pub(crate) fn get(&self, register: u64) -> u64 {
        self.of(8 * register).1.load(Ordering::SeqCst)
    }

    fn of(&self, offset: u64) -> (usize, &AtomicU64) {
        let at = usize::try_from(offset / 8).unwrap_or(usize::MAX);
        let at = at % self.registers.len();
        (at, &self.registers[at])
    }

    fn put(&self, offset: u64, value: u64) {
        let (at, register) = self.of(offset);
        match self.keeps || at >= self.registers.len() / 2 {
            true => register.store(value, Ordering::SeqCst),
            false => {
                register.fetch_add(value, Ordering::SeqCst);
            }
        }
    }
}

impl Handler for Bank {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        self.get(access.offset / 8).into()
    }

    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.put(access.offset, value);
        WriteOutcome::Done
    }

    /// Of ports one by one, of MMIO at once: both ways are used.
    fn write_batch(&self, _: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        if batch.first.space == Space::Port {
            return BatchOutcome::OneByOne;
        }
        for (access, value) in batch.iter().zip(values) {
            self.put(access.offset, *value);
        }
        BatchOutcome::Done
    }
}

/// Adds up what is posted; a read gives the sum.
#[derive(Debug, Default)]
pub(crate) struct Posted(AtomicU64);

impl Handler for Posted {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.load(Ordering::SeqCst).into()
    }

    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.fetch_add(value, Ordering::SeqCst);
        WriteOutcome::Done
    }
}

/// What is answered by another thread.
enum Owed {
    Value(Completion<u64>, u64),
    Verdict(Completion<Verdict>, Verdict),
}

/// Gives answers from another thread, until it is dropped.
pub(crate) struct Later {
    owed: Option<Sender<Owed>>,
    thread: Option<JoinHandle<()>>,
}

impl Later {
    pub(crate) fn new() -> std::io::Result<Self> {
        let (owed, due) = channel();
        let thread = std::thread::Builder::new()
            .name("soak-later".into())
            .spawn(move || give(&due))?;
        Ok(Later {
            owed: Some(owed),
            thread: Some(thread),
        })
    }

    fn owe(&self, owed: Owed) {
        if let Some(sender) = &self.owed {
            // The thread is there as long as we are.
            let _given = sender.send(owed);
        }
    }
}

fn give(due: &Receiver<Owed>) {
    for (turn, owed) in due.iter().enumerate() {
        if turn % 4 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
        // Too late where the service has ended meanwhile.
        let _in_time = match owed {
            Owed::Value(completion, value) => completion.complete(value),
            Owed::Verdict(completion, verdict) => completion.complete(verdict),
        };
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.owed = None;
        if let Some(thread) = self.thread.take() {
            let _its_own = thread.join();
        }
    }
}

/// A panic that says nothing: no hook is called for it.
fn panic_on_purpose() -> ! {
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// Ports with something the matter.
pub(crate) struct Odd {
    pub(crate) tally: Arc<Tally>,
    pub(crate) later: Arc<Later>,
    /// How long the slow one takes.
    pub(crate) slow: Duration,
}

impl Handler for Odd {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        let offset = u16::try_from(access.addr).unwrap_or(0).wrapping_sub(ODD);
        match offset {
            odd::PANICS => {
                self.tally.fault(Fault::Panic, 1);
                panic_on_purpose()
            }
            odd::SLOW => {
                self.tally.fault(Fault::Slow, 1);
                std::thread::sleep(self.slow);
                access.addr.into()
            }
            odd::LATER => {
                self.tally.fault(Fault::Deferred, 1);
                let (deferred, completion) = cx.defer_read(OVERRUN);
                self.later.owe(Owed::Value(completion, access.addr));
                ReadOutcome::Defer(deferred)
            }
            odd::NEVER => {
                self.tally.fault(Fault::Dropped, 1);
                let (deferred, completion) = cx.defer_read(OVERRUN);
                drop(completion);
                ReadOutcome::Defer(deferred)
            }
            _ => ReadOutcome::Refused("no such port"),
        }
    }

    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.tally.fault(Fault::Panic, 1);
        panic_on_purpose()
    }
}

/// A handler of tracked pages that lets every write through, in every way that there is.
pub(crate) struct Watch {
    pub(crate) tally: Arc<Tally>,
    pub(crate) later: Arc<Later>,
    /// Writes so far.
    pub(crate) writes: AtomicU64,
    /// Writes that were none of its pages'.
    pub(crate) strange: AtomicU64,
    /// The end of its process, if that is to come.
    pub(crate) death: Option<Arc<Death>>,
}

impl Watch {
    pub(crate) fn new(tally: &Arc<Tally>, later: &Arc<Later>, death: Option<&Arc<Death>>) -> Self {
        Watch {
            death: death.cloned(),
            tally: Arc::clone(tally),
            later: Arc::clone(later),
            writes: AtomicU64::new(0),
            strange: AtomicU64::new(0),
        }
    }
}

impl PageHandler for Watch {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        if !PAGES.contains(&write.gfn().0) {
            self.strange.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(death) = &self.death
            && let Some(last) = death.of_page(cx, write)
        {
            return last;
        }
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        match number % 64 {
            1 => {
                self.tally.fault(Fault::Panic, 1);
                panic_on_purpose()
            }
            2 => {
                self.tally.fault(Fault::Deferred, 1);
                let (deferred, completion) = cx.defer_page(OVERRUN);
                self.later.owe(Owed::Verdict(completion, Verdict::Apply));
                PageOutcome::Defer(deferred)
            }
            3 => {
                self.tally.fault(Fault::Dropped, 1);
                let (deferred, completion) = cx.defer_page(OVERRUN);
                drop(completion);
                PageOutcome::Defer(deferred)
            }
            4..=15 => write.apply(),
            16..=23 => PageOutcome::Replace(write.value()),
            _ => PageOutcome::Apply,
        }
    }
}

/// Configuration space of a PCI function: registers of 4 bytes that keep what is written.
#[derive(Debug)]
pub(crate) struct Config([AtomicU64; 64]);

impl Config {
    pub(crate) fn new() -> Self {
        Config(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn of(&self, access: Access) -> &AtomicU64 {
        let at = usize::try_from(access.offset / 4).unwrap_or(0);
        &self.0[at % self.0.len()]
    }
}

impl Handler for Config {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        self.of(access).load(Ordering::SeqCst).into()
    }

    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.of(access).store(value, Ordering::SeqCst);
        WriteOutcome::Done
    }
}
