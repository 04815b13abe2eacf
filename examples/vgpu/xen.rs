// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest of the Xen that this runs on: a domain in which the program `vgpu-guest` waits for its tasks.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ioreq::xen::XenHypervisor;
use ioreq::{DomId, DomainState, GfnRange, GuestMap, GuestRam, Transport, Width};
use vgpu_guest::control::{self, FAILED, FINISHED, GO, READY};
use vgpu_guest::layout::{APERTURE, APERTURE_FRAMES, ARENAS, LOW_FRAMES};
use vgpu_guest::{Done, Task};
use vm_memory::GuestAddress;

use crate::machine::arena_frames;
use crate::options::Options;
use crate::platform::{Failure, Platform};

/// The least frames of an arena: 64 MiB.
const ARENA: u64 = 1 << 14;
/// How long the guest may take to come up, and to do anything at all.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(10);
/// Between two lines that say how far it is.
const TELL: Duration = Duration::from_secs(5);

pub(crate) struct Xen {
    hypervisor: Arc<XenHypervisor>,
    ram: Arc<dyn GuestRam>,
    /// What is shared, the aperture, the arenas.
    memory: [GfnRange; 3],
}

impl Xen {
    pub(crate) fn new(options: &Options) -> Result<Self, Failure> {
        let domid = options
            .domid
            .ok_or("--hypervisor xen needs --domid: the domain in which vgpu-guest runs")?;
        if options.pages > 0 {
            return Err(
                "--pages is for the model: the guest has no memory for a reservation".into(),
            );
        }
        let arenas = u64::from(options.vcpus) * arena_frames(options, ARENA);
        let memory = [
            GfnRange::sized(0, LOW_FRAMES)?,
            GfnRange::sized(APERTURE, APERTURE_FRAMES)?,
            GfnRange::sized(ARENAS, arenas)?,
        ];
        let mut builder = XenHypervisor::builder(DomId(domid)).vcpus(options.vcpus);
        for part in memory {
            builder = builder.ram(part);
        }
        let hypervisor = Arc::new(builder.build()?);
        let vcpus = hypervisor.vcpus()?;
        if vcpus != options.vcpus {
            return Err(format!("the domain has {vcpus} vCPUs: say --vcpus {vcpus}").into());
        }
        let ram: Arc<dyn GuestRam> = hypervisor.memory();
        for part in memory {
            for gfn in [part.first(), part.last()] {
                let there = ram.load(GuestAddress(gfn << 12), Width::B8);
                there
                    .map_err(|_| format!("the domain has no memory at gfn {gfn:#x}, of {part}"))?;
            }
        }
        Ok(Xen {
            hypervisor,
            ram,
            memory,
        })
    }

    fn get(&self, vcpu: u32, offset: u64) -> Result<u64, Failure> {
        let at = GuestAddress(control::block(vcpu) + offset);
        Ok(self.ram.load(at, Width::B8)?)
    }

    fn put(&self, vcpu: u32, offset: u64, value: u64) -> Result<(), Failure> {
        let at = GuestAddress(control::block(vcpu) + offset);
        Ok(self.ram.store(at, Width::B8, value)?)
    }

    /// What the vCPU complained of first.
    fn text(&self, vcpu: u32) -> String {
        let mut bytes = [0; control::TEXT_BYTES];
        let at = GuestAddress(control::block(vcpu) + control::TEXT);
        let _unread = self.ram.read(at, &mut bytes);
        let len = bytes.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&bytes[..len.unwrap_or(bytes.len())]).into_owned()
    }

    /// Its state; an error if its program failed, or its domain is over.
    fn state(&self, vcpu: u32) -> Result<u64, Failure> {
        match self.get(vcpu, control::STATE)? {
            FAILED => Err(format!("vCPU {vcpu}: {}", self.text(vcpu)).into()),
            state => match self.hypervisor.domain_state()? {
                DomainState::Running => Ok(state),
                over => Err(format!("the domain is over: {over:?}").into()),
            },
        }
    }

    fn start(&self, vcpu: u32, task: &Task) -> Result<(), Failure> {
        let started = Instant::now();
        while !matches!(self.state(vcpu)?, READY | FINISHED) {
            if started.elapsed() > PATIENCE {
                return Err(
                    format!("vCPU {vcpu} does not wait for a task: is it vgpu-guest?").into(),
                );
            }
            thread::sleep(LOOK);
        }
        for (offset, word) in (control::TASK..).step_by(8).zip(task.to_words()) {
            self.put(vcpu, offset, word)?;
        }
        self.put(vcpu, control::STATE, GO)
    }

    fn done(&self, vcpu: u32) -> Result<Done, Failure> {
        let mut words = [0; Done::WORDS];
        for (offset, word) in (control::DONE..).step_by(8).zip(&mut words) {
            *word = self.get(vcpu, offset)?;
        }
        if self.get(vcpu, control::COMPLAINTS)? > 0 {
            eprintln!("vgpu: vCPU {vcpu}: {}", self.text(vcpu));
        }
        Ok(Done::from_words(words))
    }
}

impl Platform for Xen {
    type Hv = XenHypervisor;

    fn name(&self) -> String {
        let part = |name: &str| {
            let path = format!("/sys/hypervisor/version/{name}");
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let (major, minor, extra) = (part("major"), part("minor"), part("extra"));
        format!("Xen {}.{}{}", major.trim(), minor.trim(), extra.trim())
    }

    fn hypervisor(&self) -> Arc<XenHypervisor> {
        Arc::clone(&self.hypervisor)
    }

    fn memory(&self) -> Vec<GfnRange> {
        self.memory.into()
    }

    fn arena(&self) -> u64 {
        ARENA
    }

    fn reserve(&self, _: u64) -> Result<u64, Failure> {
        Err("no reservation on Xen".into())
    }

    fn unreserve(&self, _: u64) -> Result<(), Failure> {
        Ok(())
    }

    /// Tells how far it is by a line now and then: a bar costs dom0's console the time of many traps.
    fn drive(&self, tasks: &[Task], _: &dyn Fn(u64)) -> Result<Vec<Done>, Failure> {
        for (vcpu, task) in (0..).zip(tasks) {
            self.start(vcpu, task)?;
        }
        let vcpus = u32::try_from(tasks.len())?;
        let all: u64 = tasks.iter().map(|task| task.submissions).sum();
        let (mut last, mut changed, mut told) = (0, Instant::now(), Instant::now());
        loop {
            let mut finished = 0;
            let mut submissions = 0;
            for vcpu in 0..vcpus {
                finished += u32::from(self.state(vcpu)? == FINISHED);
                submissions += self.get(vcpu, control::PROGRESS)?;
            }
            if told.elapsed() > TELL {
                told = Instant::now();
                println!("{submissions} of {all} submissions");
            }
            if finished == vcpus {
                return (0..vcpus).map(|vcpu| self.done(vcpu)).collect();
            }
            if last != submissions {
                (last, changed) = (submissions, Instant::now());
            }
            if changed.elapsed() > PATIENCE {
                return Err(format!("nothing goes on after {submissions} submissions").into());
            }
            thread::sleep(LOOK);
        }
    }

    fn tick(&self) -> Option<f64> {
        None
    }

    fn mark_calls(&self) -> Option<u64> {
        None
    }

    fn left_behind(&self) -> Option<String> {
        match self.hypervisor.marked_pages(self.memory[2]) {
            Ok(pages) if pages.is_empty() => None,
            Ok(pages) => Some(format!("marked pages: {pages:?}")),
            Err(err) => Some(err.to_string()),
        }
    }
}
