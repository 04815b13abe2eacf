// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Deferred completion: a handler goes home, another thread answers later.
//!
//! Handler and completing thread meet in a [`Pending`]. Whichever of the two comes second, the worker that installs what is
//! to happen with the reply or the thread that gives it, carries the reply on, with the lock held: whoever finds the request
//! closed finds it answered and its vCPU notified, and may then rest, or unbind event channels. Locks are taken on this path
//! only.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::outcome::Verdict;
use crate::sync::Mutex;

/// What a deferred request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Value(u64),
    Done,
    Verdict(Verdict),
}

/// Carries a reply on; `None` means that nobody will give one. Short, and not back into the same [`Pending`].
pub(crate) type Resume = Box<dyn FnOnce(Option<Reply>) + Send>;

/// Where a deferred request stands.
pub(crate) enum PendingState {
    /// The handler has not returned yet.
    Open,
    /// The worker waits for the reply.
    Waiting(Resume),
    /// The reply came before the worker installed what to do with it.
    Replied(Option<Reply>),
    /// Answered, or given up.
    Closed,
}

/// The meeting point of a worker and a [`Completion`].
pub(crate) struct Pending {
    state: Mutex<PendingState>,
    since: Instant,
    overrun: Duration,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("overrun", &self.overrun)
            .finish_non_exhaustive()
    }
}

impl Pending {
    fn swap(&self, new: PendingState) -> PendingState {
        std::mem::replace(
            &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner),
            new,
        )
    }

    /// The worker's half: `resume` runs when the reply comes, at once if it has come already.
    pub(crate) fn install(&self, resume: Resume) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, PendingState::Closed) {
            PendingState::Open => *state = PendingState::Waiting(resume),
            PendingState::Replied(reply) => {
                drop(state);
                resume(reply);
            }
            PendingState::Waiting(_) | PendingState::Closed => {
                drop(state);
                resume(None);
            }
        }
    }

    /// The completing half. False if the request was answered already.
    fn reply(&self, reply: Option<Reply>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, PendingState::Closed) {
            PendingState::Open => {
                *state = PendingState::Replied(reply);
                true
            }
            PendingState::Waiting(resume) => {
                resume(reply);
                true
            }
            PendingState::Replied(earlier) => {
                *state = PendingState::Replied(earlier);
                false
            }
            PendingState::Closed => false,
        }
    }

    /// The server ends: answers in the completion's place. False if the completion was first; then its answer is given.
    pub(crate) fn expire(&self) -> bool {
        let waiting = self.swap(PendingState::Closed);
        match waiting {
            PendingState::Waiting(resume) => resume(None),
            _ => return false,
        }
        true
    }

    /// How long it has waited, if longer than the handler said.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.since);
        (waited > self.overrun).then_some(waited)
    }

    /// Whether it still waits for a reply.
    pub(crate) fn is_waiting(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, PendingState::Waiting(_))
    }
}

/// What can answer a deferred request. Sealed: `u64` for a read, `()` for a write, [`Verdict`] for a tracked page.
///
/// ```
/// use ioreq_core::handler::{Answer, Completion, Verdict};
///
/// /// Whatever was deferred, its answer goes by the same way.
/// fn finish<R: Answer>(completion: Completion<R>, answer: R) -> bool {
///     completion.complete(answer)
/// }
/// # use ioreq_core::{DomId, VcpuId, handler::Context};
/// # let ram = vm_memory::GuestRegionCollection::<ioreq_core::memory::MappedRegion>::new();
/// # let cx = Context::detached(DomId(1), VcpuId(0), &ram);
/// # let overrun = std::time::Duration::from_secs(1);
/// let (_deferred, write) = cx.defer_write(overrun);
/// let (deferred, page) = cx.defer_page(overrun);
/// assert!(finish(write, ()));
/// drop(deferred); // the handler thought better of it: nobody waits for the answer
/// assert!(!finish(page, Verdict::Drop));
/// ```
pub trait Answer: sealed::Sealed {}

mod sealed {
    use super::{Reply, Verdict};

    pub trait Sealed {
        #[allow(
            private_interfaces,
            reason = "the trait is sealed: nobody outside calls it"
        )]
        fn reply(self) -> Reply;
    }
    impl Sealed for u64 {
        #[allow(private_interfaces, reason = "as above")]
        fn reply(self) -> Reply {
            Reply::Value(self)
        }
    }
    impl Sealed for () {
        #[allow(private_interfaces, reason = "as above")]
        fn reply(self) -> Reply {
            Reply::Done
        }
    }
    impl Sealed for Verdict {
        #[allow(private_interfaces, reason = "as above")]
        fn reply(self) -> Reply {
            Reply::Verdict(self)
        }
    }
}

impl Answer for u64 {}
impl Answer for () {}
impl Answer for Verdict {}

/// The handler's half of a deferral: it goes into the outcome. Dropped instead, it cancels the deferral.
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
///
/// use ioreq_core::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// /// A register that another thread reads out.
/// struct Slow(mpsc::Sender<Completion<u64>>);
/// impl Handler for Slow {
///     fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
///         let (deferred, completion) = cx.defer_read(Duration::from_secs(1));
///         match self.0.send(completion) {
///             Ok(()) => ReadOutcome::Defer(deferred), // the vCPU waits
///             Err(_) => 0.into(),                      // dropping `deferred` cancels
///         }
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Done
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let (send, wanted) = mpsc::channel();
/// server.route("slow", PortRange::new(0x500, 0x503)?, Slow(send))?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| cpu.inl(0x500))?;
/// assert!(wanted.recv()?.complete(0x1234));
/// assert_eq!(guest.join()?, 0x1234);
/// running.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Deferred<R> {
    pending: Option<Arc<Pending>>,
    _answer: PhantomData<fn(R)>,
}

impl<R> Deferred<R> {
    /// The worker takes it over.
    #[cold]
    #[inline(never)]
    pub(crate) fn into_pending(mut self) -> Arc<Pending> {
        self.pending
            .take()
            .expect("only this method takes it, and it consumes the value")
    }
}

impl<R> Drop for Deferred<R> {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.swap(PendingState::Closed);
        }
    }
}

impl<R> fmt::Debug for Deferred<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").finish_non_exhaustive()
    }
}

/// Answers a deferred request, from any thread. Dropped without an answer, it answers as a failed handler does: all-ones
/// for a read, nothing for a write, the handler's [fallback](super::PageHandler::fallback) for a tracked page.
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
///
/// use ioreq_core::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// /// A register that another thread reads out.
/// struct Slow(mpsc::Sender<Completion<u64>>);
/// impl Handler for Slow {
///     fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
///         let (deferred, completion) = cx.defer_read(Duration::from_secs(1));
///         match self.0.send(completion) {
///             Ok(()) => ReadOutcome::Defer(deferred), // the vCPU waits
///             Err(_) => 0.into(),                      // dropping `deferred` cancels
///         }
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Done
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let (send, wanted) = mpsc::channel();
/// server.route("slow", PortRange::new(0x500, 0x503)?, Slow(send))?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| Ok((cpu.inl(0x500)?, cpu.inl(0x500)?)))?;
/// wanted.recv()?.complete(0x1234);
/// drop(wanted.recv()?); // nobody answers: all-ones
/// assert_eq!(guest.join()?, (0x1234, 0xffff_ffff));
/// running.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Completion<R: Answer> {
    pending: Option<Arc<Pending>>,
    _answer: PhantomData<fn(R)>,
}

impl<R: Answer> Completion<R> {
    /// Answers. Returns false if the request is gone: the server ended, or the handler did not defer after all.
    pub fn complete(mut self, answer: R) -> bool {
        match self.pending.take() {
            Some(pending) => pending.reply(Some(answer.reply())),
            None => false,
        }
    }
}

impl<R: Answer> Drop for Completion<R> {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.reply(None);
        }
    }
}

impl<R: Answer> fmt::Debug for Completion<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

/// Both halves of a new deferral.
pub(super) fn defer<R: Answer>(overrun: Duration) -> (Deferred<R>, Completion<R>) {
    let state = Mutex::new(PendingState::Open);
    let pending = Arc::new(Pending {
        state,
        since: Instant::now(),
        overrun,
    });
    let deferred = Deferred {
        pending: Some(Arc::clone(&pending)),
        _answer: PhantomData,
    };
    (
        deferred,
        Completion {
            pending: Some(pending),
            _answer: PhantomData,
        },
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn collect() -> (Resume, mpsc::Receiver<Option<Reply>>) {
        let (tx, rx) = mpsc::channel();
        (Box::new(move |reply| tx.send(reply).unwrap()), rx)
    }

    #[test]
    fn reply_after_install_and_before_it() {
        let (deferred, completion) = defer::<u64>(Duration::MAX);
        let (resume, rx) = collect();
        deferred.into_pending().install(resume);
        assert!(rx.try_recv().is_err());
        assert!(completion.complete(5));
        assert_eq!(rx.recv(), Ok(Some(Reply::Value(5))));

        let (deferred, completion) = defer::<()>(Duration::MAX);
        assert!(completion.complete(()));
        let (resume, rx) = collect();
        deferred.into_pending().install(resume);
        assert_eq!(rx.recv(), Ok(Some(Reply::Done)));
    }

    #[test]
    fn a_dropped_completion_still_answers() {
        for dropped_first in [false, true] {
            let (deferred, completion) = defer::<Verdict>(Duration::MAX);
            let (resume, rx) = collect();
            let mut completion = Some(completion);
            if dropped_first {
                completion = None;
            }
            deferred.into_pending().install(resume);
            drop(completion);
            assert_eq!(rx.recv(), Ok(None));
            assert!(rx.recv().is_err(), "answered twice");
        }
    }

    #[test]
    fn an_expired_request_takes_no_answer() {
        let (deferred, completion) = defer::<u64>(Duration::MAX);
        let (resume, rx) = collect();
        let pending = deferred.into_pending();
        pending.install(resume);
        pending.expire();
        assert_eq!(rx.recv(), Ok(None));
        assert!(!completion.complete(1));
    }

    #[test]
    fn a_handler_that_changes_its_mind_cancels() {
        let (deferred, completion) = defer::<u64>(Duration::MAX);
        drop(deferred);
        assert!(!completion.complete(1));
    }

    #[test]
    fn overdue_only_past_the_deadline() {
        let (deferred, _completion) = defer::<u64>(Duration::from_secs(1));
        let pending = deferred.into_pending();
        assert_eq!(
            pending.overdue(pending.since + Duration::from_secs(1)),
            None
        );
        let late = Duration::from_secs(2);
        assert_eq!(pending.overdue(pending.since + late), Some(late));
    }
}
