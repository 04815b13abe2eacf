// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Moving bytes: page by page, by the shadow.

use std::sync::atomic::Ordering;

use crossbeam::channel::Receiver;
use ioreq_core::Width;
use vm_memory::GuestAddress;

use super::{Channel, HostAddr, Job, RootId, Shared, Status, regs};

/// Where a GPU address leads.
#[derive(Debug, Clone, Copy)]
enum Place {
    Memory(HostAddr),
    /// Reads give zeroes, writes go nowhere.
    Scratch,
}

impl Shared {
    pub(super) fn work(&self, jobs: &Receiver<Job>) {
        for Job {
            channel,
            root,
            command,
            op,
            completion,
        } in jobs
        {
            let status = self.execute(root, &command, op);
            self.done(channel, &command, status);
            completion.complete(());
        }
    }

    /// Moves the bytes, page by page.
    pub(super) fn execute(&self, root: RootId, command: &Channel, op: u32) -> Status {
        let mut buf = [0; 4096];
        let mut done = 0;
        while done < command.length {
            let at = u64::from(done);
            let (source, target) = (
                command.source.wrapping_add(at),
                command.target.wrapping_add(at),
            );
            // Up to the end of the smaller page of the two.
            let room = |addr: u64| 4096 - (addr & 0xfff);
            let piece = if op == regs::COPY {
                room(source).min(room(target))
            } else {
                room(target)
            };
            let piece = piece.min(u64::from(command.length - done));
            let Some(bytes) = usize::try_from(piece)
                .ok()
                .and_then(|len| buf.get_mut(..len))
            else {
                return Status::Bad;
            };
            let moved = if op == regs::COPY {
                self.read(root, source, bytes)
            } else {
                bytes.fill(command.value.to_le_bytes()[0]);
                Some(())
            };
            if moved
                .and_then(|()| self.write(root, target, bytes))
                .is_none()
            {
                return Status::Fault;
            }
            self.bytes.fetch_add(piece, Ordering::Relaxed);
            done += u32::try_from(piece).unwrap_or(u32::MAX);
        }
        Status::Done
    }

    fn read(&self, root: RootId, addr: u64, bytes: &mut [u8]) -> Option<()> {
        match self.place(root, addr, false)? {
            Place::Memory(host) => self.host.read(host, bytes).ok(),
            Place::Scratch => {
                bytes.fill(0);
                self.scratched(bytes.len())
            }
        }
    }

    fn write(&self, root: RootId, addr: u64, bytes: &[u8]) -> Option<()> {
        match self.place(root, addr, true)? {
            Place::Memory(host) => self.host.write(host, bytes).ok(),
            Place::Scratch => self.scratched(bytes.len()),
        }
    }

    fn scratched(&self, bytes: usize) -> Option<()> {
        self.scratch.fetch_add(bytes as u64, Ordering::Relaxed);
        Some(())
    }

    /// None for a fault.
    fn place(&self, root: RootId, addr: u64, write: bool) -> Option<Place> {
        let target = self.shadow.lookup(root, addr).ok()?;
        if write && !target.writable {
            return None;
        }
        Some(if target.scratch {
            Place::Scratch
        } else {
            Place::Memory(target.host)
        })
    }

    pub(super) fn done(&self, channel: usize, command: &Channel, status: Status) {
        if status == Status::Fault {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        self.channel(channel, |channel| channel.status = status as u32);
        if command.fence_addr != 0 {
            // A guest that names memory it does not have gets no fence.
            let _nowhere =
                self.ram
                    .store(GuestAddress(command.fence_addr), Width::B8, command.fence);
        }
        if let Some((interrupts, addr, data)) = &self.interrupt
            && let Err(err) = interrupts.inject_msi(*addr, *data)
        {
            tracing::debug!(%err, "the engine's interrupt was not delivered");
        }
    }
}
