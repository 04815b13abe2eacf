// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ports, MMIO and configuration space on the model: every request is answered, with the right value, on every path.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use ioreq::handler::{Access, Batch, BatchOutcome, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::routes::Routes;
use ioreq::server::{IoreqServer, Running, Workers};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{ErrorKind, MmioRange, PortRange, Sbdf, VcpuId, Width};

const MMIO: u64 = 0xe000_0000;

/// Remembers what was written; reads give the access itself.
#[derive(Default)]
struct Echo {
    written: Mutex<Vec<(u64, u64, u64)>>,
}

impl Handler for Echo {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        (access.offset << 8 | access.width.bytes()).into()
    }
    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.written
            .lock()
            .unwrap()
            .push((access.offset, access.width.bytes(), value));
        WriteOutcome::Done
    }
}

fn domain(vcpus: u32) -> Domain {
    Machine::new()
        .create_domain(DomainConfig::new(vcpus))
        .unwrap()
}

fn server(domain: &Domain) -> IoreqServer<SimHypervisor> {
    IoreqServer::builder(domain.hypervisor()).build().unwrap()
}

fn mmio(len: u64) -> MmioRange {
    MmioRange::sized(MMIO, len).unwrap()
}

/// Adds a handler for `MMIO`, starts, and runs one program.
fn run<T: Send + 'static>(
    handler: impl Handler + 'static,
    program: impl FnOnce(&mut ioreq::sim::Cpu) -> Result<T, ioreq::sim::CpuFault> + Send + 'static,
) -> (T, ioreq::stats::ServerStats) {
    let domain = domain(1);
    let server = server(&domain);
    server.route("test", mmio(0x1000), handler).unwrap();
    let running = server.start().unwrap();
    let result = domain.spawn(VcpuId(0), program).unwrap().join().unwrap();
    running.stop().unwrap();
    (result, server.stats())
}

#[test]
fn widths_offsets_and_values_arrive_as_the_guest_made_them() {
    let echo = Arc::new(Echo::default());
    let (read, stats) = run(Arc::clone(&echo), |cpu| {
        cpu.store8(MMIO, 0x11)?;
        cpu.store16(MMIO + 2, 0x2222)?;
        cpu.store32(MMIO + 4, 0x4444_4444)?;
        cpu.store64(MMIO + 8, 0x8888_8888_8888_8888)?;
        cpu.store32(MMIO + 0x11, 1)?;
        Ok((cpu.load8(MMIO + 5)?, cpu.load32(MMIO + 0xffc)?))
    });
    assert_eq!(read, (0x01, 0xf_fc04));
    let written = echo.written.lock().unwrap();
    assert_eq!(
        written[..3],
        [(0, 1, 0x11), (2, 2, 0x2222), (4, 4, 0x4444_4444)]
    );
    assert!(written.contains(&(0x11, 4, 1)), "unaligned");
    assert_eq!(
        (stats.mmio_writes, stats.mmio_reads, stats.unclaimed),
        (written.len() as u64, 2, 0)
    );
}

#[test]
fn ports_are_routed_by_their_whole_width() {
    let domain = domain(1);
    let server = server(&domain);
    let echo = Arc::new(Echo::default());
    server
        .route(
            "ports",
            PortRange::sized(0x100, 4).unwrap(),
            Arc::clone(&echo),
        )
        .unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.outb(0x103, 7)?;
        cpu.outl(0x100, 0xdead_beef)?;
        Ok((cpu.inb(0x102)?, cpu.inl(0x102)?, cpu.inb(0x104)?))
    });
    assert_eq!(guest.unwrap().join().unwrap(), (0x01, 0xffff_ffff, 0xff));
    running.stop().unwrap();
    assert_eq!(
        *echo.written.lock().unwrap(),
        [(3, 1, 7), (0, 4, 0xdead_beef)]
    );
}

#[test]
fn a_handler_that_panics_or_refuses_costs_one_access() {
    struct Moody(AtomicU64);
    impl Handler for Moody {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("the handler panics"),
                1 => ReadOutcome::Refused("no"),
                _ => ReadOutcome::Value(5),
            }
        }
        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            panic!("so does this one")
        }
    }
    let (read, stats) = run(Moody(AtomicU64::new(0)), |cpu| {
        cpu.store32(MMIO, 1)?;
        Ok([cpu.load32(MMIO)?, cpu.load32(MMIO)?, cpu.load32(MMIO)?])
    });
    assert_eq!(read, [u32::MAX, u32::MAX, 5]);
    assert_eq!((stats.panics, stats.refused), (2, 1));
}

#[test]
fn the_latency_of_every_other_request_is_measured_whatever_way_it_takes() {
    let domain = domain(1);
    let server = IoreqServer::builder(domain.hypervisor())
        .sample_latency(2)
        .build()
        .unwrap();
    server.route("test", mmio(0x1000), Echo::default()).unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        for _ in 0..8 {
            cpu.store32(MMIO, 1)?;
        }
        // Not by the way of single accesses.
        for _ in 0..8 {
            cpu.rep_stos(MMIO, Width::B4, 2, 3)?;
        }
        Ok(())
    });
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    assert_eq!(server.stats().latency.measured(), 8);
}

#[test]
fn overlapping_routes_are_an_error_that_names_both() {
    let domain = domain(1);
    let server = server(&domain);
    server
        .route("first", mmio(0x1000), Echo::default())
        .unwrap();
    let overlap = MmioRange::sized(MMIO + 0xfff, 2).unwrap();
    let err = server
        .route("second", overlap, Echo::default())
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::RouteConflict);
    let text = err.to_string();
    assert!(
        text.contains("\"first\"") && text.contains("\"second\""),
        "{text}"
    );
    server
        .route(
            "next",
            MmioRange::sized(MMIO + 0x1000, 2).unwrap(),
            Echo::default(),
        )
        .unwrap();
}

#[test]
fn routes_come_and_go_while_requests_flow() {
    use ioreq::routes::Routes;
    let domain = domain(2);
    let server = server(&domain);
    let running = server.start().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let guest = domain.spawn(VcpuId(0), move |cpu| {
        let mut seen = [0_u64; 2];
        while !flag.load(Ordering::Relaxed) {
            match cpu.load32(MMIO + 8)? {
                0x804 => seen[0] += 1,
                u32::MAX => seen[1] += 1,
                other => panic!("read {other:#x}"),
            }
        }
        Ok(seen)
    });
    let control = server.control();
    for _ in 0..300 {
        let id = control
            .add("moving", mmio(0x1000).into(), Arc::new(Echo::default()))
            .unwrap();
        control.replace(id, Arc::new(Echo::default())).unwrap();
        control.retract(id).unwrap();
        assert_eq!(
            control.retract(id).unwrap_err().kind(),
            ErrorKind::NoSuchRoute
        );
    }
    server
        .route("stays", mmio(0x1000), Echo::default())
        .unwrap();
    server.synchronize().unwrap();
    let routed = || {
        server
            .route_stats()
            .iter()
            .map(|(_, stats)| stats.reads)
            .sum::<u64>()
    };
    while routed() == 0 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    let seen = guest.unwrap().join().unwrap();
    assert!(seen[0] > 0);
    running.stop().unwrap();
}

#[test]
fn a_handler_that_waits_for_itself_gets_an_error() {
    type Shared = (
        IoreqServer<SimHypervisor>,
        Mutex<Option<Running<SimHypervisor>>>,
    );
    struct Selfish(Arc<OnceLock<Weak<Shared>>>);
    impl Handler for Selfish {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            let Some(shared) = self.0.get().and_then(Weak::upgrade) else {
                return ReadOutcome::Value(0);
            };
            let would_deadlock = [
                shared.0.synchronize().unwrap_err().kind(),
                shared.0.poll().unwrap_err().kind(),
                shared
                    .1
                    .lock()
                    .unwrap()
                    .take()
                    .unwrap()
                    .stop()
                    .unwrap_err()
                    .kind(),
            ];
            ReadOutcome::Value(u64::from(would_deadlock == [ErrorKind::WouldDeadlock; 3]))
        }
        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            WriteOutcome::Done
        }
    }
    let domain = domain(1);
    let server = server(&domain);
    let cell = Arc::new(OnceLock::new());
    server
        .route("selfish", mmio(0x1000), Selfish(Arc::clone(&cell)))
        .unwrap();
    let running = server.start().unwrap();
    let shared = Arc::new((server, Mutex::new(Some(running))));
    cell.set(Arc::downgrade(&shared)).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.load32(MMIO)).unwrap();
    assert_eq!(guest.join().unwrap(), 1);
}

#[test]
fn few_workers_serve_many_vcpus() {
    for workers in [Workers::Count(1), Workers::Count(3), Workers::PerVcpu] {
        let domain = domain(16);
        let server = IoreqServer::builder(domain.hypervisor())
            .workers(workers)
            .build()
            .unwrap();
        server.route("echo", mmio(0x1000), Echo::default()).unwrap();
        let running = server.start().unwrap();
        let guests: Vec<_> = (0..16)
            .map(|vcpu| {
                let program = move |cpu: &mut ioreq::sim::Cpu| {
                    (0..50).try_for_each(|_| {
                        assert_eq!(cpu.load32(MMIO + u64::from(vcpu) * 4)?, vcpu << 10 | 4);
                        Ok(())
                    })
                };
                domain.spawn(VcpuId(vcpu), program).unwrap()
            })
            .collect();
        for guest in guests {
            guest.join().unwrap();
        }
        running.stop().unwrap();
        assert_eq!(server.stats().mmio_reads, 800);
    }
}

#[test]
fn bad_options_are_refused_and_leave_nothing_behind() {
    let domain = domain(1);
    let err = IoreqServer::builder(domain.hypervisor())
        .workers(Workers::Count(0))
        .build()
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    let err = IoreqServer::builder(domain.hypervisor())
        .last_gfn(ioreq::Gfn(u64::MAX >> 12))
        .build()
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    assert!(domain.leaks().is_clean(), "{:?}", domain.leaks());
}

/// Batches of a repeated instruction, as they were given.
#[derive(Default)]
struct Bulk {
    batches: Mutex<Vec<(u64, i64, Vec<u64>)>>,
    singles: AtomicU64,
}

impl Handler for Bulk {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        self.singles.fetch_add(1, Ordering::Relaxed);
        access.offset.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.singles.fetch_add(1, Ordering::Relaxed);
        WriteOutcome::Done
    }
    fn read_batch(&self, _: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        for (value, access) in values.iter_mut().zip(batch.iter()) {
            *value = access.offset + 0x100;
        }
        self.batches
            .lock()
            .unwrap()
            .push((batch.first.offset, batch.stride, values.to_vec()));
        BatchOutcome::Done
    }
    fn write_batch(&self, _: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        self.batches
            .lock()
            .unwrap()
            .push((batch.first.offset, batch.stride, values.to_vec()));
        BatchOutcome::Done
    }
}

#[test]
fn a_handler_that_takes_batches_gets_repeated_instructions_whole() {
    let bulk = Arc::new(Bulk::default());
    let (back, _) = run(Arc::clone(&bulk), |cpu| {
        cpu.rep_stos(MMIO + 8, Width::B4, 7, 100)?;
        cpu.set_df(true);
        cpu.rep_stos(MMIO + 8, Width::B4, 9, 2)?;
        cpu.set_df(false);
        cpu.rep_movs(0x5000, MMIO + 0x10, Width::B2, 5)?;
        (0..5)
            .map(|index| cpu.load16(0x5000 + index * 2))
            .collect::<Result<Vec<_>, _>>()
    });
    assert_eq!(back, [0x110, 0x112, 0x114, 0x116, 0x118]);
    let batches = bulk.batches.lock().unwrap();
    let shapes: Vec<_> = batches
        .iter()
        .map(|(first, stride, values)| (*first, *stride, values.len()))
        .collect();
    assert_eq!(
        shapes,
        [(8, 4, 64), (8 + 256, 4, 36), (8, -4, 2), (0x10, 2, 5)]
    );
    assert!(batches[0].2.iter().all(|value| *value == 7));
    assert_eq!(bulk.singles.load(Ordering::Relaxed), 0);
}

#[test]
fn repeated_instructions_arrive_one_by_one_where_batches_are_not_wanted() {
    let echo = Arc::new(Echo::default());
    let (back, stats) = run(Arc::clone(&echo), |cpu| {
        cpu.store64(0x5000, 0x4444_3333_2222_1111)?;
        cpu.rep_movs(MMIO, 0x5000, Width::B2, 4)?;
        cpu.rep_movs(0x6000, MMIO + 0x20, Width::B1, 3)?;
        cpu.load32(0x6000)
    });
    let written = echo.written.lock().unwrap();
    assert_eq!(
        *written,
        [
            (0, 2, 0x1111),
            (2, 2, 0x2222),
            (4, 2, 0x3333),
            (6, 2, 0x4444)
        ]
    );
    assert_eq!(
        back, 0x0001_0101,
        "each read gives offset and width; the low byte is the width"
    );
    assert_eq!(
        (stats.mmio_writes, stats.mmio_reads),
        (1, 1),
        "an instruction counts once"
    );
}

#[test]
fn data_from_a_device_into_a_tracked_page_reaches_its_handler() {
    use ioreq::claim::PageTracker;
    use ioreq::handler::{PageHandler, PageOutcome, PageWrite, WriteSource};
    struct Seen(Mutex<Vec<(u64, u64)>>);
    impl PageHandler for Seen {
        fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
            assert_eq!(write.source(), WriteSource::Framework);
            self.0.lock().unwrap().push((write.addr().0, write.value()));
            PageOutcome::Replace(write.value() + 1)
        }
    }
    let domain = domain(1);
    let server = server(&domain);
    server
        .route("port", PortRange::sized(0x1f0, 2).unwrap(), Echo::default())
        .unwrap();
    server.route("mmio", mmio(0x1000), Bulk::default()).unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    let seen = Arc::new(Seen(Mutex::default()));
    tracker
        .track(ioreq::Gfn(0x5).into(), Arc::<Seen>::clone(&seen))
        .unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.rep_ins(0x1f0, 0x4ffc, Width::B2, 4)?;
        cpu.rep_movs(0x5010, MMIO, Width::B4, 2)?;
        Ok((cpu.load64(0x4ffc)?, cpu.load64(0x5010)?))
    });
    let (ins, movs) = guest.unwrap().join().unwrap();
    assert_eq!(
        ins, 0x0003_0003_0002_0002,
        "two elements before the page, two in it"
    );
    assert_eq!(movs, 0x0000_0105_0000_0101);
    assert_eq!(
        *seen.0.lock().unwrap(),
        [(0x5000, 2), (0x5002, 2), (0x5010, 0x100), (0x5014, 0x104)]
    );
    running.stop().unwrap();
}

#[test]
fn configuration_space_is_routed_by_function() {
    let domain = domain(1);
    let server = server(&domain);
    let slot3 = Sbdf::new(0, 0, 3, 0).unwrap();
    server
        .route("pci", ioreq::IoRange::Pci(slot3), Echo::default())
        .unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), move |cpu| {
        let other = Sbdf::new(0, 0, 4, 0).unwrap();
        Ok((
            cpu.pci_config_read(slot3, 0x12, Width::B2)?,
            cpu.pci_config_read(other, 0, Width::B4)?,
        ))
    });
    assert_eq!(guest.unwrap().join().unwrap(), (0x1202, 0xffff_ffff));
    running.stop().unwrap();
    assert_eq!(server.stats().pci_reads, 1);
}

/// Reads give the number.
struct Number(u64);

impl Handler for Number {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

#[test]
fn a_replaced_handler_has_the_route_and_the_others_keep_theirs() {
    let domain = domain(1);
    let server = server(&domain);
    let routes = server.control();
    let ids: Vec<_> = (0..3)
        .map(|n| {
            let range = PortRange::sized(0x500 + 4 * n, 4).unwrap().into();
            let handler = Arc::new(Number(u64::from(n)));
            routes.add(&format!("number {n}"), range, handler).unwrap()
        })
        .collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    let running = server.start().unwrap();
    let read = || {
        let program =
            |cpu: &mut ioreq::sim::Cpu| Ok([cpu.inl(0x500)?, cpu.inl(0x504)?, cpu.inl(0x508)?]);
        domain.spawn(VcpuId(0), program).unwrap().join().unwrap()
    };
    assert_eq!(read(), [0, 1, 2]);
    routes.replace(ids[1], Arc::new(Number(7))).unwrap();
    assert_eq!(read(), [0, 7, 2]);
    routes.retract(ids[0]).unwrap();
    assert_eq!(read(), [u32::MAX, 7, 2]);
    let kind = |result: ioreq::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(routes.retract(ids[0])), ErrorKind::NoSuchRoute);
    let gone = routes.replace(ids[0], Arc::new(Number(8)));
    assert_eq!(kind(gone), ErrorKind::NoSuchRoute);
    running.stop().unwrap();
}

/// A worker that is kept on line by its guest's requests does not keep what it cannot find any more.
#[test]
fn a_retracted_handler_is_freed_while_its_worker_never_rests() {
    let domain = domain(1);
    let server = server(&domain);
    let routes = server.control();
    let range = |first| PortRange::sized(first, 4).unwrap().into();
    routes
        .add("stays", range(0x500), Arc::new(Number(5)))
        .unwrap();
    let handler = Arc::new(Number(6));
    let gone = Arc::downgrade(&handler);
    let id = routes.add("goes", range(0x504), handler).unwrap();
    let running = server.start().unwrap();
    let (stop, asks) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let guest = domain.spawn(VcpuId(0), {
        let (stop, asks) = (stop.clone(), asks.clone());
        move |cpu| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(cpu.inl(0x500)?, 5);
                asks.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    });
    while asks.load(Ordering::Relaxed) < 1000 {
        std::thread::yield_now();
    }
    routes.retract(id).unwrap();
    while gone.strong_count() > 0 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
}
