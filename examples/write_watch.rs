// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Watches a range of guest memory: prints who writes what, in the order of each page.
//!
//! Two vCPUs of a guest on the embedded model write to a shared ring: one puts words, the other marks them taken. The range is
//! tracked, so each of these writes traps to the log, is let through, and printed by another thread.
//!
//! ```sh
//! cargo run --example write_watch
//! ```

use std::collections::BTreeMap;

use ioreq::backends::write_log::{LogReader, WriteLog};
use ioreq::claim::PageTracker;
use ioreq::server::IoreqServer;
use ioreq::sim::{Cpu, CpuFault, DomainConfig, Machine};
use ioreq::{Gfn, GfnRange, VcpuId, Width, ids};

/// The guest's ring: a page of words, and a page with the two counts.
const WORDS: u64 = 0x10_0000;
const PUT: u64 = 0x10_1000;
const TAKEN: u64 = 0x10_1008;
const MESSAGES: u64 = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domain = Machine::new().create_domain(DomainConfig::new(2))?;
    let server = IoreqServer::builder(domain.hypervisor()).build()?;

    // Own the memory type, mark the two pages, let every write to them go to the log.
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("watch");
    let watched = GfnRange::sized(WORDS / ids::PAGE_SIZE, 2)?;
    let (log, reader) = WriteLog::new(4096)?;
    log.track(&tracker, watched)?;
    println!("watching {watched} of {}", server.domid());

    let running = server.start()?;
    let printer = std::thread::spawn(move || print(reader));
    let producer = domain.spawn(VcpuId(0), produce)?;
    let consumer = domain.spawn(VcpuId(1), consume)?;
    producer.join()?;
    let sum = consumer.join()?;

    // Unmarked in the background, by a protocol that the guest survives; dropping the claim waits for that.
    tracker.untrack(watched)?;
    drop(claim);
    running.stop()?;
    log.close(); // ends the printer's loop, once it has printed what is there
    let (writes, lost) = printer.join().map_err(|_| "the printing thread panicked")?;
    println!("the guest's sum is {sum}; {writes} writes seen, {lost} lost");
    Ok(())
}

/// Prints records as they come, until nobody can write any more. Returns how many there were, and how many were lost.
fn print(mut reader: LogReader) -> (u64, u64) {
    let mut by_page: BTreeMap<Gfn, u64> = BTreeMap::new();
    for record in &mut reader {
        println!("{record}");
        *by_page.entry(record.gfn).or_default() += 1;
    }
    for (gfn, writes) in &by_page {
        println!("{gfn}: {writes} writes");
    }
    (by_page.values().sum(), reader.lost())
}

fn produce(cpu: &mut Cpu) -> Result<(), CpuFault> {
    for turn in 0..MESSAGES {
        cpu.store64(WORDS + 8 * turn, 100 + turn)?;
        cpu.lock_add(PUT, Width::B8, 1)?;
    }
    Ok(())
}

fn consume(cpu: &mut Cpu) -> Result<u64, CpuFault> {
    let mut sum = 0;
    for turn in 0..MESSAGES {
        while cpu.load64(PUT)? <= turn {
            cpu.relax()?; // reading does not trap
        }
        sum += cpu.load64(WORDS + 8 * turn)?;
        cpu.store32(TAKEN, u32::try_from(turn + 1).unwrap_or(u32::MAX))?;
    }
    Ok(sum)
}
