// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The shortest honest device model: one MMIO register that counts, served for a guest of the embedded model.

use std::sync::atomic::{AtomicU64, Ordering};

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{MmioRange, VcpuId};

/// Reads give the number of reads so far; writes set it.
struct Counter(AtomicU64);

impl Handler for Counter {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.fetch_add(1, Ordering::Relaxed).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.store(value, Ordering::Relaxed);
        WriteOutcome::Done
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    let server = IoreqServer::builder(domain.hypervisor()).build()?;
    server.route(
        "counter",
        MmioRange::sized(0xe000_0000, 0x1000)?,
        Counter(AtomicU64::new(0)),
    )?;
    let running = server.start()?;
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.store32(0xe000_0000, 41)?;
        cpu.load32(0xe000_0000)?;
        cpu.load32(0xe000_0000)
    })?;
    println!("the guest read {}", guest.join()?);
    running.stop()?;
    Ok(())
}
