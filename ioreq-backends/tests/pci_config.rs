// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI: header, capabilities, masks, what a guest's configuration accesses do, descriptions that must be refused.

mod pci_fakes;

use std::sync::{Arc, Mutex};

use ioreq_backends::pci::{
    Bar, Builder, Capability, ExtendedCapability, FunctionInterrupts, Header, Msi, Msix,
    PciFunction, Signals,
};
use ioreq_core::handler::{Access, Space};
use ioreq_core::hypervisor::Intx;
use ioreq_core::{ErrorKind, Width};
use pci_fakes::*;
use proptest::prelude::*;

fn plain() -> Rig {
    Rig::new(Signals::new(), |builder| builder)
}

#[test]
fn the_header_says_what_it_was_given() {
    let interrupts = FunctionInterrupts::new(
        at(),
        Arc::new(FakeInterrupts::default()),
        Signals::new().intx(Intx::C),
    );
    let header = Header::new(0x8086, 0x1916)
        .class(0x03, 0x80, 0x01)
        .revision(0x07)
        .subsystem(0x1028, 0x06dc)
        .multi_function();
    let function = PciFunction::builder(header, interrupts.unwrap())
        .build(Arc::new(FakeRoutes::default()))
        .unwrap();
    let dwords: Vec<_> = (0..0x100)
        .step_by(4)
        .filter_map(|at| {
            function
                .register(at, Width::B4)
                .filter(|word| *word != 0)
                .map(|word| (at, word))
        })
        .collect();
    assert_eq!(
        dwords,
        [
            (0x00, 0x1916_8086),
            (0x08, 0x0380_0107),
            (0x0c, 0x0080_0000),
            (0x2c, 0x06dc_1028),
            (0x3c, 0x0000_0300),
        ]
    );
    assert_eq!((function.sbdf(), function.len()), (at(), 0x100));
}

#[test]
fn ids_of_an_empty_slot_are_refused() {
    for (vendor, device, good) in [
        (0xffff, 0x1234, false),
        (0, 0, false),
        (0, 0xffff, false),
        (0, 1, true),
        (0x1234, 0xffff, true),
        (0x1234, 0, true),
    ] {
        let interrupts =
            FunctionInterrupts::new(at(), Arc::new(FakeInterrupts::default()), Signals::new());
        let builder = PciFunction::builder(Header::new(vendor, device), interrupts.unwrap());
        let result = builder.build(Arc::new(FakeRoutes::default()));
        assert_eq!(result.is_ok(), good, "{vendor:04x}:{device:04x}");
        if let Err(err) = result {
            assert_eq!(err.kind(), ErrorKind::InvalidArgument);
            assert!(err.to_string().contains("empty slot"), "{err}");
        }
    }
}

fn refusal(signals: Signals, build: impl FnOnce(Builder) -> Builder) -> String {
    match Rig::try_new(signals, build) {
        Ok(rig) => panic!("{:?} was taken", rig.function),
        Err(err) => {
            assert_eq!(err.kind(), ErrorKind::InvalidArgument);
            err.to_string()
        }
    }
}

#[test]
fn bad_bars_are_refused_and_say_what_was_wrong() {
    let bar = |index, bar: Bar| refusal(Signals::new(), |builder| builder.bar(index, bar));
    for (index, bad) in [
        (0, Bar::mem32(0)),
        (0, Bar::mem32(8)),
        (0, Bar::mem32(0x1800)),
        (0, Bar::mem32(1 << 32)),
        (0, Bar::mem64(1 << 63)),
        (0, Bar::mem64(u64::MAX)),
        (0, Bar::io(2)),
        (0, Bar::io(512)),
        (0, Bar::io(24)),
    ] {
        let text = bar(index, bad);
        assert!(text.contains("size is a power of two"), "{text}");
    }
    for (index, bad) in [(6, Bar::mem32(16)), (255, Bar::io(4)), (5, Bar::mem64(16))] {
        let text = bar(index, bad);
        assert!(text.contains("registers 0 to 5"), "{text}");
    }
    assert!(bar(1, Bar::io(4).prefetchable()).contains("cannot be prefetchable"));
    for (one, other, second) in [
        (Bar::mem32(16), Bar::io(4), 0),
        (Bar::mem64(16), Bar::mem32(16), 1),
    ] {
        let both = |builder: Builder| builder.bar(0, one.clone()).bar(second, other.clone());
        assert!(refusal(Signals::new(), both).contains("that BAR 0 has"));
        let reversed = |builder: Builder| builder.bar(second, other.clone()).bar(0, one.clone());
        assert!(refusal(Signals::new(), reversed).contains(&format!("that BAR {second} has")));
    }
    // The largest and the smallest of each, side by side, in any order.
    let all = |builder: Builder| {
        builder
            .bar(5, Bar::io(4))
            .bar(1, Bar::mem64(1 << 62))
            .bar(0, Bar::mem32(1 << 31))
            .bar(3, Bar::mem32(16))
            .bar(4, Bar::io(256))
    };
    assert_eq!(Rig::new(Signals::new(), all).function.bars().len(), 5);
}

#[test]
fn bad_signals_are_refused_and_say_what_was_wrong() {
    for vectors in [0, 3, 33, 64] {
        let text = refusal(Signals::new().msi(Msi::new(vectors)), |builder| builder);
        assert!(
            text.contains(&format!("MSI with {vectors} vectors")),
            "{text}"
        );
    }
    let msix = |msix| {
        refusal(Signals::new().msix(msix), |builder| {
            builder.bar(0, Bar::mem32(0x1000)).bar(2, Bar::io(256))
        })
    };
    for vectors in [0, 2049, u16::MAX] {
        assert!(msix(Msix::new(vectors, (0, 0), (0, 0x8000))).contains("1 to 2048"));
    }
    assert!(msix(Msix::new(1, (6, 0), (0, 0x800))).contains("MSI-X table at BAR 6"));
    assert!(msix(Msix::new(1, (0, 0), (0, 0x804))).contains("MSI-X pending bits at BAR 0"));
    assert!(msix(Msix::new(2, (0, 0), (0, 0x18))).contains("overlaps the pending bits"));
    assert!(msix(Msix::new(65, (0, 0x10), (0, 8))).contains("overlaps the pending bits"));
    assert!(msix(Msix::new(1, (0, 0xff8), (0, 0))).contains("not inside a memory BAR 0"));
    assert!(msix(Msix::new(1, (0, 0), (0, 0xffff_fff8))).contains("not inside a memory BAR 0"));
    assert!(msix(Msix::new(1, (2, 0), (0, 0))).contains("not inside a memory BAR 2"));
    assert!(msix(Msix::new(1, (1, 0), (0, 0))).contains("not inside a memory BAR 1"));
}

#[test]
fn msix_structures_may_touch_each_other_and_the_regions_ends() {
    for (table, pending) in [(0x8, 0), (0, 0x20), (0xfe0, 0xfd8), (0, 0xff8)] {
        let signals = Signals::new().msix(Msix::new(2, (0, table), (0, pending)));
        Rig::new(signals, |builder| builder.bar(0, Bar::mem32(0x1000)));
    }
}

#[test]
fn bad_capabilities_are_refused_and_say_what_was_wrong() {
    let cap = |cap: Capability| refusal(Signals::new(), |builder| builder.capability(cap));
    assert!(cap(Capability::new(0x05, [0; 8])).contains("set by the function's signals"));
    assert!(cap(Capability::new(0x11, [0; 10])).contains("set by the function's signals"));
    assert!(cap(Capability::new(0, [])).contains("null capability"));
    assert!(
        cap(Capability::new(1, [0; 2]).writable([0; 3]))
            .contains("a mask of 3 bytes for a body of 2")
    );
    assert!(cap(Capability::new(1, [0; 2]).clearable([0; 3])).contains("a mask of 3 bytes"));
    let both = Capability::new(1, [0; 2])
        .writable([1, 3])
        .clearable([2, 2]);
    assert!(cap(both).contains("both writable and clearable"));
    assert!(cap(Capability::new(1, [0; 0xbf])).contains("0xc0 bytes are left"));
    assert!(cap(Capability::vendor([0; 4000])).contains("does not fit"));
    Rig::new(Signals::new(), |builder| {
        builder.capability(Capability::new(1, [0; 0xbe]))
    });
    // Full to the last byte, then MSI does not fit.
    let full = |builder: Builder| builder.capability(Capability::new(1, [0; 0xbe]));
    let text = refusal(Signals::new().msi(Msi::new(1)), full);
    assert!(text.contains("0x0 bytes are left"), "{text}");

    let ext = |cap: ExtendedCapability| {
        refusal(Signals::new(), |builder| builder.extended_capability(cap))
    };
    assert!(ext(ExtendedCapability::new(0, 1, [])).contains("the id is not 0"));
    assert!(ext(ExtendedCapability::new(1, 16, [])).contains("below 16"));
    assert!(ext(ExtendedCapability::new(1, 1, [0; 0xefd])).contains("0xf00 bytes are left"));
    assert!(ext(ExtendedCapability::new(1, 1, [0]).writable([0; 2])).contains("a mask of 2 bytes"));
    Rig::new(Signals::new(), |builder| {
        builder.extended_capability(ExtendedCapability::new(1, 1, [0; 0xefc]))
    });
}

#[test]
fn interrupts_serve_one_function_and_failed_builds_do_not_use_them_up() {
    let guest = Arc::new(FakeInterrupts::default());
    let interrupts = FunctionInterrupts::new(at(), guest, Signals::new()).unwrap();
    let build = |bar| {
        PciFunction::builder(header(), Arc::clone(&interrupts))
            .bar(0, bar)
            .build(Arc::new(FakeRoutes::default()))
    };
    assert!(build(Bar::mem32(3)).is_err());
    let function = build(Bar::mem32(16)).unwrap();
    let err = build(Bar::mem32(16)).unwrap_err();
    assert!(err.to_string().contains("have a function already"), "{err}");
    assert_eq!(function.interrupts().sbdf(), at());
}

/// Walks the list as a guest does.
fn walk(rig: &Rig) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    if rig.get(STATUS, Width::B2).unwrap() & 0x10 != 0 {
        let mut at = rig.get(0x34, Width::B1).unwrap();
        while at != 0 {
            assert!(
                at >= 0x40 && at.is_multiple_of(4) && found.len() < 48,
                "{at:#x}"
            );
            found.push((at, rig.get(at, Width::B1).unwrap()));
            at = rig.get(at + 1, Width::B1).unwrap();
        }
    }
    found
}

#[test]
fn capabilities_are_listed_in_order() {
    assert_eq!(walk(&plain()), []);
    assert_eq!(plain().function.capability(5), None);
    let signals = Signals::new()
        .msi(Msi::new(2).per_vector_masking())
        .msix(Msix::new(3, (0, 0), (0, 0x40)));
    let rig = Rig::new(signals, |builder| {
        builder
            .bar(0, Bar::mem32(0x80))
            .capability(Capability::vendor(*b"xyz"))
            .capability(Capability::new(0x10, [2, 0, 1, 0]))
            .capability(Capability::vendor([]))
    });
    assert_eq!(
        walk(&rig),
        [
            (0x40, 0x09),
            (0x48, 0x10),
            (0x50, 0x09),
            (0x54, 0x05),
            (0x6c, 0x11)
        ]
    );
    assert_eq!(rig.get(0x40, Width::B8), Some(0x0000_7a79_7806_4809));
    assert_eq!(rig.get(0x50, Width::B4), Some(0x0003_5409));
    assert_eq!(
        rig.get32(0x54),
        0x0182_6c05,
        "MSI: two messages, 64 bits, masks"
    );
    assert_eq!(rig.get32(0x6c), 0x0002_0011, "MSI-X: three messages");
    assert_eq!((rig.get32(0x70), rig.get32(0x74)), (0x0, 0x40));
    assert_eq!(rig.function.capability(0x09), Some(0x40));
    assert_eq!(rig.function.capability(0x11), Some(0x6c));
    assert_eq!(rig.function.capability(0x0a), None);
}

#[test]
fn extended_capabilities_are_linked_and_seen_through_ecam() {
    let rig = Rig::new(Signals::new(), |builder| {
        builder
            .extended_capability(ExtendedCapability::new(0x0003, 1, [1; 8]))
            .extended_capability(ExtendedCapability::new(0x000b, 2, [0; 5]).writable([0, 0xf0]))
            .extended_capability(ExtendedCapability::new(0x0001, 15, []))
    });
    assert_eq!(rig.function.len(), 0x1000);
    let ecam = |offset, width| Access {
        space: Space::Mmio,
        addr: 0xe000_0000_u64.wrapping_add(offset),
        offset,
        width,
    };
    let word = |offset| read(&*rig.function, ecam(offset, Width::B4)).unwrap();
    assert_eq!(word(0), 0x10f0_1af4);
    assert_eq!(
        (word(0x100), word(0x10c), word(0x118)),
        (0x10c1_0003, 0x1182_000b, 0x000f_0001)
    );
    assert!(write(&*rig.function, ecam(0x110, Width::B8), u64::MAX));
    assert_eq!(word(0x110), 0x0000_f000);
    assert_eq!(read(&*rig.function, ecam(0xffc, Width::B4)), Some(0));
    for (offset, width) in [
        (0xffd, Width::B4),
        (0xff9, Width::B8),
        (0x1000, Width::B1),
        (u64::MAX, Width::B8),
    ] {
        assert_eq!(read(&*rig.function, ecam(offset, width)), None);
        assert!(!write(&*rig.function, ecam(offset, width), 0));
    }
    let short = plain();
    assert_eq!(
        read(&*short.function, ecam(0x100, Width::B4)),
        None,
        "256 bytes only"
    );
    let empty = Rig::new(Signals::new(), Builder::extended);
    assert_eq!(
        read(&*empty.function, ecam(0x100, Width::B4)),
        Some(0),
        "an empty list"
    );
}

#[test]
fn accesses_of_all_widths_at_all_offsets_are_bytes() {
    let rig = Rig::new(Signals::new().intx(Intx::A), |builder| {
        builder.capability(Capability::vendor([
            0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
        ]))
    });
    let bytes: Vec<u8> = (0..0x100)
        .map(|at| u8::try_from(rig.get(at, Width::B1).unwrap()).unwrap())
        .collect();
    for width in [Width::B1, Width::B2, Width::B4, Width::B8] {
        for at in 0..0x108 {
            let mut expected = [0; 8];
            let inside = at + width.bytes() <= 0x100;
            if inside {
                let at = usize::try_from(at).unwrap();
                expected[..width.size()].copy_from_slice(&bytes[at..at + width.size()]);
            }
            assert_eq!(
                rig.get(at, width),
                inside.then_some(u64::from_le_bytes(expected)),
                "{at:#x}"
            );
            assert_eq!(rig.set(at, width, 0), inside);
        }
    }
}

#[test]
fn status_errors_are_raised_by_the_device_and_cleared_by_the_guest() {
    let rig = plain();
    rig.function.raise_status(0xffff);
    assert_eq!(rig.get(STATUS, Width::B2), Some(0xf900), "errors only");
    assert!(rig.set(STATUS, Width::B1, 0xff));
    assert!(rig.set(STATUS + 1, Width::B1, 0x81));
    assert_eq!(rig.get(STATUS, Width::B2), Some(0x7800));
    // As Linux clears them: the whole dword, command rewritten.
    rig.set32(COMMAND, 0xffff_0104);
    assert_eq!(rig.get32(COMMAND), 0x0000_0104);
}

#[test]
fn the_command_register_has_the_bits_that_mean_something() {
    let bits = |rig: &Rig| {
        rig.command(0xffff);
        rig.get(COMMAND, Width::B2).unwrap()
    };
    assert_eq!(bits(&plain()), 0x0144);
    let io = Rig::new(Signals::new(), |builder| builder.bar(0, Bar::io(4)));
    assert_eq!(bits(&io), 0x0145);
    let all = |builder: Builder| builder.bar(0, Bar::io(4)).bar(1, Bar::mem64(16));
    assert_eq!(bits(&Rig::new(Signals::new().intx(Intx::A), all)), 0x0547);
}

#[test]
fn the_devices_own_stores_reach_its_capabilities_and_nothing_else() {
    let rig = Rig::new(Signals::new().msi(Msi::new(1)), |builder| {
        builder
            .capability(Capability::vendor([0; 5]))
            .extended_capability(ExtendedCapability::new(3, 1, [0; 8]))
    });
    let set = |register, width| rig.function.set_register(register, width, u64::MAX);
    set(0x43, Width::B4).unwrap();
    set(0x104, Width::B8).unwrap();
    assert_eq!(rig.get(0x40, Width::B8), Some(0x00ff_ffff_ff08_4809));
    for (register, width) in [
        (0x00, Width::B4),
        (0x41, Width::B1),
        (0x44, Width::B8),
        (0x48, Width::B2), // MSI is the framework's
        (0x4a, Width::B2),
        (0x103, Width::B2),
        (0x10c, Width::B1),
        (u16::MAX, Width::B8),
    ] {
        let err = set(register, width).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument, "{register:#x}");
        assert!(err.to_string().contains("not all in a capability"), "{err}");
    }
    assert_eq!(rig.function.register(0xfff, Width::B1), Some(0));
    assert_eq!(rig.function.register(0xfff, Width::B2), None);
    assert_eq!(rig.function.register(u16::MAX, Width::B8), None);
}

#[test]
fn the_listener_hears_of_writes_after_they_took_effect_and_holds_no_lock() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&heard);
    let rig = Rig::new(Signals::new(), |builder| {
        builder
            .bar(0, Bar::mem32(16))
            .capability(Capability::vendor([0; 3]).writable([0, 0xff]))
            .on_write(move |function, write| {
                let now = function.register(write.register, write.width).unwrap();
                tell.lock().unwrap().push((
                    write.register,
                    write.value,
                    now,
                    write.touches(0x43, 1),
                ));
                function.set_register(0x44, Width::B1, 0x5a).unwrap();
                function.refresh();
                assert_eq!(function.bars().len(), 1);
            })
    });
    assert!(rig.set(0x40, Width::B8, u64::MAX));
    assert_eq!(rig.get(0x43, Width::B2), Some(0x5aff));
    assert!(!rig.set(0xff, Width::B2, 0), "refused");
    rig.command(MEMORY);
    let heard = heard.lock().unwrap();
    assert_eq!(
        *heard,
        [
            (0x40, u64::MAX, 0xff06_0009, true),
            (0x04, MEMORY, MEMORY, false)
        ]
    );
}

#[test]
fn reset_puts_every_register_back() {
    let rig = Rig::new(Signals::new().intx(Intx::B).msi(Msi::new(4)), |builder| {
        builder
            .bar(0, Bar::mem64(0x1000))
            .bar(2, Bar::io(0x20))
            .capability(Capability::new(0x01, [0; 6]).writable([0xff; 6]))
    });
    let all = || {
        (0..0x100)
            .map(|at| rig.get(at, Width::B1).unwrap())
            .collect::<Vec<_>>()
    };
    let fresh = all();
    for at in (0..0x100).step_by(4) {
        rig.set32(at, 0xa5a5_a5a7);
    }
    rig.function.raise_status(0x8000);
    rig.function.set_register(0x43, Width::B1, 0x12).unwrap();
    rig.interrupts.set_intx(true).unwrap();
    assert_ne!(all(), fresh);
    assert!(!rig.routes.ranges().is_empty());
    rig.function.reset();
    assert_eq!(all(), fresh);
    assert_eq!(rig.routes.ranges(), []);
}

/// A byte of the oracle: value, writable and clearable bits.
type Byte = (u8, u8, u8);

/// Registers of the function below, by the specification: first byte, value, writable bits, clearable bits, bytes.
const REGISTERS: &[(usize, u64, u64, u64, usize)] = &[
    (0x00, 0x10f0_1af4, 0, 0, 4),
    (0x04, 0, 0x0547, 0, 2),
    (0x06, 0x0010, 0, 0xf900, 2),
    (0x08, 0xff00_0000, 0, 0, 4),
    (0x0c, 0, 0xffff, 0, 2),
    (0x10, 0x8, 0xffff_f000, 0, 4), // memory, prefetchable, 4 KiB
    (0x14, 0xc, 0xffff_ffff_fff0_0000, 0, 8), // memory, 64-bit, prefetchable, 1 MiB
    (0x1c, 0x1, 0xffff_ffe0, 0, 4), // 32 ports
    (0x34, 0x40, 0, 0, 1),
    (0x3c, 0, 0xff, 0, 1),
    (0x3d, 1, 0, 0, 1),
    (0x40, 0x4801, 0, 0, 2), // power management
    (0x42, 0x0003, 0, 0, 2),
    (0x44, 0x0008, 0x0003, 0x8000, 2),
    (0x48, 0x5405, 0, 0, 2), // MSI: 4 messages, 32 bits, no masks
    (0x4a, 0x0004, 0x0071, 0, 2),
    (0x4c, 0, 0xffff_fffc, 0, 4),
    (0x50, 0, 0xffff, 0, 2),
    (0x54, 0x0011, 0, 0, 2), // MSI-X: 8 messages, in BAR 1
    (0x56, 0x0007, 0xc000, 0, 2),
    (0x58, 0x0001, 0, 0, 4),
    (0x5c, 0x0801, 0, 0, 4),
];

fn oracle() -> Vec<Byte> {
    let mut bytes = vec![(0, 0, 0); 0x100];
    for (at, value, writable, clearable, len) in REGISTERS {
        for index in 0..*len {
            let part = |word: u64| word.to_le_bytes()[index];
            bytes[at + index] = (part(*value), part(*writable), part(*clearable));
        }
    }
    bytes
}

fn known() -> Rig {
    let signals = Signals::new()
        .intx(Intx::A)
        .msi(Msi::new(4).address_32())
        .msix(Msix::new(8, (1, 0), (1, 0x800)));
    Rig::new(signals, |builder| {
        builder
            .bar(0, Bar::mem32(0x1000).prefetchable())
            .bar(1, Bar::mem64(0x10_0000).prefetchable())
            .bar(3, Bar::io(0x20))
            .capability(
                Capability::new(0x01, [0x03, 0, 0x08, 0])
                    .writable([0, 0, 3])
                    .clearable([0, 0, 0, 0x80]),
            )
    })
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        Just(Width::B1),
        Just(Width::B2),
        Just(Width::B4),
        Just(Width::B8)
    ]
}

proptest! {
    #[test]
    fn every_access_is_as_the_registers_bytes_say(
        accesses in proptest::collection::vec((0..0x68_u64, width(), any::<Option<u64>>()), 1..64),
        errors in any::<u16>(),
    ) {
        let rig = known();
        let mut bytes = oracle();
        rig.function.raise_status(errors);
        bytes[7].0 |= (errors >> 8).to_le_bytes()[0] & 0xf9;
        for (at, width, value) in accesses {
            let place = usize::try_from(at).unwrap();
            let touched = &mut bytes[place..place + width.size()];
            if let Some(value) = value {
                prop_assert!(rig.set(at, width, value));
                for (byte, written) in touched.iter_mut().zip(value.to_le_bytes()) {
                    byte.0 = (byte.0 & !byte.1 | written & byte.1) & !(written & byte.2);
                }
            }
            let mut expected = [0; 8];
            for (to, from) in expected.iter_mut().zip(touched) {
                *to = from.0;
            }
            prop_assert_eq!(rig.get(at, width), Some(u64::from_le_bytes(expected)));
        }
        for (at, byte) in (0..).zip(bytes) {
            prop_assert_eq!(rig.get(at, Width::B1), Some(u64::from(byte.0)), "{:#x}", at);
        }
    }
}
