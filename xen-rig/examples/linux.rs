// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What dom0's Linux does, not Xen: limits and rights of `/dev/xen/privcmd` and `/dev/xen/evtchn`. The rows `kernel-*` of
//! `docs/xen-behaviour.toml` that a model without device nodes cannot show.
//!
//! Runs in dom0, as root.

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioreq_core::abi::dm_op::{DmOp, InjectMsi, NrVcpus};
use ioreq_core::{BufIoreq, DomId, ErrorKind, EventChannels, Transport};
use ioreq_xen::{Handles, IrqFd, XenHypervisor};
use xen_rig::{Guest, Kind, Privcmd};

type Failure = Box<dyn std::error::Error>;
type Check = fn(&Arc<Privcmd>) -> Result<(), Failure>;

const CHECKS: &[(&str, Check)] = &[
    ("buffers of a DMOP", buffers),
    ("a part of a mapping", part_of_a_mapping),
    ("frames that cannot be mapped", bad_frames),
    ("restricted event channels", restricted_events),
    ("eventfds", eventfds),
];

/// Guest memory of every domain here; the frames after it are none.
const FRAMES: u64 = 0x400;

fn main() -> Result<(), Failure> {
    let xen = Arc::new(Privcmd::open()?);
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check(&xen) {
            Ok(()) => println!("linux: {name} ... ok"),
            Err(why) => {
                failed += 1;
                println!("linux: {name} ... FAILED: {why}");
            }
        }
    }
    println!("linux: {} checks, {failed} failed", CHECKS.len());
    if failed > 0 {
        return Err("dom0's Linux does not do what the rows say".into());
    }
    Ok(())
}

/// A value that must be the expected one.
fn is<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Result<(), Failure> {
    if got == expected {
        return Ok(());
    }
    Err(format!("{what}: {got:?}, not {expected:?}").into())
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|err| err.raw_os_error())
}

fn guest(xen: &Arc<Privcmd>) -> Result<Guest, Failure> {
    let kind = Kind {
        vcpus: 1,
        hap: true,
        full: false,
    };
    let ram = 0..FRAMES;
    Ok(Guest::create(xen, kind, &[ram])?)
}

fn device(path: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Row kernel-dmop-buffers.
fn buffers(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let guest = guest(xen)?;
    let mut op = NrVcpus::default().encode();
    xen.dm_op_of(guest.domid(), &mut op, 2)?;
    is("vCPUs", NrVcpus::decode(&op).vcpus, 1)?;
    // Up to 16 Linux hands on to Xen, which takes two.
    for count in [3, 16, 17] {
        let more = xen.dm_op_of(guest.domid(), &mut op, count);
        is("buffers", (count, errno(more)), (count, Some(libc::E2BIG)))?;
    }
    Ok(())
}

/// Row kernel-mmapbatch-whole.
fn part_of_a_mapping(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let guest = guest(xen)?;
    let place = xen.reserve(3)?;
    let part = place.fill(guest.domid(), &[1, 2]);
    is("a part first", errno(part), Some(libc::EINVAL))?;
    // Frame by frame, all in one call; what was a hole is filled by a later call for a part.
    let hole = FRAMES + 5;
    let all = place.fill(guest.domid(), &[hole, 2, 3])?;
    is("mapped", (all[0] != 0, &all[1..]), (true, &[0, 0][..]))?;
    is("the hole", place.fill(guest.domid(), &[1])?, vec![0])?;
    is("now", place.is_readable(0)?, true)?;
    let again = place.fill(guest.domid(), &[1]);
    is("what is mapped", errno(again), Some(libc::EINVAL))
}

/// Row kernel-mmapbatch-errors.
fn bad_frames(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let guest = guest(xen)?;
    let place = xen.reserve(3)?;
    let errors = place.fill(guest.domid(), &[1, FRAMES + 5, 2])?;
    is(
        "errors",
        errors.iter().map(|errno| *errno != 0).collect(),
        vec![false, true, false],
    )?;
    for (page, readable) in [(0, true), (1, false), (2, true)] {
        is("a load", (page, place.is_readable(page)?), (page, readable))?;
    }
    Ok(())
}

/// Row kernel-restrict-evtchn.
fn restricted_events(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (own, other) = (guest(xen)?, guest(xen)?);
    let (own, other) = (DomId(own.domid()), DomId(other.domid()));
    let events = device("/dev/xen/evtchn")?;
    // The right is of the open file, whoever has a descriptor of it.
    let same = events.try_clone()?;
    let handles = |events: File| -> Result<Handles, Failure> {
        let privcmd = OwnedFd::from(device("/dev/xen/privcmd")?);
        Ok(Handles::from_owned_fds(privcmd, [events.into()])?)
    };
    let here = XenHypervisor::builder(own).handles(handles(events)?);
    let here = here.restrict().build()?;
    let there = XenHypervisor::builder(other)
        .handles(handles(same)?)
        .build()?;
    let refused = |hv: &XenHypervisor| -> Result<Option<ErrorKind>, Failure> {
        let id = hv.create_server(BufIoreq::Atomic)?;
        let port = hv.server_info(id)?.bufioreq_port.ok_or("no ring's port")?;
        let bound = hv.open_events()?.bind(port);
        hv.destroy_server(id)?;
        Ok(bound.err().map(|err| err.kind()))
    };
    is("its own domain's port", refused(&here)?, None)?;
    let expected = Some(ErrorKind::NotPermitted);
    is("another domain's port", refused(&there)?, expected)
}

/// Row kernel-eventfd-ioctls: this kernel is an older one.
fn eventfds(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let guest = guest(xen)?;
    let privcmd = Arc::new(ioreq_xen::Privcmd::open()?);
    let made = IrqFd::new(privcmd, DomId(guest.domid()), &InjectMsi::default());
    let kind = made.err().map(|err| err.kind());
    is("IRQFD", kind, Some(ErrorKind::NotSupported))
}
