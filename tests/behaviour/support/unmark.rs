// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The safe way to set a page back to `ram_rw`, by hand.

use std::hint;

use ioreq_core::Gfn;
use ioreq_core::abi::{IOREQ_TYPE_COPY, STATE_IORESP_READY};

use super::{Answer, Server, until};
use crate::rig::Domain;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmarked {
    /// The page is `ram_rw`, after this many rounds.
    Done(u32),
    /// The page is still tracked; its writes were applied.
    Deferred,
}

impl<D: Domain> Server<D> {
    /// vCPUs whose request for a write of `gfn` is READY.
    fn parked(&self, gfn: Gfn) -> Vec<u32> {
        let vcpus = 0..self.slots().vcpus();
        let is_parked = |&vcpu: &u32| {
            self.is_ready(vcpu) && {
                let raw = self.raw(vcpu);
                raw.kind == IOREQ_TYPE_COPY && raw.addr >> 12 == gfn.0
            }
        };
        vcpus.filter(is_parked).collect()
    }

    /// Waits until no vCPU has an answer that it did not see yet, then pauses and unpauses the domain: now none is in the
    /// middle of a re-execution.
    pub(crate) fn grace(&self) {
        self.answers_seen();
        self.enable();
    }

    /// Waits until no vCPU has an answer that it did not see yet. It may be in the middle of its re-execution.
    pub(crate) fn answers_seen(&self) {
        let vcpus = 0..self.slots().vcpus() as usize;
        let seen = || {
            let state = |vcpu| self.page().state(vcpu);
            vcpus.clone().all(|v| state(v) != STATE_IORESP_READY)
        };
        // As quick as can be at first: the vCPU is then most likely to be where the grace period has to wait for it.
        for _ in 0..10_000 {
            if seen() {
                break;
            }
            hint::spin_loop();
        }
        until("answers to be seen", seen);
    }
}

/// Unmarks one page by the safe protocol, in at most 64 rounds.
pub(crate) fn safe_unmark<D: Domain>(server: &mut Server<D>, gfn: Gfn) -> Unmarked {
    for round in 1..=64 {
        server.grace();
        let parked = server.parked(gfn);
        if !parked.is_empty() {
            for vcpu in parked {
                server.serve(vcpu, Answer::Apply);
            }
            continue;
        }
        server.unmark(gfn);
        let parked = server.parked(gfn);
        if parked.is_empty() {
            return Unmarked::Done(round);
        }
        server.mark(gfn);
        for vcpu in parked {
            server.serve(vcpu, Answer::Apply);
        }
    }
    Unmarked::Deferred
}
