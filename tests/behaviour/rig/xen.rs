// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A real Xen as a rig: the suite runs in its dom0, and domains have an agent that executes guest instructions.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ioreq_core::hypervisor::SharedPage;
use ioreq_core::{DomId, Gfn, GfnRange, ServerId, Transport, VcpuId};
use ioreq_xen::{Handles, XenEvents, XenHypervisor};
use xen_rig::{Done, Fate, Guest, Instr, Kind, Leaks, Privcmd, Program};

use super::{
    Ability, DmOp, Domain, End, Errno, GuestOp, OpResult, Options, Outcome, Rig, Run, Version,
};
use crate::support::layout::{GIVEN_BACK, RAM_FRAMES};

/// After so long a vCPU that must come back is called stuck.
const STUCK: Duration = Duration::from_secs(5);
/// So long a vCPU that must not come back is watched.
const WATCHED: Duration = Duration::from_millis(300);
/// Event-channel handles of a process: as many as a test makes servers in one.
const EVENT_HANDLES: usize = 12;

/// The Xen that this runs on.
#[derive(Debug)]
pub(crate) struct XenRig {
    xen: Arc<Privcmd>,
    version: Version,
}

fn errno(err: &io::Error) -> Errno {
    err.raw_os_error().unwrap_or(libc::EIO)
}

impl XenRig {
    /// # Errors
    /// Where there is no Xen, or none that the rows know.
    pub(crate) fn new() -> io::Result<Self> {
        let xen = Arc::new(Privcmd::open()?);
        let version = match xen.version()? {
            (4, 17) => Version::V4_17,
            (4, 20) => Version::V4_20,
            (major, minor) => {
                let what = format!("the rows do not tell of Xen {major}.{minor}");
                return Err(io::Error::other(what));
            }
        };
        Ok(XenRig { xen, version })
    }
}

impl XenRig {
    /// What tests left behind in Xen.
    ///
    /// # Errors
    /// Xen's.
    pub(crate) fn leaks(&self) -> io::Result<Leaks> {
        Leaks::look(&self.xen)
    }
}

/// A DMOP on the running Xen.
fn dm_op(xen: &Privcmd, domid: u16, op: &mut DmOp, buffer: &mut [u8]) -> Result<(), Errno> {
    op.by_bytes(|bytes| xen.dm_op(domid, bytes, buffer).map_err(|err| errno(&err)))
}

impl Rig for XenRig {
    type Domain = XenDomain;

    fn name(&self) -> &str {
        match self.version {
            Version::V4_17 => "xen-4.17",
            Version::V4_20 => "xen-4.20",
        }
    }

    fn version(&self) -> Version {
        self.version
    }

    fn has(&self, ability: Ability) -> bool {
        match ability {
            // Debian's Xen has no shadow paging; Linux's ring has room for an event of every port that is bound; what Xen looks
            // at between two instructions of ours is luck; and everything of ours runs in dom0.
            Ability::NoHap | Ability::EventOverflow | Ability::TwoLooks | Ability::StubDomain => {
                false
            }
        }
    }

    fn survives_panic(&self) -> bool {
        false
    }

    fn attempts(&self) -> u32 {
        50
    }

    fn create(&self, options: Options) -> Result<XenDomain, Errno> {
        let kind = Kind {
            vcpus: options.vcpus,
            hap: options.hap,
            full: options.full,
        };
        let frames = [0..0xa0, 0xc0..RAM_FRAMES];
        let guest = Guest::create(&self.xen, kind, &frames).map_err(|err| {
            println!("a domain could not be made: {err}");
            errno(&err)
        })?;
        Ok(XenDomain {
            xen: Arc::clone(&self.xen),
            guest,
            event_files: Mutex::default(),
        })
    }

    fn dm_op(&self, domid: DomId, op: &mut DmOp) -> Result<(), Errno> {
        dm_op(&self.xen, domid.0, op, &mut [])
    }
}

/// A domain of the running Xen.
#[derive(Debug)]
pub(crate) struct XenDomain {
    xen: Arc<Privcmd>,
    guest: Guest,
    /// The event-channel files of each process, by the address of its privcmd handle.
    event_files: Mutex<HashMap<usize, Vec<RawFd>>>,
}

/// What tells a process of the tests from another.
fn identity(process: &XenHypervisor) -> usize {
    Arc::as_ptr(process.privcmd()).addr()
}

fn open(path: &str) -> OwnedFd {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.unwrap_or_else(|err| panic!("{path}: {err}")).into()
}

impl Domain for XenDomain {
    type Process = XenHypervisor;
    type Run = XenRun;

    fn process(&self) -> XenHypervisor {
        let events: Vec<OwnedFd> = (0..EVENT_HANDLES)
            .map(|_| open("/dev/xen/evtchn"))
            .collect();
        let files = events.iter().map(AsRawFd::as_raw_fd).collect();
        let handles = Handles::from_owned_fds(open("/dev/xen/privcmd"), events);
        let below = GfnRange::new(0, 0x9f).expect("below the VGA hole");
        let above = GfnRange::new(0xc0, RAM_FRAMES - 1).expect("above the VGA hole");
        let process = XenHypervisor::builder(DomId(self.guest.domid()))
            .handles(handles.expect("open files"))
            .ram(below)
            .ram(above)
            .build()
            .expect("a process of the domain");
        self.event_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(identity(&process), files);
        process
    }

    /// What the kernel does for a process that is killed, as far as others see it: its event channels are closed. What it mapped
    /// goes too, which nobody sees.
    fn kill(&self, process: &XenHypervisor) {
        let files = self
            .event_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&identity(process));
        let nothing = File::open("/dev/null").expect("/dev/null");
        for file in files.unwrap_or_default() {
            // SAFETY: both are open files of this process; the second is replaced by the first at once, so its number stays in use.
            let result = unsafe { libc::dup2(nothing.as_raw_fd(), file) };
            assert_eq!(result, file, "{}", io::Error::last_os_error());
        }
    }

    fn dm_op(&self, op: &mut DmOp, buffer: &mut [u8]) -> Result<(), Errno> {
        dm_op(&self.xen, self.guest.domid(), op, buffer)
    }

    fn acquire(&self, id: ServerId, frame: u64) -> Result<SharedPage, Errno> {
        let process = self.process();
        let frame = u32::try_from(frame).expect("a frame number");
        process.privcmd().acquire(process.domid(), id.0, frame)
    }

    fn mem_type(&self, gfn: Gfn) -> u16 {
        self.guest.mem_type(gfn.0).expect("HVMOP_get_mem_type")
    }

    fn log_dirty(&self, on: bool) -> Result<(), Errno> {
        self.guest.log_dirty(on).map_err(|err| errno(&err))
    }

    fn pause(&self) {
        self.guest.pause().expect("pausedomain");
    }

    fn unpause(&self) {
        self.guest.unpause().expect("unpausedomain");
    }

    fn start(&self, vcpu: VcpuId, ops: &[GuestOp]) -> XenRun {
        let program: Vec<Instr> = ops.iter().map(|op| instr(*op)).collect();
        let program = self.guest.start(vcpu.0, &program);
        XenRun(program.expect("wake the vCPU"))
    }

    fn end(&self) -> Option<End> {
        end(self.guest.fate().expect("getdomaininfo"))
    }

    fn overflow(&self, _: &XenEvents) {
        unreachable!("the rig says that it cannot")
    }
}

fn end(fate: Fate) -> Option<End> {
    match fate {
        Fate::Alive => None,
        Fate::Shutdown(3) => Some(End::Crashed("Xen's log says why".into())),
        fate => Some(End::Shutdown(format!("{fate:?}"))),
    }
}

/// A program that a vCPU executes.
#[derive(Debug)]
pub(crate) struct XenRun(Program);

impl Run for XenRun {
    fn is_back(&self) -> bool {
        self.0.is_finished() || self.0.fate().is_ok_and(|fate| fate != Fate::Alive)
    }

    fn join(self) -> Outcome {
        let through = self.0.wait(STUCK).expect("getdomaininfo");
        let end = match self.0.fate() {
            _ if through => End::Back,
            Ok(fate) => end(fate).unwrap_or(End::Stuck),
            Err(err) => End::Shutdown(err.to_string()),
        };
        let result = |done: Done| match done {
            Done::Plain => OpResult::Done,
            Done::Value(value) => OpResult::Value(value),
            Done::Fault => OpResult::Fault,
        };
        let results = self.0.results().into_iter().map(result).collect();
        Outcome { results, end }
    }

    fn stays_away(&self) -> bool {
        thread::sleep(WATCHED);
        !self.is_back()
    }
}

/// One operation as an instruction of the agent's.
fn instr(op: GuestOp) -> Instr {
    let bytes = |width: ioreq_core::Width| u8::try_from(width.bytes()).expect("1 to 8");
    let config = |function: ioreq_core::Sbdf, register: u8| {
        let device = u32::from(function.device()) << 3 | u32::from(function.function());
        let address = 1 << 31 | u32::from(function.bus()) << 16 | device << 8;
        let address = address | u32::from(register & !3);
        (address, 0xcfc + u16::from(register & 3))
    };
    match op {
        GuestOp::In { port, width } => Instr::In {
            port,
            width: bytes(width),
        },
        GuestOp::Out { port, width, value } => Instr::Out {
            port,
            width: bytes(width),
            value,
        },
        GuestOp::Load { addr, width } => Instr::Load {
            addr,
            width: bytes(width),
        },
        GuestOp::Store { addr, width, value } => Instr::Store {
            addr,
            width: bytes(width),
            value,
        },
        GuestOp::Store16 { addr, value } => Instr::Store16 { addr, value },
        GuestOp::RepStos {
            addr,
            width,
            value,
            count,
        } => Instr::RepStos {
            addr,
            width: bytes(width),
            value,
            count: count.into(),
        },
        GuestOp::RepStosDown {
            addr,
            width,
            value,
            count,
        } => Instr::RepStosDown {
            addr,
            width: bytes(width),
            value,
            count: count.into(),
        },
        GuestOp::RepMovs {
            from,
            to,
            width,
            count,
        } => Instr::RepMovs {
            from,
            to,
            width: bytes(width),
            count: count.into(),
        },
        GuestOp::RepMovsDown {
            from,
            to,
            width,
            count,
        } => Instr::RepMovsDown {
            from,
            to,
            width: bytes(width),
            count: count.into(),
        },
        GuestOp::RepIns {
            port,
            to,
            width,
            count,
        } => Instr::RepIns {
            port,
            to,
            width: bytes(width),
            count: count.into(),
        },
        GuestOp::RepOuts {
            port,
            from,
            width,
            count,
        } => Instr::RepOuts {
            port,
            from,
            width: bytes(width),
            count: count.into(),
        },
        GuestOp::LockAdd { addr, width, value } => Instr::LockAdd {
            addr,
            width: bytes(width),
            value,
        },
        GuestOp::Or { addr, width, value } => Instr::Or {
            addr,
            width: bytes(width),
            value,
        },
        GuestOp::Xchg { addr, width, value } => Instr::Xchg {
            addr,
            width: bytes(width),
            value,
        },
        GuestOp::Cmpxchg {
            addr,
            width,
            expected,
            new,
        } => Instr::Cmpxchg {
            addr,
            width: bytes(width),
            expected,
            new,
        },
        GuestOp::Fetch { addr } => Instr::Fetch { addr },
        GuestOp::PciRead {
            function,
            register,
            width,
        } => {
            let (address, port) = config(function, register);
            Instr::PciRead {
                address,
                port,
                width: bytes(width),
            }
        }
        GuestOp::PciWrite {
            function,
            register,
            width,
            value,
        } => {
            let (address, port) = config(function, register);
            Instr::PciWrite {
                address,
                port,
                width: bytes(width),
                value,
            }
        }
        GuestOp::RtcSet => Instr::RtcSet,
        GuestOp::Await { addr, value } => Instr::Await { addr, value },
        GuestOp::ChangeMemoryMap => Instr::GiveBack { gfn: GIVEN_BACK.0 },
    }
}
