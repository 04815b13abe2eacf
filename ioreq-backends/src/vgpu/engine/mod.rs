// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A test engine: a small GPU **of our own, not Intel's**, that copies and fills memory by GPU addresses.
//!
//! It walks the shadow alone, never the guest's tables, and moves bytes by host addresses: if a shadow entry is wrong, the
//! guest's bytes are wrong. What leads to the scratch page reads as zeroes and is written to no effect. One page of MMIO holds
//! 64 channels of 64 bytes ([`regs`]); a driver uses one per vCPU, so that vCPUs submit in parallel. A long command is
//! finished by the engine's own thread, while the vCPU that rang the doorbell waits for its deferred write.
//!
//! As with a real device, what it writes by host addresses, its fences too, is not seen by write tracking: a guest that has the
//! GPU write its page tables keeps the shadow of what they were.

pub mod regs;

mod mover;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};
use ioreq_core::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::hypervisor::Interrupts;
use ioreq_core::{Error, Gfn, GuestRam, Op, Width};

use super::frames::{HostAddr, HostMemory};
use super::shadow::{Root, RootId, Shadow};

/// What became of a channel's last command.
///
/// ```
/// use ioreq_backends::vgpu::Status;
/// assert_eq!(Status::Done as u32, 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// None so far.
    Idle = 0,
    /// Done.
    Done = 1,
    /// An address was not mapped, or mapped read-only; bytes before it were moved.
    Fault = 2,
    /// No such command or address space, or a length beyond 64 MiB.
    Bad = 3,
    /// Under way.
    Busy = 4,
}

/// Longest command.
const LONGEST: u32 = 64 << 20;
/// Commands longer than this are done by the engine's thread.
const INLINE: u32 = 64 << 10;
/// A deferred command is reported when it takes longer.
const OVERRUN: Duration = Duration::from_secs(5);

/// What an engine has done.
///
/// ```
/// assert_eq!(ioreq_backends::vgpu::EngineStats::default().submissions, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Doorbells.
    pub submissions: u64,
    /// Those that the engine's thread finished.
    pub deferred: u64,
    /// Those that faulted.
    pub faults: u64,
    /// Those that were refused.
    pub bad: u64,
    /// Bytes written to targets.
    pub bytes: u64,
    /// Of those read or written, bytes of the scratch page.
    pub scratch: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    root: u64,
    source: u64,
    target: u64,
    length: u32,
    value: u32,
    fence_addr: u64,
    fence: u64,
    status: u32,
}

struct Job {
    channel: usize,
    root: RootId,
    command: Channel,
    op: u32,
    completion: Completion<()>,
}

type Observer = Box<dyn Fn(RootId, Root) + Send + Sync>;

struct Shared {
    shadow: Shadow,
    host: Arc<dyn HostMemory>,
    ram: Arc<dyn GuestRam>,
    interrupt: Option<(Arc<dyn Interrupts>, u64, u32)>,
    observer: Option<Observer>,
    channels: Box<[Mutex<Channel>]>,
    submissions: AtomicU64,
    deferred: AtomicU64,
    faults: AtomicU64,
    bad: AtomicU64,
    bytes: AtomicU64,
    scratch: AtomicU64,
}

/// The engine: a [`Handler`] for its page of MMIO.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::vgpu::{Engine, LinearMap, Shadow};
/// fn engine(shadow: &Shadow, memory: &LinearMap, ram: Arc<dyn ioreq_core::GuestRam>) -> Engine {
///     Engine::new(shadow.clone(), Arc::new(memory.clone()), ram)
/// }
/// ```
pub struct Engine {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// An engine that walks `shadow` and reaches memory through `host`; fences are written to `ram`.
    #[must_use]
    pub fn new(shadow: Shadow, host: Arc<dyn HostMemory>, ram: Arc<dyn GuestRam>) -> Self {
        let channels = (0..regs::CHANNELS).map(|_| Mutex::default()).collect();
        let shared = Shared {
            shadow,
            host,
            ram,
            interrupt: None,
            observer: None,
            channels,
            submissions: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            scratch: AtomicU64::new(0),
        };
        Engine {
            shared: Arc::new(shared),
            jobs: None,
            thread: None,
        }
    }

    fn configure(&mut self) -> &mut Shared {
        Arc::get_mut(&mut self.shared).expect("the engine is configured before it is started")
    }

    /// Raises this MSI when a command is done.
    #[must_use]
    pub fn interrupt(mut self, interrupts: Arc<dyn Interrupts>, addr: u64, data: u32) -> Self {
        self.configure().interrupt = Some((interrupts, addr, data));
        self
    }

    /// Calls `observer` at every submission, once the shadow is right and before any byte is moved.
    #[must_use]
    pub fn observer(mut self, observer: impl Fn(RootId, Root) + Send + Sync + 'static) -> Self {
        self.configure().observer = Some(Box::new(observer));
        self
    }

    /// Starts the thread that does long commands. Without it every command is done while the doorbell is written.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(mut self) -> ioreq_core::Result<Self> {
        let (sender, receiver) = unbounded();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("vgpu-engine".into());
        let thread = thread.spawn(move || shared.work(&receiver));
        self.thread = Some(thread.map_err(|err| Error::from_io(Op::Serve, &err))?);
        self.jobs = Some(sender);
        Ok(self)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        // Relaxed: counters.
        EngineStats {
            submissions: self.shared.submissions.load(Ordering::Relaxed),
            deferred: self.shared.deferred.load(Ordering::Relaxed),
            faults: self.shared.faults.load(Ordering::Relaxed),
            bad: self.shared.bad.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            scratch: self.shared.scratch.load(Ordering::Relaxed),
        }
    }

    fn doorbell(&self, cx: &Context<'_>, channel: usize, op: u32) -> WriteOutcome {
        let shared = &self.shared;
        shared.submissions.fetch_add(1, Ordering::Relaxed);
        let command = shared.channel(channel, |channel| {
            channel.status = Status::Busy as u32;
            *channel
        });
        let frame = Gfn(command.root >> 12);
        let found = if command.root & 1 == 0 {
            let root = Root::L4(frame);
            shared.shadow.find(root).map(|id| (id, root))
        } else {
            shared.shadow.find_l3(frame)
        };
        let known = matches!(op, regs::COPY | regs::FILL) && command.length <= LONGEST;
        let Some((id, root)) = found.filter(|_| known) else {
            shared.bad.fetch_add(1, Ordering::Relaxed);
            shared.done(channel, &command, Status::Bad);
            return WriteOutcome::Done;
        };
        shared.shadow.submit(id);
        if let Some(observer) = &shared.observer {
            observer(id, root);
        }
        if let Some(jobs) = self.jobs.as_ref().filter(|_| command.length > INLINE) {
            shared.deferred.fetch_add(1, Ordering::Relaxed);
            let (deferred, completion) = cx.defer_write(OVERRUN);
            // A thread that is gone drops the job, and with it the completion, which answers.
            let _ended = jobs.send(Job {
                channel,
                root: id,
                command,
                op,
                completion,
            });
            return WriteOutcome::Defer(deferred);
        }
        let status = shared.execute(id, &command, op);
        shared.done(channel, &command, status);
        WriteOutcome::Done
    }
}

impl Shared {
    fn channel<T>(&self, number: usize, with: impl FnOnce(&mut Channel) -> T) -> T {
        match self.channels.get(number) {
            Some(channel) => with(&mut channel.lock().unwrap_or_else(PoisonError::into_inner)),
            None => with(&mut Channel::default()),
        }
    }
}

impl Handler for Engine {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        let Some((number, register)) = place(access) else {
            return ReadOutcome::Refused("beyond the engine's page");
        };
        let channel = self.shared.channel(number, |channel| *channel);
        let value = match (register, access.width) {
            (regs::ROOT, Width::B8) => channel.root,
            (regs::SOURCE, Width::B8) => channel.source,
            (regs::TARGET, Width::B8) => channel.target,
            (regs::LENGTH, Width::B4) => channel.length.into(),
            (regs::VALUE, Width::B4) => channel.value.into(),
            (regs::FENCE_ADDR, Width::B8) => channel.fence_addr,
            (regs::FENCE, Width::B8) => channel.fence,
            (regs::STATUS, Width::B4) => channel.status.into(),
            _ => return ReadOutcome::Refused("no such register, or not of that width"),
        };
        value.into()
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let Some((number, register)) = place(access) else {
            return WriteOutcome::Refused("beyond the engine's page");
        };
        #[allow(
            clippy::cast_possible_truncation,
            reason = "registers of 32 bits, written with 32"
        )]
        let low = value as u32;
        if register == regs::DOORBELL && access.width == Width::B4 {
            return self.doorbell(cx, number, low);
        }
        self.shared.channel(number, |channel| {
            match (register, access.width) {
                (regs::ROOT, Width::B8) => channel.root = value,
                (regs::SOURCE, Width::B8) => channel.source = value,
                (regs::TARGET, Width::B8) => channel.target = value,
                (regs::LENGTH, Width::B4) => channel.length = low,
                (regs::VALUE, Width::B4) => channel.value = low,
                (regs::FENCE_ADDR, Width::B8) => channel.fence_addr = value,
                (regs::FENCE, Width::B8) => channel.fence = value,
                _ => return WriteOutcome::Refused("no such register, or not of that width"),
            };
            WriteOutcome::Done
        })
    }
}

/// Channel and register of an access.
fn place(access: Access) -> Option<(usize, u64)> {
    let channel = access.offset / regs::CHANNEL;
    let number = usize::try_from(channel).ok()?;
    (channel < regs::CHANNELS).then_some((number, access.offset % regs::CHANNEL))
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
