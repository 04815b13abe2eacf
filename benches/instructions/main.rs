// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests for callgrind to count the instructions of: `cargo xtask bench --instructions` runs this under Valgrind, once for
//! each kind. A request is put into the slot as Xen does it and served by `IoreqServer::poll` in the same thread, so that every
//! run executes the same instructions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::{Parser, ValueEnum};
#[cfg(not(feature = "audit"))]
use ioreq::audit::empty_window;
use ioreq::claim::PageTracker;
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{GfnRange, MmioRange, PortRange, VcpuId, abi};

/// What the guest does.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Nothing: the cost of a window by itself.
    Empty,
    PageWrite,
    MmioWrite,
    MmioRead,
    PortWrite,
    PortRead,
}

/// Serves requests of one kind.
#[derive(Parser)]
struct Args {
    kind: Kind,
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Nothing;

impl Handler for Nothing {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        ReadOutcome::Value(0)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

impl PageHandler for Nothing {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// With both features the audit has the windows.
#[cfg(feature = "audit")]
fn empty_window() {}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Args { kind, requests, .. } = Args::parse();
    let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    let server = IoreqServer::builder(domain.hypervisor()).build()?;
    server.route("mmio", MmioRange::sized(0xe000_0000, 0x1000)?, Nothing)?;
    server.route("ports", PortRange::sized(0x100, 8)?, Nothing)?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("pages");
    tracker.track(GfnRange::sized(0x100, 0x100)?, Arc::new(Nothing))?;

    let (ty, addr, size, read) = match kind {
        Kind::Empty => {
            (0..requests).for_each(|_| empty_window());
            return Ok(());
        }
        Kind::PageWrite => (abi::IOREQ_TYPE_COPY, 0x10_0008, 8, false),
        Kind::MmioWrite => (abi::IOREQ_TYPE_COPY, 0xe000_0010, 4, false),
        Kind::MmioRead => (abi::IOREQ_TYPE_COPY, 0xe000_0010, 4, true),
        Kind::PortWrite => (abi::IOREQ_TYPE_PIO, 0x102, 1, false),
        Kind::PortRead => (abi::IOREQ_TYPE_PIO, 0x102, 1, true),
    };
    let slots = domain.hostile().slots(server.id()).ok_or("not acquired")?;
    let slot = slots.slot(VcpuId(0)).ok_or("no slot")?;
    let direction = if read { abi::IOREQ_DIR_READ } else { 0 };
    for value in 0..requests {
        slot.addr.store(addr, Ordering::Relaxed);
        slot.data.store(value.into(), Ordering::Relaxed);
        slot.count.store(1, Ordering::Relaxed);
        slot.size.store(size, Ordering::Relaxed);
        slot.kind.store(ty, Ordering::Relaxed);
        // Release: the fields before the state, as Xen's `ioreq_send` has it.
        slot.flags
            .store(abi::STATE_IOREQ_READY | direction, Ordering::Release);
        let served = server.poll()?;
        let state = slot.flags.load(Ordering::Acquire) & abi::IOREQ_STATE_MASK;
        if (served, state) != (1, abi::STATE_IORESP_READY) {
            return Err(format!("request {value}: {served} served, state {state}").into());
        }
    }
    let stats = server.stats();
    let counted = match kind {
        Kind::Empty => 0,
        Kind::PageWrite => stats.page_writes,
        Kind::MmioWrite => stats.mmio_writes,
        Kind::MmioRead => stats.mmio_reads,
        Kind::PortWrite => stats.port_writes,
        Kind::PortRead => stats.port_reads,
    };
    if counted != u64::from(requests) {
        return Err(format!("{counted} of {requests} requests were of this kind").into());
    }
    Ok(())
}
