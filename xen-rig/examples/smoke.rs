// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether the rig works at all: makes a domain on the running Xen and has its agent execute one instruction of each kind on plain
//! memory, and one that faults; and wake up between `sti` and `hlt`.

use std::sync::Arc;
use std::time::Duration;

use xen_rig::{Done, Fate, Guest, Instr, Kind, Privcmd};

const PAGE: u64 = 0x30_0000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let xen = Arc::new(Privcmd::open()?);
    let (major, minor) = xen.version()?;
    println!("Xen {major}.{minor}");
    for kind in [
        Kind {
            vcpus: 1,
            hap: true,
            full: false,
        },
        Kind {
            vcpus: 2,
            hap: true,
            full: true,
        },
    ] {
        let guest = Guest::create(&xen, kind, &[0..0xa0, 0xc0..0x1000])?;
        println!("{kind:?}: domain {}", guest.domid());
        for vcpu in 0..kind.vcpus {
            smoke(&guest, vcpu)?;
            is_woken(&guest, vcpu)?;
        }
        if guest.fate()? != Fate::Alive {
            return Err("the domain does not live any more".into());
        }
    }
    Ok(())
}

fn smoke(guest: &Guest, vcpu: u32) -> Result<(), Box<dyn std::error::Error>> {
    let addr = PAGE + u64::from(vcpu) * 0x1000;
    let load = |width| Instr::Load { addr, width };
    let program = [
        (
            Instr::Store {
                addr,
                width: 8,
                value: 0x1122_3344_5566_7788,
            },
            Done::Plain,
        ),
        (load(1), Done::Value(0x88)),
        (load(2), Done::Value(0x7788)),
        (load(4), Done::Value(0x5566_7788)),
        (load(8), Done::Value(0x1122_3344_5566_7788)),
        (
            Instr::LockAdd {
                addr,
                width: 1,
                value: 1,
            },
            Done::Plain,
        ),
        (
            Instr::Or {
                addr,
                width: 4,
                value: 0xf000_0000,
            },
            Done::Plain,
        ),
        (load(8), Done::Value(0x1122_3344_f566_7789)),
        (
            Instr::Xchg {
                addr,
                width: 2,
                value: 5,
            },
            Done::Value(0x7789),
        ),
        (
            Instr::Cmpxchg {
                addr,
                width: 8,
                expected: 0x1122_3344_f566_0005,
                new: 3,
            },
            Done::Value(0x1122_3344_f566_0005),
        ),
        (
            Instr::Cmpxchg {
                addr,
                width: 4,
                expected: 9,
                new: 4,
            },
            Done::Value(3),
        ),
        (
            Instr::RepStos {
                addr,
                width: 4,
                value: 7,
                count: 3,
            },
            Done::Plain,
        ),
        (
            Instr::RepMovs {
                from: addr,
                to: addr + 16,
                width: 4,
                count: 3,
            },
            Done::Plain,
        ),
        (
            Instr::RepStosDown {
                addr: addr + 8,
                width: 8,
                value: 1,
                count: 2,
            },
            Done::Plain,
        ),
        (load(8), Done::Value(1)),
        (
            Instr::Load {
                addr: addr + 24,
                width: 8,
            },
            Done::Value(7),
        ),
        (
            Instr::Store16 {
                addr: addr + 32,
                value: [8, 9],
            },
            Done::Plain,
        ),
        (
            Instr::Load {
                addr: addr + 40,
                width: 8,
            },
            Done::Value(9),
        ),
        (
            Instr::In {
                port: 0x900,
                width: 2,
            },
            Done::Value(0xffff),
        ),
        (
            Instr::Out {
                port: 0x900,
                width: 1,
                value: 1,
            },
            Done::Plain,
        ),
        (
            Instr::RepOuts {
                port: 0x900,
                from: addr,
                width: 2,
                count: 2,
            },
            Done::Plain,
        ),
        (
            Instr::Store {
                addr: addr + 48,
                width: 1,
                value: 0xc3,
            },
            Done::Plain,
        ),
        (Instr::Fetch { addr: addr + 48 }, Done::Plain),
        (
            Instr::Await {
                addr: addr + 32,
                value: 8,
            },
            Done::Plain,
        ),
        (
            Instr::Repeat {
                count: 3,
                pause: 10,
            },
            Done::Value(0),
        ),
        (
            Instr::LockAdd {
                addr: addr + 56,
                width: 4,
                value: 2,
            },
            Done::Plain,
        ),
        (
            Instr::Load {
                addr: addr + 56,
                width: 4,
            },
            Done::Value(6),
        ),
        (Instr::TimeStamp, Done::Value(0)),
        // Beyond the mapping: a page fault.
        (
            Instr::Load {
                addr: 1 << 33,
                width: 1,
            },
            Done::Fault,
        ),
        (load(1), Done::Value(1)),
    ];
    let instrs: Vec<Instr> = program.iter().map(|(instr, _)| *instr).collect();
    let running = guest.start(vcpu, &instrs)?;
    let through = running.wait(Duration::from_secs(10))?;
    let results = running.results();
    for ((instr, expected), got) in program.iter().zip(&results) {
        // Times are not foreseen.
        let is_time = matches!(instr, Instr::Repeat { .. } | Instr::TimeStamp);
        let as_expected = match got {
            Done::Value(time) if is_time => *time > 0,
            _ => expected == got,
        };
        if !as_expected {
            return Err(
                format!("vCPU {vcpu}: {instr:x?} gives {got:x?}, not {expected:x?}").into(),
            );
        }
    }
    if !through || results.len() != program.len() {
        let why = format!(
            "vCPU {vcpu} is through with {} only: {:?}",
            results.len(),
            guest.fate()
        );
        return Err(why.into());
    }
    println!("vCPU {vcpu}: {} instructions as expected", results.len());
    Ok(())
}

/// A program that comes when the vCPU is about to sleep is not slept through, also where its interrupt comes before `hlt`.
fn is_woken(guest: &Guest, vcpu: u32) -> Result<(), Box<dyn std::error::Error>> {
    // Until it sleeps: the last program has just ended.
    let tries = (1..=100).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        guest.pause()?;
        let moved = guest.before_sleep(vcpu);
        if moved.is_err() {
            guest.unpause()?;
        }
        moved
    });
    let mut tries = tries.skip_while(Result::is_err);
    tries.next().ok_or("the vCPU does not go to sleep")??;
    let running = guest.start(vcpu, &[Instr::TimeStamp])?;
    guest.unpause()?;
    if !running.wait(Duration::from_secs(10))? {
        return Err(format!("vCPU {vcpu} sleeps through a program").into());
    }
    println!("vCPU {vcpu}: woken before it slept");
    Ok(())
}
