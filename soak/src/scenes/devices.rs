// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The devices of a domain, and a server with routes to them.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use ioreq::handler::Handler;
use ioreq::routes::RouteId;
use ioreq::server::{Builder, IoreqServer, Polling, Workers};
use ioreq::{BufIoreq, Hypervisor, IoRange};

use crate::device::{Bank, Config, Later, Odd, Posted};
use crate::layout::{self, PORT_REGISTERS, REGISTERS};
use crate::tally::Tally;
use crate::writer::Style;

/// How long a handler may take before it is told of.
const BUDGET: Duration = Duration::from_millis(2);

/// All that the guest talks to.
pub(super) struct Devices {
    pub(super) bank: Arc<Bank>,
    pub(super) ports: Arc<Bank>,
    config: Arc<Config>,
    posted: Arc<Posted>,
    odd: Arc<Odd>,
    pub(super) later: Arc<Later>,
}

impl Devices {
    pub(super) fn new(tally: &Arc<Tally>, style: Style) -> std::io::Result<Self> {
        let bank = match style {
            Style::All => Bank::new,
            Style::Twice => Bank::that_keeps,
        };
        let later = Arc::new(Later::new()?);
        Ok(Devices {
            bank: Arc::new(bank(REGISTERS)),
            ports: Arc::new(bank(PORT_REGISTERS)),
            config: Arc::new(Config::new()),
            posted: Arc::default(),
            odd: Arc::new(Odd {
                tally: Arc::clone(tally),
                later: Arc::clone(&later),
                slow: 2 * BUDGET,
            }),
            later,
        })
    }

    /// Each with its name and range.
    pub(super) fn all(&self) -> [(&'static str, IoRange, Arc<dyn Handler>); 6] {
        [
            ("bank", layout::bank().into(), Arc::clone(&self.bank) as _),
            (
                "ports",
                layout::ports().into(),
                Arc::clone(&self.ports) as _,
            ),
            (
                "config",
                layout::function().into(),
                Arc::clone(&self.config) as _,
            ),
            (
                "posted",
                layout::posted().into(),
                Arc::clone(&self.posted) as _,
            ),
            ("vga", layout::vga().into(), Arc::clone(&self.posted) as _),
            (
                "odd",
                layout::odd_ports().into(),
                Arc::clone(&self.odd) as _,
            ),
        ]
    }

    /// The handler that a saved route had.
    pub(super) fn of(&self, name: &str) -> Option<Arc<dyn Handler>> {
        let mut all = self.all().into_iter();
        all.find(|device| device.0 == name).map(|device| device.2)
    }

    /// Routes to all of them; those of banks, which may be replaced, are given.
    pub(super) fn route<H: Hypervisor>(
        &self,
        server: &IoreqServer<H>,
    ) -> ioreq::Result<Vec<(RouteId, Arc<dyn Handler>)>> {
        let mut routes = Vec::new();
        for (name, range, handler) in self.all() {
            let route = server.route(name, range, Arc::clone(&handler))?;
            if name != "odd" {
                routes.push((route, handler));
            }
        }
        Ok(routes)
    }
}

/// A server with options that the numbers say.
pub(super) fn builder<H: Hypervisor>(hv: impl Into<Arc<H>>, random: &mut Rng) -> Builder<H> {
    let workers = match random.u8(0..3) {
        0 => Workers::PerVcpu,
        1 => Workers::Count(random.usize(1..=3)),
        _ => Workers::Auto,
    };
    let polling = match random.u8(0..3) {
        0 => Polling::off(),
        1 => Polling::up_to(Duration::from_micros(random.u64(1..200))),
        _ => Polling::default(),
    };
    let builder = IoreqServer::<H>::builder(hv)
        .buffered(BufIoreq::Atomic)
        .workers(workers)
        .polling(polling)
        .sample_latency(random.u32(0..3));
    match random.bool() {
        true => builder.handler_budget(BUDGET),
        false => builder,
    }
}
