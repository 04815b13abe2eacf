// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What becomes of a handler that panicked.
//!
//! The access that it failed is answered either way (`Bus::call`). By policy its route is broken from then on: handlers are
//! wrapped when they are added, so that a server without the policy pays nothing. A handler that a page has to itself is wrapped
//! when it has panicked (`Core::break_page`): there may be a million of them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::handler::{
    Access, Batch, BatchOutcome, Context, Handler, PageHandler, PageOutcome, PageWrite,
    ReadOutcome, Verdict, WriteOutcome,
};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Whether a handler that panicked is called again.
///
/// ```
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::server::{IoreqServer, PanicPolicy};
/// use ioreq_core::{PortRange, VcpuId};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// struct Fragile;
/// impl Handler for Fragile {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         panic!("a defect")
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         panic!("a defect")
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor())
///     .on_panic(PanicPolicy::BreakRoute)
///     .build()?;
/// server.route("fragile", PortRange::new(0x500, 0x500)?, Fragile)?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| Ok((cpu.inb(0x500)?, cpu.inb(0x500)?)))?;
/// assert_eq!(guest.join()?, (0xff, 0xff));
/// running.stop()?;
/// let stats = server.stats();
/// assert_eq!((stats.panics, stats.broken_routes, stats.unclaimed), (1, 1, 1)); // called once
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PanicPolicy {
    /// It is called again for the next access, with its state as the panic left it.
    #[default]
    KeepServing,
    /// Never again: reads of its range give all-ones and writes are dropped, as where nobody is; writes to its tracked pages get
    /// its [fallback](PageHandler::fallback). Told once, by an error in the log. A route that is
    /// [replaced](crate::routes::Routes::replace), and pages whose handler is, are whole again.
    BreakRoute,
}

/// Why an access to a broken route is refused; counted as unclaimed.
static BROKEN: &str = "the route is broken: its handler panicked";

/// Whether `why` is a broken route's.
pub(super) fn is_broken(why: &str) -> bool {
    std::ptr::eq(why, BROKEN)
}

/// A handler that is called until it panics.
struct UntilPanic<T> {
    handler: T,
    name: Arc<str>,
    broken: AtomicBool,
    count: Arc<AtomicU64>,
}

impl<T> UntilPanic<T> {
    /// The handler's answer; `broken` once it has panicked.
    fn call<R>(&self, broken: impl FnOnce(&T) -> R, call: impl FnOnce(&T) -> R) -> R {
        // Relaxed: a flag by itself. One who does not see it yet calls a handler that panicked just now, as one does that called it
        // at the same time.
        if self.broken.load(Ordering::Relaxed) {
            return broken(&self.handler);
        }
        match catch_unwind(AssertUnwindSafe(|| call(&self.handler))) {
            Ok(outcome) => outcome,
            Err(panic) => {
                self.give_up();
                // For whoever counts panics and answers the access.
                resume_unwind(panic)
            }
        }
    }

    /// From now on the handler is not called.
    fn give_up(&self) {
        // Relaxed: as in `call`, and for a statistic.
        if !self.broken.swap(true, Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                handler = &*self.name,
                "a handler panicked: its route is broken"
            );
        }
    }
}

impl Handler for UntilPanic<Arc<dyn Handler>> {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        self.call(|_| ReadOutcome::Refused(BROKEN), |h| h.read(cx, access))
    }
    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.call(
            |_| WriteOutcome::Refused(BROKEN),
            |h| h.write(cx, access, value),
        )
    }
    fn read_batch(&self, cx: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        self.call(
            |_| BatchOutcome::Refused(BROKEN),
            |h| h.read_batch(cx, batch, values),
        )
    }
    fn write_batch(&self, cx: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        self.call(
            |_| BatchOutcome::Refused(BROKEN),
            |h| h.write_batch(cx, batch, values),
        )
    }
}

impl PageHandler for UntilPanic<Arc<dyn PageHandler>> {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        let broken = |handler: &Arc<dyn PageHandler>| match handler.fallback() {
            Verdict::Apply => PageOutcome::Apply,
            Verdict::Replace(value) => PageOutcome::Replace(value),
            Verdict::Drop => PageOutcome::Drop,
        };
        self.call(broken, |h| h.write(cx, write))
    }
    fn fallback(&self) -> Verdict {
        self.handler.fallback()
    }
}

/// The policy of one server, and how many handlers it has put out of service.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    policy: PanicPolicy,
    broken: Arc<AtomicU64>,
}

impl Panics {
    pub(super) fn new(policy: PanicPolicy) -> Self {
        Panics {
            policy,
            broken: Arc::default(),
        }
    }

    pub(super) fn broken(&self) -> u64 {
        // Relaxed: a statistic.
        self.broken.load(Ordering::Relaxed)
    }

    fn wrap<T>(&self, name: &str, handler: T) -> UntilPanic<T> {
        UntilPanic {
            handler,
            name: name.into(),
            broken: AtomicBool::new(false),
            count: Arc::clone(&self.broken),
        }
    }

    /// A range's handler, as it is called.
    pub(super) fn guard(&self, name: &str, handler: Arc<dyn Handler>) -> Arc<dyn Handler> {
        match self.policy {
            PanicPolicy::KeepServing => handler,
            PanicPolicy::BreakRoute => Arc::new(self.wrap(name, handler)),
        }
    }

    /// What is called in place of a page's own handler that panicked, if the policy says so.
    pub(super) fn broken_page(
        &self,
        name: &str,
        handler: &Arc<dyn PageHandler>,
    ) -> Option<Arc<dyn PageHandler>> {
        match self.policy {
            PanicPolicy::KeepServing => None,
            PanicPolicy::BreakRoute => {
                let handler = self.wrap(name, Arc::clone(handler));
                handler.give_up();
                Some(Arc::new(handler))
            }
        }
    }

    /// The handler of pages that share it, as it is called.
    pub(crate) fn guard_page(
        &self,
        name: &str,
        handler: Arc<dyn PageHandler>,
    ) -> Arc<dyn PageHandler> {
        match self.policy {
            PanicPolicy::KeepServing => handler,
            PanicPolicy::BreakRoute => Arc::new(self.wrap(name, handler)),
        }
    }
}

/// What a server says when it is built into a program whose panics `abort`.
pub(super) fn warning(abort: bool) -> Option<&'static str> {
    abort.then_some(
        "this program is built with panic = \"abort\": a handler that panics ends the process, with every vCPU that waits",
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_aborts_is_warned() {
        assert!(warning(true).is_some_and(|text| text.contains("abort")));
        assert_eq!(warning(false), None);
    }
}
