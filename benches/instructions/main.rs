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
use ioreq::server::{IoreqServer, Workers};
use ioreq::sim::{DomainConfig, Machine, RawSlot};
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
    /// What no Xen sends: requests of an absurd size, count or port, in turn.
    Hostile,
}

/// Serves requests of one kind.
#[derive(Parser)]
struct Args {
    kind: Kind,
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Another vCPU makes a hostile request beside each of them.
    #[arg(long)]
    beside_hostile: bool,
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

/// Puts a request into a slot as Xen does it. A number says which absurdity, None that it has none.
fn ready(
    slot: &RawSlot,
    (ty, addr, size, read): (u8, u64, u32, bool),
    value: u64,
    absurd: Option<u32>,
) {
    let (addr, count, size) = match absurd.map(|turn| turn % 4) {
        None => (addr, 1, size),
        Some(0) => (addr, u32::MAX, size),
        Some(1) => (addr, 1, 3),
        Some(2) => (u64::MAX, 2, 8),
        Some(_) => (addr, 0, size),
    };
    slot.addr.store(addr, Ordering::Relaxed);
    slot.data.store(value, Ordering::Relaxed);
    slot.count.store(count, Ordering::Relaxed);
    slot.size.store(size, Ordering::Relaxed);
    slot.kind.store(ty, Ordering::Relaxed);
    let direction = if read { abi::IOREQ_DIR_READ } else { 0 };
    // Release: the fields before the state, as Xen's `ioreq_send` has it.
    slot.flags
        .store(abi::STATE_IOREQ_READY | direction, Ordering::Release);
}

/// With both features the audit has the windows.
#[cfg(feature = "audit")]
fn empty_window() {}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Args {
        kind,
        requests,
        beside_hostile,
        ..
    } = Args::parse();
    let domain = Machine::new().create_domain(DomainConfig::new(2))?;
    let server = IoreqServer::builder(domain.hypervisor())
        .workers(Workers::Count(1))
        .build()?;
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
        Kind::Hostile => (abi::IOREQ_TYPE_COPY, 0xe000_0010, 4, false),
    };
    let slots = domain.hostile().slots(server.id()).ok_or("not acquired")?;
    let slot = slots.slot(VcpuId(0)).ok_or("no slot")?;
    let other = slots.slot(VcpuId(1)).ok_or("no slot")?;
    let is_hostile = matches!(kind, Kind::Hostile);
    let vcpus = usize::from(!is_hostile) + usize::from(is_hostile || beside_hostile);
    for turn in 0..requests {
        if is_hostile || beside_hostile {
            let hostile = (abi::IOREQ_TYPE_COPY, 0xe000_0010, 4, false);
            ready(other, hostile, turn.into(), Some(turn));
        }
        if !is_hostile {
            ready(slot, (ty, addr, size, read), turn.into(), None);
        }
        let served = server.poll()?;
        let state = |slot: &RawSlot| slot.flags.load(Ordering::Acquire) & abi::IOREQ_STATE_MASK;
        let answered = if is_hostile {
            state(other)
        } else {
            state(slot)
        };
        if (served, answered) != (vcpus, abi::STATE_IORESP_READY) {
            return Err(format!("request {turn}: {served} served, state {answered}").into());
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
        Kind::Hostile => stats.malformed,
    };
    if counted != u64::from(requests) {
        return Err(format!("{counted} of {requests} requests were of this kind").into());
    }
    Ok(())
}
