// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a vCPU's program does, twice: on the model's vCPU, and on plain arrays.
//!
//! A vCPU has pages, words of a page that all share, and registers of its own. So whatever the others do, and whatever becomes of the
//! types of its pages, its loads give what it stored.

use ioreq_core::Width;
use ioreq_sim::{Cpu, CpuFault};

use crate::script::Script;

/// vCPUs of the domain.
pub(super) const VCPUS: u64 = 2;
/// Pages of the guest.
pub(super) const PAGES: u64 = 16;
/// A page whose words belong to the vCPUs in turn.
pub(super) const SHARED: u64 = 12;
/// Words of it that each vCPU writes.
const WORDS: u64 = 8;
/// Bytes of each vCPU's registers, of every kind.
pub(super) const REGISTERS: u64 = 16;
/// Where registers are: ports, memory, and the VGA window, writes to which are posted.
pub(super) const PORTS: u16 = 0x500;
pub(super) const MMIO: u64 = 0xe000_0000;
pub(super) const VGA: u64 = 0xa_0000;

/// An instruction. Addresses are of the vCPU's own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Deed {
    Store(u64, Width, u64),
    Load(u64, Width),
    Add(u64, Width, u64),
    Exchange(u64, Width, u64),
    Compare(u64, Width, u64, u64),
    Long(u64, u128),
    Fill(u64, Width, u64, u64),
    Move(u64, u64, Width, u64, bool),
    Out(u16, Width, u64),
    In(u16, Width),
    Outs(u16, u64, Width, u64),
    Ins(u16, u64, Width, u64),
    Relax,
}

/// First byte of a vCPU's four pages.
fn home(vcpu: u64) -> u64 {
    (4 + 4 * vcpu) << 12
}

/// Bytes of them.
const HOME: u64 = 4 << 12;

/// An address in the pages, near a page's end often enough.
fn own(script: &mut Script, vcpu: u64, bytes: u64) -> u64 {
    let page = script.below(4) << 12;
    let offset = match script.take::<u8>() {
        near @ 0..0xa0 => u64::from(near & 0x1f),
        near => (0xff0 + u64::from(near & 15)).min(0xfff),
    };
    home(vcpu) + (page + offset).min(HOME - bytes)
}

/// A register's offset for an access of `bytes`.
fn register(script: &mut Script, bytes: u64) -> u64 {
    script.below(REGISTERS).min(REGISTERS - bytes)
}

impl Deed {
    pub(super) fn next(script: &mut Script, vcpu: u64) -> Self {
        let (width, narrow) = (
            script.width(),
            script.one_of(&[Width::B1, Width::B2, Width::B4]),
        );
        let bytes = width.bytes();
        let shared = |script: &mut Script| {
            let word = 2 * script.below(WORDS) + vcpu;
            (SHARED << 12) + word * 8
        };
        let window = |script: &mut Script, base: u64| base + (vcpu << 12) + register(script, bytes);
        let port = |script: &mut Script| {
            PORTS + (vcpu * REGISTERS + register(script, narrow.bytes())) as u16
        };
        match script.below(20) {
            0..=3 => {
                let at = own(script, vcpu, bytes);
                // Over a page's end while the first page comes to be tracked: a hazard that is Xen's (see `claim`).
                let over = at % 4096 + bytes > 4096;
                let at = if over { at & !(bytes - 1) } else { at };
                Deed::Store(at, width, script.take())
            }
            4 => Deed::Load(own(script, vcpu, bytes), width),
            5 | 6 => Deed::Store(shared(script), width, script.take()),
            7 => Deed::Load(shared(script), Width::B8),
            8 => Deed::Store(window(script, MMIO), width, script.take()),
            9 => Deed::Load(window(script, MMIO), width),
            10 => Deed::Store(window(script, VGA), width, script.take()),
            11 => Deed::Load(window(script, VGA), width),
            12 => {
                let at = own(script, vcpu, 8) & !7;
                match script.below(3) {
                    0 => Deed::Add(at, width, script.take()),
                    1 => Deed::Exchange(at, width, script.take()),
                    _ => Deed::Compare(at, width, script.below(2), script.take()),
                }
            }
            13 => Deed::Long(own(script, vcpu, 16) & !15, script.take()),
            14 => {
                let count = script.below(24);
                let at = own(script, vcpu, count * bytes);
                Deed::Fill(at & !(bytes - 1), width, script.take(), count)
            }
            15 => {
                let (count, backward) = (1 + script.below(12), script.take());
                let len = count * bytes;
                let to = own(script, vcpu, len) & !(bytes - 1);
                let from = own(script, vcpu, len) & !(bytes - 1);
                let last = if backward { len - bytes } else { 0 };
                // Over itself and over a page's end, with one of the pages tracked: a hazard that is Xen's (see `claim`).
                let over = to / 4096 != (to + len - 1) / 4096 && to.abs_diff(from) < len;
                let to = if over { from } else { to };
                Deed::Move(to + last, from + last, width, count, backward)
            }
            16 => Deed::Out(port(script), narrow, script.take()),
            17 => Deed::In(port(script), narrow),
            18 => {
                let count = script.below(8);
                let at = own(script, vcpu, count * narrow.bytes()) & !3;
                // Into a page that is tracked by then, Xen bears several elements in one page. A lone one costs the guest its
                // life: once the write is answered Xen reads the port again.
                let inside = home(vcpu) + (at & 0x37f0);
                match script.take() {
                    true => Deed::Outs(port(script), at, narrow, count),
                    false => Deed::Ins(port(script), inside, narrow, count + 2),
                }
            }
            _ => Deed::Relax,
        }
    }

    /// On the model. What it loads, if it does.
    pub(super) fn execute(self, cpu: &mut Cpu) -> Result<Option<u64>, CpuFault> {
        let nothing = |()| None;
        match self {
            Deed::Store(at, width, value) => cpu.store(at, width, value).map(nothing),
            Deed::Load(at, width) => cpu.load(at, width).map(Some),
            Deed::Add(at, width, value) => cpu.lock_add(at, width, value).map(Some),
            Deed::Exchange(at, width, value) => cpu.xchg(at, width, value).map(Some),
            Deed::Compare(at, width, old, new) => cpu.cmpxchg(at, width, old, new).map(Some),
            Deed::Long(at, value) => cpu.store128(at, value).map(nothing),
            Deed::Fill(at, width, value, count) => {
                cpu.rep_stos(at, width, value, count).map(nothing)
            }
            Deed::Move(to, from, width, count, backward) => {
                cpu.set_df(backward);
                let moved = cpu.rep_movs(to, from, width, count);
                cpu.set_df(false);
                moved.map(nothing)
            }
            Deed::Out(port, width, value) => cpu.port_out(port, width, value).map(nothing),
            Deed::In(port, width) => cpu.port_in(port, width).map(Some),
            Deed::Outs(port, at, width, count) => cpu.rep_outs(port, at, width, count).map(nothing),
            Deed::Ins(port, at, width, count) => cpu.rep_ins(port, at, width, count).map(nothing),
            Deed::Relax => cpu.relax().map(nothing),
        }
    }
}

/// Plain arrays.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) ram: Vec<u8>,
    ports: Vec<u8>,
    mmio: Vec<u8>,
    vga: Vec<u8>,
}

impl Plain {
    pub(super) fn new() -> Self {
        let registers = || vec![0; REGISTERS as usize];
        Plain {
            ram: vec![0; (PAGES << 12) as usize],
            ports: registers(),
            mmio: registers(),
            vga: registers(),
        }
    }

    fn bytes(&mut self, at: u64, width: Width) -> &mut [u8] {
        let (all, at) = match at {
            MMIO.. => (&mut self.mmio, at & 0xfff),
            VGA.. => (&mut self.vga, at & 0xfff),
            _ => (&mut self.ram, at),
        };
        &mut all[at as usize..][..width.size()]
    }

    fn port(&mut self, port: u16, width: Width) -> &mut [u8] {
        let at = u64::from(port - PORTS) % REGISTERS;
        &mut self.ports[at as usize..][..width.size()]
    }

    fn get(&mut self, at: u64, width: Width) -> u64 {
        value(self.bytes(at, width))
    }

    fn set(&mut self, at: u64, width: Width, value: u64) {
        put(self.bytes(at, width), value);
    }

    /// What it loads, if it does.
    pub(super) fn execute(&mut self, deed: Deed) -> Option<u64> {
        match deed {
            Deed::Store(at, width, value) => self.set(at, width, value),
            Deed::Load(at, width) => return Some(self.get(at, width)),
            Deed::Add(at, width, value) => {
                let old = self.get(at, width);
                self.set(at, width, old.wrapping_add(value));
                return Some(old);
            }
            Deed::Exchange(at, width, value) => {
                let old = self.get(at, width);
                self.set(at, width, value);
                return Some(old);
            }
            Deed::Compare(at, width, expected, new) => {
                let old = self.get(at, width);
                if old == expected {
                    self.set(at, width, new);
                }
                return Some(old);
            }
            Deed::Long(at, value) => {
                self.set(at, Width::B8, value as u64);
                self.set(at + 8, Width::B8, (value >> 64) as u64);
            }
            Deed::Fill(at, width, value, count) => {
                (0..count).for_each(|n| self.set(at + n * width.bytes(), width, value));
            }
            Deed::Move(to, from, width, count, backward) => {
                for n in (0..count).map(|n| n * width.bytes()) {
                    let moved = |at: u64| if backward { at - n } else { at + n };
                    let value = self.get(moved(from), width);
                    self.set(moved(to), width, value);
                }
            }
            Deed::Out(port, width, value) => put(self.port(port, width), value),
            Deed::In(port, width) => return Some(value(self.port(port, width))),
            Deed::Outs(port, at, width, count) => {
                for n in 0..count {
                    let value = self.get(at + n * width.bytes(), width);
                    put(self.port(port, width), value);
                }
            }
            Deed::Ins(port, at, width, count) => {
                for n in 0..count {
                    let value = value(self.port(port, width));
                    self.set(at + n * width.bytes(), width, value);
                }
            }
            Deed::Relax => {}
        }
        None
    }

    /// Whether the other's memory is the same where this vCPU writes.
    pub(super) fn agrees(&self, ram: &[u8], vcpu: u64) -> bool {
        let home = home(vcpu) as usize..(home(vcpu) + HOME) as usize;
        // More of them nobody writes.
        let mut words = (0..2 * WORDS).filter(|word| word % 2 == vcpu);
        let word = |word: u64| {
            let at = ((SHARED << 12) + word * 8) as usize;
            at..at + 8
        };
        self.ram[home.clone()] == ram[home] && words.all(|n| self.ram[word(n)] == ram[word(n)])
    }
}

/// Little-endian.
pub(super) fn value(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Little-endian.
pub(super) fn put(bytes: &mut [u8], value: u64) {
    bytes
        .iter_mut()
        .zip(value.to_le_bytes())
        .for_each(|(byte, new)| *byte = new);
}
