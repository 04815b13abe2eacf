// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What an act reads and does, in order.

use std::fmt;

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};

use crate::interrupts::Interrupt;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Effect {
    /// Guest memory was read, and held this.
    Read { addr: u64, bytes: Vec<u8> },
    /// It was to be read, and is no memory.
    NoMemory { addr: u64, len: u32 },
    /// Guest memory was written. What, is a checksum.
    Wrote { addr: u64, len: u64, sum: u32 },
    /// A device took something in from outside.
    TookIn(Vec<u8>),
    /// An interrupt was raised or lowered.
    Signal(Interrupt),
    /// Another request was answered.
    Answer {
        server: u8,
        vcpu: u32,
        value: Option<u64>,
    },
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Read { addr, bytes } => {
                write!(f, "{} bytes of memory read at {addr:#x}", bytes.len())
            }
            Effect::NoMemory { addr, len } => {
                write!(f, "{len} bytes read at {addr:#x}, which is no memory")
            }
            Effect::Wrote { addr, len, sum } => write!(
                f,
                "{len} bytes of memory written at {addr:#x}, with checksum {sum:#010x}"
            ),
            Effect::TookIn(bytes) => write!(f, "{} bytes taken in", bytes.len()),
            Effect::Signal(interrupt) => interrupt.fmt(f),
            Effect::Answer { vcpu, value, .. } => match value {
                Some(value) => write!(f, "v{vcpu} answered with {value:#x}"),
                None => write!(f, "v{vcpu} answered"),
            },
        }
    }
}

/// Effects that are being gathered. Accesses to consecutive bytes become one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Effects(pub(crate) Vec<Effect>);

impl Effects {
    pub(crate) fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }

    pub(crate) fn read(&mut self, at: u64, new: &[u8]) {
        if let Some(Effect::Read { addr, bytes }) = self.0.last_mut()
            && addr.checked_add(bytes.len() as u64) == Some(at)
        {
            bytes.extend(new);
        } else {
            self.push(Effect::Read {
                addr: at,
                bytes: new.to_vec(),
            });
        }
    }

    pub(crate) fn no_memory(&mut self, addr: u64, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.push(Effect::NoMemory { addr, len });
    }

    pub(crate) fn wrote(&mut self, at: u64, bytes: &[u8]) {
        if let Some(Effect::Wrote { addr, len, sum }) = self.0.last_mut()
            && addr.checked_add(*len) == Some(at)
        {
            *sum = continued(*sum, bytes);
            *len += bytes.len() as u64;
        } else {
            self.push(Effect::Wrote {
                addr: at,
                len: bytes.len() as u64,
                sum: continued(0, bytes),
            });
        }
    }
}

pub(crate) fn continued(sum: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(sum);
    hasher.update(bytes);
    hasher.finalize()
}

/// Hands recorded reads out again, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reads {
    /// The effect that is next, and how many of its bytes have been handed out.
    at: usize,
    done: usize,
}

/// A read that the recording does not have at this place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotRecorded;

impl Reads {
    /// Fills `buf` with what was read at `addr`; whether it was memory.
    pub(crate) fn next(
        &mut self,
        recorded: &[Effect],
        addr: u64,
        buf: &mut [u8],
    ) -> Result<bool, NotRecorded> {
        if buf.is_empty() {
            return Ok(true);
        }
        while let Some(effect) = recorded.get(self.at) {
            match effect {
                Effect::Read { addr: at, bytes } => {
                    let rest = bytes.get(self.done..).unwrap_or_default();
                    if rest.is_empty() {
                        (self.at, self.done) = (self.at + 1, 0);
                        continue;
                    }
                    let found = rest.get(..buf.len()).ok_or(NotRecorded)?;
                    if at.checked_add(self.done as u64) != Some(addr) {
                        return Err(NotRecorded);
                    }
                    buf.copy_from_slice(found);
                    self.done += buf.len();
                    return Ok(true);
                }
                Effect::NoMemory { addr: at, .. } if *at == addr => {
                    self.at += 1;
                    return Ok(false);
                }
                Effect::NoMemory { .. } => return Err(NotRecorded),
                _ => self.at += 1,
            }
        }
        Err(NotRecorded)
    }

    /// What was taken in next.
    pub(crate) fn next_input<'a>(
        &mut self,
        recorded: &'a [Effect],
    ) -> Result<&'a [u8], NotRecorded> {
        let rest = recorded.get(self.at..).unwrap_or_default();
        let found = rest
            .iter()
            .zip(self.at..)
            .find_map(|(effect, at)| match effect {
                Effect::TookIn(bytes) => Some((bytes, at)),
                _ => None,
            });
        let (bytes, at) = found.ok_or(NotRecorded)?;
        (self.at, self.done) = (at + 1, 0);
        Ok(bytes)
    }
}

/// The first difference between what was recorded and what is replayed; stores count only if they are asked for.
pub(crate) fn difference(
    recorded: &[Effect],
    replayed: &[Effect],
    stores: bool,
) -> Option<(String, String)> {
    let counts = |effect: &&Effect| match effect {
        Effect::Wrote { .. } => stores,
        // Whoever completes a request may come a moment too early or too late to do it within an act.
        Effect::Answer { .. } => false,
        _ => true,
    };
    let mut recorded = recorded.iter().filter(counts);
    let mut replayed = replayed.iter().filter(counts);
    let text =
        |effect: Option<&Effect>| effect.map_or("nothing more".to_owned(), ToString::to_string);
    loop {
        match (recorded.next(), replayed.next()) {
            (None, None) => return None,
            (was, is) if was == is => {}
            (was, is) => return Some((text(was), text(is))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_bytes_are_one_effect_and_are_handed_out_as_they_are_asked_for() {
        let mut effects = Effects::default();
        effects.read(0x1000, &[1, 2]);
        effects.read(0x1002, &[3]);
        effects.wrote(0x10, &[9]);
        effects.read(0x1003, &[4]);
        effects.no_memory(0x9000, 8);
        effects.push(Effect::TookIn(vec![5]));
        effects.wrote(u64::MAX, &[9]);
        assert_eq!(effects.0.len(), 6);
        let mut reads = Reads::default();
        let mut next = |addr, len| {
            let mut buf = vec![0; len];
            reads.next(&effects.0, addr, &mut buf).map(|is| (is, buf))
        };
        assert_eq!(next(0x1000, 1), Ok((true, vec![1])));
        assert_eq!(next(0x1000, 1), Err(NotRecorded), "it is further on");
        assert_eq!(next(0x1001, 2), Ok((true, vec![2, 3])));
        assert_eq!(next(0x1003, 2), Err(NotRecorded), "it was shorter");
        assert_eq!(next(0x1003, 1), Ok((true, vec![4])));
        assert_eq!(next(0x9008, 8), Err(NotRecorded));
        assert_eq!(next(0x9000, 8), Ok((false, vec![0; 8])));
        assert_eq!(next(0x1004, 1), Err(NotRecorded), "there is no more");
        let mut reads = Reads::default();
        assert_eq!(reads.next_input(&effects.0), Ok(&[5][..]));
        assert_eq!(reads.next_input(&effects.0), Err(NotRecorded));
    }

    #[test]
    fn stores_are_told_apart_by_their_bytes_however_they_were_made() {
        let (mut one, mut two) = (Effects::default(), Effects::default());
        one.wrote(0x1000, &[1, 2, 3]);
        two.wrote(0x1000, &[1]);
        two.wrote(0x1001, &[2, 3]);
        assert_eq!(one, two);
        two.wrote(0x1003, &[0]);
        assert!(difference(&one.0, &two.0, true).is_some());
        assert!(difference(&one.0, &two.0, false).is_none());
        assert!(difference(&one.0, &[], true).is_some());
        assert!(difference(&[], &one.0, true).is_some());
    }
}
