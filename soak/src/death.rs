// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The death of a device model's process, in the middle of a request.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ioreq::handler::{Access, Context, Handler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome};

/// No answer comes of what the dead owe.
const NEVER: Duration = Duration::from_secs(36_000);

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It has taken the request, and done nothing yet.
    Before,
    /// It has done what was asked, and not answered.
    Done,
    /// It has answered, and not notified.
    Answered,
}

/// When and how a process ends.
pub(crate) struct Death {
    /// Requests until then.
    left: AtomicU64,
    way: Way,
    dead: AtomicBool,
    kill: Box<dyn Fn() + Send + Sync>,
    /// What it owes: dropped with it, or answers would be given.
    owed: Mutex<Vec<Box<dyn Send>>>,
}

impl fmt::Debug for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Death")
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

impl Death {
    /// In the `left`th request `kill` ends the process for everybody else.
    pub(crate) fn new(left: u64, way: Way, kill: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Death {
            left: AtomicU64::new(left),
            way,
            dead: AtomicBool::new(false),
            kill: Box::new(kill),
            owed: Mutex::default(),
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Whether this is the request: the process is dead then. One thread serves.
    fn comes(&self) -> Option<Way> {
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        (left == 0 && !self.is_dead()).then(|| {
            self.dead.store(true, Ordering::SeqCst);
            (self.kill)();
            self.way
        })
    }

    fn owe(&self, completion: impl Send + 'static) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.push(Box::new(completion));
    }

    /// What becomes of a write to a tracked page, if it is the last request.
    pub(crate) fn of_page(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> Option<PageOutcome> {
        let way = self.comes()?;
        if way != Way::Before {
            let done = write.apply();
            if way == Way::Answered {
                return Some(done);
            }
        }
        let (deferred, completion) = cx.defer_page(NEVER);
        self.owe(completion);
        Some(PageOutcome::Defer(deferred))
    }
}

/// A device of a process that dies.
pub(crate) struct Mortal {
    pub(crate) device: Arc<dyn Handler>,
    pub(crate) death: Arc<Death>,
}

impl Handler for Mortal {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        match self.death.comes() {
            None | Some(Way::Answered) => self.device.read(cx, access),
            Some(Way::Before | Way::Done) => {
                let (deferred, completion) = cx.defer_read(NEVER);
                self.death.owe(completion);
                ReadOutcome::Defer(deferred)
            }
        }
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let way = self.death.comes();
        if way != Some(Way::Before) {
            let done = self.device.write(cx, access, value);
            if way != Some(Way::Done) {
                return done;
            }
        }
        let (deferred, completion) = cx.defer_write(NEVER);
        self.death.owe(completion);
        WriteOutcome::Defer(deferred)
    }
}
