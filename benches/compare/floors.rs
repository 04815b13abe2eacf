// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The floors under a round trip: programs that do nothing but hand a 32-byte slot back and forth, NONE, READY, INPROCESS,
//! RESP_READY, with the same waits and wake-ups on both sides as the server and the model's vCPU have. No decoding, no look-up,
//! no handler, no guest that executes its instruction again.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::clock::pin;
use crate::guest::{Guest, Taken, answer_to};

const NONE: u32 = 0;
const READY: u32 = 1;
const IN_PROCESS: u32 = 2;
const RESP_READY: u32 = 3;

/// A slot of the size of Xen's.
#[derive(Default)]
#[repr(align(32))]
struct Slot {
    addr: AtomicU64,
    data: AtomicU64,
    count: AtomicU32,
    size: AtomicU32,
    port: AtomicU32,
    state: AtomicU32,
}

/// How a guest waits for its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Looks at the slot: no notification at all, which no Xen offers.
    OnSlot,
    /// Spins until it is notified, as the model's spinning vCPU.
    Spins,
    /// Sleeps until it is notified.
    Sleeps,
}

/// What notifies a guest.
#[derive(Default)]
#[repr(align(128))]
struct Blocked {
    is: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Blocked {
    fn wake(&self, sleeps: bool) {
        self.is.store(false, Ordering::Release);
        if !sleeps {
            return;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            thread.unpark();
        }
    }
}

/// What both sides see.
struct Shared {
    slots: Box<[Slot]>,
    blocked: Box<[Blocked]>,
    wake: EventFd,
    server_sleeps: bool,
    guests: Waits,
    stop: AtomicBool,
    taken: Taken,
}

impl Shared {
    /// Answers what is there.
    fn look(&self) {
        for (slot, blocked) in self.slots.iter().zip(&self.blocked) {
            if slot.state.load(Ordering::Acquire) != READY {
                continue;
            }
            slot.state.store(IN_PROCESS, Ordering::Relaxed);
            let value = slot.data.load(Ordering::Relaxed);
            self.taken.add(value);
            slot.data.store(answer_to(value), Ordering::Relaxed);
            slot.state.store(RESP_READY, Ordering::Release);
            if self.guests != Waits::OnSlot {
                blocked.wake(self.guests == Waits::Sleeps);
            }
        }
    }

    fn serve(&self) {
        while !self.server_sleeps && !self.stop.load(Ordering::Relaxed) {
            self.look();
            spin_loop();
        }
        let epoll = Epoll::new().expect("descriptors");
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.wake);
        epoll
            .ctl(ControlOperation::Add, fd, event)
            .expect("a descriptor");
        let mut ready = [EpollEvent::default()];
        while !self.stop.load(Ordering::Relaxed) {
            epoll.wait(-1, &mut ready).expect("it is open");
            // Nothing to read: another look has taken it.
            let _count = self.wake.read();
            self.look();
        }
    }
}

/// A raw server with its thread.
pub(crate) struct Raw {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Raw {
    /// For so many guests, that wait like that; it spins or sleeps, on the CPU with this number.
    pub(crate) fn new(count: usize, guests: Waits, server_sleeps: bool, cpu: usize) -> Self {
        let shared = Arc::new(Shared {
            slots: (0..count).map(|_| Slot::default()).collect(),
            blocked: (0..count).map(|_| Blocked::default()).collect(),
            wake: EventFd::new(EFD_NONBLOCK).expect("descriptors"),
            server_sleeps,
            guests,
            stop: AtomicBool::new(false),
            taken: Taken::default(),
        });
        let server = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            pin(cpu);
            server.serve();
        });
        Raw {
            shared,
            thread: Some(thread),
        }
    }

    pub(crate) fn taken(&self) -> &Taken {
        &self.shared.taken
    }

    pub(crate) fn guests(&self) -> Vec<Box<dyn Guest>> {
        let guest = |at| -> Box<dyn Guest> {
            let shared = Arc::clone(&self.shared);
            Box::new(RawGuest { shared, at })
        };
        (0..self.shared.slots.len()).map(guest).collect()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _woken = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

struct RawGuest {
    shared: Arc<Shared>,
    at: usize,
}

impl Guest for RawGuest {
    fn trip(&mut self, value: u64) {
        let (slot, blocked) = (&self.shared.slots[self.at], &self.shared.blocked[self.at]);
        slot.addr.store(0xe000_0000, Ordering::Relaxed);
        slot.data.store(value, Ordering::Relaxed);
        slot.count.store(1, Ordering::Relaxed);
        slot.size.store(4, Ordering::Relaxed);
        slot.port.store(1, Ordering::Relaxed);
        let waits = self.shared.guests;
        if waits == Waits::Sleeps {
            let mut thread = blocked
                .thread
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *thread = Some(thread::current());
        }
        blocked.is.store(waits != Waits::OnSlot, Ordering::Relaxed);
        slot.state.store(READY, Ordering::Release);
        if self.shared.server_sleeps {
            self.shared.wake.write(1).expect("a small number");
        }
        while blocked.is.load(Ordering::Acquire) {
            match waits {
                Waits::Sleeps => thread::park(),
                Waits::Spins | Waits::OnSlot => spin_loop(),
            }
        }
        while slot.state.load(Ordering::Acquire) != RESP_READY {
            spin_loop();
        }
        assert_eq!(slot.data.load(Ordering::Relaxed), answer_to(value));
        slot.state.store(NONE, Ordering::Relaxed);
    }
}
