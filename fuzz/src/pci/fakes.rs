// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a function stands on: routes as a list, interrupts as a log.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioreq_core::handler::{
    Access, Batch, BatchOutcome, Context, Handler, ReadOutcome, Space, WriteOutcome,
};
use ioreq_core::hypervisor::{Interrupts, Intx};
use ioreq_core::memory::MappedRegion;
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::{DomId, Error, ErrorKind, IoRange, Op, Result, Sbdf, VcpuId, Width};
use vm_memory::GuestRegionCollection;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// First address, last address, ports.
pub(super) fn ends(range: IoRange) -> (u64, u64, bool) {
    match range {
        IoRange::Port(ports) => (ports.first().into(), ports.last().into(), true),
        IoRange::Mmio(addrs) => (addrs.first(), addrs.last(), false),
        IoRange::Pci(sbdf) => panic!("a BAR was routed as {sbdf}"),
    }
}

pub(super) fn overlap(one: IoRange, other: IoRange) -> bool {
    let ((a, b, one_port), (c, d, other_port)) = (ends(one), ends(other));
    one_port == other_port && a <= d && c <= b
}

type Live = (RouteId, IoRange, Arc<dyn Handler>);

/// Routes, of which one is another device's.
#[derive(Default)]
pub(super) struct FakeRoutes {
    live: Mutex<Vec<Live>>,
    next: AtomicU64,
    /// The hypervisor has no room for more.
    pub(super) full: AtomicBool,
    /// Retracting works, and is told as a failure.
    pub(super) complains: AtomicBool,
}

impl FakeRoutes {
    pub(super) fn ranges(&self) -> Vec<IoRange> {
        let mut ranges: Vec<_> = lock(&self.live)
            .iter()
            .map(|(_, range, _)| *range)
            .collect();
        ranges.sort_by_key(|range| ends(*range));
        ranges
    }

    pub(super) fn find(
        &self,
        space: Space,
        addr: u64,
        width: Width,
    ) -> Option<(Arc<dyn Handler>, Access)> {
        let last = addr.checked_add(width.bytes() - 1)?;
        lock(&self.live).iter().find_map(|(_, range, handler)| {
            let (first, end, port) = ends(*range);
            let inside = port == (space == Space::Port) && first <= addr && last <= end;
            let access = Access {
                space,
                addr,
                offset: addr.wrapping_sub(first),
                width,
            };
            inside.then(|| (Arc::clone(handler), access))
        })
    }
}

impl Routes for FakeRoutes {
    fn add(&self, _: &str, range: IoRange, handler: Arc<dyn Handler>) -> Result<RouteId> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::from_errno(Op::MapRange, 12).about(range));
        }
        let mut live = lock(&self.live);
        if live.iter().any(|(_, there, _)| overlap(range, *there)) {
            return Err(Error::new(Op::Route, ErrorKind::RouteConflict).about(range));
        }
        let id = RouteId::from_raw(self.next.fetch_add(1, Ordering::Relaxed));
        live.push((id, range, handler));
        Ok(id)
    }

    fn replace(&self, _: RouteId, _: Arc<dyn Handler>) -> Result<()> {
        panic!("a function never replaces a route");
    }

    fn retract(&self, route: RouteId) -> Result<()> {
        let mut live = lock(&self.live);
        let before = live.len();
        live.retain(|(id, ..)| *id != route);
        assert_eq!(live.len() + 1, before, "{route} retracted twice");
        if self.complains.load(Ordering::Relaxed) {
            return Err(Error::from_errno(Op::UnmapRange, 12));
        }
        Ok(())
    }
}

/// What a guest got.
#[derive(Default)]
pub(super) struct FakeInterrupts {
    messages: Mutex<Vec<(u64, u32)>>,
    line: AtomicBool,
    /// The hypervisor refuses everything.
    pub(super) refuses: AtomicBool,
}

impl FakeInterrupts {
    pub(super) fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *lock(&self.messages))
    }

    pub(super) fn line(&self) -> bool {
        self.line.load(Ordering::Relaxed)
    }

    fn check(&self, op: Op) -> Result<()> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(Error::from_errno(op, 11)),
            false => Ok(()),
        }
    }
}

impl Interrupts for FakeInterrupts {
    fn set_pci_intx(&self, _: Sbdf, _: Intx, asserted: bool) -> Result<()> {
        self.check(Op::SetPciIntx)?;
        let before = self.line.swap(asserted, Ordering::Relaxed);
        assert_ne!(before, asserted, "the line is driven again as it is");
        Ok(())
    }

    fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> {
        panic!("a PCI function has no ISA line");
    }

    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.check(Op::InjectMsi)?;
        lock(&self.messages).push((addr, data));
        Ok(())
    }
}

/// The device's own handler: reads give the offset.
pub(super) struct Echo;

impl Handler for Echo {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        ReadOutcome::Value(access.offset)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
    fn read_batch(&self, _: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        for (value, access) in values.iter_mut().zip(batch.iter()) {
            *value = access.offset;
        }
        BatchOutcome::Done
    }
    fn write_batch(&self, _: &Context<'_>, _: &Batch, _: &[u64]) -> BatchOutcome {
        BatchOutcome::Done
    }
}

pub(super) fn with_context<T>(f: impl FnOnce(&Context<'_>) -> T) -> T {
    let ram = GuestRegionCollection::<MappedRegion>::new();
    f(&Context::detached(DomId(1), VcpuId(0), &ram))
}

/// A handler's answer; None if refused.
pub(super) fn read(handler: &dyn Handler, access: Access) -> Option<u64> {
    with_context(|cx| match handler.read(cx, access) {
        ReadOutcome::Value(value) => Some(access.width.cut(value)),
        ReadOutcome::Refused(_) => None,
        ReadOutcome::Defer(_) => panic!("nothing here defers"),
    })
}

/// Whether a handler took a write.
pub(super) fn write(handler: &dyn Handler, access: Access, value: u64) -> bool {
    let value = access.width.cut(value);
    with_context(|cx| matches!(handler.write(cx, access, value), WriteOutcome::Done))
}
