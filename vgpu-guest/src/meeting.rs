// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where two drivers meet: a page of plain memory that both know.

use alloc::vec::Vec;

use crate::layout::MEETINGS;
use crate::vcpu::Vcpu;

/// Offset of a u64: in which round the writer is at it.
const WRITING: u64 = 0x10;
/// Offset of a u64: in which round the other one has taken the table away.
const TAKEN: u64 = 0x18;
/// Offset of the frames that they share, as u64s.
const FRAMES: u64 = 0x40;

/// One side of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meeting {
    at: u64,
    /// 0 or 1.
    pub(crate) side: usize,
    /// How often they met.
    times: u64,
}

impl Meeting {
    /// That of a vCPU with its neighbour, if it has one: 0 with 1, 2 with 3, and so on.
    pub(crate) fn of(vcpu: u64, vcpus: u64) -> Option<Self> {
        (vcpu ^ 1 < vcpus).then_some(Meeting {
            at: MEETINGS + vcpu / 2 * 0x1000,
            side: usize::from(vcpu % 2 == 1),
            times: 0,
        })
    }

    /// Waits until both are here.
    pub(crate) fn meet<V: Vcpu>(&mut self, cpu: &mut V) -> Result<(), V::Fault> {
        self.times += 1;
        let [own, other] = [self.side, 1 - self.side].map(|side| self.at + 8 * side as u64);
        cpu.store64(own, self.times)?;
        while cpu.load64(other)? < self.times {
            cpu.relax()?;
        }
        Ok(())
    }

    /// The writer of `round` has begun.
    pub(crate) fn begun<V: Vcpu>(&self, cpu: &mut V, round: u64) -> Result<(), V::Fault> {
        cpu.store64(self.at + WRITING, round + 1)
    }

    /// Waits for that.
    pub(crate) fn await_begun<V: Vcpu>(&self, cpu: &mut V, round: u64) -> Result<(), V::Fault> {
        while cpu.load64(self.at + WRITING)? != round + 1 {
            cpu.relax()?;
        }
        Ok(())
    }

    /// The table of `round` is taken away.
    pub(crate) fn taken<V: Vcpu>(&self, cpu: &mut V, round: u64) -> Result<(), V::Fault> {
        cpu.store64(self.at + TAKEN, round + 1)
    }

    /// Whether it is.
    pub(crate) fn is_taken<V: Vcpu>(&self, cpu: &mut V, round: u64) -> Result<bool, V::Fault> {
        Ok(cpu.load64(self.at + TAKEN)? == round + 1)
    }

    /// Tells the other side frames; it reads them once both have met.
    pub(crate) fn tell<V: Vcpu>(&self, cpu: &mut V, frames: &[u64]) -> Result<(), V::Fault> {
        (self.at + FRAMES..)
            .step_by(8)
            .zip(frames)
            .try_for_each(|(at, frame)| cpu.store64(at, *frame))
    }

    /// Reads them.
    pub(crate) fn told<V: Vcpu>(&self, cpu: &mut V, count: usize) -> Result<Vec<u64>, V::Fault> {
        (self.at + FRAMES..)
            .step_by(8)
            .take(count)
            .map(|at| cpu.load64(at))
            .collect()
    }
}
