// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server's journal: its requests become acts.

use std::cell::RefCell;
use std::sync::Arc;

use ioreq_core::VcpuId;
use ioreq_core::journal::{End, Journal, Served};
use ioreq_core::memory::RamError;
use vm_memory::GuestAddress;

use crate::act::{Act, Raw};
use crate::effects::{Effect, NotRecorded};
use crate::tape::{Inner, Mode};

pub(crate) struct ServerTape {
    pub(crate) tape: Arc<Inner>,
    pub(crate) server: u8,
}

thread_local! {
    /// What this thread serves: `end` does not say it again. A thread serves one request at a time.
    static SERVED: RefCell<Option<Act>> = const { RefCell::new(None) };
}

impl Journal for ServerTape {
    fn begin(&self, served: Served<'_>) {
        let server = self.server;
        let act = match served {
            Served::Request(vcpu, request) => Act::Request {
                server,
                vcpu: vcpu.0,
                raw: Raw::of(request),
            },
            Served::Posted(request) => Act::Posted {
                server,
                raw: Raw::of(request),
            },
            Served::Again(vcpu) => Act::Again {
                server,
                vcpu: vcpu.0,
            },
            // What a later core may have is not recorded.
            _ => return,
        };
        self.tape.enter(&act, true);
        SERVED.set(Some(act));
    }

    fn read(
        &self,
        addr: GuestAddress,
        buf: &mut [u8],
        memory: &mut dyn FnMut(&mut [u8]) -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        let len = buf.len();
        match &self.tape.mode {
            Mode::Record(recorder) => {
                let read = memory(buf);
                recorder.effects(|effects| match &read {
                    Ok(()) => effects.read(addr.0, buf),
                    Err(_) => effects.no_memory(addr.0, len),
                });
                read
            }
            Mode::Play(player) if player.is_mine() => match player.read(addr.0, buf) {
                Ok(true) => Ok(()),
                Ok(false) => Err(RamError { addr, len }),
                // It is told when the act ends.
                Err(NotRecorded) => memory(buf),
            },
            Mode::Play(_) => memory(buf),
        }
    }

    fn wrote(&self, addr: GuestAddress, bytes: &[u8]) {
        match &self.tape.mode {
            Mode::Record(recorder) => recorder.effects(|effects| effects.wrote(addr.0, bytes)),
            Mode::Play(player) if player.is_mine() => {
                player.effects(|effects| effects.wrote(addr.0, bytes));
            }
            Mode::Play(_) => {}
        }
    }

    fn end(&self, end: End) {
        if let Some(act) = SERVED.take() {
            self.tape.leave(&act, end.into());
        }
    }

    fn answer(&self, vcpu: VcpuId, value: Option<u64>) {
        let (server, vcpu) = (self.server, vcpu.0);
        match &self.tape.mode {
            Mode::Record(recorder) if recorder.is_mine() => {
                recorder.effects(|effects| {
                    effects.push(Effect::Answer {
                        server,
                        vcpu,
                        value,
                    });
                });
            }
            Mode::Record(_) => {
                let act = Act::Answer {
                    server,
                    vcpu,
                    value,
                };
                self.tape.act(&act, || ());
            }
            Mode::Play(player) => player.answer(&self.tape.names(), server, vcpu, value),
        }
    }
}
