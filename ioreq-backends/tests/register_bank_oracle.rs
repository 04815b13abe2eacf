// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Register bank against a naive oracle that knows nothing but bytes.

use ioreq_backends::register_bank::{Gaps, Register, RegisterBank};
use ioreq_core::handler::{Access, Context, MutHandler, ReadOutcome, Space, WriteOutcome};
use ioreq_core::memory::MappedRegion;
use ioreq_core::{DomId, VcpuId, Width};
use proptest::prelude::*;
use vm_memory::GuestRegionCollection;

const LEN: usize = 40;

/// What is declared of one register; masks are cut to its width.
#[derive(Debug, Clone)]
struct Declared {
    gap: u64,
    width: Width,
    reset: u64,
    readable: u64,
    writable: u64,
    clearable: u64,
}

/// One byte of the oracle's bank.
#[derive(Debug, Clone, Copy)]
struct Byte {
    value: u8,
    readable: u8,
    writable: u8,
    clearable: u8,
}

fn byte(word: u64, index: u64) -> u8 {
    word.to_le_bytes()[usize::try_from(index).unwrap()]
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        Just(Width::B1),
        Just(Width::B2),
        Just(Width::B4),
        Just(Width::B8)
    ]
}

fn declared() -> impl Strategy<Value = Declared> {
    let masks = (any::<u64>(), any::<u64>(), any::<u64>());
    (0..4_u64, width(), any::<u64>(), masks).prop_map(
        |(gap, width, reset, (readable, writable, clearable))| Declared {
            gap,
            width,
            reset: width.cut(reset),
            readable: width.cut(readable),
            writable: width.cut(writable & !clearable),
            clearable: width.cut(clearable),
        },
    )
}

fn gaps() -> impl Strategy<Value = Gaps> {
    prop_oneof![Just(Gaps::Zeros), Just(Gaps::Ones), Just(Gaps::Refuse)]
}

proptest! {
    #[test]
    fn every_access_is_as_the_bytes_say(
        declared in proptest::collection::vec(declared(), 0..8),
        gaps in gaps(),
        accesses in proptest::collection::vec((0..LEN as u64 + 4, width(), any::<Option<u64>>()), 1..64),
    ) {
        // Beyond the bank there is room for an access that starts at its end.
        let mut oracle: Vec<Option<Byte>> = vec![None; LEN + 16];
        let mut registers = Vec::new();
        let mut offset = 0;
        for (index, d) in declared.iter().enumerate() {
            offset += d.gap;
            if offset + d.width.bytes() > LEN as u64 {
                break;
            }
            for b in 0..d.width.bytes() {
                oracle[usize::try_from(offset + b).unwrap()] = Some(Byte {
                    value: byte(d.reset, b),
                    readable: byte(d.readable, b),
                    writable: byte(d.writable, b),
                    clearable: byte(d.clearable, b),
                });
            }
            registers.push(
                Register::new(&format!("r{index}"), offset, d.width)
                    .reset(d.reset)
                    .readable(d.readable)
                    .writable(d.writable)
                    .clearable(d.clearable),
            );
            offset += d.width.bytes();
        }
        registers.reverse(); // any order will do
        let mut bank = RegisterBank::new(LEN as u64, registers).unwrap().gaps(gaps);

        let ram = GuestRegionCollection::<MappedRegion>::new();
        let cx = Context::detached(DomId(1), VcpuId(0), &ram);
        for (offset, width, write) in accesses {
            let access = Access { space: Space::Mmio, addr: offset, offset, width };
            let first = usize::try_from(offset).unwrap();
            let bytes = &mut oracle[first..first + width.size()];
            let refused = gaps == Gaps::Refuse && bytes.iter().any(Option::is_none);
            match write {
                None => {
                    let mut expected = [0; 8];
                    for (to, from) in expected.iter_mut().zip(bytes.iter()) {
                        *to = match from {
                            Some(byte) => byte.value & byte.readable,
                            None if gaps == Gaps::Ones => 0xff,
                            None => 0,
                        };
                    }
                    match bank.read(&cx, access) {
                        ReadOutcome::Value(value) => {
                            prop_assert!(!refused);
                            prop_assert_eq!(value, u64::from_le_bytes(expected));
                        }
                        ReadOutcome::Refused(_) => prop_assert!(refused),
                        ReadOutcome::Defer(_) => prop_assert!(false),
                    }
                }
                Some(value) => {
                    let outcome = bank.write(&cx, access, width.cut(value));
                    prop_assert_eq!(matches!(outcome, WriteOutcome::Refused(_)), refused);
                    if !refused {
                        for (byte, written) in bytes.iter_mut().zip(value.to_le_bytes()) {
                            if let Some(byte) = byte {
                                byte.value = byte.value & !byte.writable | written & byte.writable;
                                byte.value &= !(written & byte.clearable);
                            }
                        }
                    }
                }
            }
        }
        for saved in bank.snapshot() {
            let first = usize::try_from(saved.offset).unwrap();
            for (index, byte) in oracle[first..first + saved.width.size()].iter().enumerate() {
                prop_assert_eq!(saved.value.to_le_bytes()[index], byte.unwrap().value);
            }
        }
    }
}
