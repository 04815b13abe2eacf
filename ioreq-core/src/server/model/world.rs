// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: makes a shared page and guest memory of heap memory that the models own.
//!
//! Xen's side of the models: one vCPU, one page that can be marked, event channels that wait.

use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Word;

use loom::sync::atomic::{AtomicBool, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use vm_memory::GuestRegionCollection;
use vmm_sys_util::eventfd::EventFd;

use crate::abi::*;
use crate::error::{Error, ErrorKind, Op, Result};
use crate::hypervisor::*;
use crate::ids::{DomId, EvtchnPort, Gfn, LocalPort, ServerId};
use crate::memory::MappedRegion;
use crate::range::{GfnRange, IoRange};
use crate::server::{IoreqServer, Polling, Workers};
use crate::slot::LoomSlot;

/// The frame that can be marked; guest memory is this frame alone.
pub(super) const PAGE: Gfn = Gfn(0);
const WORDS: usize = 512;

/// An event channel's end that somebody waits at.
#[derive(Default)]
struct Bell {
    state: Mutex<Ring>,
    changed: Condvar,
}

#[derive(Default)]
struct Ring {
    fired: bool,
    masked: bool,
    /// Somebody wants the waiting thread to look up.
    woken: bool,
    bound: bool,
}

impl Bell {
    fn change(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}

struct Types {
    marked: bool,
    claimed: bool,
}

/// See the module.
pub(super) struct World {
    slot: Arc<LoomSlot>,
    ram: Arc<Vec<Word>>,
    to_device: Bell,
    to_guest: Bell,
    /// The p2m lock, under which a first pass traps.
    types: Mutex<Types>,
    /// Held by the vCPU from consuming an answer until it has re-executed; pausing the domain waits for it.
    running: Mutex<()>,
    done: AtomicBool,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(World {
            slot: Arc::default(),
            ram: Arc::new((0..WORDS).map(|_| Word::new(0)).collect()),
            to_device: Bell::default(),
            to_guest: Bell::default(),
            types: Mutex::new(Types {
                marked: false,
                claimed: false,
            }),
            running: Mutex::new(()),
            done: AtomicBool::new(false),
        })
    }

    /// A server of this world's domain that never polls.
    pub(super) fn server(self: &Arc<Self>) -> super::Server {
        let builder = IoreqServer::builder(Hv(Arc::clone(self)));
        let builder = builder.workers(Workers::Count(1)).last_gfn(Gfn(1));
        let builder = builder.polling(Polling::off()).sample_latency(0);
        Arc::new(builder.build().unwrap())
    }

    pub(super) fn is_marked(&self) -> bool {
        self.types.lock().unwrap().marked
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.types.lock().unwrap().claimed
    }

    /// A word of guest memory. When the threads are joined: loom does not see it.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.ram[index].load(Ordering::Relaxed)
    }

    /// The guest's program has ended.
    pub(super) fn finish(&self) {
        self.done.store(true, Ordering::Release);
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// `in` of a byte.
    pub(super) fn port_read(&self, port: u64) -> u64 {
        self.send(IOREQ_TYPE_PIO, port, 0, (1, 1), IOREQ_DIR_READ);
        self.wait()
    }

    /// `rep insb`, `count` times, to the start of guest memory.
    pub(super) fn port_read_repeated(&self, port: u64, count: u32) {
        let flags = IOREQ_DIR_READ | IOREQ_DATA_IS_PTR;
        self.send(IOREQ_TYPE_PIO, port, 0, (1, count), flags);
        self.wait();
    }

    /// A store of four bytes to the start of [`PAGE`].
    pub(super) fn store(&self, value: u64) {
        {
            let types = self.types.lock().unwrap();
            if !types.marked {
                self.ram[0].store(value, Ordering::Relaxed);
                return;
            }
            self.send(IOREQ_TYPE_COPY, 0, value, (4, 1), 0);
        }
        let _running = self.wait_and_run();
        assert!(
            self.types.lock().unwrap().marked,
            "domain crash: the type changed before re-execution"
        );
    }

    /// Xen's `ioreq_send`.
    fn send(&self, kind: u8, addr: u64, data: u64, (size, count): (u32, u32), flags: u8) {
        let slot = &*self.slot;
        let state = slot.flags.load(Ordering::Relaxed) & IOREQ_STATE_MASK;
        assert_eq!(state, STATE_IOREQ_NONE, "device model set bad IO state");
        slot.addr.store(addr, Ordering::Relaxed);
        slot.data.store(data, Ordering::Relaxed);
        slot.count.store(count, Ordering::Relaxed);
        slot.size.store(size, Ordering::Relaxed);
        slot.kind.store(kind, Ordering::Relaxed);
        fence(Ordering::SeqCst); // prepare_wait_on_xen_event_channel
        slot.flags
            .store(flags | STATE_IOREQ_READY, Ordering::Relaxed);
        self.to_device.change(|ring| ring.fired = true);
    }

    fn wait(&self) -> u64 {
        drop(self.wait_and_run());
        self.slot.data.load(Ordering::Relaxed)
    }

    /// Xen's `wait_for_io`: sleeps until the event channel fires and the state has changed.
    fn wait_and_run(&self) -> loom::sync::MutexGuard<'_, ()> {
        let slot = &*self.slot;
        let mut previous = STATE_IOREQ_READY;
        loop {
            let flags = slot.flags.load(Ordering::Relaxed);
            fence(Ordering::Acquire); // smp_rmb
            let state = flags & IOREQ_STATE_MASK;
            assert!(
                state >= previous && state <= STATE_IORESP_READY,
                "domain crash: state {previous} -> {state}"
            );
            previous = state;
            if state == STATE_IORESP_READY {
                break;
            }
            let mut ring = self.to_guest.state.lock().unwrap();
            while !ring.fired {
                ring = self.to_guest.changed.wait(ring).unwrap();
            }
            ring.fired = false;
        }
        let running = self.running.lock().unwrap();
        slot.flags.store(STATE_IOREQ_NONE, Ordering::Relaxed);
        running
    }
}

/// The device model's handle on the domain.
pub(super) struct Hv(Arc<World>);

/// Its event channels.
pub(super) struct Events {
    world: Arc<World>,
    waiting: AtomicBool,
    /// For `epoll`, which no model waits in.
    fd: EventFd,
}

const PORT: LocalPort = LocalPort(7);

fn unsupported<T>(op: Op) -> Result<T> {
    Err(Error::new(op, ErrorKind::NotSupported))
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl EventChannels for Events {
    fn bind(&self, _: EvtchnPort) -> Result<LocalPort> {
        self.world.to_device.change(|ring| ring.bound = true);
        Ok(PORT)
    }

    fn unbind(&self, _: LocalPort) -> Result<()> {
        self.world.to_device.change(|ring| ring.bound = false);
        Ok(())
    }

    fn pending(&self, ports: &mut [LocalPort]) -> Result<usize> {
        let bell = &self.world.to_device;
        let mut ring = bell.state.lock().unwrap();
        loop {
            if ring.woken {
                ring.woken = false;
                return Ok(0);
            }
            if ring.fired && !ring.masked {
                (ring.fired, ring.masked) = (false, true);
                ports[0] = PORT;
                return Ok(1);
            }
            if !self.waiting.load(Ordering::Relaxed) {
                return Ok(0);
            }
            ring = bell.changed.wait(ring).unwrap();
        }
    }

    fn unmask(&self, _: &[LocalPort]) -> Result<()> {
        self.world.to_device.change(|ring| ring.masked = false);
        Ok(())
    }

    fn notify(&self, _: LocalPort) -> Result<()> {
        if !self.world.to_device.state.lock().unwrap().bound {
            return Err(Error::new(Op::Serve, ErrorKind::InvalidArgument));
        }
        self.world.to_guest.change(|ring| ring.fired = true);
        Ok(())
    }

    fn recover(&self) -> Result<()> {
        self.unmask(&[])
    }

    fn prepare_to_wait(&self) -> bool {
        true
    }

    fn set_waiting(&self, on: bool) -> Result<()> {
        self.waiting.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn wake(&self) -> Result<()> {
        self.world.to_device.change(|ring| ring.woken = true);
        Ok(())
    }
}

impl Transport for Hv {
    type Events = Events;

    fn domid(&self) -> DomId {
        DomId(1)
    }
    fn vcpus(&self) -> Result<u32> {
        Ok(1)
    }
    fn create_server(&self, _: BufIoreq) -> Result<ServerId> {
        Ok(ServerId(0))
    }
    fn destroy_server(&self, _: ServerId) -> Result<()> {
        Ok(())
    }
    /// Pauses and unpauses the domain.
    fn set_server_state(&self, _: ServerId, _: bool) -> Result<()> {
        drop(self.0.running.lock().unwrap());
        Ok(())
    }
    fn server_info(&self, _: ServerId) -> Result<ServerInfo> {
        Ok(ServerInfo {
            bufioreq_port: None,
        })
    }
    fn map_range(&self, _: ServerId, _: IoRange) -> Result<()> {
        Ok(())
    }
    fn unmap_range(&self, _: ServerId, _: IoRange) -> Result<()> {
        Ok(())
    }
    fn ioreq_page(&self, _: ServerId) -> Result<SharedPage> {
        let addr = NonNull::from(&*self.0.slot).cast();
        // SAFETY: the slot is aligned to a page and as large as one, lives as long as its owner, and is of loom's atomics.
        let page = unsafe { SharedPage::new(addr, Arc::clone(&self.0.slot) as _) };
        Ok(page.expect("aligned"))
    }
    fn buffered_page(&self, _: ServerId) -> Result<SharedPage> {
        unsupported(Op::AcquireResource)
    }
    fn open_events(&self) -> Result<Events> {
        Ok(Events {
            world: Arc::clone(&self.0),
            waiting: AtomicBool::new(false),
            fd: EventFd::new(0).expect("a descriptor"),
        })
    }
    fn domain_state(&self) -> Result<DomainState> {
        Ok(DomainState::Running)
    }
}

impl GuestMap for Hv {
    type Memory = GuestRegionCollection<MappedRegion>;

    fn memory(&self) -> Arc<Self::Memory> {
        let host = NonNull::from(&self.0.ram[0]).cast();
        // SAFETY: a page of atomics, which lives as long as its owner.
        let page = unsafe { MappedRegion::new(PAGE.into(), host, Arc::clone(&self.0.ram) as _) };
        Arc::new(GuestRegionCollection::from_regions(vec![page]).expect("one region"))
    }
}

impl MemTypes for Hv {
    fn claim_mem_type(&self, _: ServerId) -> Result<()> {
        self.0.types.lock().unwrap().claimed = true;
        Ok(())
    }
    /// What is outstanding goes back to ordinary memory at once.
    fn disclaim_mem_type(&self, _: ServerId) -> Result<()> {
        *self.0.types.lock().unwrap() = Types {
            marked: false,
            claimed: false,
        };
        Ok(())
    }
    fn set_mem_type(&self, _: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        assert_eq!(pages, PAGE.into());
        let mut types = self.0.types.lock().unwrap();
        assert!(types.claimed, "marked without an owner: stuck");
        types.marked = ty == P2mType::IoreqServer;
        Ok(())
    }
}

impl Interrupts for Hv {
    fn set_pci_intx(&self, _: crate::Sbdf, _: Intx, _: bool) -> Result<()> {
        unsupported(Op::SetPciIntx)
    }
    fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> {
        unsupported(Op::SetIsaIrq)
    }
    fn inject_msi(&self, _: u64, _: u32) -> Result<()> {
        unsupported(Op::InjectMsi)
    }
}
