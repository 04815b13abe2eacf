// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a guest posted before a synchronous request is served before it, whenever the server comes to look.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{BufIoreq, GfnRange, MmioRange, PortRange, VcpuId};

struct Log(Arc<Mutex<Vec<u64>>>);

impl Handler for Log {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        ReadOutcome::Value(0)
    }
    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.lock().unwrap().push(value);
        WriteOutcome::Done
    }
}

/// Nobody serves until both the posted writes and the request behind them are there.
#[test]
fn a_slot_waits_for_what_was_posted_before_it() {
    let config = DomainConfig::new(1)
        .vga(true)
        .memory(GfnRange::sized(0, 0xa0).unwrap());
    let domain = Machine::new().create_domain(config).unwrap();
    let builder = IoreqServer::builder(domain.hypervisor()).buffered(BufIoreq::Atomic);
    let server = builder.build().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let vga = MmioRange::new(0xa_0000, 0xb_ffff).unwrap();
    let port = PortRange::sized(0x80, 1).unwrap();
    server.route("vga", vga, Log(Arc::clone(&log))).unwrap();
    server.route("port", port, Log(Arc::clone(&log))).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        for round in 0..5_u8 {
            cpu.store8(0xa_0000, 2 * round)?;
            cpu.store8(0xa_0001, 2 * round + 1)?;
            cpu.outb(0x80, 0xe0 + round)?;
        }
        Ok(())
    });
    let guest = guest.unwrap();
    for sent in 1..=5 {
        while domain.counts().port < sent {
            std::thread::yield_now();
        }
        // The count comes a moment before the slot is READY.
        std::thread::sleep(Duration::from_millis(5));
        while server.poll().unwrap() == 0 {
            std::thread::yield_now();
        }
    }
    while !guest.is_finished() {
        server.poll().unwrap();
    }
    guest.join().unwrap();
    let expected: Vec<u64> = (0..5).flat_map(|n| [2 * n, 2 * n + 1, 0xe0 + n]).collect();
    assert_eq!(*log.lock().unwrap(), expected);
}
