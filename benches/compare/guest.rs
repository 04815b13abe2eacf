// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who makes round trips, and how they are timed: the model's vCPUs under a server, or those of a raw program.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ioreq::claim::{MemTypeClaim, PageTracker, Tracker};
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq::server::{Builder, IoreqServer, Running, Workers};
use ioreq::sim::{Cpu, CpuFault, Domain, DomainConfig, Machine, SimHypervisor, VcpuWait};
use ioreq::{Gfn, GfnRange, MmioRange, PortRange, VcpuId};

use crate::calm::{Patience, Watch};
use crate::clock::{each, pin};
use crate::slices::{Figure, MOST, Unrest, figure, figures};

/// Addresses of the register block.
const MMIO: u64 = 0xe000_0000;
/// A write here keeps the worker that serves it on the CPU of that number.
const PIN: u64 = MMIO + 0xff8;
const PORT: u16 = 0x100;
/// The first tracked page; a page a vCPU.
const PAGE: u64 = 0x100;

/// Sum of what one server's devices took. One thread at a time adds to it.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Taken(AtomicU64);

impl Taken {
    #[inline]
    pub(crate) fn add(&self, value: u64) {
        // Relaxed: whoever looks has been answered.
        let sum = self.0.load(Ordering::Relaxed);
        self.0.store(sum.wrapping_add(value), Ordering::Relaxed);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a device says to a value.
#[inline]
pub(crate) fn answer_to(value: u64) -> u64 {
    value ^ 0x5a5a
}

/// Makes accesses.
pub(crate) trait Guest: Send {
    /// One access, which has `value` in it; waits for the answer, which has to be right.
    fn trip(&mut self, value: u64);

    /// After the last ones, which had these values in them: looks at what is left of them.
    fn check(&mut self, _values: &mut dyn Iterator<Item = u64>) {}
}

/// The values of one guest's `trips`, below 1024, so that they fit into an offset as well.
fn values(trips: u32) -> impl Iterator<Item = u64> {
    (0..trips).map(|trip| u64::from(trip % 1000))
}

/// Makes so many accesses: nanoseconds for each, and how much others disturbed it.
fn make(guest: &mut dyn Guest, taken: &Taken, trips: u32, watch: Watch) -> (f64, Unrest) {
    let (sum, started) = (taken.sum(), Instant::now());
    values(trips).for_each(|value| guest.trip(value));
    let elapsed = started.elapsed();
    let unrest = watch.end();
    guest.check(&mut values(trips));
    check(taken, sum, values(trips).sum());
    (each(elapsed, trips), unrest)
}

fn check(taken: &Taken, before: u64, expected: u64) {
    let sum = taken.sum().wrapping_sub(before);
    assert_eq!(sum, expected, "served more or less");
}

/// Accesses that take about a slice, after some for a worker to see that polling helps.
fn trips_per_slice(guest: &mut dyn Guest, taken: &Taken, span: Duration) -> u32 {
    let (ns, _) = make(guest, taken, 2000, Watch::long());
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded on purpose"
    )]
    let trips = (span.as_secs_f64() * 1e9 / ns) as u32;
    trips.clamp(8, 1 << 16)
}

/// One guest on CPU 0, in slices of about `span`.
pub(crate) fn one_guest(guest: &mut dyn Guest, taken: &Taken, span: Duration) -> Figure {
    pin(0);
    let trips = trips_per_slice(guest, taken, span);
    let mut patience = Patience::much();
    figure(|| {
        patience.wait();
        make(guest, taken, trips, Watch::begin())
    })
}

/// Two on CPU 0, in turn, slice by slice: what a sleeping CPU takes to wake up changes from one moment to the next.
pub(crate) fn two_guests(
    first: (&mut dyn Guest, &Taken),
    second: (&mut dyn Guest, &Taken),
    span: Duration,
) -> [Figure; 2] {
    pin(0);
    let trips = trips_per_slice(first.0, first.1, span);
    trips_per_slice(second.0, second.1, span);
    figures((0..MOST).map(|_| {
        let (ns, unrest) = make(first.0, first.1, trips, Watch::long());
        let (other, too) = make(second.0, second.1, trips, Watch::long());
        ([ns, other], unrest.max(too))
    }))
}

/// All guests at once on CPU 0; nanoseconds per access of all together.
pub(crate) fn many_guests(guests: &mut [Box<dyn Guest>], taken: &Taken, trips: u32) -> Figure {
    let count = u32::try_from(guests.len()).unwrap_or(u32::MAX);
    let line = Barrier::new(guests.len() + 1);
    figure(|| {
        let sum = taken.sum();
        let elapsed = std::thread::scope(|scope| {
            for guest in &mut *guests {
                let line = &line;
                scope.spawn(move || {
                    pin(0);
                    line.wait();
                    values(trips).for_each(|value| guest.trip(value));
                    line.wait();
                });
            }
            line.wait();
            let started = Instant::now();
            line.wait();
            started.elapsed()
        });
        guests
            .iter_mut()
            .for_each(|guest| guest.check(&mut values(trips)));
        check(taken, sum, values(trips).sum::<u64>() * u64::from(count));
        // They take turns on one CPU: that is what is measured.
        (each(elapsed, trips * count), Unrest::NONE)
    })
}

/// Registers, ports and pages that add up what is written, and answer what is asked.
#[derive(Default)]
struct Device(Taken);

impl Handler for Device {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        let value = access.offset / 4;
        self.0.add(value);
        answer_to(value).into()
    }
    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        if access.addr == PIN {
            pin(usize::try_from(value).unwrap_or(0));
        } else {
            self.0.add(value);
        }
        WriteOutcome::Done
    }
}

impl PageHandler for Device {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        self.0.add(write.value());
        PageOutcome::Apply
    }
}

/// What the guest's access is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    MmioRead,
    MmioWrite,
    PortRead,
    PageWrite,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [
        Kind::MmioRead,
        Kind::MmioWrite,
        Kind::PortRead,
        Kind::PageWrite,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::MmioRead => "MMIO read",
            Kind::MmioWrite => "MMIO write",
            Kind::PortRead => "port read",
            Kind::PageWrite => "tracked page write",
        }
    }
}

/// A server on the model, running.
pub(crate) struct Served {
    // In the order in which they have to go.
    running: Running<SimHypervisor>,
    _tracker: Tracker<SimHypervisor>,
    _claim: MemTypeClaim<SimHypervisor>,
    _server: IoreqServer<SimHypervisor>,
    pub(crate) domain: Domain,
    device: Arc<Device>,
}

impl Served {
    /// A domain with so many vCPUs that wait like that, and a server with one worker.
    pub(crate) fn new(
        vcpus: u32,
        wait: VcpuWait,
        options: impl FnOnce(Builder<SimHypervisor>) -> Builder<SimHypervisor>,
    ) -> ioreq::Result<Self> {
        let domain = Machine::new().create_domain(DomainConfig::new(vcpus).wait(wait))?;
        let builder = IoreqServer::builder(domain.hypervisor()).workers(Workers::Count(1));
        let server = options(builder).build()?;
        let device = Arc::new(Device::default());
        let range = MmioRange::sized(MMIO, 0x1000)?;
        server.route("registers", range, Arc::clone(&device))?;
        let ports = PortRange::sized(PORT, 0x1000)?;
        server.route("ports", ports, Arc::clone(&device))?;
        let claim = server.claim_mem_type()?;
        let tracker = claim.tracker("pages");
        tracker.track(
            GfnRange::sized(PAGE, vcpus.into())?,
            Arc::clone(&device) as _,
        )?;
        let running = server.start()?;
        Ok(Served {
            running,
            _tracker: tracker,
            _claim: claim,
            _server: server,
            domain,
            device,
        })
    }

    /// A port to write to.
    pub(crate) const PORT: u16 = PORT;

    /// Reads a register, which has to answer right.
    pub(crate) fn check_read(cpu: &mut Cpu, value: u64) -> Result<(), CpuFault> {
        let read = cpu.load32(MMIO + value % 1000 * 4)?;
        assert_eq!(u64::from(read), answer_to(value % 1000));
        Ok(())
    }

    /// Reads a port, which has to answer right.
    #[allow(clippy::cast_possible_truncation, reason = "below 1000")]
    pub(crate) fn check_port(cpu: &mut Cpu, value: u64) -> Result<(), CpuFault> {
        let read = cpu.inl(PORT + (value % 1000) as u16 * 4)?;
        assert_eq!(u64::from(read), answer_to(value % 1000));
        Ok(())
    }

    /// Keeps the worker on a CPU.
    pub(crate) fn pin(&self, cpu: u64) -> ioreq::Result<()> {
        let mut guest = self.domain.cpu(VcpuId(0))?;
        guest.store64(PIN, cpu).expect("the domain lives");
        Ok(())
    }

    pub(crate) fn taken(&self) -> &Taken {
        &self.device.0
    }

    /// All vCPUs, each of which makes accesses of this kind.
    pub(crate) fn guests(&self, kind: Kind) -> ioreq::Result<Vec<Box<dyn Guest>>> {
        let guest = |vcpu| -> ioreq::Result<Box<dyn Guest>> {
            let cpu = self.domain.cpu(VcpuId(vcpu))?;
            Ok(Box::new(Vcpu { cpu, kind }))
        };
        (0..self.domain.vcpus()).map(guest).collect()
    }

    pub(crate) fn stop(self) -> ioreq::Result<()> {
        self.running.stop()?;
        Ok(())
    }
}

struct Vcpu {
    cpu: Cpu,
    kind: Kind,
}

impl Vcpu {
    /// Where in its tracked page this value goes.
    fn place(&self, value: u64) -> u64 {
        (PAGE + u64::from(self.cpu.id().0)) * 0x1000 + value % 512 * 8
    }
}

impl Guest for Vcpu {
    #[allow(clippy::cast_possible_truncation, reason = "values are small")]
    fn trip(&mut self, value: u64) {
        let place = self.place(value);
        let cpu = &mut self.cpu;
        match self.kind {
            Kind::MmioRead => Served::check_read(cpu, value).expect("the domain lives"),
            Kind::MmioWrite => cpu
                .store32(MMIO + value % 16 * 4, value as u32)
                .expect("the domain lives"),
            Kind::PortRead => Served::check_port(cpu, value).expect("the domain lives"),
            Kind::PageWrite => cpu.store64(place, value).expect("the domain lives"),
        }
    }

    fn check(&mut self, values: &mut dyn Iterator<Item = u64>) {
        if self.kind != Kind::PageWrite {
            return;
        }
        let last: HashMap<u64, u64> = values.map(|value| (self.place(value), value)).collect();
        for (place, value) in last {
            let stored = self.cpu.load64(place).expect("the domain lives");
            assert_eq!(stored, value, "the guest reads what it wrote");
        }
    }
}

/// The frame of a vCPU's tracked page.
pub(crate) fn page_of(vcpu: u32) -> Gfn {
    Gfn(PAGE + u64::from(vcpu))
}
