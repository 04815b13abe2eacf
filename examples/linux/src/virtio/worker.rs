// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device's own thread, which serves its queues one request after the other.
//!
//! It may die in the middle of a request: another thread takes its place and begins where guest memory says that the device is. What
//! has been used is in the used ring; a request that is not there is served again, so every request must bear that. Requests are
//! served in the order in which they came, or the used ring would not tell which are done.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use ioreq::GuestMap;
use ioreq::hypervisor::Hypervisor;
use ioreq::replay::DeviceThread;
use ioreq::server::Dma;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::device::{DeviceError, QueueSetup, Signal, Stopped};
use super::fuse::Fuse;
use super::lock;
use super::request::Request;

/// What a device does with a request.
pub trait Backend<H: Hypervisor>: Send + 'static {
    /// Serves one, of queue `queue`; how many bytes it wrote into guest memory. It may be served again, if the thread dies.
    fn serve(&mut self, queue: u16, request: &mut Request<'_, H>) -> u32;
}

/// What a worker has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerStats {
    /// Requests that were finished.
    pub requests: u64,
    /// Interrupts that were raised for them.
    pub interrupts: u64,
    /// Threads that took the place of one that died.
    pub restarts: u64,
}

impl fmt::Display for WorkerStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerStats {
            requests,
            interrupts,
            restarts,
        } = self;
        write!(
            f,
            "{requests} requests, {interrupts} interrupts, {restarts} restarts"
        )
    }
}

/// Queues at work.
struct Active {
    /// With their numbers.
    queues: Vec<(u16, Queue)>,
    signal: Arc<dyn Signal>,
    /// The thread that served them died: where it was has to be found out.
    recover: bool,
}

/// What the thread is told.
#[derive(Default)]
struct Mail {
    start: Option<Active>,
    notified: bool,
    stop: Vec<Stopped>,
    quit: bool,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.start.is_none() && !self.notified && self.stop.is_empty() && !self.quit
    }
}

struct Shared<H: Hypervisor, B> {
    hypervisor: Arc<H>,
    mail: Mutex<Mail>,
    wake: Condvar,
    /// What it is to a tape.
    thread: DeviceThread,
    /// Held by the thread at work, and by nobody else.
    work: Mutex<Work<H, B>>,
    fuse: Fuse,
    requests: AtomicU64,
    interrupts: AtomicU64,
    restarts: AtomicU64,
}

struct Work<H: Hypervisor, B> {
    backend: B,
    dma: Dma<H>,
    active: Option<Active>,
}

/// A thread that serves queues. Dropping it ends the thread.
pub struct Worker<H: Hypervisor, B: Backend<H>> {
    shared: Arc<Shared<H, B>>,
    supervisor: Option<JoinHandle<()>>,
}

impl<H: Hypervisor, B: Backend<H>> Worker<H, B> {
    /// Starts it, with nothing to do. `dma` is the server's; a tape knows it as `thread`.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn new(
        name: &str,
        hypervisor: Arc<H>,
        dma: Dma<H>,
        thread: DeviceThread,
        backend: B,
        fuse: Fuse,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            hypervisor,
            mail: Mutex::default(),
            wake: Condvar::new(),
            thread,
            work: Mutex::new(Work {
                backend,
                dma,
                active: None,
            }),
            fuse,
            requests: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
        });
        let (watched, name) = (Arc::clone(&shared), name.to_owned());
        let supervisor = thread::Builder::new()
            .name(format!("{name}-watch"))
            .spawn(move || watched.supervise(&name))?;
        Ok(Worker {
            shared,
            supervisor: Some(supervisor),
        })
    }

    /// Uses these queues from now on; with `resumed`, from where guest memory says that another process was.
    ///
    /// # Errors
    /// When one that is ready cannot be used as it is set up.
    pub fn start(
        &self,
        queues: &[QueueSetup],
        signal: Arc<dyn Signal>,
        resumed: bool,
    ) -> Result<(), DeviceError> {
        let memory = self.shared.hypervisor.memory();
        let mut ready = Vec::new();
        for (number, setup) in (0..).zip(queues).filter(|(_, setup)| setup.ready) {
            let queue = queue(setup).filter(|queue| queue.is_valid(&*memory));
            ready.push((number, queue.ok_or(DeviceError::Queue(number))?));
        }
        let active = Active {
            queues: ready,
            signal,
            recover: resumed,
        };
        self.shared.tell(|mail| {
            mail.start = Some(active);
            // The driver may have been quicker.
            mail.notified = true;
        });
        Ok(())
    }

    /// There is something in a queue.
    pub fn notify(&self) {
        self.shared.tell(|mail| mail.notified = true);
    }

    /// Uses no queue any more; `stopped` is called when that is so.
    pub fn stop(&self, stopped: Stopped) {
        self.shared.tell(|mail| {
            mail.start = None;
            mail.stop.push(stopped);
        });
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        // Relaxed: numbers.
        WorkerStats {
            requests: self.shared.requests.load(Ordering::Relaxed),
            interrupts: self.shared.interrupts.load(Ordering::Relaxed),
            restarts: self.shared.restarts.load(Ordering::Relaxed),
        }
    }
}

/// A queue of these addresses, if it can be one.
fn queue(setup: &QueueSetup) -> Option<Queue> {
    let mut queue = Queue::new(setup.most).ok()?;
    queue.try_set_size(setup.size).ok()?;
    let addr = GuestAddress;
    queue
        .try_set_desc_table_address(addr(setup.descriptors))
        .ok()?;
    queue
        .try_set_avail_ring_address(addr(setup.available))
        .ok()?;
    queue.try_set_used_ring_address(addr(setup.used)).ok()?;
    queue.set_ready(true);
    Some(queue)
}

/// What the next element of the used ring will be, and where.
fn used(queue: &Queue, head: u16, written: u32) -> (GuestAddress, [u8; 8]) {
    let index = queue.next_used().checked_rem(queue.size()).unwrap_or(0);
    let at = queue.used_ring().wrapping_add(4 + 8 * u64::from(index));
    let element = u64::from(written) << 32 | u64::from(head);
    (GuestAddress(at), element.to_le_bytes())
}

impl<H: Hypervisor, B: Backend<H>> Shared<H, B> {
    fn tell(&self, what: impl FnOnce(&mut Mail)) {
        what(&mut lock(&self.mail));
        self.wake.notify_one();
    }

    /// Sees that there is a thread at work until it is told to end.
    fn supervise(self: &Arc<Self>, name: &str) {
        loop {
            let worker = Arc::clone(self);
            let thread = thread::Builder::new().name(name.to_owned());
            let Ok(thread) = thread.spawn(move || worker.work()) else {
                tracing::error!("no thread for {name}: its device stands still");
                return;
            };
            if thread.join().is_ok() {
                return;
            }
            // Relaxed: a number.
            self.restarts.fetch_add(1, Ordering::Relaxed);
            if let Some(active) = &mut lock(&self.work).active {
                active.recover = true;
            }
            lock(&self.mail).notified = true;
        }
    }

    fn work(&self) {
        loop {
            let mail = {
                let mail = lock(&self.mail);
                let mail = self.wake.wait_while(mail, |mail| mail.is_empty());
                std::mem::take(&mut *mail.unwrap_or_else(PoisonError::into_inner))
            };
            let mut work = lock(&self.work);
            if !mail.stop.is_empty() {
                work.active = None;
                mail.stop.into_iter().for_each(|stopped| stopped());
            }
            if mail.start.is_some() {
                work.active = mail.start;
            }
            if mail.quit {
                return;
            }
            self.serve(&mut work);
        }
    }

    /// Whether there is something to do that goes before the next request.
    fn is_interrupted(&self) -> bool {
        let mail = lock(&self.mail);
        mail.quit || !mail.stop.is_empty()
    }

    fn serve(&self, work: &mut Work<H, B>) {
        let Some(active) = &mut work.active else {
            return;
        };
        let memory = self.hypervisor.memory();
        let mut broken = false;
        for (number, queue) in &mut active.queues {
            if active.recover {
                self.recover(queue, &*memory);
                active.signal.used(*number);
            }
            let (backend, dma) = (&mut work.backend, &mut work.dma);
            let served = self.serve_queue(*number, queue, &memory, backend, dma, &*active.signal);
            if let Err(err) = served {
                tracing::warn!(%err, queue = number, "a virtio queue is broken: it rests until it is reset");
                broken = true;
            }
        }
        active.recover = false;
        if broken {
            work.active = None;
        }
    }

    /// All that is in a queue.
    fn serve_queue(
        &self,
        number: u16,
        queue: &mut Queue,
        memory: &Arc<<H as GuestMap>::Memory>,
        backend: &mut B,
        dma: &mut Dma<H>,
        signal: &dyn Signal,
    ) -> Result<(), virtio_queue::Error> {
        // An available ring that promises what it does not give would keep the thread busy.
        let mut rounds_for_nothing = 0;
        while rounds_for_nothing < 2 {
            rounds_for_nothing += 1;
            queue.disable_notification(&**memory)?;
            let next = |queue: &mut Queue| {
                self.thread.take(memory, |memory| {
                    let goes_on = !self.is_interrupted();
                    let chain = goes_on.then(|| queue.pop_descriptor_chain(Arc::clone(memory)));
                    chain.flatten()
                })
            };
            while let Some((step, chain)) = next(queue) {
                rounds_for_nothing = 0;
                self.fuse.point();
                let head = chain.head_index();
                let mut request = Request::new(chain, &step, dma, &self.fuse);
                let written = backend.serve(number, &mut request);
                self.fuse.point();
                let (at, element) = used(queue, head, written);
                queue.add_used(&**step.memory(), head, written)?;
                step.wrote(at, &element);
                self.fuse.point();
                // Relaxed: numbers.
                self.requests.fetch_add(1, Ordering::Relaxed);
                let interrupt = queue.needs_notification(&**step.memory())?;
                step.finish(|| {
                    if interrupt {
                        self.interrupts.fetch_add(1, Ordering::Relaxed);
                        signal.used(number);
                    }
                });
            }
            let more = queue.enable_notification(&**memory)?;
            if !self.thread.more(more) || self.is_interrupted() {
                return Ok(());
            }
        }
        Err(virtio_queue::Error::InvalidAvailRingIndex)
    }

    /// The queue as guest memory has it. The interrupt for what was used last may be missing, so the caller raises one.
    fn recover(&self, queue: &mut Queue, memory: &<H as GuestMap>::Memory) {
        if let Ok(used) = queue.used_idx(memory, Ordering::Acquire) {
            queue.set_next_used(used.0);
            queue.set_next_avail(used.0);
        }
    }
}

impl<H: Hypervisor, B: Backend<H>> Drop for Worker<H, B> {
    fn drop(&mut self) {
        self.shared.tell(|mail| mail.quit = true);
        if let Some(supervisor) = self.supervisor.take() {
            let _worker_panics_are_the_supervisors = supervisor.join();
        }
    }
}

impl<H: Hypervisor, B: Backend<H>> fmt::Debug for Worker<H, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
