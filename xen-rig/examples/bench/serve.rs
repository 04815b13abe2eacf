// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Our side: a server with the same devices as the C one's (`xen-rig/c/server.c`), as a process of its own.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioreq_core::claim::{MemTypeClaim, PageTracker};
use ioreq_core::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::server::{IoreqServer, Polling};
use ioreq_core::{BufIoreq, DomId, Gfn, GfnRange, MmioRange, PortRange};
use ioreq_xen::XenHypervisor;

use crate::Failure;
use crate::contender::Stack;
use crate::load::{GFN, REGISTERS, VGA};

/// No page takes longer to come to rest.
const BOUND: Duration = Duration::from_secs(60);

/// Registers, and the sum of all that is written.
#[derive(Debug, Default)]
struct Device {
    registers: [AtomicU32; REGISTERS],
    sum: AtomicU64,
}

impl Device {
    fn add(&self, value: u64) {
        // Relaxed, and no read-modify-write: one worker serves the one vCPU.
        let sum = self.sum.load(Ordering::Relaxed);
        self.sum.store(sum.wrapping_add(value), Ordering::Relaxed);
    }

    fn register(&self, addr: u64) -> &AtomicU32 {
        let at = usize::try_from(addr / 4).unwrap_or_default() % REGISTERS;
        self.registers.get(at).unwrap_or(&self.registers[0])
    }
}

impl Handler for Device {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        u64::from(self.register(access.addr).load(Ordering::Relaxed)).into()
    }

    #[allow(clippy::cast_possible_truncation, reason = "registers have 4 bytes")]
    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.add(value);
        self.register(access.addr)
            .store(value as u32, Ordering::Relaxed);
        WriteOutcome::Done
    }
}

impl PageHandler for Device {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        self.add(write.value());
        PageOutcome::Apply
    }
}

fn server(domid: DomId, polling: Option<Duration>) -> Result<IoreqServer<XenHypervisor>, Failure> {
    let builder = IoreqServer::<XenHypervisor>::builder(XenHypervisor::open(domid)?);
    let builder = builder.buffered(BufIoreq::Atomic);
    Ok(match polling {
        Some(longest) => builder.polling(Polling::up_to(longest)).build()?,
        None => builder.build()?,
    })
}

/// Ports and MMIO, while they are offered.
fn offer_devices(
    server: &IoreqServer<XenHypervisor>,
    device: &Arc<Device>,
) -> Result<[RouteId; 2], Failure> {
    let size = 4 * REGISTERS as u64;
    let ports = PortRange::sized(Stack::Ours.port(), size)?;
    let mmio = MmioRange::sized(Stack::Ours.mmio(), size)?;
    Ok([
        server.route("ports", ports, Arc::clone(device))?,
        server.route("mmio", mmio, Arc::clone(device))?,
    ])
}

/// What one server at a time can have, while it is offered.
struct Single {
    vga: RouteId,
    /// Dropping it unmarks the page.
    _claim: MemTypeClaim<XenHypervisor>,
}

fn offer_single(
    server: &IoreqServer<XenHypervisor>,
    device: &Arc<Device>,
) -> Result<Single, Failure> {
    let vga = MmioRange::new(*VGA.start(), *VGA.end())?;
    let vga = server.route("vga", vga, Arc::clone(device))?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("page");
    tracker.track(GfnRange::single(Gfn(GFN))?, Arc::clone(device) as _)?;
    let _claim = claim;
    Ok(Single { vga, _claim })
}

/// Serves until the standard input ends, and tells what it did. A line "d" takes ports and MMIO away, or brings them back, and "s" what
/// one server at a time can have.
pub(crate) fn serve(domid: DomId, polling: Option<Duration>) -> Result<(), Failure> {
    let server = server(domid, polling)?;
    let device = Arc::new(Device::default());
    let mut devices = Some(offer_devices(&server, &device)?);
    let mut single = Some(offer_single(&server, &device)?);
    let running = server.start()?;
    say("ready")?;
    for line in std::io::stdin().lines() {
        let on = if line? == "d" {
            if let Some(old) = devices.take() {
                for route in old {
                    server.control().retract(route)?;
                }
            } else {
                devices = Some(offer_devices(&server, &device)?);
            }
            devices.is_some()
        } else {
            if let Some(old) = single.take() {
                server.control().retract(old.vga)?;
            } else {
                single = Some(offer_single(&server, &device)?);
            }
            single.is_some()
        };
        say(&format!("on {}", u8::from(on)))?;
    }
    drop(single);
    running.stop()?;
    let stats = server.stats();
    println!(
        "served {} posted {} sum {} sleeps {}",
        stats.requests(),
        stats.buffered,
        device.sum.load(Ordering::Relaxed),
        stats.sleeps
    );
    Ok(())
}

/// Tracks pages that nobody writes to, and lets them go again, in batches; one step for each line of the standard input.
pub(crate) fn mark(domid: DomId, first: u64, pages: u64, batch: u64) -> Result<(), Failure> {
    let server = server(domid, None)?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("pages");
    let device = Arc::new(Device::default());
    let running = server.start()?;
    let batches = || (first..first + pages).step_by(usize::try_from(batch).unwrap_or(1));
    let mut unmarked = 0;
    say("ready")?;
    for _line in std::io::stdin().lines() {
        let start = Instant::now();
        if claim.marked_pages() == 0 {
            for first in batches() {
                let pages = GfnRange::sized(first, batch)?;
                tracker.track(pages, Arc::clone(&device) as _)?;
            }
        } else {
            for first in batches() {
                tracker.untrack(GfnRange::sized(first, batch)?)?;
            }
            unmarked += pages;
            while claim.unmark_report().unmarked < unmarked {
                if start.elapsed() > BOUND {
                    return Err(format!("pages stay marked: {:?}", claim.unmark_report()).into());
                }
                claim.settle(BOUND)?;
            }
        }
        say(&format!("seconds {}", start.elapsed().as_secs_f64()))?;
    }
    running.stop()?;
    say(&format!("marked {}", claim.marked_pages()))
}

fn say(line: &str) -> Result<(), Failure> {
    println!("{line}");
    Ok(std::io::stdout().flush()?)
}
