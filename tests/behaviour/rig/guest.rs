// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a guest does, as plain data: the model interprets it on a vCPU thread, and a small agent inside a real guest can
//! interpret the same.

use ioreq_core::{Sbdf, Width};

/// One guest instruction, or one short well-known sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestOp {
    /// `in`
    In { port: u16, width: Width },
    /// `out`
    Out { port: u16, width: Width, value: u32 },
    /// `mov` from memory
    Load { addr: u64, width: Width },
    /// `mov` to memory
    Store { addr: u64, width: Width, value: u64 },
    /// `movups` to memory: lower half first
    Store16 { addr: u64, value: [u64; 2] },
    /// `rep stos`
    RepStos {
        addr: u64,
        width: Width,
        value: u64,
        count: u32,
    },
    /// `std; rep stos; cld`: `addr` is the highest element's
    RepStosDown {
        addr: u64,
        width: Width,
        value: u64,
        count: u32,
    },
    /// `rep movs`
    RepMovs {
        from: u64,
        to: u64,
        width: Width,
        count: u32,
    },
    /// `std; rep movs; cld`: `from` and `to` are the highest elements'
    RepMovsDown {
        from: u64,
        to: u64,
        width: Width,
        count: u32,
    },
    /// `rep ins`
    RepIns {
        port: u16,
        to: u64,
        width: Width,
        count: u32,
    },
    /// `rep outs`
    RepOuts {
        port: u16,
        from: u64,
        width: Width,
        count: u32,
    },
    /// `lock add`
    LockAdd { addr: u64, width: Width, value: u64 },
    /// `or`
    Or { addr: u64, width: Width, value: u64 },
    /// `xchg`: gives the old value
    Xchg { addr: u64, width: Width, value: u64 },
    /// `lock cmpxchg`, or `lock cmpxchg8b` for 8 bytes: gives the value found
    Cmpxchg {
        addr: u64,
        width: Width,
        expected: u64,
        new: u64,
    },
    /// Calls a `ret` at `addr`
    Fetch { addr: u64 },
    /// `out 0xcf8`, then `in 0xcfc + (register & 3)`
    PciRead {
        function: Sbdf,
        register: u8,
        width: Width,
    },
    /// `out 0xcf8`, then `out 0xcfc + (register & 3)`
    PciWrite {
        function: Sbdf,
        register: u8,
        width: Width,
        value: u32,
    },
    /// Sets the real-time clock forward by an hour, through ports 0x70 and 0x71
    RtcSet,
    /// Spins until the 4 bytes of plain RAM at `addr` are `value`: the vCPU works on, without I/O
    Await { addr: u64, value: u32 },
    /// Gives page [`GIVEN_BACK`](crate::support::layout::GIVEN_BACK) back to Xen (`XENMEM_decrease_reservation`): the guest's
    /// memory map changes
    ChangeMemoryMap,
}

/// A constructor each, in the order in which an assembler names operands: place, width, value, count.
impl GuestOp {
    pub(crate) const fn read_port(port: u16, width: Width) -> Self {
        GuestOp::In { port, width }
    }

    pub(crate) const fn write_port(port: u16, width: Width, value: u32) -> Self {
        GuestOp::Out { port, width, value }
    }

    pub(crate) const fn load(addr: u64, width: Width) -> Self {
        GuestOp::Load { addr, width }
    }

    pub(crate) const fn store(addr: u64, width: Width, value: u64) -> Self {
        GuestOp::Store { addr, width, value }
    }

    pub(crate) const fn store16(addr: u64, value: [u64; 2]) -> Self {
        GuestOp::Store16 { addr, value }
    }

    pub(crate) const fn rep_stos(addr: u64, width: Width, value: u64, count: u32) -> Self {
        GuestOp::RepStos {
            addr,
            width,
            value,
            count,
        }
    }

    pub(crate) const fn rep_stos_down(addr: u64, width: Width, value: u64, count: u32) -> Self {
        GuestOp::RepStosDown {
            addr,
            width,
            value,
            count,
        }
    }

    pub(crate) const fn rep_movs_down(from: u64, to: u64, width: Width, count: u32) -> Self {
        GuestOp::RepMovsDown {
            from,
            to,
            width,
            count,
        }
    }

    pub(crate) const fn rep_movs(from: u64, to: u64, width: Width, count: u32) -> Self {
        GuestOp::RepMovs {
            from,
            to,
            width,
            count,
        }
    }

    pub(crate) const fn rep_ins(port: u16, to: u64, width: Width, count: u32) -> Self {
        GuestOp::RepIns {
            port,
            to,
            width,
            count,
        }
    }

    pub(crate) const fn rep_outs(port: u16, from: u64, width: Width, count: u32) -> Self {
        GuestOp::RepOuts {
            port,
            from,
            width,
            count,
        }
    }

    pub(crate) const fn lock_add(addr: u64, width: Width, value: u64) -> Self {
        GuestOp::LockAdd { addr, width, value }
    }

    pub(crate) const fn or(addr: u64, width: Width, value: u64) -> Self {
        GuestOp::Or { addr, width, value }
    }

    pub(crate) const fn xchg(addr: u64, width: Width, value: u64) -> Self {
        GuestOp::Xchg { addr, width, value }
    }

    pub(crate) const fn cmpxchg(addr: u64, width: Width, expected: u64, new: u64) -> Self {
        GuestOp::Cmpxchg {
            addr,
            width,
            expected,
            new,
        }
    }

    pub(crate) const fn fetch(addr: u64) -> Self {
        GuestOp::Fetch { addr }
    }

    pub(crate) const fn pci_read(function: Sbdf, register: u8, width: Width) -> Self {
        GuestOp::PciRead {
            function,
            register,
            width,
        }
    }

    pub(crate) const fn pci_write(function: Sbdf, register: u8, width: Width, value: u32) -> Self {
        GuestOp::PciWrite {
            function,
            register,
            width,
            value,
        }
    }
}

/// What an operation gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpResult {
    /// It is done and gives no value.
    Done,
    /// The value in the register, cut to the access's width.
    Value(u64),
    /// The guest got #GP (or #UD) instead; it went on with the next operation.
    Fault,
}

/// How a list of operations ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// All operations are through.
    Back,
    /// Xen crashed the domain, with its reason where known.
    Crashed(String),
    /// The domain is shut down or gone for another reason.
    Shutdown(String),
    /// Xen itself panicked.
    Panicked(String),
    /// The vCPU did not come back.
    Stuck,
}

/// A list of operations, done or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Results of those that are through.
    pub(crate) results: Vec<OpResult>,
    pub(crate) end: End,
}

impl Outcome {
    /// The results, if all went through.
    #[track_caller]
    pub(crate) fn back(self) -> Vec<OpResult> {
        assert_eq!(self.end, End::Back, "after {:x?}", self.results);
        self.results
    }

    /// The value of the only operation.
    #[track_caller]
    pub(crate) fn value(self) -> u64 {
        match self.back()[..] {
            [OpResult::Value(value)] => value,
            ref other => panic!("expected one value, the guest has {other:x?}"),
        }
    }

    /// The domain must have crashed.
    #[track_caller]
    pub(crate) fn crashed(self) {
        assert!(
            matches!(self.end, End::Crashed(_)),
            "expected a domain crash, the guest ended {:?} after {:x?}",
            self.end,
            self.results
        );
    }

    /// Whether the domain crashed; the whole outcome if not.
    pub(crate) fn crash(self) -> Result<(), Outcome> {
        match self.end {
            End::Crashed(_) => Ok(()),
            _ => Err(self),
        }
    }

    /// Xen must have panicked.
    #[track_caller]
    pub(crate) fn panicked(self) {
        assert!(
            matches!(self.end, End::Panicked(_)),
            "expected a hypervisor panic, the guest ended {:?} after {:x?}",
            self.end,
            self.results
        );
    }

    /// Every operation must have faulted, and the guest gone on.
    #[track_caller]
    pub(crate) fn faulted(self) {
        let results = self.back();
        assert!(
            !results.is_empty() && results.iter().all(|r| *r == OpResult::Fault),
            "expected #GP, the guest has {results:x?}"
        );
    }
}
