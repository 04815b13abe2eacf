// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One descriptor chain, as two runs of bytes: what the driver gives, and where the device may write.

use std::fmt;
use std::sync::Arc;

use ioreq::GuestMap;
use ioreq::hypervisor::Hypervisor;
use ioreq::replay::{Step, StepMemory};
use ioreq::server::Dma;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::fuse::Fuse;

/// A request that is not as it should be: the driver's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request's descriptors are not as they should be")]
pub struct BadRequest;

/// A part of guest memory.
#[derive(Debug, Clone, Copy)]
struct Part {
    addr: GuestAddress,
    len: u32,
}

/// A request of a driver. What it says is the guest's and may change: read once, and then judge.
pub struct Request<'a, H: Hypervisor> {
    step: &'a Step<<H as GuestMap>::Memory>,
    dma: &'a mut Dma<H>,
    fuse: &'a Fuse,
    readable: Vec<Part>,
    writable: Vec<Part>,
}

impl<'a, H: Hypervisor> Request<'a, H> {
    /// Takes the chain of a step apart. As long as a queue at most.
    pub(super) fn new(
        chain: DescriptorChain<Arc<StepMemory<<H as GuestMap>::Memory>>>,
        step: &'a Step<<H as GuestMap>::Memory>,
        dma: &'a mut Dma<H>,
        fuse: &'a Fuse,
    ) -> Self {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for descriptor in chain {
            let parts = match descriptor.is_write_only() {
                true => &mut writable,
                false => &mut readable,
            };
            parts.push(Part {
                addr: descriptor.addr(),
                len: descriptor.len(),
            });
        }
        Request {
            step,
            dma,
            fuse,
            readable,
            writable,
        }
    }

    /// Bytes that the driver gives.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable.iter().map(|part| u64::from(part.len)).sum()
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable.iter().map(|part| u64::from(part.len)).sum()
    }

    /// Fills `buf` with what the driver gives, from byte `offset` of it on.
    ///
    /// # Errors
    /// If there is less, or it is not in guest memory.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BadRequest> {
        let mut done = 0;
        for (addr, len) in pieces(&self.readable, offset, buf.len()) {
            let piece = buf.get_mut(done..done + len).ok_or(BadRequest)?;
            self.step
                .memory()
                .read_slice(piece, addr)
                .map_err(|_| BadRequest)?;
            done += len;
        }
        if done == buf.len() {
            Ok(())
        } else {
            Err(BadRequest)
        }
    }

    /// Writes `bytes` where the device may write, from byte `offset` of that on. As a device's DMA: a handler of a tracked page sees it.
    ///
    /// # Errors
    /// If there is less room, or it is not in guest memory.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), BadRequest> {
        let mut done = 0;
        for (addr, len) in pieces(&self.writable, offset, bytes.len()) {
            let piece = bytes.get(done..done + len).ok_or(BadRequest)?;
            self.dma.write(addr, piece).map_err(|_| BadRequest)?;
            self.step.wrote(addr, piece);
            done += len;
        }
        if done == bytes.len() {
            Ok(())
        } else {
            Err(BadRequest)
        }
    }

    /// Fills `buf` by `fill` with something that is neither the guest's nor on the device's own image.
    pub fn take_in(&self, buf: &mut [u8], fill: impl FnOnce(&mut [u8])) {
        self.step.take_in(buf, fill);
    }

    /// A point at which the thread may die, in a test.
    pub fn point(&self) {
        self.fuse.point();
    }
}

impl<H: Hypervisor> fmt::Debug for Request<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("readable", &self.readable)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

/// The pieces of guest memory that are `len` bytes from `offset` of `parts` on, as far as there are.
fn pieces(
    parts: &[Part],
    mut offset: u64,
    len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let mut left = len;
    parts.iter().filter_map(move |part| {
        let skipped = offset.min(part.len.into());
        offset -= skipped;
        let there = usize::try_from(u64::from(part.len) - skipped).unwrap_or(usize::MAX);
        let take = there.min(left);
        left -= take;
        let addr = part.addr.0.checked_add(skipped).map(GuestAddress)?;
        (take > 0).then_some((addr, take))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(addr: u64, len: u32) -> Part {
        Part {
            addr: GuestAddress(addr),
            len,
        }
    }

    fn of(offset: u64, len: usize) -> Vec<(u64, usize)> {
        let parts = [
            part(0x1000, 4),
            part(0x9000, 0),
            part(0x5000, 8),
            part(u64::MAX, 8),
        ];
        let pieces = pieces(&parts[..3], offset, len);
        pieces.map(|(addr, len)| (addr.0, len)).collect()
    }

    #[test]
    fn bytes_are_found_across_descriptors() {
        assert_eq!(of(0, 4), [(0x1000, 4)]);
        assert_eq!(of(0, 5), [(0x1000, 4), (0x5000, 1)]);
        assert_eq!(of(3, 2), [(0x1003, 1), (0x5000, 1)]);
        assert_eq!(of(4, 8), [(0x5000, 8)]);
        assert_eq!(of(5, 100), [(0x5001, 7)], "no more than there is");
        assert_eq!(of(12, 1), []);
        assert_eq!(of(u64::MAX, 1), []);
        assert_eq!(of(0, 0), []);
    }

    #[test]
    fn an_address_beyond_the_last_is_none() {
        let parts = [part(u64::MAX, 8)];
        assert_eq!(pieces(&parts, 1, 1).count(), 0);
    }
}
