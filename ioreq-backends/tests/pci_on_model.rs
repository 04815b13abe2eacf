// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI device and its driver on the embedded model: found, sized, placed, moved under load, interrupting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use ioreq_backends::pci::{
    Bar, Builder, Delivery, FunctionInterrupts, Header, Msix, PciFunction, Signals,
};
use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::server::{IoreqServer, Running};
use ioreq_core::{ErrorKind, MmioRange, Sbdf, VcpuId, Width};
use ioreq_sim::{Cpu, CpuFault, Domain, DomainConfig, Injected, Machine, SimHypervisor};

const BAR: u64 = 0xfe00_0000;
const ELSEWHERE: u64 = 0xfd00_0000;

/// Register 0 counts what is written to it and raises interrupt 1; register 4 tells the count.
struct Doorbell {
    interrupts: Arc<FunctionInterrupts>,
    rung: AtomicU64,
}

impl Handler for Doorbell {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        match access.offset {
            4 => self.rung.load(Ordering::Relaxed).into(),
            _ => ReadOutcome::Value(0x600d),
        }
    }
    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        if access.offset == 0 {
            self.rung.fetch_add(value, Ordering::Relaxed);
            let delivery = self.interrupts.trigger(1);
            assert!(delivery.is_ok_and(|delivery| delivery != Delivery::Disabled));
        }
        WriteOutcome::Done
    }
}

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    function: Arc<PciFunction>,
    running: Running<SimHypervisor>,
}

fn at() -> Sbdf {
    Sbdf::new(0, 0, 6, 0).unwrap()
}

impl Rig {
    fn new(vcpus: u32) -> Self {
        let domain = Machine::new()
            .create_domain(DomainConfig::new(vcpus))
            .unwrap();
        let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
        let function = plug(&server, |builder| builder);
        server.route("config", at(), Arc::clone(&function)).unwrap();
        let running = server.start().unwrap();
        Rig {
            domain,
            server,
            function,
            running,
        }
    }
}

fn plug(
    server: &IoreqServer<SimHypervisor>,
    build: impl FnOnce(Builder) -> Builder,
) -> Arc<PciFunction> {
    let signals = Signals::new().msix(Msix::new(2, (0, 0x800), (0, 0xc00)));
    let hypervisor = Arc::clone(server.hypervisor());
    let interrupts = FunctionInterrupts::new(at(), hypervisor, signals).unwrap();
    let doorbell = Doorbell {
        interrupts: Arc::clone(&interrupts),
        rung: AtomicU64::new(0),
    };
    let builder = PciFunction::builder(Header::new(0x1af4, 0x10f0), interrupts)
        .bar(0, Bar::mem32(0x1000).served_by(doorbell))
        .bar(1, Bar::io(0x20));
    build(builder).build(Arc::new(server.control())).unwrap()
}

/// A driver's way to configuration space: ports 0xcf8 and 0xcfc.
fn select(cpu: &mut Cpu, register: u32) -> Result<(), CpuFault> {
    cpu.outl(0xcf8, 1 << 31 | at().bits() << 8 | register)
}

fn config(cpu: &mut Cpu, register: u32) -> Result<u32, CpuFault> {
    select(cpu, register)?;
    cpu.inl(0xcfc)
}

fn set_config(cpu: &mut Cpu, register: u32, value: u32) -> Result<(), CpuFault> {
    select(cpu, register)?;
    cpu.outl(0xcfc, value)
}

/// Finds the device, sizes and places its region, and lets it decode memory and master the bus.
fn probe(cpu: &mut Cpu, place: u32) -> Result<u32, CpuFault> {
    let id = config(cpu, 0)?;
    set_config(cpu, 0x10, u32::MAX)?;
    let size = !config(cpu, 0x10)? + 1;
    set_config(cpu, 0x10, place)?;
    set_config(cpu, 0x04, 6)?;
    assert_eq!(id, 0x10f0_1af4);
    Ok(size)
}

#[test]
fn a_driver_finds_the_device_and_takes_its_interrupts() {
    let rig = Rig::new(1);
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        assert_eq!(probe(cpu, 0xfe00_0000)?, 0x1000);
        let msix = config(cpu, 0x34)? & 0xff;
        assert_eq!(config(cpu, msix)? & 0xff, 0x11);
        // Vector 1, masked still.
        cpu.store32(BAR + 0x810, 0xfee0_0000)?;
        cpu.store32(BAR + 0x818, 0x42)?;
        set_config(cpu, msix, 0x8000_0000)?;
        cpu.store32(BAR, 5)?;
        assert_eq!(cpu.load64(BAR + 0xc00)?, 0b10, "pending");
        cpu.store32(BAR + 0x81c, 0)?;
        let first = cpu.wait_interrupt()?;
        cpu.store32(BAR, 6)?;
        let second = cpu.wait_interrupt()?;
        Ok((first, second, cpu.load32(BAR + 4)?))
    });
    let message = Injected::Msi {
        addr: 0xfee0_0000,
        data: 0x42,
    };
    assert_eq!(guest.unwrap().join().unwrap(), (message, message, 11));
    assert_eq!(
        rig.domain.injected(),
        [message, message],
        "no more, and none early"
    );
    rig.running.stop().unwrap();
}

#[test]
fn a_region_that_moves_under_load_is_there_or_nobodys() {
    let rig = Rig::new(2);
    rig.domain
        .cpu(VcpuId(0))
        .map(|mut cpu| probe(&mut cpu, 0xfe00_0000).unwrap())
        .unwrap();
    let other = rig.domain.spawn(VcpuId(1), |cpu| {
        let mut seen = [0_u32; 2];
        while cpu.load32(0x1000)? == 0 {
            for addr in [BAR + 8, ELSEWHERE + 8] {
                match cpu.load32(addr)? {
                    0x600d => seen[0] += 1,
                    u32::MAX => seen[1] += 1,
                    value => panic!("{value:#x} at {addr:#x}"),
                }
            }
        }
        Ok(seen)
    });
    let mover = rig.domain.spawn(VcpuId(0), |cpu| {
        for _ in 0..300 {
            for place in [ELSEWHERE, BAR] {
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "both places are below 4 GiB"
                )]
                set_config(cpu, 0x10, place as u32)?;
                assert_eq!(
                    cpu.load32(place + 8)?,
                    0x600d,
                    "there when the write is done"
                );
                assert_eq!(cpu.load32((place ^ BAR ^ ELSEWHERE) + 8)?, u32::MAX);
            }
            set_config(cpu, 0x04, 0)?;
            assert_eq!(cpu.load32(BAR + 8)?, u32::MAX);
            set_config(cpu, 0x04, 6)?;
        }
        cpu.store32(0x1000, 1)
    });
    mover.unwrap().join().unwrap();
    let [there, nobodys] = other.unwrap().join().unwrap();
    assert!(there > 0 && nobodys > 0);
    assert_eq!(rig.function.interrupts().failures(), 0);
    rig.running.stop().unwrap();
}

#[test]
fn a_region_in_anothers_place_is_not_decoded_until_it_is_moved_away() {
    let rig = Rig::new(1);
    rig.server
        .route(
            "rom",
            MmioRange::sized(BAR + 0x800, 0x10).unwrap(),
            Arc::new(Rom),
        )
        .unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        probe(cpu, 0xfe00_0000)?;
        let there = (cpu.load32(BAR + 8)?, cpu.load32(BAR + 0x800)?);
        set_config(cpu, 0x10, 0xfd00_0000)?;
        Ok((there, cpu.load32(ELSEWHERE + 8)?, cpu.load32(BAR + 0x800)?))
    });
    assert_eq!(
        guest.unwrap().join().unwrap(),
        ((u32::MAX, 0x55), 0x600d, 0x55)
    );
    let mut cpu = rig.domain.cpu(VcpuId(0)).unwrap();
    set_config(&mut cpu, 0x10, 0xfe00_0000).unwrap();
    let status = &rig.function.bars()[0];
    let error = status.error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::RouteConflict);
    assert!(error.to_string().contains("\"rom\""), "{error}");
    rig.running.stop().unwrap();
}

struct Rom;

impl Handler for Rom {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        ReadOutcome::Value(0x55)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Refused("read-only")
    }
}

#[test]
fn the_same_function_is_seen_through_ecam() {
    let rig = Rig::new(1);
    let window = 0xb000_0000 + (u64::from(at().bits()) << 12);
    let range = MmioRange::sized(window, 0x1000).unwrap();
    rig.server
        .route("ecam", range, Arc::clone(&rig.function))
        .unwrap();
    let guest = rig.domain.spawn(VcpuId(0), move |cpu| {
        cpu.store32(window + 0x10, 0xfe00_0000)?;
        cpu.store16(window + 0x04, 2)?;
        assert_eq!(config(cpu, 0x10)?, 0xfe00_0000, "one and the same");
        assert_eq!(cpu.load32(window + 0x100)?, u32::MAX, "no extended space");
        Ok((cpu.load64(window)?, cpu.load32(BAR + 8)?))
    });
    assert_eq!(
        guest.unwrap().join().unwrap(),
        (0x0010_0002_10f0_1af4, 0x600d)
    );
    assert_eq!(rig.function.register(0x04, Width::B2), Some(2));
    rig.running.stop().unwrap();
}

#[test]
fn unplugging_retracts_everything_and_nothing_keeps_the_function_alive() {
    let Rig {
        domain,
        server,
        function,
        running,
    } = Rig::new(1);
    let mut cpu = domain.cpu(VcpuId(0)).unwrap();
    probe(&mut cpu, 0xfe00_0000).unwrap();
    let gone: Weak<PciFunction> = Arc::downgrade(&function);
    running.stop().unwrap();
    drop((function, cpu));
    server.destroy().unwrap();
    assert!(gone.upgrade().is_none());

    // And while the server lives: a function that is dropped takes its region along.
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let function = plug(&server, |builder| builder);
    let config = server.route("config", at(), Arc::clone(&function)).unwrap();
    let running = server.start().unwrap();
    let mut cpu = domain.cpu(VcpuId(0)).unwrap();
    probe(&mut cpu, 0xfe00_0000).unwrap();
    assert_eq!(cpu.load32(BAR + 8).unwrap(), 0x600d);
    ioreq_core::routes::Routes::retract(&server.control(), config).unwrap();
    drop(function);
    server.synchronize().unwrap();
    assert_eq!(cpu.load32(BAR + 8).unwrap(), u32::MAX);
    drop(cpu);
    running.stop().unwrap();
    server.destroy().unwrap();
}
