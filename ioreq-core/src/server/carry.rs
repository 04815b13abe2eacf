// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Carrying out one access, single or repeated: element by element, able to stop in the middle and go on later.

use vm_memory::GuestAddress;

use super::bus::{Bus, Pause, Place};
use crate::handler::{Batch, Reply, Verdict, WriteSource};
use crate::hypervisor::Hypervisor;
use crate::ids::Gfn;
use crate::memory::Width;
use crate::request::{Data, Element, Io, Target};

/// Where the current element stands.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Its access is to be made.
    Access,
    /// It was read; the value is to be stored at the element's data address.
    Store(u64),
    /// A tracked page's handler decided later: its verdict is to be carried out; None is the handler's fallback.
    Settle(Option<Verdict>),
}

/// An access under way.
#[derive(Debug)]
pub(super) struct Carry {
    io: Io,
    /// Elements done.
    done: u32,
    phase: Phase,
    /// What an inline read answers.
    value: u64,
    /// The handler does not want the rest in batches.
    singly: bool,
    /// It is a tracked page's handler whose word is awaited, not a device's.
    undecided: bool,
    /// Values that a batch read from the handler and that are still to be stored, because a page was parked; the last one
    /// comes first.
    read_ahead: Vec<u64>,
}

impl Carry {
    pub(super) fn new(io: Io) -> Self {
        // An empty Vec allocates nothing.
        let read_ahead = Vec::new();
        Carry {
            io,
            done: 0,
            phase: Phase::Access,
            value: 0,
            singly: false,
            undecided: false,
            read_ahead,
        }
    }

    /// The width, if nothing but the answer is left once the current element's handler has replied: a single inline access
    /// to something other than a tracked page.
    pub(super) fn is_plain(&self) -> Option<Width> {
        let inline = matches!(self.io.data(), Data::Inline(_));
        let page = !self.io.is_read() && matches!(self.io.target(), Target::Mmio(_));
        (self.io.count() == 1 && inline && !page).then_some(self.io.width())
    }

    /// Where the access began.
    pub(super) fn begins(&self) -> Place {
        Place::of(&self.io)
    }

    /// The page whose order the access waits for.
    pub(super) fn page(&self) -> Option<Gfn> {
        let Element { addr, data, .. } = self.io.element(self.done)?;
        match (self.phase, self.io.target()) {
            (Phase::Store(_), _) => data.map(Gfn::of),
            (_, Target::Mmio(_)) => Some(Gfn::of(GuestAddress(addr))),
            _ => None,
        }
    }

    /// What goes into the slot: the value of an inline read.
    pub(super) fn answer(&self) -> Option<u64> {
        (self.io.is_read() && matches!(self.io.data(), Data::Inline(_))).then_some(self.value)
    }

    /// Remembers whose reply is awaited.
    pub(super) fn waits_for(&mut self, pause: &Pause) {
        self.undecided = matches!(pause, Pause::Undecided(_));
    }

    /// The reply that the current element waited for; None if nobody will give one.
    pub(super) fn accept(&mut self, reply: Option<Reply>) {
        match reply {
            _ if self.io.is_read() => self.got(match reply {
                Some(Reply::Value(value)) => self.io.width().cut(value),
                _ => self.io.width().all_ones(),
            }),
            Some(Reply::Verdict(verdict)) => self.phase = Phase::Settle(Some(verdict)),
            Some(Reply::Done | Reply::Value(_)) => self.next(),
            // A page's handler: its fallback decides.
            None if self.undecided => self.phase = Phase::Settle(None),
            // A device's: its write is dropped.
            None => self.next(),
        }
    }

    fn next(&mut self) {
        self.done += 1;
        self.phase = Phase::Access;
    }

    /// The current element's value was read.
    fn got(&mut self, value: u64) {
        match self.io.data() {
            Data::Inline(_) => {
                self.value = value;
                self.next();
            }
            Data::Pointer(_) => self.phase = Phase::Store(value),
        }
    }

    /// Goes on until the access is done or has to wait.
    pub(super) fn run<H: Hypervisor>(&mut self, bus: &Bus<'_, H>) -> Result<(), Pause> {
        while let Some(element) = self.io.element(self.done) {
            match self.phase {
                Phase::Access => {
                    if let Some(value) = self.read_ahead.pop() {
                        self.phase = Phase::Store(value);
                    } else if self.io.count() == 1 || !self.batch(element, bus)? {
                        self.access(element, bus)?;
                    }
                }
                Phase::Store(value) => {
                    if let Some(at) = element.data {
                        bus.store(at, self.io.width(), value, WriteSource::Framework)?;
                    }
                    self.next();
                }
                Phase::Settle(verdict) => {
                    if let (Target::Mmio(_), Some(value)) =
                        (self.io.target(), self.data(element, bus))
                    {
                        bus.settle_later(element.addr, self.io.width(), value, verdict)?;
                    }
                    self.next();
                }
            }
        }
        Ok(())
    }

    fn place(&self, element: Element) -> Place {
        match self.io.target() {
            Target::Port(port) => Place::Port(port),
            Target::Mmio(_) => Place::Mmio(element.addr),
            Target::Pci { sbdf, register } => Place::Pci(sbdf, register),
        }
    }

    /// What the element writes; None if its data is not guest memory.
    fn data<H: Hypervisor>(&self, element: Element, bus: &Bus<'_, H>) -> Option<u64> {
        match (self.io.data(), element.data) {
            (Data::Inline(value), _) => Some(value),
            (Data::Pointer(_), Some(at)) => bus.load(at, self.io.width()),
            (Data::Pointer(_), None) => None,
        }
    }

    fn access<H: Hypervisor>(&mut self, element: Element, bus: &Bus<'_, H>) -> Result<(), Pause> {
        let (place, width) = (self.place(element), self.io.width());
        if self.io.is_read() {
            let value = bus.read(place, width)?;
            self.got(value);
            return Ok(());
        }
        if let Some(value) = self.data(element, bus) {
            bus.write(place, width, value)?;
        }
        self.next();
        Ok(())
    }

    /// Offers the next elements to the handler at once. False if they go one by one.
    fn batch<H: Hypervisor>(&mut self, first: Element, bus: &Bus<'_, H>) -> Result<bool, Pause> {
        let left = (self.io.count() - self.done) as usize;
        let mut room = [0; Batch::MAX];
        let Some(values) = room
            .get_mut(..left.min(Batch::MAX))
            .filter(|v| v.len() > 1 && !self.singly)
        else {
            return Ok(false);
        };
        if !self.io.is_read() {
            for (value, index) in values.iter_mut().zip(self.done..) {
                let Some(data) = self
                    .io
                    .element(index)
                    .and_then(|element| self.data(element, bus))
                else {
                    return Ok(false);
                };
                *value = data;
            }
        }
        let place = self.place(first);
        if bus
            .batch(
                place,
                self.io.width(),
                self.io.stride(),
                values,
                self.io.is_read(),
            )
            .is_none()
        {
            self.singly = true;
            return Ok(false);
        }
        if !self.io.is_read() {
            values.iter().for_each(|_| self.next());
            return Ok(true);
        }
        for (at, value) in values.iter().enumerate() {
            self.got(*value);
            let (Phase::Store(value), Some(element)) = (self.phase, self.io.element(self.done))
            else {
                continue;
            };
            let Some(data) = element.data else { continue };
            if let Err(pause) = bus.store(data, self.io.width(), value, WriteSource::Framework) {
                // The handler has given the rest of the values: it must not be asked for them again.
                self.read_ahead.extend(values.iter().skip(at + 1).rev());
                return Err(pause);
            }
            self.next();
        }
        Ok(true)
    }
}
