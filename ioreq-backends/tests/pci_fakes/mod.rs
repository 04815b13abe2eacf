// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fakes of what a PCI function stands on, and a guest's ways to reach it.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ioreq_backends::pci::{FunctionInterrupts, Header, PciFunction, Signals};
use ioreq_core::handler::{
    Access, Batch, BatchOutcome, Context, Handler, ReadOutcome, Space, WriteOutcome,
};
use ioreq_core::hypervisor::{Interrupts, Intx};
use ioreq_core::memory::MappedRegion;
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::{DomId, Error, ErrorKind, IoRange, Op, Result, Sbdf, VcpuId, Width};
use vm_memory::GuestRegionCollection;

pub(crate) const COMMAND: u64 = 0x04;
pub(crate) const STATUS: u64 = 0x06;
pub(crate) const IO: u64 = 1;
pub(crate) const MEMORY: u64 = 2;
pub(crate) const MASTER: u64 = 4;
pub(crate) const NO_INTX: u64 = 1 << 10;

pub(crate) fn at() -> Sbdf {
    Sbdf::new(0, 0, 5, 0).unwrap()
}

pub(crate) fn header() -> Header {
    Header::new(0x1af4, 0x10f0)
}

/// First and last address, and whether they are ports.
pub(crate) fn ends(range: IoRange) -> (u64, u64, bool) {
    match range {
        IoRange::Port(ports) => (ports.first().into(), ports.last().into(), true),
        IoRange::Mmio(addrs) => (addrs.first(), addrs.last(), false),
        IoRange::Pci(sbdf) => panic!("a BAR was routed as {sbdf}"),
    }
}

pub(crate) fn overlap(one: IoRange, other: IoRange) -> bool {
    let ((a, b, one_port), (c, d, other_port)) = (ends(one), ends(other));
    one_port == other_port && a <= d && c <= b
}

/// Name, range and handler of a route.
type Live = (String, IoRange, Arc<dyn Handler>);

/// Routes as an interval list.
#[derive(Default)]
pub(crate) struct FakeRoutes {
    live: Mutex<BTreeMap<RouteId, Live>>,
    next: AtomicU64,
    /// The hypervisor has no room for more.
    pub(crate) full: AtomicBool,
    /// Retracting works, and is reported as a failure.
    pub(crate) complains: AtomicBool,
}

impl FakeRoutes {
    /// Names and ranges, in ascending order.
    pub(crate) fn live(&self) -> Vec<(String, IoRange)> {
        let live = self.live.lock().unwrap();
        let mut live: Vec<_> = live
            .values()
            .map(|(name, range, _)| (name.clone(), *range))
            .collect();
        live.sort_by_key(|(_, range)| ends(*range));
        live
    }

    pub(crate) fn ranges(&self) -> Vec<IoRange> {
        self.live().into_iter().map(|(_, range)| range).collect()
    }

    /// The handler of an address, and the access as it gets it.
    pub(crate) fn find(
        &self,
        space: Space,
        addr: u64,
        width: Width,
    ) -> Option<(Arc<dyn Handler>, Access)> {
        let live = self.live.lock().unwrap();
        live.values().find_map(|(_, range, handler)| {
            let (first, last, port) = ends(*range);
            let inside = port == (space == Space::Port)
                && first <= addr
                && addr.checked_add(width.bytes() - 1)? <= last;
            inside.then(|| {
                let offset = addr - first;
                (
                    Arc::clone(handler),
                    Access {
                        space,
                        addr,
                        offset,
                        width,
                    },
                )
            })
        })
    }

    /// Another device's route.
    pub(crate) fn other(&self, range: impl Into<IoRange>) -> RouteId {
        self.add("other", range.into(), Arc::new(Id(0xff))).unwrap()
    }
}

impl Routes for FakeRoutes {
    fn add(&self, name: &str, range: IoRange, handler: Arc<dyn Handler>) -> Result<RouteId> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::from_errno(Op::MapRange, 12).about(range));
        }
        let mut live = self.live.lock().unwrap();
        if let Some((other, there, _)) = live.values().find(|(_, there, _)| overlap(range, *there))
        {
            let err = Error::new(Op::Route, ErrorKind::RouteConflict);
            return Err(err.conflict(
                format!("{range} of {name:?}"),
                format!("{there} of {other:?}"),
            ));
        }
        let id = RouteId::from_raw(self.next.fetch_add(1, Ordering::Relaxed));
        live.insert(id, (name.into(), range, handler));
        Ok(id)
    }

    fn replace(&self, _: RouteId, _: Arc<dyn Handler>) -> Result<()> {
        panic!("a function never replaces a route");
    }

    fn retract(&self, route: RouteId) -> Result<()> {
        let gone = self.live.lock().unwrap().remove(&route);
        assert!(gone.is_some(), "{route} retracted twice");
        if self.complains.load(Ordering::Relaxed) {
            return Err(Error::from_errno(Op::UnmapRange, 12));
        }
        Ok(())
    }
}

/// What a guest got.
#[derive(Default)]
pub(crate) struct FakeInterrupts {
    pub(crate) messages: Mutex<Vec<(u64, u32)>>,
    pub(crate) pin: Mutex<Vec<(Intx, bool)>>,
    /// The hypervisor refuses everything.
    pub(crate) refuses: AtomicBool,
}

impl FakeInterrupts {
    pub(crate) fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.messages.lock().unwrap())
    }

    pub(crate) fn take_pin(&self) -> Vec<(Intx, bool)> {
        std::mem::take(&mut *self.pin.lock().unwrap())
    }

    fn check(&self, op: Op) -> Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Error::from_errno(op, 11));
        }
        Ok(())
    }
}

impl Interrupts for FakeInterrupts {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        assert_eq!(function, at());
        self.check(Op::SetPciIntx)?;
        self.pin.lock().unwrap().push((pin, asserted));
        Ok(())
    }

    fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> {
        panic!("a PCI function has no ISA line");
    }

    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.check(Op::InjectMsi)?;
        self.messages.lock().unwrap().push((addr, data));
        Ok(())
    }
}

/// Answers reads with its id and the offset, and batches with whole batches of its id.
pub(crate) struct Id(pub u64);

impl Handler for Id {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        ReadOutcome::Value(self.0 << 32 | access.offset)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
    fn read_batch(&self, _: &Context<'_>, _: &Batch, values: &mut [u64]) -> BatchOutcome {
        values.fill(self.0);
        BatchOutcome::Done
    }
    fn write_batch(&self, _: &Context<'_>, _: &Batch, _: &[u64]) -> BatchOutcome {
        BatchOutcome::Done
    }
}

/// Calls `f` with a context.
pub(crate) fn with_context<T>(f: impl FnOnce(&Context<'_>) -> T) -> T {
    let ram = GuestRegionCollection::<MappedRegion>::new();
    f(&Context::detached(DomId(1), VcpuId(0), &ram))
}

/// A handler's answer to a read; `None` if refused.
pub(crate) fn read(handler: &dyn Handler, access: Access) -> Option<u64> {
    with_context(|cx| match handler.read(cx, access) {
        ReadOutcome::Value(value) => Some(access.width.cut(value)),
        ReadOutcome::Refused(_) => None,
        ReadOutcome::Defer(_) => panic!("nothing here defers"),
    })
}

/// Whether a handler took a write.
pub(crate) fn write(handler: &dyn Handler, access: Access, value: u64) -> bool {
    let value = access.width.cut(value);
    with_context(|cx| matches!(handler.write(cx, access, value), WriteOutcome::Done))
}

/// A function with its surroundings.
pub(crate) struct Rig {
    pub(crate) function: Arc<PciFunction>,
    pub(crate) interrupts: Arc<FunctionInterrupts>,
    pub(crate) routes: Arc<FakeRoutes>,
    pub(crate) guest: Arc<FakeInterrupts>,
}

impl Rig {
    /// A function made by `build`, which adds to the builder.
    pub(crate) fn new(
        signals: Signals,
        build: impl FnOnce(ioreq_backends::pci::Builder) -> ioreq_backends::pci::Builder,
    ) -> Self {
        Self::try_new(signals, build).unwrap()
    }

    pub(crate) fn try_new(
        signals: Signals,
        build: impl FnOnce(ioreq_backends::pci::Builder) -> ioreq_backends::pci::Builder,
    ) -> Result<Self> {
        let guest = Arc::new(FakeInterrupts::default());
        let routes = Arc::new(FakeRoutes::default());
        let interrupts = FunctionInterrupts::new(at(), Arc::clone(&guest) as _, signals)?;
        let builder = build(PciFunction::builder(header(), Arc::clone(&interrupts)));
        let function = builder.build(Arc::clone(&routes) as _)?;
        Ok(Rig {
            function,
            interrupts,
            routes,
            guest,
        })
    }

    fn config(register: u64, width: Width) -> Access {
        Access {
            space: Space::Pci,
            addr: register,
            offset: register,
            width,
        }
    }

    pub(crate) fn get(&self, register: u64, width: Width) -> Option<u64> {
        read(&*self.function, Self::config(register, width))
    }

    pub(crate) fn set(&self, register: u64, width: Width, value: u64) -> bool {
        write(&*self.function, Self::config(register, width), value)
    }

    pub(crate) fn get32(&self, register: u64) -> u64 {
        self.get(register, Width::B4).unwrap()
    }

    pub(crate) fn set32(&self, register: u64, value: u64) {
        assert!(self.set(register, Width::B4, value));
    }

    pub(crate) fn command(&self, value: u64) {
        assert!(self.set(COMMAND, Width::B2, value));
    }

    /// A guest's read of memory or a port; `None` if it reaches nobody, or is refused.
    pub(crate) fn load(&self, space: Space, addr: u64, width: Width) -> Option<u64> {
        let (handler, access) = self.routes.find(space, addr, width)?;
        read(&*handler, access)
    }

    /// A guest's write to memory or a port; false if it reaches nobody, or is refused.
    pub(crate) fn store(&self, space: Space, addr: u64, width: Width, value: u64) -> bool {
        let found = self.routes.find(space, addr, width);
        found.is_some_and(|(handler, access)| write(&*handler, access, value))
    }
}
