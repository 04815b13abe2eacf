// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One domain, from its making to its end. A guest that reboots gets another domain, with another id, and so other servers.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ioreq::replay::Tape;
use ioreq::server::Exit;
use ioreq::stats::prometheus;
use ioreq::xen::XenHypervisor;
use ioreq::{DomId, GfnRange, GuestMap};
use linux_boot::acpi::{Devices, PciHost, VirtioMmio, gsi_of_slot};
use linux_boot::domain::LinuxDomain;
use linux_boot::{Boot, layout};
use linux_dm::board::{Board, DISK_SLOT, ENTROPY, ENTROPY_SLOT, Failure, Parts};
use linux_dm::metrics::Metrics;
use linux_dm::replay::Settings;
use linux_dm::rescue::frames_at;
use linux_dm::virtio::Fuse;
use linux_dm::watcher::WatcherStats;
use xen_rig::Privcmd;

use crate::options::Options;
use crate::origin::Origin;
use crate::screen::{Screen, Voice};
use crate::script::{Listener, Script};

/// After so long without a request while pages are tracked, a vCPU's place is looked up.
const QUIET: Duration = Duration::from_millis(50);

/// How often a sign of life is given.
const TELL: Duration = Duration::from_secs(30);

/// What the guest is told that it has.
fn devices() -> Devices {
    Devices {
        com1: true,
        pci: Some(PciHost {
            memory: 0xe000_0000..=0xefff_ffff,
            ports: 0xc000..=0xcfff,
            slots: vec![DISK_SLOT],
        }),
        virtio_mmio: vec![VirtioMmio {
            address: ENTROPY,
            gsi: gsi_of_slot(ENTROPY_SLOT),
        }],
    }
}

/// A domain with a board that is ready to serve it.
struct Ready {
    domain: LinuxDomain,
    hypervisor: Arc<XenHypervisor>,
    board: Board<XenHypervisor>,
    listener: Listener,
    tape: Tape,
}

impl Ready {
    /// Of a domain; what the guest printed to a process before this one is not seen again.
    fn new(
        options: &Options,
        origin: &Origin,
        domain: LinuxDomain,
        hypervisor: Arc<XenHypervisor>,
        script: Script,
        voice: &Voice,
    ) -> Result<Self, Failure> {
        let (line, listener) = script.play(options.quiet, voice.clone());
        let (ended, told) = (Arc::clone(&hypervisor), voice.clone());
        let tape = tape(options)?;
        let parts = Parts {
            disk: open(&options.disk, File::options().read(true).write(true))?,
            mib: options.memory,
            out: Box::new(line.clone()),
            fuse: match options.kill_after {
                Some(points) => Fuse::once(points, die),
                None => Fuse::every(options.kill_disk),
            },
            end: Box::new(move |reason| {
                if let Err(err) = ended.device_model().remote_shutdown(reason) {
                    told.say(format_args!(
                        "linux-dm: the domain cannot be shut down: {err}"
                    ));
                }
            }),
            servers: origin.servers(),
            tape: tape.clone(),
        };
        let board = Board::new(&hypervisor, parts)?;
        if let Origin::TakenOver(life, _) = origin {
            board.restore(life.board.clone(), Box::new(line))?;
        }
        origin.keep(domain.domid(), &board, voice);
        Ok(Ready {
            domain,
            hypervisor,
            board,
            listener,
            tape,
        })
    }

    /// A new domain, with a kernel in it.
    fn boot(
        options: &Options,
        xen: &Arc<Privcmd>,
        script: Script,
        origin: &Origin,
        voice: &Voice,
    ) -> Result<Self, Failure> {
        let began = Instant::now();
        let domain = LinuxDomain::new(xen, options.vcpus, options.memory)?;
        let hypervisor = Arc::new(hypervisor(options, domain.domid())?);
        let boot = Boot {
            kernel: open(&options.kernel, File::options().read(true))?,
            ram_disk: match &options.initrd {
                Some(path) => Some(open(path, File::options().read(true))?),
                None => None,
            },
            command_line: &options.cmdline,
            mib: options.memory,
            vcpus: options.vcpus,
            devices: &devices(),
        };
        let loaded = boot.load(&*hypervisor.memory())?;
        domain.enter(&loaded)?;
        println!(
            "linux-dm: domain {} after {:.1} s: kernel at {:#x}, up to {:#x}",
            domain.domid(),
            began.elapsed().as_secs_f32(),
            loaded.entry,
            loaded.kernel_end
        );
        Self::new(options, origin, domain, hypervisor, script, voice)
    }
}

/// As `kill -9` from elsewhere: nothing of this process runs any more.
fn die() {
    println!("linux-dm: dies");
    let id = std::process::id().to_string();
    let _killed = Command::new("kill").args(["-KILL", &id]).status();
    loop {
        thread::park();
    }
}

/// Serves a domain to its end: one that it makes and boots, or one that another process left behind. Returns how it ended, and what of the
/// script is left.
pub(crate) fn live(
    options: &Options,
    xen: &Arc<Privcmd>,
    script: Script,
    origin: &Origin,
) -> Result<(Exit, Script), Failure> {
    let voice = Voice::default();
    let ready = match origin {
        Origin::TakenOver(life, _) => {
            let domain = LinuxDomain::adopt(xen, life.domid, options.vcpus)?;
            let hypervisor = Arc::new(hypervisor(options, life.domid)?);
            println!("linux-dm: takes over domain {}", life.domid);
            Ready::new(options, origin, domain, hypervisor, script, &voice)?
        }
        _ => Ready::boot(options, xen, script, origin, &voice)?,
    };
    let Ready {
        domain,
        hypervisor,
        board,
        listener,
        tape,
    } = ready;
    let metrics = match &options.metrics {
        Some(path) => Some(metrics(path, &board)?),
        None => None,
    };
    let screen = match options.live {
        true => Some(Screen::show(&voice, board.reporter())?),
        false => None,
    };
    let serving = board.start()?;
    let began = Instant::now();
    if !matches!(origin, Origin::TakenOver(..)) {
        domain.unpause()?;
    }
    // The line ends with the console, so who listens there must not keep it.
    let console = Arc::downgrade(board.console());
    let typist = thread::spawn(move || listener.listen(&console));
    let exit = thread::scope(|scope| {
        let (on, waiting) = channel();
        scope.spawn(|| guard(&domain, &hypervisor, &board, options.vcpus, waiting, &voice));
        let exit = serving.wait();
        drop(on);
        exit
    })?;
    drop((screen, metrics));
    println!(
        "linux-dm: {exit:?} after {:.1} s",
        began.elapsed().as_secs_f32()
    );
    report(&board);
    drop(board);
    tape.close();
    if let Some(path) = &options.record {
        println!(
            "linux-dm: recorded: {} bytes in {}",
            path.metadata()?.len(),
            path.display()
        );
    }
    let script = typist
        .join()
        .map_err(|_| "the console's thread panicked")??;
    Ok((exit, script))
}

fn hypervisor(options: &Options, domid: u16) -> Result<XenHypervisor, Failure> {
    let mut builder = XenHypervisor::builder(DomId(domid)).vcpus(options.vcpus);
    for frames in layout::frames(options.memory) {
        builder = builder.ram(GfnRange::new(frames.start, frames.end - 1)?);
    }
    Ok(builder.build()?)
}

/// Sees that no vCPU stands still because it executes from a tracked page, until the other end of `on` is gone.
fn guard(
    domain: &LinuxDomain,
    hypervisor: &XenHypervisor,
    board: &Board<XenHypervisor>,
    vcpus: u32,
    on: Receiver<()>,
    voice: &Voice,
) {
    let (mut before, mut told) = (0, Instant::now());
    while let Err(RecvTimeoutError::Timeout) = on.recv_timeout(QUIET) {
        let requests = board.server().stats().requests();
        if told.elapsed() > TELL {
            told = Instant::now();
            voice.say(format_args!(
                "linux-dm: at work: {requests} requests; disk {}",
                board.disk().stats()
            ));
        }
        let WatcherStats {
            marked, unmarked, ..
        } = board.watcher().stats();
        if requests == std::mem::replace(&mut before, requests) && marked > unmarked {
            let ram = hypervisor.memory();
            for place in (0..vcpus).filter_map(|vcpu| domain.place(vcpu).ok()) {
                for gfn in frames_at(&*ram, place.cr3, place.rip) {
                    if board.watcher().give_back(gfn) {
                        let rip = place.rip;
                        voice.say(format_args!(
                            "linux-dm: rescued: code at {rip:#x}, tracked {gfn}"
                        ));
                    }
                }
            }
        }
    }
}

/// What the devices are recorded with, if they are to be.
fn tape(options: &Options) -> Result<Tape, Failure> {
    let Some(path) = &options.record else {
        return Ok(Tape::default());
    };
    let to = open(
        path,
        File::options().write(true).create(true).truncate(true),
    )?;
    let settings = Settings::of(options.vcpus, options.memory, &options.disk)?;
    Ok(settings.record(to)?)
}

/// A page for Prometheus at a socket.
fn metrics(path: &Path, board: &Board<XenHypervisor>) -> Result<Metrics, Failure> {
    let reporter = board.reporter();
    let page = move || {
        let reports = reporter();
        let reports: Vec<_> = reports
            .iter()
            .map(|(name, report)| (*name, report))
            .collect();
        prometheus(&reports)
    };
    Metrics::serve(path, page).map_err(|err| format!("{}: {err}", path.display()).into())
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, Failure> {
    let file = options.open(path);
    file.map_err(|err| format!("{}: {err}", path.display()).into())
}

fn report(board: &Board<XenHypervisor>) {
    println!("linux-dm: disk {}", board.disk().stats());
    println!("linux-dm: entropy {}", board.entropy().stats());
    let WatcherStats {
        writes,
        marked,
        unmarked,
    } = board.watcher().stats();
    println!("linux-dm: watcher {writes} writes, {marked} pages marked, {unmarked} unmarked");
    println!("linux-dm: nobody has {}", board.nobody());
    let stats = board.server().stats();
    let latency = |share| stats.latency.percentile(share).unwrap_or(0) / 1000;
    println!(
        "linux-dm: {} requests, {} deferred, {} refused; served in {} us, the slowest of a hundred in {} us",
        stats.requests(),
        stats.deferred,
        stats.refused,
        latency(0.5),
        latency(0.99)
    );
}
