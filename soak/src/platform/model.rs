// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The embedded model.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ioreq::sim::{
    Cpu, CpuFault, CrashReason, Domain, DomainConfig, Faults, Hostile, Machine, SimHypervisor,
    StopReason, XenVersion,
};
use ioreq::{DomainState, GfnRange, P2mType, ShutdownReason};
use xen_rig::{Done, Instr};

use super::execute::execute;
use super::{Ended, Guest, Platform, Vcpu};
use crate::Failure;

/// Domains that one machine has one after another, far fewer than there are ids.
const DOMAINS: u32 = 4096;

/// Machines of both versions, in turn.
#[derive(Debug)]
pub(crate) struct Model {
    now: Mutex<(Machine, u32)>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Model {
            now: Mutex::new((machine(0), 0)),
        }
    }

    /// A domain with this configuration, beside those that there are.
    pub(crate) fn domain(&self, config: DomainConfig) -> ioreq::Result<Domain> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.1 += 1;
        if now.1.is_multiple_of(DOMAINS) {
            now.0 = machine(now.1 / DOMAINS);
        }
        now.0.create_domain(config)
    }
}

fn machine(number: u32) -> Machine {
    let version = match number % 2 {
        0 => XenVersion::V4_20,
        _ => XenVersion::V4_17,
    };
    Machine::builder().version(version).build()
}

impl Platform for Model {
    type Hv = SimHypervisor;
    type Guest = Domain;

    fn name(&self) -> String {
        "the model".into()
    }

    fn guest(&self, vcpus: u32) -> Result<Domain, Failure> {
        let config = DomainConfig::new(vcpus)
            .vga(true)
            .memory(GfnRange::new(0, 0x9f)?)
            .memory(GfnRange::new(0xc0, 0xfff)?);
        Ok(self.domain(config)?)
    }

    fn program_len(&self) -> usize {
        64
    }

    fn round_length(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn model(&self) -> Option<&Model> {
        Some(self)
    }

    fn left_behind(&self) -> Result<Option<String>, Failure> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(now.0.panicked())
    }
}

impl Guest for Domain {
    type Hv = SimHypervisor;

    fn process(&self) -> Result<SimHypervisor, Failure> {
        Ok(self.hypervisor())
    }

    fn vcpu(&self, id: u32) -> Result<Box<dyn Vcpu + '_>, Failure> {
        Ok(Box::new(self.cpu(ioreq::VcpuId(id))?))
    }

    fn pause(&self) -> Result<(), Failure> {
        Domain::pause(self);
        Ok(())
    }

    fn unpause(&self) -> Result<(), Failure> {
        Domain::unpause(self);
        Ok(())
    }

    fn log_dirty(&self, on: bool) -> Result<(), Failure> {
        Ok(self.set_log_dirty(on)?)
    }

    fn is_marked(&self, gfn: u64) -> Result<bool, Failure> {
        Ok(self.mem_type(gfn) == Some(P2mType::IoreqServer))
    }

    fn shut_down(&self, crash: bool) -> Result<(), Failure> {
        match crash {
            true => self.crash(),
            false => self.shutdown(ShutdownReason::PowerOff),
        }
        Ok(())
    }

    fn destroy(&self) {
        Domain::destroy(self);
    }

    fn leaks(&self) -> Result<Option<String>, Failure> {
        let mut leaks = Domain::leaks(self);
        if self.state() == DomainState::Gone {
            // They went with it.
            leaks.marked_pages = 0;
        }
        Ok((!leaks.is_clean()).then(|| format!("{leaks:?}")))
    }

    fn sent(&self) -> Option<u64> {
        let counts = self.counts();
        Some(counts.port + counts.mmio + counts.pci + counts.invalidate)
    }

    fn faults(&self) -> Option<&Faults> {
        Some(Domain::faults(self))
    }

    fn hostile(&self) -> Option<Hostile> {
        Some(Domain::hostile(self))
    }

    const KILL: Option<fn(&SimHypervisor)> = Some(SimHypervisor::kill);
}

impl Vcpu for Cpu {
    fn run(&mut self, program: &[Instr]) -> Result<Vec<Done>, Ended> {
        let all = program.iter().map(|instr| execute(self, *instr));
        all.collect::<Result<Vec<Done>, CpuFault>>()
            .map_err(|fault| match fault {
                CpuFault::Stopped(StopReason::Destroyed | StopReason::Shutdown(_)) => Ended::Gone,
                CpuFault::Stopped(StopReason::Crashed(CrashReason::Requested)) => Ended::Gone,
                other => Ended::Wrong(other.to_string()),
            })
    }
}
