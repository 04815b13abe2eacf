// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Submitting work, and checking what became of it.

use alloc::vec;
use alloc::vec::Vec;

use crate::context::Kind;
use crate::driver::Driver;
use crate::layout::ENGINE;
use crate::pen::Pen;
use crate::roots::Root;
use crate::vcpu::Vcpu;

/// A channel's registers, by the driver's names.
mod regs {
    pub(super) const ROOT: u64 = 0x00;
    pub(super) const SOURCE: u64 = 0x08;
    pub(super) const TARGET: u64 = 0x10;
    pub(super) const LENGTH: u64 = 0x18;
    pub(super) const VALUE: u64 = 0x1c;
    pub(super) const FENCE_ADDR: u64 = 0x20;
    pub(super) const FENCE: u64 = 0x28;
    pub(super) const STATUS: u64 = 0x30;
    pub(super) const DOORBELL: u64 = 0x38;
    /// Bytes of a channel.
    pub(super) const CHANNEL: u64 = 64;
    /// What is written to the doorbell.
    pub(super) const COPY: u32 = 1;
    pub(super) const FILL: u32 = 2;
    /// The status of a command that is done.
    pub(super) const DONE: u32 = 1;
}

/// A command for the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    pub(crate) root: Root,
    /// GPU addresses.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) length: u64,
    /// The byte to fill with, instead of copying.
    pub(crate) fill: Option<u8>,
}

impl<V: Vcpu> Driver<'_, V> {
    /// Leads the context's window elsewhere, if it has one.
    fn slide(&mut self, at: usize) -> Result<(), V::Fault> {
        if !self.contexts[at].shape.streams {
            return Ok(());
        }
        let by = self.random.usize(1..512);
        let started = self.cpu.ticks();
        let mut pen = Pen::new(self.cpu, &mut self.random);
        self.done.window_writes += self.contexts[at].slide(&mut pen, by)?;
        self.done.window_ticks += self.cpu.ticks().wrapping_sub(started);
        Ok(())
    }

    /// Has the engine execute a command, which ends when the doorbell's write does.
    pub(crate) fn command(&mut self, command: &Command) -> Result<(), V::Fault> {
        let channel = ENGINE + self.task.vcpu * regs::CHANNEL;
        self.fence += 1;
        let fence_addr = self.fence_frame << 12;
        let root = match command.root {
            Root::L4(pml4) => pml4 << 12,
            Root::L3([first, ..]) => first << 12 | 1,
        };
        let length = u32::try_from(command.length).unwrap_or(0);
        let value = u32::from(command.fill.unwrap_or(0));
        self.cpu.store64(channel + regs::ROOT, root)?;
        self.cpu.store64(channel + regs::SOURCE, command.from)?;
        self.cpu.store64(channel + regs::TARGET, command.to)?;
        self.cpu.store32(channel + regs::LENGTH, length)?;
        self.cpu.store32(channel + regs::VALUE, value)?;
        self.cpu.store64(channel + regs::FENCE_ADDR, fence_addr)?;
        self.cpu.store64(channel + regs::FENCE, self.fence)?;
        let interrupts = self.cpu.interrupts()?;
        self.cpu.store32(
            channel + regs::DOORBELL,
            command.fill.map_or(regs::COPY, |_| regs::FILL),
        )?;
        if self.cpu.load32(channel + regs::STATUS)? != regs::DONE {
            self.wrong("a command was not done");
        }
        if self.cpu.load64(fence_addr)? != self.fence {
            self.wrong("a fence was not written");
        }
        // Those of all channels go to the first vCPU.
        if self.task.vcpu == 0 && self.cpu.interrupts()? == interrupts {
            self.wrong("no interrupt came");
        }
        Ok(())
    }

    /// Submits a copy or a fill, and checks every byte of the target.
    pub(crate) fn submit(&mut self) -> Result<(), V::Fault> {
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
        let command = Command {
            root: context.root,
            from: from.at,
            to: to.at,
            length: length as u64,
            fill: fill.then_some(value),
        };
        self.command(&command)?;
        let buffers = &mut self.contexts[at].buffers;
        let expected = if fill {
            vec![value; length]
        } else {
            buffers[source].bytes[..length].to_vec()
        };
        buffers[target].bytes[..length].copy_from_slice(&expected);
        self.check(at, target)
    }

    /// Compares all of a buffer with what the guest believes to be in it.
    fn check(&mut self, context: usize, buffer: usize) -> Result<(), V::Fault> {
        let mut got = [0; 4096];
        for page in 0..self.contexts[context].buffers[buffer].frames.len() {
            let frame = self.contexts[context].buffers[buffer].frames[page];
            self.cpu.read(frame << 12, &mut got)?;
            let buffer = &self.contexts[context].buffers[buffer];
            let expected = buffer.bytes.get(page << 12..).unwrap_or_default();
            let expected = &expected[..expected.len().min(4096)];
            let (done, wrong) = compared(&got[..expected.len()], expected);
            self.done.bytes += done;
            self.done.wrong_bytes += wrong;
        }
        Ok(())
    }
}

/// How many bytes were compared, and how many of them differ.
pub(crate) fn compared(got: &[u8], expected: &[u8]) -> (u64, u64) {
    let wrong = match got == expected {
        true => 0,
        false => {
            got.iter().zip(expected).filter(|(a, b)| a != b).count()
                + got.len().abs_diff(expected.len())
        }
    };
    (expected.len() as u64, wrong as u64)
}

#[cfg(test)]
mod tests {
    use super::compared;

    #[test]
    fn every_byte_that_differs_or_is_missing_counts() {
        assert_eq!(compared(&[1, 2, 3], &[1, 2, 3]), (3, 0));
        assert_eq!(compared(&[1, 2, 3], &[1, 2, 4]), (3, 1));
        assert_eq!(compared(&[1, 2], &[1, 2, 4]), (3, 1));
        assert_eq!(compared(&[], &[]), (0, 0));
    }
}
