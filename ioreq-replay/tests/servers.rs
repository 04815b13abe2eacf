// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Servers that are recorded, and played.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{File, Made, play, recorded};
use ioreq_core::abi::{IOREQ_DATA_IS_PTR, IOREQ_DIR_READ, IOREQ_TYPE_PIO, Ioreq};
use ioreq_core::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::server::{IoreqServer, Workers};
use ioreq_core::{BufIoreq, GfnRange, MmioRange, PortRange, ServerId, VcpuId, Width};
use ioreq_replay::{Recording, Tape};
use ioreq_sim::{DomainConfig, Machine, SimHypervisor};
use vm_memory::GuestAddress;

/// Gives every read another number, whoever reads.
#[derive(Default)]
struct Tickets(AtomicU64);

impl Handler for Tickets {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.fetch_add(1, Ordering::Relaxed).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.fetch_add(value << 8, Ordering::Relaxed);
        WriteOutcome::Done
    }
}

/// Adds up the words at an address that it is told.
#[derive(Default)]
struct Summer(AtomicU64);

impl Handler for Summer {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.0.load(Ordering::Relaxed).into()
    }
    fn write(&self, cx: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        let mut sum = 0;
        for word in 0..8 {
            match cx.ram().load(GuestAddress(value + 4 * word), Width::B4) {
                Ok(value) => sum += value,
                Err(_) => sum = 0xdead,
            }
        }
        self.0.store(sum, Ordering::Relaxed);
        let told = cx.ram().store(GuestAddress(value), Width::B4, sum);
        told.map_or(WriteOutcome::Refused("no memory"), |()| WriteOutcome::Done)
    }
}

/// Is answered by another thread, each time with the next number.
struct Late(Mutex<mpsc::Sender<Completion<u64>>>);

impl Late {
    fn new() -> Self {
        let (send, wanted) = mpsc::channel::<Completion<u64>>();
        thread::spawn(move || {
            for (number, completion) in (0..).zip(wanted) {
                completion.complete(number);
            }
        });
        Late(Mutex::new(send))
    }
}

impl Handler for Late {
    fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
        let (deferred, completion) = cx.defer_read(Duration::from_secs(60));
        self.0.lock().unwrap().send(completion).unwrap();
        ReadOutcome::Defer(deferred)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

/// A device model with all of them, on two servers.
fn devices(tape: &Tape) -> Made {
    devices_with(tape, Summer::default())
}

/// With this one for sums.
fn devices_with(tape: &Tape, summer: impl Handler + 'static) -> Made {
    let memory = |first, last| GfnRange::new(first, last).unwrap();
    let config = DomainConfig::new(4).vga(true);
    let config = config.memory(memory(0, 0x9f)).memory(memory(0xc0, 0x3ff));
    let domain = Machine::new().create_domain(config).unwrap();
    let hv = Arc::new(domain.hypervisor());
    let builder = || IoreqServer::<SimHypervisor>::builder(Arc::clone(&hv));
    let first = builder()
        .buffered(BufIoreq::Atomic)
        .workers(Workers::Count(2));
    let first = tape.attach("first", first).build().unwrap();
    let second = tape.attach("second", builder()).build().unwrap();
    let ports = |first| PortRange::sized(first, 16).unwrap();
    let tickets = Arc::new(Tickets::default());
    first
        .route("tickets", ports(0x500), Arc::clone(&tickets))
        .unwrap();
    first.route("summer", ports(0x510), summer).unwrap();
    let vga = MmioRange::sized(0xa_0000, 0x1000).unwrap();
    first.route("vga", vga, tickets).unwrap();
    second.route("late", ports(0x520), Late::new()).unwrap();
    (domain, vec![first, second])
}

#[test]
fn vcpus_that_race_meet_the_devices_in_the_recorded_order() {
    let bytes = recorded(devices, |domain| {
        let cpus: Vec<_> = (0..4)
            .map(|vcpu| {
                domain.spawn(VcpuId(vcpu), move |cpu| {
                    for _ in 0..200 {
                        cpu.inl(0x500)?;
                        cpu.inl(0x520)?;
                    }
                    Ok(())
                })
            })
            .collect();
        cpus.into_iter()
            .for_each(|cpu| cpu.unwrap().join().unwrap());
    });
    let recording = Recording::read(&bytes[..]).unwrap();
    assert_eq!((recording.requests(), recording.is_closed()), (1600, true));
    for _ in 0..3 {
        let played = play(devices, &bytes).unwrap();
        assert_eq!(
            (played.requests, played.answers, played.values),
            (1600, 1600, 1600)
        );
    }
}

#[test]
fn what_is_read_of_memory_comes_from_the_recording() {
    let bytes = recorded(devices, |domain| {
        let cpu = domain.spawn(VcpuId(1), |cpu| {
            for word in 0..8 {
                cpu.store32(0x3000 + 4 * word, 1 << word)?;
            }
            cpu.outl(0x510, 0x3000)?;
            assert_eq!(cpu.inl(0x510)?, 0xff);
            assert_eq!(cpu.load32(0x3000)?, 0xff, "it is told there, too");
            cpu.outl(0x510, 0xf000_0000)?; // no memory
            assert_eq!(cpu.inl(0x510)?, 0xdead);
            // Repeated instructions, whose data is in memory.
            cpu.rep_outs(0x500, 0x3000, Width::B2, 100)?;
            cpu.rep_ins(0x500, 0x5ff0, Width::B4, 10)?;
            cpu.inl(0x500)
        });
        cpu.unwrap().join().unwrap();
    });
    // The model's memory holds nothing of this when it is played.
    let played = play(devices, &bytes).unwrap();
    assert_eq!(
        played.requests,
        Recording::read(&bytes[..]).unwrap().requests()
    );
}

#[test]
fn what_a_device_stores_is_compared() {
    let bytes = recorded(devices, |domain| {
        let cpu = domain.spawn(VcpuId(0), |cpu| {
            cpu.store32(0x3000, 5)?;
            cpu.outl(0x510, 0x3000)
        });
        cpu.unwrap().join().unwrap();
    });
    /// Stores something else.
    struct Liar;
    impl Handler for Liar {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            0.into()
        }
        fn write(&self, cx: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
            for word in 0..8 {
                let _read = cx.ram().load(GuestAddress(value + 4 * word), Width::B4);
            }
            cx.ram().store(GuestAddress(value), Width::B4, 6).unwrap();
            WriteOutcome::Done
        }
    }
    let mismatch = play(|tape| devices_with(tape, Liar), &bytes).unwrap_err();
    assert!(
        mismatch.asked.contains("write of 4 bytes to port 0x510"),
        "{mismatch}"
    );
    assert!(
        mismatch
            .recorded
            .contains("4 bytes of memory written at 0x3000"),
        "{mismatch}"
    );
}

#[test]
fn what_is_posted_is_played_and_so_is_what_makes_no_sense() {
    let bytes = recorded(devices, |domain| {
        let first = ServerId(0);
        let cpu = domain.spawn(VcpuId(2), move |cpu| {
            cpu.store8(0xa_0010, 3)?; // by the ring
            cpu.store64(0xa_0018, 1 << 33)?; // of two entries
            assert_eq!(cpu.inl(0x500)?, 0x300);
            let absurd = Ioreq {
                addr: 0x1_0500,
                size: 3,
                count: 0,
                kind: IOREQ_TYPE_PIO,
                flags: IOREQ_DIR_READ,
                ..Ioreq::default()
            };
            assert_eq!(cpu.request(first, &absurd)?, u64::MAX);
            let nobodys = Ioreq { kind: 99, ..absurd };
            cpu.request(first, &nobodys)?;
            let nowhere = Ioreq {
                addr: 0x500,
                data: 1 << 40,
                count: 2,
                size: 4,
                flags: IOREQ_DATA_IS_PTR,
                ..absurd
            };
            cpu.request(first, &nowhere)?;
            cpu.rtc_set(3600)?;
            cpu.change_memory_layout()?;
            cpu.inl(0x500)
        });
        cpu.unwrap().join().unwrap();
    });
    play(devices, &bytes).unwrap();
}

#[test]
fn a_request_that_kills_the_device_model_is_the_last_of_its_recording() {
    let file = File::default();
    let tape = Tape::record(file.clone(), "test", &()).unwrap();
    let (domain, servers) = devices(&tape);
    let (send, bytes) = mpsc::channel();
    /// Dies at a write: what the file holds then is all that is left of it.
    struct Dies(Mutex<mpsc::Sender<Vec<u8>>>, File);
    impl Handler for Dies {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            1.into()
        }
        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            self.0.lock().unwrap().send(self.1.bytes()).unwrap();
            WriteOutcome::Done
        }
    }
    let range = PortRange::sized(0x600, 4).unwrap();
    servers[0]
        .route("dies", range, Dies(Mutex::new(send), file))
        .unwrap();
    let running: Vec<_> = servers
        .iter()
        .map(|server| server.start().unwrap())
        .collect();
    let cpu = domain.spawn(VcpuId(0), |cpu| {
        cpu.inl(0x600)?;
        cpu.outl(0x600, 7)
    });
    cpu.unwrap().join().unwrap();
    let bytes = bytes.recv().unwrap();
    drop(running);
    let recording = Recording::read(&bytes[..]).unwrap();
    assert_eq!((recording.requests(), recording.is_closed()), (2, false));
    let seen = Arc::new(AtomicU64::new(0));
    struct Sees(Arc<AtomicU64>);
    impl Handler for Sees {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            1.into()
        }
        fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
            self.0.store(value, Ordering::Relaxed);
            WriteOutcome::Done
        }
    }
    let (told, sees) = (Arc::clone(&seen), move |tape: &Tape| {
        let (domain, servers) = devices(tape);
        let range = PortRange::sized(0x600, 4).unwrap();
        servers[0]
            .route("sees", range, Sees(Arc::clone(&seen)))
            .unwrap();
        (domain, servers)
    });
    let played = play(sees, &bytes).unwrap();
    assert_eq!((played.requests, played.answers), (2, 1));
    assert_eq!(told.load(Ordering::Relaxed), 7, "it is asked all the same");
}
