// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vCPU of the model, as a driver uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ioreq::sim::{Cpu, CpuFault};
use ioreq::{GuestRam, Width};
use vgpu_guest::Vcpu;
use vm_memory::GuestAddress;

/// The vCPU, the guest's memory, and what the driver has seen.
pub(crate) struct Sim<'a> {
    cpu: &'a mut Cpu,
    ram: Arc<dyn GuestRam>,
    started: Instant,
    interrupts: u64,
    /// Submissions so far.
    pub(crate) submissions: Arc<AtomicU64>,
}

impl<'a> Sim<'a> {
    pub(crate) fn new(cpu: &'a mut Cpu, ram: Arc<dyn GuestRam>) -> Self {
        Sim {
            cpu,
            ram,
            started: Instant::now(),
            interrupts: 0,
            submissions: Arc::default(),
        }
    }
}

impl Vcpu for Sim<'_> {
    type Fault = CpuFault;

    fn load32(&mut self, addr: u64) -> Result<u32, CpuFault> {
        self.cpu.load32(addr)
    }

    fn load64(&mut self, addr: u64) -> Result<u64, CpuFault> {
        self.cpu.load64(addr)
    }

    fn store32(&mut self, addr: u64, value: u32) -> Result<(), CpuFault> {
        self.cpu.store32(addr, value)
    }

    fn store64(&mut self, addr: u64, value: u64) -> Result<(), CpuFault> {
        self.cpu.store64(addr, value)
    }

    fn xchg32(&mut self, addr: u64, value: u32) -> Result<u32, CpuFault> {
        let old = self.cpu.xchg(addr, Width::B4, value.into())?;
        Ok(u32::try_from(old).unwrap_or(u32::MAX))
    }

    /// All at once: loads of memory have no effect that the model would show.
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), CpuFault> {
        if self.ram.read(GuestAddress(addr), buf).is_err() {
            self.complain("data outside memory");
            buf.fill(0xff);
        }
        Ok(())
    }

    fn relax(&mut self) -> Result<(), CpuFault> {
        self.cpu.relax()
    }

    fn interrupts(&mut self) -> Result<u64, CpuFault> {
        while self.cpu.poll_interrupt().is_some() {
            self.interrupts += 1;
        }
        Ok(self.interrupts)
    }

    fn ticks(&mut self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn complain(&mut self, what: &str) {
        eprintln!("vgpu: {}: {what}", self.cpu.id());
    }

    fn progress(&mut self, submissions: u64) {
        self.submissions.store(submissions, Ordering::Relaxed);
    }
}
