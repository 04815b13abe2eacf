// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest on the embedded model with a vGPU's shadows, for the vGPU's tests.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use ioreq_backends::vgpu::{LinearMap, OutOfSync, RootId, Shadow};
use ioreq_core::claim::{MemTypeClaim, Tracker};
use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, Space, WriteOutcome};
use ioreq_core::server::{IoreqServer, Workers};
use ioreq_core::{DomId, GuestMap, GuestRam, VcpuId, Width};
use ioreq_sim::{Domain, DomainConfig, Machine, SimHypervisor, XenVersion};
use vm_memory::GuestAddress;

/// How far host addresses are from guest addresses.
pub(crate) const DISTANCE: u64 = 0x10_0000_0000;
/// Frames of the guest's memory.
pub(crate) const FRAMES: u64 = 0x1000;

pub(crate) struct Rig {
    pub(crate) domain: Domain,
    pub(crate) server: IoreqServer<SimHypervisor>,
    pub(crate) claim: MemTypeClaim<SimHypervisor>,
    pub(crate) tracker: Arc<Tracker<SimHypervisor>>,
    pub(crate) ram: Arc<dyn GuestRam>,
    pub(crate) frames: Arc<LinearMap>,
    pub(crate) shadow: Shadow,
}

impl Rig {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self::with(XenVersion::V4_20, vcpus, OutOfSync::off())
    }

    pub(crate) fn with(version: XenVersion, vcpus: u32, policy: OutOfSync) -> Self {
        let machine = Machine::builder().version(version).build();
        let domain = machine.create_domain(DomainConfig::new(vcpus)).unwrap();
        let builder = IoreqServer::builder(domain.hypervisor());
        let server = builder.workers(Workers::PerVcpu).build().unwrap();
        let claim = server.claim_mem_type().unwrap();
        let tracker = Arc::new(claim.tracker("ppgtt"));
        let ram: Arc<dyn GuestRam> = server.hypervisor().memory();
        let frames = Arc::new(LinearMap::new(ram.clone(), DISTANCE));
        let builder = Shadow::builder(tracker.clone(), ram.clone(), frames.clone());
        let shadow = builder.out_of_sync(policy).build().unwrap();
        Rig {
            domain,
            server,
            claim,
            tracker,
            ram,
            frames,
            shadow,
        }
    }

    /// Writes an entry of a page that is no table yet.
    pub(crate) fn entry(&self, table: u64, index: u64, entry: u64) {
        let at = GuestAddress((table << 12) + index * 8);
        self.ram.store(at, Width::B8, entry).unwrap();
    }

    pub(crate) fn word(&self, addr: u64) -> u64 {
        self.ram.load(GuestAddress(addr), Width::B8).unwrap()
    }

    /// Where a GPU address leads, as a guest-physical address.
    pub(crate) fn leads_to(&self, root: RootId, addr: u64) -> Option<u64> {
        let target = self.shadow.lookup(root, addr).ok()?;
        (!target.scratch).then(|| target.host.0 - DISTANCE)
    }

    /// A handler's read; None if it was refused.
    pub(crate) fn read(&self, device: &impl Handler, offset: u64, width: Width) -> Option<u64> {
        let cx = Context::detached(DomId(1), VcpuId(0), &*self.ram);
        match device.read(&cx, access(offset, width)) {
            ReadOutcome::Value(value) => Some(value),
            _ => None,
        }
    }

    /// A handler's write; whether it was done.
    pub(crate) fn write(
        &self,
        device: &impl Handler,
        offset: u64,
        width: Width,
        value: u64,
    ) -> bool {
        let cx = Context::detached(DomId(1), VcpuId(0), &*self.ram);
        let outcome = device.write(&cx, access(offset, width), value);
        matches!(outcome, WriteOutcome::Done)
    }
}

fn access(offset: u64, width: Width) -> Access {
    Access {
        space: Space::Mmio,
        addr: 0xe000_0000_u64.wrapping_add(offset),
        offset,
        width,
    }
}
