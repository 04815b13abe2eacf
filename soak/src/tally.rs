// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What was done so far, by everybody.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $words:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            pub(crate) const ALL: &'static [$name] = &[$($name::$variant),*];

            /// As a report says it.
            pub(crate) fn words(self) -> &'static str {
                match self { $($name::$variant => $words,)* }
            }
        }
    };
}

counted! {
    /// What goes wrong on purpose.
    Fault {
        Panic = "handlers that panic",
        Slow = "slow handlers",
        Deferred = "answers that come later",
        Dropped = "answers that never come",
        Lost = "events lost",
        Doubled = "events twice",
        Late = "events held back",
        Overflow = "event rings that overflow",
        Eintr = "event reads interrupted (EINTR)",
        Eagain = "event reads put off (EAGAIN)",
        Enomem = "marking or unmarking out of memory (ENOMEM)",
        Paused = "domains paused under load",
        Disabled = "servers disabled in mid-request",
        Suspended = "tracking suspended and resumed, log-dirty mode meanwhile",
        Restarted = "workers stopped under load",
        Destroyed = "domains destroyed under load",
        Shutdown = "domains shut down under load",
        Crashed = "domains crashed under load",
        Killed = "device models killed in a request",
        Replaced = "device models replaced: quiesced, saved, restored",
        Fight = "claims refused to the second of two servers",
        Slots = "absurd slots, as the server counted them",
        Rings = "absurd ring pointers, as the server counted them",
    }
}

counted! {
    /// What was looked at.
    Check {
        Answers = "answers of instructions",
        Words = "words of memory at the end",
        Registers = "registers of devices at the end",
        Counts = "rounds with as many requests served as sent",
        Entries = "entries of shadow page tables",
        Narrow = "comparisons of 32-bit address spaces",
        Bytes = "bytes that went through shadow page tables",
        Clean = "domains without a server, claim, mark or channel left",
        Quiet = "quiet points: threads and descriptors as before",
    }
}

/// Counts of everybody.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    requests: AtomicU64,
    rounds: AtomicU64,
    faults: [AtomicU64; Fault::ALL.len()],
    checks: [AtomicU64; Check::ALL.len()],
}

// Relaxed, all of them: numbers of their own.
impl Tally {
    /// Requests that servers answered.
    pub(crate) fn requests(&self, count: u64) {
        self.requests.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn round(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, fault: Fault, count: u64) {
        self.faults[fault as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn checked(&self, check: Check, count: u64) {
        self.checks[check as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn all_requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn all_rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    pub(crate) fn of_fault(&self, fault: Fault) -> u64 {
        self.faults[fault as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn of_check(&self, check: Check) -> u64 {
        self.checks[check as usize].load(Ordering::Relaxed)
    }
}
