// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The single accesses that a repeated one is made of.

use std::iter::FusedIterator;

use vm_memory::GuestAddress;

use super::io::Io;

/// One element of an access.
///
/// ```
/// use ioreq_core::{VcpuId, abi::*, request::{Element, Kind, decode}};
/// use vm_memory::GuestAddress;
/// // rep insw: the port stays, the data in guest memory moves.
/// let raw = Ioreq {
///     kind: IOREQ_TYPE_PIO, flags: IOREQ_DIR_READ | IOREQ_DATA_IS_PTR, addr: 0x1f0, size: 2, count: 256,
///     data: 0x8000, ..Ioreq::default()
/// };
/// let Kind::Io(io) = *decode(&raw, VcpuId(0))?.kind() else { unreachable!() };
/// let last = Element { index: 255, addr: 0x1f0, data: Some(GuestAddress(0x81fe)) };
/// assert_eq!(io.elements().last(), Some(last));
/// # Ok::<(), ioreq_core::request::Malformed>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Its number in the order of execution, from 0.
    pub index: u32,
    /// The port, the guest-physical address, or the register.
    pub addr: u64,
    /// Guest-physical address of its data; `None` if inline.
    pub data: Option<GuestAddress>,
}

/// The elements of an access, in the order of execution; from [`Io::elements`].
///
/// See [`Element`] for an example.
///
/// ```
/// use ioreq_core::{VcpuId, abi::*, request::{Kind, decode}};
///
/// // rep outsb: three elements to one port, their data at rising addresses.
/// let raw = Ioreq {
///     kind: IOREQ_TYPE_PIO, flags: IOREQ_DATA_IS_PTR, addr: 0x80, data: 0x5000, size: 1, count: 3, ..Ioreq::default()
/// };
/// let Kind::Io(io) = *decode(&raw, VcpuId(0))?.kind() else { unreachable!() };
/// let elements = io.elements();
/// assert_eq!(elements.len(), 3);
/// assert!(elements.map(|element| element.addr).eq([0x80, 0x80, 0x80]));
/// # Ok::<(), ioreq_core::request::Malformed>(())
/// ```
#[derive(Debug, Clone)]
pub struct Elements {
    io: Io,
    next: u32,
}

impl Elements {
    pub(super) const fn new(io: Io) -> Self {
        Elements { io, next: 0 }
    }
}

impl Iterator for Elements {
    type Item = Element;

    #[inline]
    fn next(&mut self) -> Option<Element> {
        let element = self.io.element(self.next)?;
        self.next += 1; // at most `count`, so it cannot overflow
        Some(element)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.io.count() - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Elements {}
impl FusedIterator for Elements {}
