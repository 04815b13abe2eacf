// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a migration needs, on a real Xen: log-dirty mode and what is told to it, a server that is replaced while the guest runs, and
//! what a server over restricted handles is told of its domain's life.
//!
//! Runs in dom0, as root.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq_core::claim::PageTracker;
use ioreq_core::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq_core::server::{Exit, IoreqServer, life_line};
use ioreq_core::{
    BufIoreq, DomId, DomainState, ErrorKind, Gfn, GfnRange, GuestMap, MemTypes, MmioRange,
    PortRange, ShutdownReason, Transport,
};
use ioreq_xen::{Handles, XenHypervisor};
use vm_memory::{Bytes, GuestAddress};
use xen_rig::checks::{self, BOUND, Check, Failure, guest, is, runs, store, through};
use xen_rig::{Instr, Privcmd, Program};

const CHECKS: &[Check] = &[
    ("dirty logging", dirty_logging),
    ("replaced", replaced),
    ("restricted life", restricted_life),
];

const MMIO: u64 = 0xe000_0000;
const PORT: u16 = 0x510;
/// The tracked page, and one that is not.
const PAGE: u64 = 0x300;
const DATA: u64 = 0x400;
const RECORD: &str = "/migrate-record";

fn main() -> Result<(), Failure> {
    checks::run("migrate", CHECKS)
}

fn page() -> GfnRange {
    Gfn(PAGE).into()
}

/// Adds up what is written; reads give the address. A write to the MMIO page also stores its value into guest memory.
#[derive(Default)]
struct Sum(Mutex<u64>);

impl Handler for Sum {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        access.addr.into()
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        *self.0.lock().expect("no handler panicked") += value;
        if access.addr >= MMIO {
            let at = GuestAddress((DATA + 2) << 12);
            cx.ram().store(at, access.width, value).ok();
        }
        WriteOutcome::Done
    }
}

#[derive(Default)]
struct Count(AtomicU64);

impl PageHandler for Count {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        PageOutcome::Apply
    }
}

fn mmio() -> MmioRange {
    MmioRange::sized(MMIO, 0x1000).expect("in the address space")
}

fn ports() -> PortRange {
    PortRange::sized(PORT, 8).expect("in the address space")
}

fn dirty_logging(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (guest, domid) = guest(xen, 1)?;
    let hv = Arc::new(XenHypervisor::open(domid)?);
    let server = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv)).build()?;
    let sum = Arc::new(Sum::default());
    server.route("ports", ports(), Arc::clone(&sum))?;
    server.route("mmio", mmio(), sum)?;
    let claim = server.claim_mem_type()?;
    let (tracker, count) = (claim.tracker("page"), Arc::new(Count::default()));
    tracker.track(page(), Arc::clone(&count) as _)?;
    let running = server.start()?;
    let refused = guest.log_dirty(true).map_err(|err| err.raw_os_error());
    is("log-dirty mode with a page marked", refused, Err(Some(16)))?; // EBUSY
    claim.suspend(BOUND)?;
    is("pages marked", claim.marked_pages(), 0)?;
    guest.log_dirty(true)?;
    let refused = claim.resume().err().map(|err| err.kind());
    is(
        "marking in log-dirty mode",
        refused,
        Some(ErrorKind::WrongState),
    )?;
    claim.settle(BOUND)?;

    // Stores of the server's own: data of a port and of MMIO, and a handler's.
    let stores = [
        Instr::RepIns {
            port: PORT,
            to: DATA << 12,
            width: 4,
            count: 4,
        },
        Instr::RepMovs {
            from: MMIO,
            to: (DATA + 1) << 12,
            width: 4,
            count: 4,
        },
        store(MMIO, 7),
    ];
    let ours = |dirty: Vec<u64>| {
        let ours = dirty
            .into_iter()
            .filter(|gfn| (DATA..DATA + 4).contains(gfn));
        ours.collect::<Vec<_>>()
    };
    guest.dirty(0x1000)?;
    runs(&guest, &stores)?;
    is("dirty, not told", ours(guest.dirty(0x1000)?), vec![])?;
    server.set_dirty_logging(true)?;
    runs(&guest, &stores)?;
    is(
        "dirty, told",
        ours(guest.dirty(0x1000)?),
        vec![DATA, DATA + 1, DATA + 2],
    )?;
    is("dirty once", ours(guest.dirty(0x1000)?), vec![])?;
    server
        .dma()
        .write(GuestAddress((DATA + 3) << 12), &[1; 16])?;
    is(
        "a device's store",
        ours(guest.dirty(0x1000)?),
        vec![DATA + 3],
    )?;
    runs(&guest, &[store(DATA << 12, 1)])?;
    is("the guest's own", ours(guest.dirty(0x1000)?), vec![DATA])?;
    is("not told", server.stats().dirty_faults, 0)?;

    server.set_dirty_logging(false)?;
    guest.log_dirty(false)?;
    claim.resume()?;
    let before = count.0.load(Ordering::SeqCst);
    runs(&guest, &[store(PAGE << 12, 9)])?;
    is("traps again", count.0.load(Ordering::SeqCst) - before, 1)?;
    drop((tracker, claim));
    running.stop()?;
    Ok(())
}

/// Stores of each vCPU's program.
const STORES: u64 = 24;
/// Device models, one after another.
const MODELS: u64 = 10;

fn place(vcpu: u64, at: u64) -> u64 {
    (PAGE << 12) + 8 * (vcpu * STORES + at)
}

/// Two vCPUs write to a tracked page and to a port, while one device model is replaced by the next.
fn replaced(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (guest, domid) = guest(xen, 2)?;
    let sum = Arc::new(Sum::default());
    let mut saved = None;
    let mut programs: Vec<Program> = Vec::new();
    let mut expected = 0;
    for model in 1..=MODELS {
        let hv = Arc::new(XenHypervisor::open(domid)?);
        let builder = IoreqServer::<XenHypervisor>::builder(hv).identity("the rig's domain");
        let server = match saved {
            None => builder.record(RECORD).build()?,
            Some(_) => builder.take_over(RECORD).build()?,
        };
        let claim = server.claim_mem_type()?;
        let tracker = claim.tracker("page");
        let count = Arc::new(Count::default());
        match saved {
            None => {
                server.route("ports", ports(), Arc::clone(&sum))?;
                tracker.track(page(), count)?;
            }
            Some(saved) => {
                let saved: ioreq_core::server::SavedServer = saved;
                saved.restore_routes(&server, |_, _| Some(Arc::clone(&sum) as _))?;
                let pages: Vec<_> = saved.pages("page").collect();
                is("the saved pages", pages, vec![page()])?;
                tracker.track(page(), count)?;
            }
        }
        let running = server.start()?;
        // What waited for this one.
        for program in programs.drain(..) {
            through(&program)?;
        }
        for vcpu in [0_u64, 1] {
            let each = |at| {
                let value = u32::try_from(model + at).unwrap_or_default();
                let out = Instr::Out {
                    port: PORT,
                    width: 4,
                    value,
                };
                [store(place(vcpu, at), model << 16 | vcpu << 8 | at), out]
            };
            let program: Vec<Instr> = (0..STORES).flat_map(each).collect();
            programs.push(guest.start(u32::try_from(vcpu)?, &program)?);
            expected += (0..STORES).map(|at| model + at).sum::<u64>();
        }
        std::thread::sleep(Duration::from_millis(3 * model));
        if model == MODELS {
            for program in programs.drain(..) {
                through(&program)?;
            }
        }
        running.stop()?;
        let quiesced = server.quiesce(BOUND)?;
        is("pages marked at rest", claim.marked_pages(), 0)?;
        saved = Some(quiesced.save());
        if model < MODELS {
            quiesced.leave()?;
        }
    }
    let hv = XenHypervisor::open(domid)?;
    for (vcpu, at) in (0..2).flat_map(|vcpu| (0..STORES).map(move |at| (vcpu, at))) {
        let got: u32 = hv.memory().read_obj(GuestAddress(place(vcpu, at)))?;
        is(
            "what the guest wrote",
            u64::from(got),
            MODELS << 16 | vcpu << 8 | at,
        )?;
    }
    let got = *sum.0.lock().expect("no handler panicked");
    is("what it wrote to the port", got, expected)?;
    is("marked pages", hv.marked_pages(page())?, vec![])?;
    is("the domain", hv.domain_state()?, DomainState::Running)
}

fn device(path: &str) -> std::io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(path)?;
    Ok(file.into())
}

fn restricted(domid: DomId) -> Result<Arc<XenHypervisor>, Failure> {
    let (privcmd, evtchn) = (device("/dev/xen/privcmd")?, device("/dev/xen/evtchn")?);
    let handles = Handles::from_owned_fds(privcmd, [evtchn])?;
    let builder = XenHypervisor::builder(domid).handles(handles);
    let hv = builder.ram(GfnRange::new(0, 0xfff)?).restrict().build()?;
    Ok(Arc::new(hv))
}

/// A domain that shut down answers a restricted handle as one that runs; who may ask tells.
fn restricted_life(xen: &Arc<Privcmd>) -> Result<(), Failure> {
    let (_guest, domid) = guest(xen, 1)?;
    let hv = restricted(domid)?;
    let (watch, notice) = life_line()?;
    let builder = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv));
    let server = builder.domain_notice(notice).build()?;
    let privileged = XenHypervisor::open(domid)?;
    let watching = std::thread::spawn(move || watch.run(&privileged).map_err(|err| err.kind()));
    let running = server.start()?;
    hv.device_model().remote_shutdown(ShutdownReason::Suspend)?;
    is(
        "its shutdown",
        running.wait()?,
        Exit::Shutdown(ShutdownReason::Suspend),
    )?;

    // Of a domain that has shut down no operation says so.
    let open = XenHypervisor::open(domid)?;
    let shutdown = DomainState::Shutdown(ShutdownReason::Suspend);
    is("who may ask", open.domain_state()?, shutdown)?;
    is("who may not", hv.domain_state()?, DomainState::Running)?;
    hv.vcpus()?;
    hv.server_info(server.id())?;
    hv.set_server_state(server.id(), true)?;
    let id = hv.create_server(BufIoreq::Off)?;
    hv.claim_mem_type(id)?;
    hv.disclaim_mem_type(id)?;
    hv.destroy_server(id)?;
    hv.modified(&[page()])?;
    hv.memory().read_obj::<u32>(GuestAddress(DATA << 12))?;

    // Without anybody who tells, its death is told all the same: also to who has taken the server over.
    drop(server);
    let server = IoreqServer::<XenHypervisor>::builder(restricted(domid)?).build()?;
    let heir = restricted(domid)?;
    let _page = heir.ioreq_page(server.id())?;
    let running = server.start()?;
    std::thread::sleep(Duration::from_millis(300));
    is("told", running.is_finished(), false)?;
    drop(_guest);
    is("its death", running.wait()?, Exit::DomainGone)?;
    is("to its heir", heir.domain_state()?, DomainState::Gone)?;
    let watched = watching
        .join()
        .map_err(|_| "the watching thread panicked")?;
    is("nobody listens any more", watched.is_err(), true)
}
