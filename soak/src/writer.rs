// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a vCPU of the soak does: programs of all kinds of instructions, and what must come of each, known in advance. Everything
//! that it writes is its own: words of pages that may be tracked or not, registers of a bank, ports. So a request that is lost, served
//! twice or given another's answer shows at the next look.

use std::collections::BTreeMap;

use fastrand::Rng;
use ioreq::{GuestRam, Width};
use vm_memory::GuestAddress;
use xen_rig::{Done, Instr};

use crate::Failure;
use crate::device::Bank;
use crate::layout::{
    BANK, BUFFERS, CONFIG, NOBODY, ODD, OWN, PAGES, PORT_OWN, PORT_REGISTERS, PORTS, POSTED,
    REGISTERS, VGA, WORDS, config_address, odd, own,
};

/// What programs may have in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Everything.
    All,
    /// Nothing that shows when it is served twice: for device models that are killed.
    Twice,
}

/// What must come of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Is(Done),
    /// This, or what a handler that failed gives: its service may have ended before it answered.
    OrFails(Done, Done),
}

impl Expected {
    fn admits(self, done: Done) -> bool {
        match self {
            Expected::Is(expected) => done == expected,
            Expected::OrFails(expected, failed) => done == expected || done == failed,
        }
    }
}

/// A program, and what must come of each instruction.
pub(crate) type Program = (Vec<Instr>, Vec<Expected>);

const PLAIN: Expected = Expected::Is(Done::Plain);

fn gives(value: impl Into<u64>) -> Expected {
    Expected::Is(Done::Value(value.into()))
}

/// One vCPU's account.
pub(crate) struct Writer {
    vcpu: u32,
    style: Style,
    random: Rng,
    /// What its words of memory have, by address.
    words: BTreeMap<u64, u32>,
    /// What its registers have, by number, and those behind ports.
    bank: BTreeMap<u64, u64>,
    ports: BTreeMap<u64, u64>,
    config: BTreeMap<u8, u32>,
    posted: u64,
    /// Workers may be stopped while a handler's answer is still to come.
    is_stopped: bool,
}

impl Writer {
    pub(crate) fn new(vcpu: u32, style: Style, seed: u64) -> Self {
        Writer {
            vcpu,
            style,
            random: Rng::with_seed(seed),
            words: BTreeMap::new(),
            bank: BTreeMap::new(),
            ports: BTreeMap::new(),
            config: BTreeMap::new(),
            posted: 0,
            is_stopped: false,
        }
    }

    /// The same under workers that are stopped and started again.
    pub(crate) fn under_stops(mut self) -> Self {
        self.is_stopped = true;
        self
    }

    /// A program of about `len` instructions.
    pub(crate) fn program(&mut self, len: usize) -> Program {
        let mut program = Program::default();
        // A few pages for a while: a page that is written all the time cannot be unmarked.
        let near = self.random.u64(0..PAGES.end - PAGES.start);
        while program.0.len() + 3 < len {
            match self.random.u8(0..32) {
                0..=15 => self.write_page(near, &mut program),
                16..=19 => self.use_bank(&mut program),
                20..=22 => self.use_ports(&mut program),
                23 => self.use_strings(&mut program),
                24 | 25 if self.vcpu == 0 => self.use_config(&mut program),
                26..=29 if self.vcpu == 0 && self.style == Style::All => self.post(&mut program),
                30 => self.use_odd(&mut program),
                _ => self.write_page(near, &mut program),
            }
        }
        program
    }

    /// The answers are as they must be.
    pub(crate) fn judge(
        &self,
        (program, expected): &Program,
        results: &[Done],
    ) -> Result<u64, Failure> {
        if results.len() != program.len() {
            let what = format!(
                "{} answers of {} instructions",
                results.len(),
                program.len()
            );
            return Err(format!("vCPU {}: {what}", self.vcpu).into());
        }
        for ((instr, expected), result) in program.iter().zip(expected).zip(results) {
            if !expected.admits(*result) {
                let what = format!("{instr:x?} gave {result:x?}, not {expected:x?}");
                return Err(format!("vCPU {}: {what}", self.vcpu).into());
            }
        }
        Ok(results.len() as u64)
    }

    /// Compares its account with memory; the number of words.
    pub(crate) fn compare_memory(&self, ram: &dyn GuestRam) -> Result<u64, Failure> {
        for (addr, value) in &self.words {
            let got = ram.load(GuestAddress(*addr), Width::B4)?;
            if got != u64::from(*value) {
                let what = format!("{addr:#x} has {got:#x}, not {value:#x}");
                return Err(format!("memory as vCPU {} wrote it: {what}", self.vcpu).into());
            }
        }
        Ok(self.words.len() as u64)
    }

    /// Compares its account with the device's registers; the number of those.
    pub(crate) fn compare_registers(&self, bank: &Bank, ports: &Bank) -> Result<u64, Failure> {
        for (device, account, what) in
            [(bank, &self.bank, "register"), (ports, &self.ports, "port")]
        {
            for (number, value) in account {
                let got = device.get(*number);
                if got != *value {
                    let what = format!("{what} {number} has {got:#x}, not {value:#x}");
                    return Err(format!("as vCPU {} wrote it: {what}", self.vcpu).into());
                }
            }
        }
        Ok((self.bank.len() + self.ports.len()) as u64)
    }

    fn word(&self, addr: u64) -> u32 {
        self.words.get(&addr).copied().unwrap_or(0)
    }

    fn write_page(&mut self, near: u64, program: &mut Program) {
        let page = PAGES.start + (near + self.random.u64(0..3)) % (PAGES.end - PAGES.start);
        let own = (page << 12) + u64::from(self.vcpu) * 4 * WORDS;
        let at = self.random.u64(0..WORDS);
        let addr = own + 4 * at;
        let (old, word) = (self.word(addr), self.random.u32(..));
        let (width, value) = (4, u64::from(word));
        let instr = match self.random.u8(0..16) {
            0 => {
                self.words.insert(addr, old.wrapping_add(word));
                Instr::LockAdd { addr, width, value }
            }
            1 => {
                self.words.insert(addr, old | word);
                Instr::Or { addr, width, value }
            }
            2 => {
                self.words.insert(addr, word);
                Instr::Xchg { addr, width, value }
            }
            3 => {
                // It succeeds, or does not.
                let expected = u64::from(old ^ (word & 1));
                if word & 1 == 0 {
                    self.words.insert(addr, word);
                }
                Instr::Cmpxchg {
                    addr,
                    width,
                    expected,
                    new: value,
                }
            }
            4 => {
                let count = self.random.u64(2..=WORDS);
                self.words.extend((0..count).map(|at| (own + 4 * at, word)));
                let addr = own;
                Instr::RepStos {
                    addr,
                    width,
                    value,
                    count,
                }
            }
            5 => {
                let count = at + 1;
                self.words.extend((0..count).map(|at| (own + 4 * at, word)));
                Instr::RepStosDown {
                    addr,
                    width,
                    value,
                    count,
                }
            }
            6 => {
                self.words.insert(addr, old & !0xff | word & 0xff);
                let (width, value) = (1, value & 0xff);
                Instr::Store { addr, width, value }
            }
            7 => {
                self.words.insert(addr, old & !0xffff | word & 0xffff);
                let (width, value) = (2, value & 0xffff);
                Instr::Store { addr, width, value }
            }
            8 => {
                let addr = own + 8 * (at / 2);
                let high = self.random.u32(..);
                self.words.insert(addr, word);
                self.words.insert(addr + 4, high);
                let (width, value) = (8, value | u64::from(high) << 32);
                Instr::Store { addr, width, value }
            }
            _ => {
                self.words.insert(addr, word);
                Instr::Store { addr, width, value }
            }
        };
        program.0.push(instr);
        program.1.push(match instr {
            Instr::Xchg { .. } | Instr::Cmpxchg { .. } => gives(old),
            _ => PLAIN,
        });
        program.0.push(Instr::Load { addr, width: 4 });
        program.1.push(gives(self.word(addr)));
    }

    /// What a register of a bank has after a write to it.
    fn after(number: u64, registers: u64, style: Style, old: u64, value: u64) -> u64 {
        match number < registers / 2 && style == Style::All {
            true => old.wrapping_add(value),
            false => value,
        }
    }

    fn use_bank(&mut self, program: &mut Program) {
        let half = own(self.vcpu, REGISTERS, OWN)[self.random.usize(0..2)];
        let first = self.random.u64(0..OWN);
        let put = |bank: &mut BTreeMap<u64, u64>, number, value| {
            let old = bank.get(&number).copied().unwrap_or(0);
            bank.insert(
                number,
                Self::after(number, REGISTERS, self.style, old, value),
            );
        };
        let number = half + first;
        let addr = BANK + 8 * number;
        if self.random.u8(0..4) == 0 {
            let (width, value) = (8, self.random.u64(..));
            let count = self.random.u64(1..=OWN - first);
            for at in 0..count {
                put(&mut self.bank, number + at, value);
            }
            program.0.push(Instr::RepStos {
                addr,
                width,
                value,
                count,
            });
        } else {
            let (width, value) = (4, u64::from(self.random.u32(..)));
            put(&mut self.bank, number, value);
            program.0.push(Instr::Store { addr, width, value });
        }
        program.1.push(PLAIN);
        program.0.push(Instr::Load { addr, width: 8 });
        program.1.push(gives(self.bank[&number]));
    }

    fn use_ports(&mut self, program: &mut Program) {
        let half = own(self.vcpu, PORT_REGISTERS, PORT_OWN)[self.random.usize(0..2)];
        let number = half + self.random.u64(0..PORT_OWN);
        let port = PORTS + 8 * u16::try_from(number).unwrap_or(0);
        let (width, value) = (4, self.random.u32(..));
        let old = self.ports.get(&number).copied().unwrap_or(0);
        let new = Self::after(number, PORT_REGISTERS, self.style, old, value.into());
        self.ports.insert(number, new);
        program.0.push(Instr::Out { port, width, value });
        program.1.push(PLAIN);
        program.0.push(Instr::In { port, width });
        program.1.push(gives(new & 0xffff_ffff));
    }

    /// `outs` from a buffer, `ins` into it, and `movs` between it and the bank.
    fn use_strings(&mut self, program: &mut Program) {
        let buffer = (BUFFERS + u64::from(self.vcpu)) << 12;
        let number = own(self.vcpu, PORT_REGISTERS, PORT_OWN)[1] + self.random.u64(0..PORT_OWN);
        let port = PORTS + 8 * u16::try_from(number).unwrap_or(0);
        let (width, count) = (4, self.random.u64(1..=8));
        let word = self.random.u32(..);
        program.0.push(Instr::RepStos {
            addr: buffer,
            width,
            value: word.into(),
            count,
        });
        let from = buffer;
        program.0.push(Instr::RepOuts {
            port,
            from,
            width,
            count,
        });
        self.ports.insert(number, word.into());
        let to = buffer + 0x100;
        program.0.push(Instr::RepIns {
            port,
            to,
            width,
            count,
        });
        self.words
            .extend((0..count).flat_map(|at| [(buffer + 4 * at, word), (to + 4 * at, word)]));
        let register = own(self.vcpu, REGISTERS, OWN)[1];
        let (width, count) = (8, count.div_ceil(2));
        let wide = u64::from(word) << 32 | u64::from(word);
        program.0.push(Instr::RepStos {
            addr: buffer + 0x200,
            width,
            value: wide,
            count,
        });
        program.0.push(Instr::RepMovs {
            from: buffer + 0x200,
            to: BANK + 8 * register,
            width,
            count,
        });
        self.bank.extend((0..count).map(|at| (register + at, wide)));
        program.0.push(Instr::RepMovs {
            from: BANK + 8 * register,
            to: buffer + 0x300,
            width,
            count,
        });
        self.words.extend(
            (0..2 * count).flat_map(|at| [0x200, 0x300].map(|part| (buffer + part + 4 * at, word))),
        );
        program.1.extend([PLAIN; 6]);
    }

    fn use_config(&mut self, program: &mut Program) {
        let register = self.random.u8(CONFIG) & 0xfc;
        let (address, port, width) = (config_address(register), 0xcfc, 4);
        let value = self.random.u32(..);
        self.config.insert(register, value);
        program.0.push(Instr::PciWrite {
            address,
            port,
            width,
            value,
        });
        program.1.push(PLAIN);
        program.0.push(Instr::PciRead {
            address,
            port,
            width,
        });
        program.1.push(gives(value));
    }

    /// Writes into the VGA window go through the buffered ring; a read of the sum comes after them.
    fn post(&mut self, program: &mut Program) {
        let (addr, width) = (self.random.u64(VGA), 1);
        let value = u64::from(self.random.u8(..));
        self.posted += value;
        program.0.push(Instr::Store { addr, width, value });
        program.1.push(PLAIN);
        if value % 4 == 0 {
            program.0.push(Instr::In {
                port: POSTED,
                width: 4,
            });
            program.1.push(gives(self.posted & 0xffff_ffff));
        }
    }

    fn use_odd(&mut self, program: &mut Program) {
        let (width, failed) = (2, 0xffff_u16);
        let (port, value) = match (self.style, self.random.u8(0..8)) {
            (Style::Twice, _) | (_, 0) => (NOBODY, failed),
            (_, 1 | 2) => (ODD + odd::PANICS, failed),
            (_, 3) => (ODD + odd::SLOW, ODD + odd::SLOW),
            (_, 4..=6) => (ODD + odd::LATER, ODD + odd::LATER),
            _ => (ODD + odd::NEVER, failed),
        };
        program.0.push(Instr::In { port, width });
        program
            .1
            .push(match self.is_stopped && port == ODD + odd::LATER {
                true => Expected::OrFails(Done::Value(value.into()), Done::Value(failed.into())),
                false => gives(value),
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_all_that_a_vcpu_does() {
        let all = |seed| {
            let mut writer = Writer::new(0, Style::All, seed);
            (0..50)
                .flat_map(|_| writer.program(40).0)
                .collect::<Vec<_>>()
        };
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
    }

    #[test]
    fn a_wrong_answer_is_seen_and_a_missing_one() {
        let mut writer = Writer::new(1, Style::All, 3);
        let program = writer.program(40);
        let known = |expected: &Expected| match expected {
            Expected::Is(done) | Expected::OrFails(done, _) => *done,
        };
        let mut results: Vec<Done> = program.1.iter().map(known).collect();
        assert!(writer.judge(&program, &results).unwrap() > 20);
        let at = results
            .iter()
            .rposition(|done| matches!(done, Done::Value(_)))
            .unwrap();
        results[at] = Done::Value(u64::MAX);
        assert!(writer.judge(&program, &results).is_err());
        results.pop();
        assert!(writer.judge(&program, &results).is_err());
    }
}
