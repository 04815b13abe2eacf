// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Xen in whose dom0 this runs: domains have the rig's agent in them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use ioreq::xen::XenHypervisor;
use ioreq::{DomId, Gfn, ShutdownReason};
use xen_rig::{Done, Fate, Guest as RigGuest, Instr, Kind, Leak, Leaks, Privcmd};

use super::{Ended, Guest, Platform, Vcpu};
use crate::Failure;

/// A program may take so long.
const STUCK: Duration = Duration::from_secs(60);
/// Between two looks at a program.
const LOOK: Duration = Duration::from_micros(500);

/// A real Xen.
#[derive(Debug)]
pub(crate) struct Xen {
    privcmd: Arc<Privcmd>,
    version: (u16, u16),
}

impl Xen {
    pub(crate) fn new() -> Result<Self, Failure> {
        let privcmd = Arc::new(Privcmd::open()?);
        let version = privcmd.version()?;
        Ok(Xen { privcmd, version })
    }
}

impl Platform for Xen {
    type Hv = XenHypervisor;
    type Guest = Domain;

    fn name(&self) -> String {
        let (major, minor) = self.version;
        format!("Xen {major}.{minor}")
    }

    fn guest(&self, vcpus: u32) -> Result<Domain, Failure> {
        let kind = Kind {
            vcpus,
            hap: true,
            full: true,
        };
        let guest = RigGuest::create(&self.privcmd, kind, &xen_rig::checks::RAM)?;
        Ok(Domain {
            privcmd: Arc::clone(&self.privcmd),
            domid: guest.domid(),
            guest: RwLock::new(Some(guest)),
            ends: AtomicBool::new(false),
        })
    }

    fn program_len(&self) -> usize {
        32
    }

    fn takes_turns(&self) -> bool {
        true
    }

    fn round_length(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Other processes of dom0 may have domains, too: those of this one are looked at round by round.
    fn left_behind(&self) -> Result<Option<String>, Failure> {
        Ok(None)
    }
}

/// A domain of Xen's; gone once it was destroyed.
#[derive(Debug)]
pub(crate) struct Domain {
    privcmd: Arc<Privcmd>,
    domid: u16,
    guest: RwLock<Option<RigGuest>>,
    /// Its end was asked for.
    ends: AtomicBool,
}

impl Domain {
    /// What it is that a vCPU, or a call, does not go on.
    fn ended(&self, what: String) -> Ended {
        match self.ends.load(Ordering::SeqCst) {
            true => Ended::Gone,
            false => Ended::Wrong(what),
        }
    }

    /// Does something with the domain, if it is still there.
    fn with<T>(&self, what: impl FnOnce(&RigGuest) -> std::io::Result<T>) -> Result<T, Ended> {
        let guest = self.guest.read().unwrap_or_else(PoisonError::into_inner);
        let guest = guest.as_ref().ok_or(Ended::Gone)?;
        what(guest).map_err(|err| self.ended(err.to_string()))
    }

    fn open(&self) -> Result<XenHypervisor, Failure> {
        Ok(XenHypervisor::open(DomId(self.domid))?)
    }
}

impl Guest for Domain {
    type Hv = XenHypervisor;

    fn process(&self) -> Result<XenHypervisor, Failure> {
        self.open()
    }

    fn vcpu(&self, id: u32) -> Result<Box<dyn Vcpu + '_>, Failure> {
        Ok(Box::new(Mailbox { domain: self, id }))
    }

    fn pause(&self) -> Result<(), Failure> {
        Ok(self.with(RigGuest::pause)?)
    }

    fn unpause(&self) -> Result<(), Failure> {
        Ok(self.with(RigGuest::unpause)?)
    }

    fn log_dirty(&self, on: bool) -> Result<(), Failure> {
        Ok(self.with(|guest| guest.log_dirty(on))?)
    }

    fn is_marked(&self, gfn: u64) -> Result<bool, Failure> {
        let marked = self.open()?.marked_pages(Gfn(gfn).into())?;
        Ok(!marked.is_empty())
    }

    fn shut_down(&self, crash: bool) -> Result<(), Failure> {
        self.ends.store(true, Ordering::SeqCst);
        let reason = match crash {
            true => ShutdownReason::Crash,
            false => ShutdownReason::PowerOff,
        };
        Ok(self.open()?.device_model().remote_shutdown(reason)?)
    }

    fn destroy(&self) {
        self.ends.store(true, Ordering::SeqCst);
        let guest = self
            .guest
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(guest);
    }

    fn leaks(&self) -> Result<Option<String>, Failure> {
        let is_there = self.with(|_| Ok(())).is_ok();
        let all = Leaks::of(&self.privcmd, self.domid)?.left;
        // The domain itself is there until it is dropped.
        let itself = |leak: &&Leak| is_there && matches!(leak, Leak::Domain { .. });
        let left = all.iter().filter(|leak| !itself(leak));
        let left: Vec<String> = left.map(Leak::to_string).collect();
        Ok((!left.is_empty()).then(|| left.join("; ")))
    }
}

/// A vCPU, by its agent's mailbox.
struct Mailbox<'a> {
    domain: &'a Domain,
    id: u32,
}

impl Vcpu for Mailbox<'_> {
    fn run(&mut self, program: &[Instr]) -> Result<Vec<Done>, Ended> {
        let program = self.domain.with(|guest| guest.start(self.id, program))?;
        let end = Instant::now() + STUCK;
        loop {
            if program.is_finished() {
                return Ok(program.results());
            }
            let fate = program.fate();
            let fate = fate.map_err(|err| self.domain.ended(err.to_string()))?;
            let through = program.results().len();
            if fate != Fate::Alive {
                return Err(self
                    .domain
                    .ended(format!("{fate:?} after {through} instructions")));
            }
            if Instant::now() > end {
                let what = format!("after {through} instructions it does not come back");
                return Err(Ended::Wrong(what));
            }
            thread::sleep(LOOK);
        }
    }
}
