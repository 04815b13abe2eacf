// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices with a state, each in some state.

use std::sync::{Arc, Mutex};

use ioreq_backends::pci::{
    Bar, Capability, FunctionInterrupts, Header, Msi, Msix, PciFunction, Signals,
};
use ioreq_backends::register_bank::{Register, RegisterBank};
use ioreq_backends::vgpu::{LinearMap, Pvinfo, Root, Shadow};
use ioreq_backends::write_log::{PageLog, WriteLog};
use ioreq_core::claim::{MarkError, PageState, PageTracker};
use ioreq_core::handler::{
    Access, Context, Handler, PageHandler, ReadOutcome, Space, WriteOutcome,
};
use ioreq_core::hypervisor::{Interrupts, Intx};
use ioreq_core::memory::{MappedRegion, RamError};
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::{DomId, Gfn, GfnRange, GuestRam, IoRange, Result, Sbdf, VcpuId, Width};
use vm_memory::{GuestAddress, GuestRegionCollection};

use crate::script::Script;

/// Takes everything and does nothing.
struct Nowhere;

impl Interrupts for Nowhere {
    fn set_pci_intx(&self, _: Sbdf, _: Intx, _: bool) -> Result<()> {
        Ok(())
    }
    fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> {
        Ok(())
    }
    fn inject_msi(&self, _: u64, _: u32) -> Result<()> {
        Ok(())
    }
}

impl Routes for Nowhere {
    fn add(&self, _: &str, _: IoRange, _: Arc<dyn Handler>) -> Result<RouteId> {
        Ok(RouteId::from_raw(0))
    }
    fn replace(&self, _: RouteId, _: Arc<dyn Handler>) -> Result<()> {
        Ok(())
    }
    fn retract(&self, _: RouteId) -> Result<()> {
        Ok(())
    }
}

impl PageTracker for Nowhere {
    fn track(&self, _: GfnRange, _: Arc<dyn PageHandler>) -> std::result::Result<(), MarkError> {
        Ok(())
    }
    fn replace(&self, _: GfnRange, _: Arc<dyn PageHandler>) -> Result<()> {
        Ok(())
    }
    fn untrack(&self, _: GfnRange) -> Result<()> {
        Ok(())
    }
    fn state(&self, _: Gfn) -> PageState {
        PageState::Untracked
    }
}

/// Pages of zeros: tables without an entry.
struct Zeros;

/// Pages of the guest.
const PAGES: u64 = 64;

impl GuestRam for Zeros {
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> std::result::Result<(), RamError> {
        let len = buf.len();
        let end = addr.0.checked_add(len as u64);
        if end.is_none_or(|end| end > PAGES << 12) {
            return Err(RamError { addr, len });
        }
        buf.fill(0);
        Ok(())
    }
    fn write(&self, _: GuestAddress, _: &[u8]) -> std::result::Result<(), RamError> {
        Ok(())
    }
    fn load(&self, addr: GuestAddress, width: Width) -> std::result::Result<u64, RamError> {
        self.read(addr, &mut [0; 8][..width.size()])?;
        Ok(0)
    }
    fn store(&self, _: GuestAddress, _: Width, _: u64) -> std::result::Result<(), RamError> {
        Ok(())
    }
}

pub(super) fn bank(script: &mut Script) -> RegisterBank {
    let registers = [
        Register::new("status", 0, Width::B4),
        Register::new("control", 4, Width::B2),
        Register::new("long", 8, Width::B8),
    ];
    let mut bank = RegisterBank::new(0x20, registers).expect("registers beside each other");
    bank.set(8, script.take());
    bank
}

pub(super) fn log() -> PageLog {
    let (log, _reader) = WriteLog::new(16).expect("room for some");
    let pages = GfnRange::sized(5, 3).expect("three pages");
    log.handler(pages).expect("a handler")
}

pub(super) fn function(script: &mut Script) -> Arc<PciFunction> {
    let signals = Signals::new()
        .intx(Intx::A)
        .msi(Msi::new(4).per_vector_masking())
        .msix(Msix::new(3, (0, 0), (0, 0x800)));
    let at = Sbdf::new(0, 0, 5, 0).expect("a device below 32");
    let interrupts = FunctionInterrupts::new(at, Arc::new(Nowhere), signals);
    let interrupts = interrupts.expect("signals that are possible");
    let function = PciFunction::builder(Header::new(0x1af4, 0x10f0), interrupts)
        .bar(0, Bar::mem32(0x1000))
        .bar(2, Bar::mem64(1 << 20))
        .capability(Capability::new(9, vec![4, 1]).writable([0, 0xf0]))
        .build(Arc::new(Nowhere))
        .expect("a function that is possible");
    for _ in 0..script.below(4) {
        let (register, value) = (script.below(0x100), script.take::<u32>());
        access(&*function, register, Width::B4, Some(value.into()));
    }
    function
}

pub(super) fn pvinfo(script: &mut Script) -> (Mutex<Pvinfo>, Shadow) {
    let ram = Arc::new(Zeros);
    let frames = Arc::new(LinearMap::new(ram.clone(), 0x10_0000_0000));
    let builder = Shadow::builder(Arc::new(Nowhere), ram, frames);
    let shadow = builder.most_roots(4).build().expect("bounds above 0");
    if script.take() {
        let l3 = Root::L3([Some(Gfn(2)), None, Some(Gfn(3)), None]);
        for root in [Root::L4(Gfn(1)), l3] {
            shadow.create(root).expect("tables of one level each");
        }
    }
    (Mutex::new(Pvinfo::new(shadow.clone(), 7)), shadow)
}

/// A guest's access; the value of a read.
pub(super) fn access(
    handler: &dyn Handler,
    offset: u64,
    width: Width,
    write: Option<u64>,
) -> Option<u64> {
    let ram = GuestRegionCollection::<MappedRegion>::new();
    let cx = Context::detached(DomId(1), VcpuId(0), &ram);
    let access = Access {
        space: Space::Mmio,
        addr: offset,
        offset,
        width,
    };
    match write {
        Some(value) => matches!(
            handler.write(&cx, access, width.cut(value)),
            WriteOutcome::Done
        )
        .then_some(0),
        None => match handler.read(&cx, access) {
            ReadOutcome::Value(value) => Some(value),
            _ => None,
        },
    }
}
