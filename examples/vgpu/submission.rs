// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Submitting work, and checking what became of it.

use std::time::Instant;

use ioreq::backends::vgpu::{Status, regs};
use ioreq::sim::CpuFault;
use vm_memory::GuestAddress;

use crate::context::{Kind, Pen};
use crate::driver::{Driver, ENGINE};
use crate::roots::Root;

impl Driver<'_> {
    /// Leads the context's window elsewhere, if it has one.
    pub(crate) fn slide(&mut self, at: usize) -> Result<(), CpuFault> {
        if !self.contexts[at].shape.streams {
            return Ok(());
        }
        let by = self.random.usize(1..512);
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        let started = Instant::now();
        self.done.window_writes += self.contexts[at].slide(&mut pen, by)?;
        self.done.window_time += started.elapsed();
        Ok(())
    }

    /// Submits a copy or a fill, and checks every byte of the target.
    pub(crate) fn submit(&mut self) -> Result<(), CpuFault> {
        let at = self.random.usize(..self.contexts.len());
        self.slide(at)?;
        let count = self.contexts[at].buffers.len();
        let source = self.random.usize(..count);
        let writable: Vec<usize> = (0..count)
            .filter(|buffer| self.contexts[at].buffers[*buffer].kind != Kind::Common)
            .collect();
        let target = writable[self.random.usize(..writable.len())];
        let fill = source == target || self.random.u8(..8) == 0;
        let context = &self.contexts[at];
        let (from, to) = (&context.buffers[source], &context.buffers[target]);
        let longest = if fill {
            to.bytes.len()
        } else {
            from.bytes.len().min(to.bytes.len())
        };
        let length = self.random.usize(longest / 2..=longest).max(1);
        let value = self.random.u8(..);
        let channel = ENGINE + u64::from(self.task.vcpu.0) * regs::CHANNEL;
        self.fence += 1;
        let fence_addr = self.fence_frame << 12;
        let root = match context.root {
            Root::L4(pml4) => pml4 << 12,
            Root::L3([first, ..]) => first << 12 | 1,
        };
        let (from, to) = (from.at, to.at);
        self.cpu.store64(channel + regs::ROOT, root)?;
        self.cpu.store64(channel + regs::SOURCE, from)?;
        self.cpu.store64(channel + regs::TARGET, to)?;
        self.cpu
            .store32(channel + regs::LENGTH, u32::try_from(length).unwrap_or(0))?;
        self.cpu.store32(channel + regs::VALUE, u32::from(value))?;
        self.cpu.store64(channel + regs::FENCE_ADDR, fence_addr)?;
        self.cpu.store64(channel + regs::FENCE, self.fence)?;
        self.cpu.store32(
            channel + regs::DOORBELL,
            if fill { regs::FILL } else { regs::COPY },
        )?;
        if self.cpu.load32(channel + regs::STATUS)? != Status::Done as u32 {
            self.task.tally.wrong("a command was not done");
        }
        if self.cpu.load64(fence_addr)? != self.fence {
            self.task.tally.wrong("a fence was not written");
        }
        let buffers = &mut self.contexts[at].buffers;
        let expected = if fill {
            vec![value; length]
        } else {
            buffers[source].bytes[..length].to_vec()
        };
        buffers[target].bytes[..length].copy_from_slice(&expected);
        let buffer = &buffers[target];
        let mut got = [0; 4096];
        for (frame, expected) in buffer.frames.iter().zip(buffer.bytes.chunks(4096)) {
            if self
                .task
                .ram
                .read(GuestAddress(frame << 12), &mut got)
                .is_err()
            {
                self.task.tally.wrong("data outside memory");
            }
            self.task.tally.bytes(&got[..expected.len()], expected);
        }
        Ok(())
    }
}
