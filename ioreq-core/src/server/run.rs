// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Worker threads: one per service group, and one for the control side.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::core::{Core, unserved};
use super::exit::Exit;
use crate::error::{Error, ErrorKind, Op, Result};
use crate::handler::scope;
use crate::hypervisor::Hypervisor;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::nap;

/// What the threads share.
#[derive(Debug, Default)]
pub(super) struct Stop {
    flag: AtomicBool,
    /// Why the first thread that ended did.
    exit: Mutex<Option<Exit>>,
}

impl Stop {
    pub(super) fn is_set(&self) -> bool {
        // Acquire: pairs with the Release store in `set`.
        self.flag.load(Ordering::Acquire)
    }

    fn set(&self, exit: Exit) {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(exit);
        // Release: pairs with the Acquire loads of the threads.
        self.flag.store(true, Ordering::Release);
    }

    /// Ends all threads. The flag first: a worker that is woken looks at it before it sleeps again.
    pub(super) fn end<H: Hypervisor>(&self, core: &Core<H>, exit: Exit) {
        self.set(exit);
        core.wake_all();
    }
}

/// Running workers. Dropping it stops them; each finishes the request it serves.
///
/// ```
/// use ioreq_core::server::{Exit, IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let running = server.start()?;
/// assert!(matches!(running.stop()?, Exit::Stopped));
/// let again = server.start()?;
/// drop(again); // stops, too
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Running<H: Hypervisor> {
    core: Arc<Core<H>>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl<H: Hypervisor> Running<H> {
    pub(super) fn start(core: &Arc<Core<H>>) -> Result<Self> {
        let stop = Arc::new(Stop::default());
        // SeqCst: counted, then looked; pairs with `Core::quiesce`, which sets the flag and then looks at the count.
        core.running.fetch_add(1, Ordering::SeqCst);
        let mut running = Running {
            core: Arc::clone(core),
            stop,
            threads: Vec::new(),
        };
        // SeqCst: as above. If it is, dropping `running` ends what has not begun.
        if core.quiesced.load(Ordering::SeqCst) {
            let err = core.error(Op::Serve, ErrorKind::WrongState);
            return Err(err.about("it is at rest: resume it first"));
        }
        core.control.set_inline(false);
        for index in 0..core.groups.len() {
            running.spawn(
                &format!("ioreq-{}-w{index}", core.hv.domid()),
                move |core, stop| {
                    let group = core.groups.get(index)?;
                    // Held while the worker runs: nobody else serves this group then.
                    let mut group = loop {
                        if let Some(group) = unserved(group) {
                            break group;
                        }
                        // Relaxed: a look that comes too early comes again.
                        if core.running.load(Ordering::Relaxed) > 1 {
                            let err = core.error(Op::Serve, ErrorKind::StillInUse);
                            let err = err.about("somebody serves the group already");
                            return Some(Exit::Failed(err));
                        }
                        // Somebody who polls, or waits for pages to be unmarked, is in the middle of a pass.
                        if stop.is_set() {
                            return None;
                        }
                        nap(Duration::from_micros(50));
                    };
                    group.work(core, stop)
                },
            )?;
        }
        running.spawn(&format!("ioreq-{}-ctl", core.hv.domid()), |core, stop| {
            core.control_loop(&stop.flag)
        })?;
        Ok(running)
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&Core<H>, &Stop) -> Option<Exit> + Send + 'static,
    ) -> Result<()> {
        let (core, stop) = (Arc::clone(&self.core), Arc::clone(&self.stop));
        let run = move || {
            if let Some(exit) = body(&core, &stop) {
                stop.end(&core, exit);
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        self.threads
            .push(thread.map_err(|err| Error::from_io(Op::Serve, &err))?);
        Ok(())
    }

    /// Stops the workers and waits for them; requests that a handler deferred are answered as if it had failed.
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler, which would wait for itself: the workers are told to stop, and not waited for.
    pub fn stop(mut self) -> Result<Exit> {
        if scope::in_handler() {
            return Err(self.core.error(Op::Serve, ErrorKind::WouldDeadlock));
        }
        self.end();
        Ok(self.exit())
    }

    /// Waits until the domain ends, or a worker cannot go on.
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler, as [`stop`](Self::stop).
    pub fn wait(mut self) -> Result<Exit> {
        if scope::in_handler() {
            return Err(self.core.error(Op::Serve, ErrorKind::WouldDeadlock));
        }
        for thread in self.threads.drain(..) {
            join(thread);
        }
        self.core.expire_deferred();
        Ok(self.exit())
    }

    /// Whether the service has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.stop.is_set()
    }

    fn exit(&self) -> Exit {
        let exit = self
            .stop
            .exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        exit.clone().unwrap_or(Exit::Stopped)
    }

    fn end(&mut self) {
        self.stop.end(&self.core, Exit::Stopped);
        for thread in self.threads.drain(..) {
            join(thread);
        }
        self.core.expire_deferred();
        self.core.control.set_inline(true);
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        // Handlers' panics are caught; this is a defect of the framework, told rather than passed on to the user's thread.
        tracing::error!("a worker thread panicked");
    }
}

impl<H: Hypervisor> Drop for Running<H> {
    fn drop(&mut self) {
        let core = Arc::clone(&self.core);
        self.finish();
        // SeqCst: as in `start`.
        core.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<H: Hypervisor> Running<H> {
    fn finish(&mut self) {
        if scope::in_handler() {
            self.stop.end(&self.core, Exit::Stopped);
            return;
        }
        self.end();
    }
}

impl<H: Hypervisor> fmt::Debug for Running<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}
