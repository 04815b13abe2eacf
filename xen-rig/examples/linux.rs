// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What dom0's Linux does, not Xen: limits and rights of `/dev/xen/privcmd` and `/dev/xen/evtchn`. The rows `kernel-*` of
//! `docs/xen-behaviour.toml` that a model without device nodes cannot show.
//!
//! Runs in dom0, as root.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioreq_core::abi::dm_op::{DmOp, InjectMsi, NrVcpus};
use ioreq_core::{BufIoreq, ErrorKind, EventChannels, Transport};
use ioreq_xen::{Handles, IrqFd, XenHypervisor};
use xen_rig::Privcmd;
use xen_rig::checks::{self, Check, Failure, guest, is};

const CHECKS: &[Check] = &[
    ("buffers of a DMOP", buffers),
    ("a part of a mapping", part_of_a_mapping),
    ("frames that cannot be mapped", bad_frames),
    ("restricted event channels", restricted_events),
    ("eventfds", eventfds),
];

/// Beyond every domain's memory.
const NOWHERE: u64 = 0x1005;

fn main() -> Result<(), Failure> {
    checks::run("linux", CHECKS)
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|err| err.raw_os_error())
}

fn device(path: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Row kernel-dmop-buffers.
fn buffers(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (_guest, domid) = guest(xen, 1)?;
    let mut op = NrVcpus::default().encode();
    xen.dm_op_of(domid.0, &mut op, 2)?;
    is("vCPUs", NrVcpus::decode(&op).vcpus, 1)?;
    // Up to 16 Linux hands on to Xen, which takes two.
    for count in [3, 16, 17] {
        let more = xen.dm_op_of(domid.0, &mut op, count);
        is("buffers", (count, errno(more)), (count, Some(libc::E2BIG)))?;
    }
    Ok(())
}

/// Row kernel-mmapbatch-whole.
fn part_of_a_mapping(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (_guest, domid) = guest(xen, 1)?;
    let place = xen.reserve(3)?;
    let part = place.fill(domid.0, &[1, 2]);
    is("a part first", errno(part), Some(libc::EINVAL))?;
    // Frame by frame, all in one call; what was a hole is filled by a later call for a part.
    let all = place.fill(domid.0, &[NOWHERE, 2, 3])?;
    is("mapped", (all[0] != 0, &all[1..]), (true, &[0, 0][..]))?;
    is("the hole", place.fill(domid.0, &[1])?, vec![0])?;
    is("now", place.is_readable(0)?, true)?;
    let again = place.fill(domid.0, &[1]);
    is("what is mapped", errno(again), Some(libc::EINVAL))
}

/// Row kernel-mmapbatch-errors.
fn bad_frames(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (_guest, domid) = guest(xen, 1)?;
    let place = xen.reserve(3)?;
    let errors = place.fill(domid.0, &[1, NOWHERE, 2])?;
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
    let ((_own, own), (_other, other)) = (guest(xen, 1)?, guest(xen, 1)?);
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
    let (_guest, domid) = guest(xen, 1)?;
    let privcmd = Arc::new(ioreq_xen::Privcmd::open()?);
    let made = IrqFd::new(privcmd, domid, &InjectMsi::default());
    let kind = made.err().map(|err| err.kind());
    is("IRQFD", kind, Some(ErrorKind::NotSupported))
}
