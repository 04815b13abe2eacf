// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Event channels, with an eventfd for each handle.
//!
//! A [`Channel`] is Xen's end: it belongs to a vCPU of a server, or to a server's buffered ring. Bound, it raises a port in a
//! device model's handle; a notification by the device model unblocks its vCPU. The handle behaves as Linux'
//! `/dev/xen/evtchn`: a port that fired stays masked until it is unmasked, and what came meanwhile fires again then.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use crossbeam::utils::CachePadded;
use ioreq_core::{DomId, Error, ErrorKind, EventChannels, EvtchnPort, LocalPort, Op, Result};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::domain::DomainInner;
use crate::process::Process;
use crate::schedule;
use crate::vcpu::Vcpu;

/// Xen's end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) port: EvtchnPort,
    vcpu: Arc<Vcpu>,
    /// The domain that may bind it.
    emulator: DomId,
    bound: RwLock<Option<Arc<Binding>>>,
}

impl Channel {
    pub(crate) fn new(port: u32, vcpu: Arc<Vcpu>, emulator: DomId) -> Self {
        Channel {
            port: EvtchnPort(port),
            vcpu,
            emulator,
            bound: RwLock::new(None),
        }
    }

    /// An event to the device model (`notify_via_xen_event_channel`). Lost while nobody has bound the port.
    pub(crate) fn raise(&self) {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(binding) = &*bound {
            binding.raise();
        }
    }

    /// The ring of the handle that has bound it overflows at the next event that fires there.
    pub(crate) fn overflow_next(&self) {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(binding) = &*bound {
            binding.ring.queue().overflow_next = true;
        }
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.bound
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// The channel is closed: its server is destroyed.
    pub(crate) fn close(&self) {
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(binding) = bound.take() {
            // Release: pairs with `Binding::notify`.
            binding.closed.store(true, Ordering::Release);
        }
    }
}

/// A port of a device model.
#[derive(Debug)]
struct Binding {
    local: LocalPort,
    /// Each event writes it. On a line of its own: a device model that polls looks at the rest only, once for each notification.
    state: CachePadded<AtomicU8>,
    ring: Arc<Ring>,
    /// Whom a notification wakes.
    vcpu: Arc<Vcpu>,
    channel: Weak<Channel>,
    /// Xen's end is gone: notifications go nowhere.
    closed: AtomicBool,
}

/// Taken by `pending` or about to be; events only set [`PENDING`].
const MASKED: u8 = 1;
/// An event came while masked.
const PENDING: u8 = 2;

impl Binding {
    /// Wakes the vCPU at the other end, as long as Xen has that end open.
    fn notify(&self) {
        // Acquire: pairs with `Channel::close`.
        if !self.closed.load(Ordering::Acquire) {
            self.vcpu.wake();
        }
    }

    fn raise(&self) {
        // AcqRel: pairs with `unmask`'s exchange, so that of an event and an unmask one sees the other.
        let old = self.state.fetch_or(MASKED | PENDING, Ordering::AcqRel);
        if old & MASKED == 0 {
            // The event fires: nothing is pending beyond it.
            self.state.fetch_and(!PENDING, Ordering::AcqRel);
            self.ring.push(self.local);
        }
    }

    fn unmask(&self) {
        // AcqRel: see `raise`.
        let quiet = self
            .state
            .compare_exchange(MASKED, 0, Ordering::AcqRel, Ordering::Acquire);
        if quiet == Err(MASKED | PENDING) {
            self.state.fetch_and(!PENDING, Ordering::AcqRel);
            self.ring.push(self.local);
        }
    }
}

/// Ports that fired, and the file descriptor that says so.
#[derive(Debug)]
struct Ring {
    queue: Mutex<Queue>,
    fd: EventFd,
}

#[derive(Debug, Default)]
struct Queue {
    ports: VecDeque<LocalPort>,
    overflow: bool,
    overflow_next: bool,
}

impl Ring {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, port: LocalPort) {
        let mut queue = self.queue();
        if queue.overflow_next {
            queue.overflow_next = false;
            queue.overflow = true;
        } else {
            queue.ports.push_back(port);
        }
        // Without the lock: who is woken takes it first of all. A look in between finds the port, and the descriptor readable for nothing
        // after it, as a spurious event makes it.
        drop(queue);
        // It cannot fail short of a counter of 2^64 - 1, and the queue is what counts.
        let _ = self.fd.write(1);
    }

    fn quiet(&self) {
        // Nothing to read is as good.
        let _ = self.fd.read();
    }
}

/// A device model's handle on event channels, as an open `/dev/xen/evtchn`.
///
/// ```
/// use std::os::fd::AsRawFd;
/// use ioreq_core::{BufIoreq, EventChannels, LocalPort, Transport};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let id = hv.create_server(BufIoreq::Atomic)?;
/// let events = hv.open_events()?;
/// assert!(events.as_raw_fd() >= 0); // for epoll
/// let port = events.bind(hv.server_info(id)?.bufioreq_port.unwrap())?;
/// let mut fired = [LocalPort(0); 4];
/// assert_eq!(events.pending(&mut fired)?, 1); // binding makes a port pending
/// assert_eq!(fired[0], port);
/// events.unmask(&[port])?;
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct SimEvents(Arc<Handle>);

/// What a [`SimEvents`] is, reachable by its process.
#[derive(Debug)]
pub(crate) struct Handle {
    domain: Arc<DomainInner>,
    process: Arc<Process>,
    ring: Arc<Ring>,
    /// Sorted by port.
    bindings: RwLock<Vec<Arc<Binding>>>,
    closed: AtomicBool,
}

impl Handle {
    /// Ends every binding: the file is closed.
    pub(crate) fn close(&self) {
        // Release: pairs with `check`.
        self.closed.store(true, Ordering::Release);
        self.write().drain(..).for_each(|b| release(&b));
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Binding>>> {
        self.bindings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Binding>>> {
        self.bindings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process and the machine are alive.
    fn check(&self) -> Result<()> {
        schedule::yield_point(true);
        self.process.check(Op::EventChannel)?;
        self.domain.check_panic(Op::EventChannel)?;
        // Acquire: pairs with `close`.
        if self.closed.load(Ordering::Acquire) {
            return Err(self.error(libc::EBADF));
        }
        Ok(())
    }

    fn error(&self, errno: i32) -> Error {
        Error::from_errno(Op::EventChannel, errno).domain(self.domain.domid)
    }

    fn unknown(&self, port: LocalPort) -> Error {
        Error::new(Op::EventChannel, ErrorKind::InvalidArgument)
            .domain(self.domain.domid)
            .about(format!("{port} is not bound here"))
    }

    fn with<T>(&self, port: LocalPort, f: impl FnOnce(&Binding) -> T) -> Result<T> {
        let bindings = self.read();
        let at = bindings
            .binary_search_by_key(&port, |b| b.local)
            .map_err(|_| self.unknown(port))?;
        let binding = bindings.get(at).ok_or_else(|| self.unknown(port))?;
        Ok(f(binding))
    }
}

/// Lets Xen's end be bound again.
fn release(binding: &Arc<Binding>) {
    let Some(channel) = binding.channel.upgrade() else {
        return;
    };
    let mut bound = channel
        .bound
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    if bound.as_ref().is_some_and(|b| Arc::ptr_eq(b, binding)) {
        *bound = None;
    }
}

impl SimEvents {
    pub(crate) fn open(domain: &Arc<DomainInner>, process: &Arc<Process>) -> Result<Self> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|e| Error::from_io(Op::EventChannel, &e).domain(domain.domid))?;
        let handle = Arc::new(Handle {
            domain: Arc::clone(domain),
            process: Arc::clone(process),
            ring: Arc::new(Ring {
                queue: Mutex::default(),
                fd,
            }),
            bindings: RwLock::default(),
            closed: AtomicBool::new(false),
        });
        process.opened(&handle);
        Ok(SimEvents(handle))
    }

    /// Makes this handle's ring overflow at the next event that fires: the event is lost, [`pending`] gives EFBIG until
    /// [`recover`].
    ///
    /// [`pending`]: EventChannels::pending
    /// [`recover`]: EventChannels::recover
    pub fn overflow_next(&self) {
        self.0.ring.queue().overflow_next = true;
    }

    /// Fires every port of this handle that is not masked, for no reason.
    pub fn fire_spurious(&self) {
        self.0.read().iter().for_each(|b| b.raise());
    }
}

impl Drop for SimEvents {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl AsRawFd for SimEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.ring.fd.as_raw_fd()
    }
}

impl EventChannels for SimEvents {
    fn bind(&self, remote: EvtchnPort) -> Result<LocalPort> {
        let handle = &self.0;
        handle.check()?;
        if handle.domain.is_destroyed() {
            return Err(handle.error(libc::ESRCH));
        }
        let fail = || handle.error(libc::EINVAL).about(remote.to_string());
        let channel = handle.domain.channel(remote);
        let channel = channel
            .filter(|c| c.emulator == handle.process.emulator)
            .ok_or_else(fail)?;
        let binding = {
            let mut bound = channel
                .bound
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if bound.is_some() {
                return Err(fail());
            }
            let binding = Arc::new(Binding {
                local: handle.domain.machine.new_local_port(),
                state: CachePadded::new(AtomicU8::new(0)),
                ring: Arc::clone(&handle.ring),
                vcpu: Arc::clone(&channel.vcpu),
                channel: Arc::downgrade(&channel),
                closed: AtomicBool::new(false),
            });
            *bound = Some(Arc::clone(&binding));
            binding
        };
        // Numbers only grow: the table stays sorted, but for threads that bind at the same time.
        let mut bindings = handle.write();
        let at = bindings.partition_point(|b| b.local < binding.local);
        bindings.insert(at, Arc::clone(&binding));
        drop(bindings);
        // In case an event was lost while nobody had the port bound.
        binding.raise();
        Ok(binding.local)
    }

    fn unbind(&self, port: LocalPort) -> Result<()> {
        self.0.check()?;
        let mut bindings = self.0.write();
        let at = bindings
            .binary_search_by_key(&port, |b| b.local)
            .map_err(|_| self.0.unknown(port))?;
        let binding = bindings.remove(at);
        drop(bindings);
        release(&binding);
        Ok(())
    }

    fn pending(&self, ports: &mut [LocalPort]) -> Result<usize> {
        self.0.check()?;
        if let Some(errno) = self.0.domain.faults.take_event_read() {
            return Err(self.0.error(errno));
        }
        let bindings = self.0.read();
        let mut queue = self.0.ring.queue();
        if queue.overflow {
            return Err(self.0.error(libc::EFBIG));
        }
        let mut taken = 0;
        while let Some(to) = ports.get_mut(taken)
            && let Some(port) = queue.ports.pop_front()
        {
            // A port that was unbound since it fired is nobody's business any more.
            if bindings.binary_search_by_key(&port, |b| b.local).is_ok() {
                *to = port;
                taken += 1;
            }
        }
        if queue.ports.is_empty() {
            self.0.ring.quiet();
        }
        Ok(taken)
    }

    fn unmask(&self, ports: &[LocalPort]) -> Result<()> {
        self.0.check()?;
        ports
            .iter()
            .try_for_each(|&port| self.0.with(port, Binding::unmask))
    }

    fn notify(&self, port: LocalPort) -> Result<()> {
        self.0.check()?;
        // Relaxed: a number of its own.
        let notifies = &self.0.domain.model_counts.notifies;
        notifies.fetch_add(1, Ordering::Relaxed);
        self.0.with(port, Binding::notify)
    }

    fn recover(&self) -> Result<()> {
        self.0.check()?;
        let mut queue = self.0.ring.queue();
        queue.overflow = false;
        queue.ports.clear();
        self.0.ring.quiet();
        drop(queue);
        self.0.read().iter().for_each(|b| b.unmask());
        Ok(())
    }
}
