// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a request should come to, worked out in the plainest way: a list of ranges, an array of bytes, one element after the other.

use std::collections::VecDeque;

use ioreq_core::abi::{
    IOREQ_TYPE_COPY, IOREQ_TYPE_INVALIDATE, IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_PIO,
    IOREQ_TYPE_TIMEOFFSET, Ioreq,
};

use super::layout::{Behaviour, PAGE, PAGES, RAM, Route, Space, mix};

/// What a handler of a range was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) route: usize,
    pub(super) addr: u64,
    pub(super) bytes: u64,
    /// None for a read.
    pub(super) write: Option<u64>,
}

/// What a handler of a page was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) addr: u64,
    pub(super) bytes: u64,
    pub(super) value: u64,
    pub(super) trapped: bool,
}

/// A reply that somebody owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owed {
    /// To the access that this vCPU waits in.
    Access(usize),
    /// To a store that nobody waits for: where, how wide, the value.
    Store(u64, u64, u64),
    /// To nobody: posted.
    Nobody,
}

/// What a deferred handler says at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// Nothing: all-ones, or the fallback of a page's handler, which drops.
    Nothing,
    /// This value is read, or stored instead.
    Value(u64),
    /// Stored as it is.
    Apply,
}

/// One access, with what is done of it.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) raw: Ioreq,
    done: u64,
    value: u64,
    /// A write to a page whose handler decides.
    verdict: bool,
}

/// The world as it should be.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) ram: Vec<u8>,
    /// Those of the layout, and those that were added.
    pub(super) routes: Vec<Route>,
    pub(super) calls: Vec<Call>,
    pub(super) told: Vec<Told>,
    pub(super) offsets: Vec<i64>,
    pub(super) owed: Vec<Owed>,
    /// Replies that came, for accesses that go on at the next look.
    pub(super) replies: VecDeque<(usize, Reply)>,
}

/// How far an access came.
#[derive(Debug)]
pub(super) enum Step {
    /// The data that goes into the slot, if any.
    Done(Option<u64>),
    /// A handler owes a reply.
    Waits,
}

fn cut(value: u64, bytes: u64) -> u64 {
    if bytes == 8 {
        value
    } else {
        value & ((1 << (8 * bytes)) - 1)
    }
}

/// Whether `count` elements from `addr` on stay within 64 bits.
fn fits(raw: &Ioreq, addr: u64) -> bool {
    let way: i128 = if raw.df() { -1 } else { 1 };
    let last = i128::from(addr) + way * i128::from(raw.size) * i128::from(raw.count - 1);
    let high = i128::from(addr).max(last) + i128::from(raw.size) - 1;
    last >= 0 && high <= i128::from(u64::MAX)
}

/// Whether the request makes sense, by the words of `public/hvm/ioreq.h`.
pub(super) fn makes_sense(raw: &Ioreq) -> bool {
    match raw.kind {
        IOREQ_TYPE_PIO | IOREQ_TYPE_COPY | IOREQ_TYPE_PCI_CONFIG => {
            let size = u64::from(raw.size);
            let sizes: &[u64] = if raw.kind == IOREQ_TYPE_COPY {
                &[1, 2, 4, 8]
            } else {
                &[1, 2, 4]
            };
            let target = |raw: &Ioreq| match raw.kind {
                IOREQ_TYPE_PIO => i128::from(raw.addr) + i128::from(size) <= 0x1_0000,
                IOREQ_TYPE_COPY => fits(raw, raw.addr),
                _ => (raw.addr & 0xffff_ffff) + size <= 4096,
            };
            sizes.contains(&size)
                && (1..=4096).contains(&raw.count)
                && target(raw)
                && (!raw.data_is_ptr() || fits(raw, raw.data))
        }
        IOREQ_TYPE_TIMEOFFSET => {
            !raw.is_read() && !raw.data_is_ptr() && raw.size == 8 && raw.count == 1
        }
        _ => true,
    }
}

impl Access {
    pub(super) fn new(raw: Ioreq) -> Self {
        Access {
            raw,
            done: 0,
            value: 0,
            verdict: false,
        }
    }

    fn bytes(&self) -> u64 {
        self.raw.size.into()
    }

    fn moved(&self, addr: u64) -> u64 {
        let by = self.done * self.bytes();
        if self.raw.df() {
            addr.wrapping_sub(by)
        } else {
            addr.wrapping_add(by)
        }
    }

    /// Space, and the address that routes are looked up by.
    fn place(&self) -> (Space, u64) {
        match self.raw.kind {
            IOREQ_TYPE_PIO => (Space::Port, self.raw.addr),
            IOREQ_TYPE_COPY => (Space::Mmio, self.moved(self.raw.addr)),
            _ => (Space::Pci, self.raw.addr),
        }
    }
}

impl Oracle {
    pub(super) fn load(&self, addr: u64, bytes: u64) -> Option<u64> {
        let from = usize::try_from(addr).ok()?;
        let to = from.checked_add(usize::try_from(bytes).ok()?)?;
        let mut value = [0; 8];
        let found = self.ram.get(from..to)?;
        value[..found.len()].copy_from_slice(found);
        Some(u64::from_le_bytes(value))
    }

    fn store(&mut self, addr: u64, bytes: u64, value: u64) -> bool {
        if self.load(addr, bytes).is_none() {
            return false;
        }
        for (byte, at) in value
            .to_le_bytes()
            .into_iter()
            .take(bytes as usize)
            .zip(addr..)
        {
            self.ram[at as usize] = byte;
        }
        true
    }

    /// A write to a tracked page. False if its handler owes a verdict to the vCPU that trapped.
    fn page(&mut self, addr: u64, bytes: u64, value: u64, trapped: Option<usize>) -> bool {
        let Some(behaviour) = tracked(addr) else {
            self.store(addr, bytes, value);
            return true;
        };
        if addr % PAGE + bytes > PAGE {
            return true;
        }
        self.told.push(Told {
            addr,
            bytes,
            value,
            trapped: trapped.is_some(),
        });
        match behaviour {
            Behaviour::Plain | Behaviour::Batch => {
                self.store(addr, bytes, value);
            }
            Behaviour::Rewrite => {
                self.store(addr, bytes, cut(!value, bytes));
            }
            // Its fallback drops.
            Behaviour::Refuse | Behaviour::Panic => {}
            Behaviour::Defer => {
                if let Some(vcpu) = trapped {
                    self.owed.push(Owed::Access(vcpu));
                    return false;
                }
                self.owed.push(Owed::Store(addr, bytes, value));
            }
        }
        true
    }

    /// Data that the framework stores for a read.
    fn deliver(&mut self, addr: u64, bytes: u64, value: u64) {
        if addr % PAGE + bytes <= PAGE {
            self.page(addr, bytes, cut(value, bytes), None);
            return;
        }
        for (byte, at) in value
            .to_le_bytes()
            .into_iter()
            .take(bytes as usize)
            .zip(0..)
        {
            let Some(addr) = addr.checked_add(at) else {
                break;
            };
            self.page(addr, 1, byte.into(), None);
        }
    }

    /// The store that a deferred verdict was about.
    pub(super) fn settle(&mut self, (addr, bytes, value): (u64, u64, u64), reply: Reply) {
        match reply {
            Reply::Nothing => {}
            Reply::Value(other) => {
                self.store(addr, bytes, cut(other, bytes));
            }
            Reply::Apply => {
                self.store(addr, bytes, value);
            }
        }
    }

    /// Goes on with a reply.
    pub(super) fn accept(&mut self, access: &mut Access, reply: Reply) {
        let bytes = access.bytes();
        if access.verdict {
            access.verdict = false;
            let (_, addr) = access.place();
            if let Some(value) = self.data(access) {
                self.settle((addr, bytes, value), reply);
            }
            access.done += 1;
        } else if access.raw.is_read() {
            let value = match reply {
                Reply::Value(value) => value,
                _ => u64::MAX,
            };
            self.got(access, value);
        } else {
            access.done += 1;
        }
    }

    fn got(&mut self, access: &mut Access, value: u64) {
        access.value = cut(value, access.bytes());
        if access.raw.data_is_ptr() {
            let at = access.moved(access.raw.data);
            self.deliver(at, access.bytes(), access.value);
        }
        access.done += 1;
    }

    fn data(&self, access: &Access) -> Option<u64> {
        let bytes = access.bytes();
        match access.raw.data_is_ptr() {
            true => self.load(access.moved(access.raw.data), bytes),
            false => Some(cut(access.raw.data, bytes)),
        }
    }

    /// Whether nothing but the answer is left once the handler has replied: then the replying thread answers.
    pub(super) fn is_plain(raw: &Ioreq) -> bool {
        let page = !raw.is_read() && raw.kind == IOREQ_TYPE_COPY;
        raw.count == 1 && !raw.data_is_ptr() && !page
    }

    /// Carries an access on; `vcpu` waits for it (None: nobody does).
    pub(super) fn carry(&mut self, access: &mut Access, vcpu: Option<usize>) -> Step {
        match access.raw.kind {
            IOREQ_TYPE_PIO | IOREQ_TYPE_COPY | IOREQ_TYPE_PCI_CONFIG => {}
            IOREQ_TYPE_TIMEOFFSET => {
                self.offsets.push(access.raw.data.cast_signed());
                return Step::Done(None);
            }
            IOREQ_TYPE_INVALIDATE => return Step::Done(None),
            _ => return Step::Done(refusal(&access.raw)),
        }
        while access.done < access.raw.count.into() {
            if !self.element(access, vcpu) {
                return Step::Waits;
            }
        }
        let inline = access.raw.is_read() && !access.raw.data_is_ptr();
        Step::Done(inline.then_some(access.value))
    }

    /// False if a handler owes a reply.
    fn element(&mut self, access: &mut Access, vcpu: Option<usize>) -> bool {
        let bytes = access.bytes();
        let (space, addr) = access.place();
        let write = if access.raw.is_read() {
            None
        } else {
            let Some(value) = self.data(access) else {
                access.done += 1;
                return true;
            };
            if space == Space::Mmio && tracked(addr).is_some() {
                // Posted ones trap, too, but nobody waits.
                let done = self.page(addr, bytes, value, Some(vcpu.unwrap_or(usize::MAX)));
                if done {
                    access.done += 1;
                } else {
                    access.verdict = true;
                }
                return done;
            }
            Some(value)
        };
        let Some((route, behaviour)) = self.find(space, addr, bytes) else {
            match write {
                None => self.got(access, u64::MAX),
                Some(value) => {
                    if space == Space::Mmio {
                        self.store(addr, bytes, value);
                    }
                    access.done += 1;
                }
            }
            return true;
        };
        let addr = if space == Space::Pci {
            addr & 0xfff
        } else {
            addr
        };
        self.calls.push(Call {
            route,
            addr,
            bytes,
            write,
        });
        match (behaviour, write) {
            (Behaviour::Defer, _) => {
                self.owed.push(Owed::Access(vcpu.unwrap_or(usize::MAX)));
                return false;
            }
            (Behaviour::Refuse | Behaviour::Panic, None) => self.got(access, u64::MAX),
            (_, None) => self.got(access, mix(route, addr)),
            (_, Some(_)) => access.done += 1,
        }
        true
    }
}

/// What a request that makes no sense is answered with.
pub(super) fn refusal(raw: &Ioreq) -> Option<u64> {
    (raw.is_read() && !raw.data_is_ptr()).then_some(u64::MAX)
}

/// The behaviour of the page that an address is in, if it is tracked.
fn tracked(addr: u64) -> Option<Behaviour> {
    let found = PAGES.iter().find(|(gfn, _)| *gfn == addr / PAGE)?;
    debug_assert!(addr < RAM as u64);
    Some(found.1)
}

impl Oracle {
    /// The route that covers all of an access.
    fn find(&self, space: Space, addr: u64, bytes: u64) -> Option<(usize, Behaviour)> {
        let (first, last) = match space {
            Space::Pci => (addr >> 32, u128::from(addr >> 32)),
            _ => (addr, u128::from(addr) + u128::from(bytes) - 1),
        };
        let mut routes = self.routes.iter().enumerate();
        routes.find_map(|(index, route)| {
            let inside =
                route.space == space && route.first <= first && last <= u128::from(route.last);
            inside.then_some((index, route.behaviour))
        })
    }

    /// Whether a range is free, and can be had.
    pub(super) fn is_free(&self, new: &Route) -> bool {
        let overlap =
            |old: &Route| old.space == new.space && old.first <= new.last && new.first <= old.last;
        !self.routes.iter().any(overlap)
    }
}
