// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a recording is made of: acts, one after the other, each with its effects.

use std::fmt;

use ioreq_core::VcpuId;
use ioreq_core::abi::{IOREQ_STATE_MASK, Ioreq};
use ioreq_core::journal::End;
use ioreq_core::request::decode;
use serde::{Deserialize, Serialize};

use crate::effects::Effect;
use crate::interrupts::Interrupt;

/// A request as it was in its slot, but for its state and its event channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Raw {
    addr: u64,
    data: u64,
    count: u32,
    size: u32,
    flags: u8,
    kind: u8,
}

impl Raw {
    pub(crate) fn of(request: &Ioreq) -> Self {
        Raw {
            addr: request.addr,
            data: request.data,
            count: request.count,
            size: request.size,
            flags: request.flags & !IOREQ_STATE_MASK,
            kind: request.kind,
        }
    }

    /// As a slot has it.
    pub(crate) fn request(&self) -> Ioreq {
        Ioreq {
            addr: self.addr,
            data: self.data,
            count: self.count,
            size: self.size,
            flags: self.flags & !IOREQ_STATE_MASK,
            kind: self.kind,
            ..Ioreq::default()
        }
    }

    fn describe(&self, vcpu: VcpuId) -> String {
        let request = self.request();
        let written = match request.is_read() {
            true => String::new(),
            false => format!(" of {:#x}", self.data),
        };
        match decode(&request, vcpu) {
            Ok(decoded) => format!("{decoded}{written}"),
            Err(malformed) => format!("{vcpu}: {malformed}"),
        }
    }
}

/// Something that happened to the devices, alone: while it did, nothing else did. Servers, sources and threads are numbers, in the order
/// in which they came to the tape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    /// A vCPU's request is served.
    Request { server: u8, vcpu: u32, raw: Raw },
    /// A request of the buffered ring is served.
    Posted { server: u8, raw: Raw },
    /// A request goes on that had to wait.
    Again { server: u8, vcpu: u32 },
    /// A request that waited is answered.
    Answer {
        server: u8,
        vcpu: u32,
        value: Option<u64>,
    },
    /// The host gives a device something.
    Input { source: u8, bytes: Vec<u8> },
    /// A device's thread begins a step.
    Take { thread: u8 },
    /// It ends it, and this is what it read and wrote on the way.
    Finish { thread: u8, log: Vec<Effect> },
    /// A device raises or lowers an interrupt, by itself.
    Signal(Interrupt),
}

impl Act {
    /// Whether the other is this one's turn: of the same kind, by the same one. (A late answer waits for none.)
    pub(crate) fn is_turn_of(&self, other: &Act) -> bool {
        use Act::{Again, Finish, Input, Posted, Request, Signal, Take};
        match (self, other) {
            (
                Request { server, vcpu, .. },
                Request {
                    server: s, vcpu: v, ..
                },
            )
            | (Again { server, vcpu }, Again { server: s, vcpu: v }) => server == s && vcpu == v,
            (Posted { server, .. }, Posted { server: s, .. }) => server == s,
            (Input { source, .. }, Input { source: s, .. }) => source == s,
            (Take { thread }, Take { thread: t })
            | (Finish { thread, .. }, Finish { thread: t, .. }) => thread == t,
            // Two that wait are told apart by what they are.
            (Signal(signal), Signal(other)) => signal == other,
            _ => false,
        }
    }

    pub(crate) fn describe(&self, names: &Names) -> String {
        match self {
            Act::Request { server, vcpu, raw } => {
                format!("{}, {}", names.server(*server), raw.describe(VcpuId(*vcpu)))
            }
            Act::Posted { server, raw } => format!(
                "{}, posted, {}",
                names.server(*server),
                raw.describe(VcpuId(0))
            ),
            Act::Again { server, vcpu } => {
                format!("{}, v{vcpu}: the request goes on", names.server(*server))
            }
            Act::Answer { server, vcpu, .. } => {
                format!("{}, v{vcpu}: the late answer", names.server(*server))
            }
            Act::Input { source, bytes } => {
                format!("{} bytes for {}", bytes.len(), names.source(*source))
            }
            Act::Take { thread } => format!("{} begins a step", names.thread(*thread)),
            Act::Finish { thread, .. } => format!("{} ends a step", names.thread(*thread)),
            Act::Signal(interrupt) => interrupt.to_string(),
        }
    }
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    Answered(Option<u64>),
    Refused,
    Waits,
    /// There is nothing to answer.
    Done,
}

impl From<End> for Ended {
    fn from(end: End) -> Self {
        match end {
            End::Answered(value) => Ended::Answered(value),
            End::Refused => Ended::Refused,
            // Whatever else there may be one day is no answer.
            _ => Ended::Waits,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Answered(Some(value)) => write!(f, "answered with {value:#x}"),
            Ended::Answered(None) => write!(f, "answered"),
            Ended::Refused => write!(f, "refused"),
            Ended::Waits => write!(f, "answered later"),
            Ended::Done => write!(f, "done"),
        }
    }
}

/// The names behind the numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub(crate) servers: Vec<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) threads: Vec<String>,
}

impl Names {
    pub(crate) fn server(&self, number: u8) -> String {
        of(&self.servers, number, "server")
    }

    pub(crate) fn source(&self, number: u8) -> String {
        of(&self.sources, number, "source")
    }

    pub(crate) fn thread(&self, number: u8) -> String {
        of(&self.threads, number, "thread")
    }
}

fn of(names: &[String], number: u8, what: &str) -> String {
    match names.get(usize::from(number)) {
        Some(name) => name.clone(),
        None => format!("{what} {number}"),
    }
}
