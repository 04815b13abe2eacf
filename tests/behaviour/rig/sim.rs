// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The model as a rig: a machine for each domain, so that a panic takes only its own test with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ioreq_core::hypervisor::SharedPage;
use ioreq_core::{DomId, Gfn, GfnRange, ServerId, VcpuId};
use ioreq_sim::{
    Cpu, CpuFault, DomainConfig, Machine, SimEvents, SimHypervisor, VcpuExit, VcpuThread,
    XenVersion,
};

use super::{
    Ability, DmOp, Domain, End, Errno, GuestOp, OpResult, Options, Outcome, Rig, Run, Version,
};
use crate::support::layout::{GIVEN_BACK, RAM_FRAMES};

/// The model of one version.
#[derive(Debug)]
pub(crate) struct SimRig {
    version: Version,
}

impl SimRig {
    pub(crate) fn new(version: Version) -> Self {
        SimRig { version }
    }

    fn machine(&self) -> Machine {
        let version = match self.version {
            Version::V4_17 => XenVersion::V4_17,
            Version::V4_20 => XenVersion::V4_20,
        };
        Machine::builder().version(version).build()
    }
}

impl Rig for SimRig {
    type Domain = SimDomain;

    fn name(&self) -> &str {
        match self.version {
            Version::V4_17 => "model-4.17",
            Version::V4_20 => "model-4.20",
        }
    }

    fn version(&self) -> Version {
        self.version
    }

    fn has(&self, ability: Ability) -> bool {
        match ability {
            Ability::NoHap | Ability::EventOverflow | Ability::TwoLooks | Ability::StubDomain => {
                true
            }
        }
    }

    fn survives_panic(&self) -> bool {
        true
    }

    fn attempts(&self) -> u32 {
        1
    }

    fn create(&self, options: Options) -> Result<SimDomain, Errno> {
        let below = GfnRange::new(0, 0x9f).expect("below the VGA hole");
        let above = GfnRange::new(0xc0, RAM_FRAMES - 1).expect("above the VGA hole");
        let config = DomainConfig::new(options.vcpus)
            .memory(below)
            .memory(above)
            .hap(options.hap)
            .vga(options.full);
        let domain = self.machine().create_domain(config);
        domain
            .map(SimDomain)
            .map_err(|err| err.errno().unwrap_or(libc::EINVAL))
    }

    fn dm_op(&self, domid: DomId, op: &mut DmOp) -> Result<(), Errno> {
        let raw = self.machine().raw(domid);
        op.by_bytes(|bytes| raw.dm_op(bytes, &mut []))
    }
}

/// A domain of the model.
#[derive(Debug)]
pub(crate) struct SimDomain(ioreq_sim::Domain);

impl Domain for SimDomain {
    type Process = SimHypervisor;
    type Run = SimRun;

    fn process(&self) -> SimHypervisor {
        self.0.hypervisor()
    }

    fn process_elsewhere(&self) -> SimHypervisor {
        self.0.hypervisor_in(DomId(self.0.domid().0 + 100))
    }

    fn kill(&self, process: &SimHypervisor) {
        process.kill();
    }

    fn dm_op(&self, op: &mut DmOp, buffer: &mut [u8]) -> Result<(), Errno> {
        let raw = self.0.hypervisor().raw();
        op.by_bytes(|bytes| raw.dm_op(bytes, buffer))
    }

    fn acquire(&self, id: ServerId, frame: u64) -> Result<SharedPage, Errno> {
        self.0.hypervisor().raw().acquire(id.0, frame)
    }

    fn mem_type(&self, gfn: Gfn) -> u16 {
        let ty = self.0.mem_type(gfn).expect("populated");
        u16::try_from(ty.raw()).expect("a small number")
    }

    fn log_dirty(&self, on: bool) -> Result<(), Errno> {
        let result = self.0.set_log_dirty(on);
        result.map_err(|err| err.errno().expect("the model's errors have an errno"))
    }

    fn pause(&self) {
        self.0.pause();
    }

    fn unpause(&self) {
        self.0.unpause();
    }

    fn start(&self, vcpu: VcpuId, ops: &[GuestOp]) -> SimRun {
        let results = Arc::new(Mutex::new(Vec::new()));
        let (ops, out) = (ops.to_vec(), Arc::clone(&results));
        let program = move |cpu: &mut Cpu| {
            for op in ops {
                let result = match execute(cpu, op) {
                    Ok(result) => result,
                    Err(CpuFault::GeneralProtection { .. }) => OpResult::Fault,
                    Err(stopped) => return Err(stopped),
                };
                out.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(result);
            }
            Ok(())
        };
        let thread = self.0.spawn(vcpu, program).expect("an idle vCPU");
        SimRun { thread, results }
    }

    fn injected(&self) -> Option<usize> {
        Some(self.0.injected().len())
    }

    fn end(&self) -> Option<End> {
        use ioreq_core::DomainState;
        if let Some(reason) = self.0.crash_reason() {
            return Some(End::Crashed(reason.to_string()));
        }
        match self.0.state() {
            DomainState::Running => None,
            state => Some(End::Shutdown(format!("{state:?}"))),
        }
    }

    fn overflow(&self, events: &SimEvents) {
        events.overflow_next();
    }
}

/// A guest program of the model.
#[derive(Debug)]
pub(crate) struct SimRun {
    thread: VcpuThread<()>,
    results: Arc<Mutex<Vec<OpResult>>>,
}

impl Run for SimRun {
    fn is_back(&self) -> bool {
        self.thread.is_finished()
    }

    fn join(self) -> Outcome {
        let end = match self.thread.join() {
            Ok(()) => End::Back,
            Err(VcpuExit::DomainCrashed { reason }) => End::Crashed(reason.to_string()),
            Err(VcpuExit::HypervisorPanic { reason }) => End::Panicked(reason),
            Err(VcpuExit::Stuck(_)) => End::Stuck,
            Err(other) => End::Shutdown(other.to_string()),
        };
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        Outcome {
            results: results.clone(),
            end,
        }
    }

    fn stays_away(&self) -> bool {
        // Far longer than a vCPU of the model needs for anything.
        for _ in 0..20 {
            if self.is_back() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// One operation on the model's CPU.
fn execute(cpu: &mut Cpu, op: GuestOp) -> Result<OpResult, CpuFault> {
    let value = OpResult::Value;
    let done = match op {
        GuestOp::In { port, width } => return cpu.port_in(port, width).map(value),
        GuestOp::Out { port, width, value } => cpu.port_out(port, width, value.into()),
        GuestOp::Load { addr, width } => return cpu.load(addr, width).map(value),
        GuestOp::Store { addr, width, value } => cpu.store(addr, width, value),
        GuestOp::Store16 { addr, value } => {
            let value = u128::from(value[0]) | u128::from(value[1]) << 64;
            cpu.store128(addr, value)
        }
        GuestOp::RepStos {
            addr,
            width,
            value,
            count,
        } => cpu.rep_stos(addr, width, value, count.into()),
        GuestOp::RepStosDown {
            addr,
            width,
            value,
            count,
        } => {
            cpu.set_df(true);
            let done = cpu.rep_stos(addr, width, value, count.into());
            cpu.set_df(false);
            done
        }
        GuestOp::RepMovs {
            from,
            to,
            width,
            count,
        } => cpu.rep_movs(to, from, width, count.into()),
        GuestOp::RepMovsDown {
            from,
            to,
            width,
            count,
        } => {
            cpu.set_df(true);
            let done = cpu.rep_movs(to, from, width, count.into());
            cpu.set_df(false);
            done
        }
        GuestOp::RepIns {
            port,
            to,
            width,
            count,
        } => cpu.rep_ins(port, to, width, count.into()),
        GuestOp::RepOuts {
            port,
            from,
            width,
            count,
        } => cpu.rep_outs(port, from, width, count.into()),
        GuestOp::LockAdd { addr, width, value } => cpu.lock_add(addr, width, value).map(drop),
        GuestOp::Or { addr, width, value } => cpu.lock_or(addr, width, value).map(drop),
        GuestOp::Xchg {
            addr,
            width,
            value: new,
        } => return cpu.xchg(addr, width, new).map(value),
        GuestOp::Cmpxchg {
            addr,
            width,
            expected,
            new,
        } => return cpu.cmpxchg(addr, width, expected, new).map(value),
        GuestOp::Fetch { addr } => cpu.fetch(addr),
        GuestOp::PciRead {
            function,
            register,
            width,
        } => return cpu.pci_config_read(function, register, width).map(value),
        GuestOp::PciWrite {
            function,
            register,
            width,
            value,
        } => cpu.pci_config_write(function, register, width, value.into()),
        GuestOp::RtcSet => cpu.rtc_set(3600),
        GuestOp::Await { addr, value } => {
            while cpu.load32(addr)? != value {
                thread::yield_now();
            }
            Ok(())
        }
        GuestOp::ChangeMemoryMap => cpu.give_back(GIVEN_BACK),
    };
    done.map(|()| OpResult::Done)
}
