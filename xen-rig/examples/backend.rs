// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Xen backend on a real Xen, beyond what the behaviour suite asks of every hypervisor: restricted handles, mappings that are
//! replaced or bounded, domains that leave nothing behind. Servers whose process is killed are `kills.rs`'s.
//!
//! Runs in dom0, as root.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioreq_core::claim::PageTracker;
use ioreq_core::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, Verdict,
    WriteOutcome,
};
use ioreq_core::server::{Exit, IoreqServer};
use ioreq_core::{
    BufIoreq, DomId, DomainState, ErrorKind, EventChannels, EvtchnPort, Gfn, GfnRange, GuestMap,
    LocalPort, MemTypes, MmioRange, Transport,
};
use ioreq_xen::{DeviceModel, Handles, XenHypervisor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use xen_rig::checks::{self, BOUND, Check, Failure, guest, holds, is, runs, store, through};
use xen_rig::{Done, Instr, Leak, Leaks, Privcmd};

const CHECKS: &[Check] = &[
    ("restricted", restricted),
    ("event channels", event_channels),
    ("bounded mappings", bounded_mappings),
    ("ballooned page", ballooned_page),
    ("no zombie", no_zombie),
    ("ownerless pages", ownerless_pages),
    ("leaks are seen", leaks_are_seen),
];

const MMIO: u64 = 0xe000_0000;
/// The tracked page.
const PAGE: u64 = 0x300;

fn main() -> Result<(), Failure> {
    checks::run("backend", CHECKS)
}

fn kind_of<T>(what: &str, result: ioreq_core::Result<T>) -> Result<ErrorKind, Failure> {
    match result {
        Ok(_) => Err(format!("{what} works").into()),
        Err(err) => Ok(err.kind()),
    }
}

fn frames() -> GfnRange {
    GfnRange::single(Gfn(PAGE)).expect("a frame that has an address")
}

/// Keeps what is written to it.
#[derive(Default)]
struct Log(Mutex<Vec<u64>>);

impl Log {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock().expect("no handler panicked"))
    }
}

impl Handler for Log {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        (access.addr ^ 0xff).into()
    }

    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        self.0.lock().expect("no handler panicked").push(value);
        WriteOutcome::Done
    }
}

#[derive(Default)]
struct Count(AtomicU64);

impl PageHandler for Count {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        Verdict::Apply.into()
    }
}

fn mmio() -> MmioRange {
    MmioRange::sized(MMIO, 0x1000).expect("in the address space")
}

/// The domain is not there any more, not even as a zombie. What goes with it goes in the background.
fn is_gone(domid: DomId) -> Result<(), Failure> {
    let privcmd = ioreq_xen::Privcmd::open()?;
    let end = Instant::now() + BOUND;
    while privcmd.maximum_gfn(domid) != Err(libc::ESRCH) {
        holds("the domain goes", Instant::now() < end)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn device(path: &str) -> std::io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(path)?;
    Ok(file.into())
}

/// Handles that were opened before: restricted to one domain, they do all that a server needs, and nothing to another domain.
fn restricted(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (guest, domid) = guest(xen, 1)?;
    let (_other, other) = self::guest(xen, 1)?;
    let handles =
        Handles::from_owned_fds(device("/dev/xen/privcmd")?, [device("/dev/xen/evtchn")?])?;
    let builder = XenHypervisor::builder(domid).handles(handles);
    let hv = Arc::new(builder.ram(GfnRange::new(0, 0xfff)?).restrict().build()?);
    let privcmd = hv.privcmd();
    is("restrict again", privcmd.restrict(domid), Ok(()))?;
    is("elsewhere", privcmd.restrict(other), Err(libc::EINVAL))?;
    let eperm = Some(libc::EPERM);
    is("mem_type", privcmd.mem_type(domid, Gfn(1)).err(), eperm)?;
    is("maximum_gfn", privcmd.maximum_gfn(domid).err(), eperm)?;
    is("acquire", privcmd.acquire(other, 0, 1).err(), eperm)?;
    let dm = DeviceModel::new(Arc::clone(privcmd) as _, other);
    let kind = kind_of("a server elsewhere", dm.create_server(BufIoreq::Off))?;
    is("a server elsewhere", kind, ErrorKind::NotPermitted)?;
    let handles = Handles::open()?.privcmd(Arc::clone(privcmd));
    let mapped = XenHypervisor::builder(other)
        .handles(handles)
        .ram(GfnRange::new(0, 0xf)?)
        .map_in_advance()
        .build();
    let kind = kind_of("a mapping of another domain", mapped)?;
    is("a mapping elsewhere", kind, ErrorKind::NotPermitted)?;

    let server = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv)).build()?;
    let log = Arc::new(Log::default());
    server.route("mmio", mmio(), Arc::clone(&log))?;
    let claim = server.claim_mem_type()?;
    let (tracker, count) = (claim.tracker("page"), Arc::new(Count::default()));
    tracker.track(frames(), Arc::clone(&count) as _)?;
    let running = server.start()?;
    let load = Instr::Load {
        addr: MMIO + 8,
        width: 4,
    };
    let program = [store(MMIO, 5), store(PAGE << 12, 6), load];
    let done = runs(&guest, &program)?;
    is(
        "the read",
        done.last(),
        Some(&Done::Value((MMIO + 8) ^ 0xff)),
    )?;
    is("MMIO", log.take(), vec![5])?;
    is("trapped writes", count.0.load(Ordering::SeqCst), 1)?;
    let kind = kind_of("one handle too many", hv.open_events())?;
    is("one handle too many", kind, ErrorKind::NotPermitted)?;
    drop((tracker, claim));
    is("its state", hv.domain_state()?, DomainState::Running)?;
    drop(guest);
    is("its death", running.wait()?, Exit::DomainGone)?;
    is_gone(domid)
}

fn event_channels(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (_guest, domid) = guest(xen, 1)?;
    let hv = XenHypervisor::open(domid)?;
    let id = hv.create_server(BufIoreq::Atomic)?;
    let port = hv.server_info(id)?.bufioreq_port.ok_or("no ring's port")?;
    let events = hv.open_events()?;
    let local = events.bind(port)?;
    is(
        "twice",
        kind_of("binding twice", events.bind(port))?,
        ErrorKind::InvalidArgument,
    )?;
    let nowhere = events.bind(EvtchnPort(999));
    is(
        "nowhere",
        kind_of("a port of nobody", nowhere)?,
        ErrorKind::InvalidArgument,
    )?;
    let mut fired = [LocalPort(0); 4];
    is("pending at once", events.pending(&mut fired)?, 1)?;
    is("which", fired[0], local)?;
    is("masked", events.pending(&mut fired)?, 0)?;
    events.recover()?;
    events.notify(local)?;
    let stranger = LocalPort(local.0 + 77);
    for result in [
        events.notify(stranger),
        events.unbind(stranger),
        events.unmask(&[stranger]),
    ] {
        is(
            "a stranger",
            kind_of("a stranger", result)?,
            ErrorKind::InvalidArgument,
        )?;
    }
    drop(events); // unbinds
    hv.open_events()?.bind(port)?;
    hv.destroy_server(id)?;
    Ok(())
}

/// With a limit of one chunk, data all over memory is still served, and the mappings stay few.
fn bounded_mappings(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (guest, domid) = guest(xen, 1)?;
    let hv = Arc::new(XenHypervisor::builder(domid).map_on_demand(512).build()?);
    let server = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv)).build()?;
    let log = Arc::new(Log::default());
    server.route("mmio", mmio(), Arc::clone(&log))?;
    let running = server.start()?;
    let before = hv.memory_generation();
    for round in 0..24 {
        let from = 0x20_0000 * (1 + round % 7) + 0x3000;
        let copy = Instr::RepMovs {
            from,
            to: MMIO + 0x40,
            width: 4,
            count: 2,
        };
        runs(
            &guest,
            &[store(from, round), store(from + 4, round + 1), copy],
        )?;
        is("data by address", log.take(), vec![round, round + 1])?;
    }
    holds("turned over", hv.memory_generation() > before + 8)?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mapped = maps.lines().filter(|line| line.contains("privcmd")).count();
    // A chunk each of the worker's and of the current memory, the ioreq page, the rig's own.
    holds(&format!("{mapped} mappings are few"), mapped <= 8)?;
    running.stop()?;
    Ok(())
}

/// The guest gives a page back: an INVALIDATE request, and the page is not handed out any more.
fn ballooned_page(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (guest, domid) = guest(xen, 1)?;
    let hv = Arc::new(XenHypervisor::open(domid)?);
    let server = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv)).build()?;
    let running = server.start()?;
    let at = |gfn: u64| GuestAddress(gfn << 12);
    let old = hv.memory();
    old.write_obj(77_u32, at(0x3a0))?;
    runs(&guest, &[Instr::GiveBack { gfn: 0x3a0 }])?;
    is("INVALIDATE", server.stats().invalidates, 1)?;
    let new = hv.memory();
    holds("another memory", !Arc::ptr_eq(&old, &new))?;
    holds("the page is gone", new.read_obj::<u32>(at(0x3a0)).is_err())?;
    new.read_obj::<u32>(at(0x3a1))?;
    is("the old frame", old.read_obj::<u32>(at(0x3a0))?, 77)?;
    running.stop()?;
    Ok(())
}

/// A server outlives its domain, and nothing of the domain stays: neither its memory nor its pages.
fn no_zombie(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (guest, domid) = guest(xen, 2)?;
    let hv = Arc::new(XenHypervisor::open(domid)?);
    let builder = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv));
    let server = builder.buffered(BufIoreq::Atomic).build()?;
    server.route("mmio", mmio(), Log::default())?;
    let running = server.start()?;
    runs(&guest, &[store(MMIO, 1)])?;
    hv.memory().read_obj::<u32>(GuestAddress(0x30_0000))?;
    drop(guest);
    is("its end", running.wait()?, Exit::DomainGone)?;
    is_gone(domid)?;
    is("its memory", hv.memory().num_regions(), 0)?;
    server.poll()?; // slots of zeros
    drop(server);
    is("its state", hv.domain_state()?, DomainState::Gone)
}

/// An owner that is destroyed without giving the type up leaves pages behind, and stuck vCPUs; they are repaired.
fn ownerless_pages(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    use ioreq_core::abi::dm_op::{DmOp, SetMemType};
    let (guest, domid) = guest(xen, 1)?;
    let hv = XenHypervisor::open(domid)?;
    let all = GfnRange::new(0, 0x10ff)?;
    let owner = hv.create_server(BufIoreq::Off)?;
    let page = hv.ioreq_page(owner)?;
    hv.set_server_state(owner, true)?;
    hv.claim_mem_type(owner)?;
    let mark = SetMemType {
        nr: 3,
        mem_type: 4,
        pad: 0,
        first_pfn: PAGE,
    };
    let marked = hv.privcmd().dm_op(domid, &mut mark.encode(), &mut []);
    is("marking", marked, Ok(()))?;
    drop(page);
    hv.destroy_server(owner)?;
    is(
        "found",
        hv.marked_pages(all)?,
        vec![GfnRange::sized(PAGE, 3)?],
    )?;
    let stuck = guest.start(0, &[store((PAGE + 1) << 12, 0x77)])?;
    holds("it is stuck", !stuck.wait(Duration::from_millis(300))?)?;
    is("repaired", hv.repair_ownerless_pages(all)?, 3)?;
    through(&stuck)?;
    let value: u32 = hv.memory().read_obj(GuestAddress((PAGE + 1) << 12))?;
    is("what the guest wrote", value, 0x77)?;
    let next = hv.create_server(BufIoreq::Off)?;
    hv.claim_mem_type(next)?;
    hv.disclaim_mem_type(next)?;
    hv.destroy_server(next)?;
    Ok(())
}

/// The check that ends every boot sees a domain, a server, a marked page and an open event channel that are left.
fn leaks_are_seen(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    is("before", Leaks::look(xen)?.left, vec![])?;
    let (guest, domid) = guest(xen, 1)?;
    let hv = Arc::new(XenHypervisor::open(domid)?);
    let server = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv)).build()?;
    let claim = server.claim_mem_type()?;
    let tracker = claim.tracker("page");
    tracker.track(frames(), Arc::new(Count::default()) as _)?;
    let found = Leaks::look(xen)?.left;
    println!("backend: left on purpose: {found:?}");
    let domid = domid.0;
    let expected = [
        Leak::Domain {
            domid,
            zombie: false,
        },
        Leak::Server {
            domid,
            id: server.id().0,
        },
        Leak::Marked {
            domid,
            first: PAGE,
            pages: 1,
        },
    ];
    is("found", found.get(..3), Some(&expected[..]))?;
    let to = |leak: &Leak, open| matches!(leak, Leak::Port { domid: to, bound, .. } if *to == domid && *bound == open);
    holds(
        "an open port",
        found.iter().skip(3).any(|leak| to(leak, true)),
    )?;
    // Its mappings keep the domain, and its file descriptors the ports.
    let memory = hv.memory();
    memory.read_obj::<u32>(GuestAddress(0x30_0000))?;
    drop(guest);
    let found = Leaks::look(xen)?.left;
    println!("backend: left on purpose: {found:?}");
    let zombie = Leak::Domain {
        domid,
        zombie: true,
    };
    is("a zombie", found.first(), Some(&zombie))?;
    drop((tracker, claim, server, memory, hv));
    is("after", Leaks::look(xen)?.left, vec![])
}
