// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest of the embedded model: drivers are programs on the vCPUs' threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ioreq::sim::{Cpu, Domain, DomainConfig, Machine, SimHypervisor, XenVersion};
use ioreq::{GfnRange, Op, VcpuId};
use vgpu_guest::layout::{APERTURE, APERTURE_FRAMES, ARENAS, LOW_FRAMES, RESERVED};
use vgpu_guest::{Done, Task, reserve};

use crate::machine::arena_frames;
use crate::options::{Options, Version};
use crate::platform::{Failure, Platform};
use crate::sim::Sim;

/// The least frames of an arena: 256 MiB.
const ARENA: u64 = 1 << 16;

pub(crate) struct Model {
    domain: Domain,
    memory: [GfnRange; 3],
    version: Version,
}

impl Model {
    pub(crate) fn new(options: &Options) -> Result<Self, Failure> {
        let version = match options.xen {
            Version::V4_17 => XenVersion::V4_17,
            Version::V4_20 => XenVersion::V4_20,
        };
        let machine = Machine::builder().version(version).build();
        let high = APERTURE_FRAMES + reserve::frames(options.pages);
        let arenas = u64::from(options.vcpus) * arena_frames(options, ARENA);
        let memory = [
            GfnRange::sized(0, LOW_FRAMES)?,
            GfnRange::sized(APERTURE, high)?,
            GfnRange::sized(ARENAS, arenas)?,
        ];
        let config = memory
            .iter()
            .fold(DomainConfig::new(options.vcpus), |config, part| {
                config.memory(*part)
            });
        Ok(Model {
            domain: machine.create_domain(config)?,
            memory,
            version: options.xen,
        })
    }
}

impl Platform for Model {
    type Hv = SimHypervisor;

    fn name(&self) -> String {
        let version = match self.version {
            Version::V4_17 => "4.17",
            Version::V4_20 => "4.20",
        };
        format!("model of Xen {version}")
    }

    fn hypervisor(&self) -> Arc<SimHypervisor> {
        Arc::new(self.domain.hypervisor())
    }

    fn memory(&self) -> Vec<GfnRange> {
        self.memory.into()
    }

    fn arena(&self) -> u64 {
        ARENA
    }

    fn reserve(&self, pages: u64) -> Result<u64, Failure> {
        let ram = self.domain.memory();
        let vcpu = self.domain.spawn(VcpuId(0), move |cpu| {
            reserve::make(&mut Sim::new(cpu, ram), RESERVED, pages)
        })?;
        Ok(vcpu.join()?)
    }

    fn unreserve(&self, root: u64) -> Result<(), Failure> {
        let ram = self.domain.memory();
        let vcpu = self.domain.spawn(VcpuId(0), move |cpu| {
            reserve::end(&mut Sim::new(cpu, ram), root)
        })?;
        Ok(vcpu.join()?)
    }

    fn drive(&self, tasks: &[Task], progress: &dyn Fn(u64)) -> Result<Vec<Done>, Failure> {
        let done: Vec<Arc<AtomicU64>> = tasks.iter().map(|_| Arc::default()).collect();
        let mut vcpus = Vec::new();
        for (number, (task, done)) in (0..).zip(tasks.iter().copied().zip(&done)) {
            let (ram, done) = (self.domain.memory(), Arc::clone(done));
            let program = move |cpu: &mut Cpu| {
                let mut vcpu = Sim::new(cpu, ram);
                vcpu.submissions = done;
                vgpu_guest::run(&mut vcpu, task)
            };
            vcpus.push(Some(self.domain.spawn(VcpuId(number), program)?));
        }
        let mut results = vec![Done::default(); tasks.len()];
        while vcpus.iter().any(Option::is_some) {
            let sum = done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
            progress(sum);
            std::thread::sleep(Duration::from_millis(20));
            for (vcpu, result) in vcpus.iter_mut().zip(&mut results) {
                // One that fails ends it all: its neighbour may wait for it.
                if let Some(ended) = vcpu.take_if(|vcpu| vcpu.is_finished() || vcpu.is_stuck()) {
                    *result = ended.join()?;
                }
            }
        }
        Ok(results)
    }

    fn tick(&self) -> Option<f64> {
        Some(1e-9)
    }

    fn mark_calls(&self) -> Option<u64> {
        Some(self.domain.counts().dmop(Op::SetMemType))
    }

    fn left_behind(&self) -> Option<String> {
        let leaks = self.domain.leaks();
        (!leaks.is_clean()).then(|| format!("{leaks:?}"))
    }
}
