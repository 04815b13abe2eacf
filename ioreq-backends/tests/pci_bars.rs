// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI BARs: sizing, moving, conflicts and failures, against a list of intervals.

mod pci_fakes;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioreq_backends::pci::{Bar, Builder, Signals};
use ioreq_core::handler::Space;
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::{ErrorKind, IoRange, MmioRange, PortRange, Width};
use pci_fakes::*;
use proptest::prelude::*;

fn rig(build: impl FnOnce(Builder) -> Builder) -> Rig {
    Rig::new(Signals::new(), build)
}

fn mmio(first: u64, len: u64) -> IoRange {
    MmioRange::sized(first, len).unwrap().into()
}

fn ports(first: u16, len: u64) -> IoRange {
    PortRange::sized(first, len).unwrap().into()
}

/// What a guest learns by sizing: writes all ones, reads, and writes the old value back.
fn size(rig: &Rig, register: u64) -> u64 {
    let old = rig.get32(register);
    rig.set32(register, 0xffff_ffff);
    let mask = rig.get32(register);
    rig.set32(register, old);
    mask
}

#[test]
fn sizing_tells_size_and_kind() {
    let rig = rig(|builder| {
        builder
            .bar(0, Bar::mem32(16))
            .bar(1, Bar::mem32(1 << 31).prefetchable())
            .bar(2, Bar::io(4))
            .bar(3, Bar::io(256))
            .bar(4, Bar::mem64(1 << 33).prefetchable())
    });
    let masks: Vec<_> = (0..6).map(|index| size(&rig, 0x10 + 4 * index)).collect();
    assert_eq!(
        masks,
        [
            0xffff_fff0,
            0x8000_0008,
            0xffff_fffd,
            0xffff_ff01,
            0x0000_000c,
            0xffff_fffe
        ]
    );
    let kinds: Vec<_> = (0..6).map(|index| rig.get32(0x10 + 4 * index)).collect();
    assert_eq!(kinds, [0, 8, 1, 1, 0xc, 0]);
    let rig = self::rig(|builder| builder.bar(0, Bar::mem64(1 << 62)));
    assert_eq!((size(&rig, 0x10), size(&rig, 0x14)), (0x4, 0xc000_0000));
    assert_eq!(size(&rig, 0x18), 0, "a BAR that is not there");
    assert_eq!(size(&rig, 0x30), 0, "nor a ROM");
}

#[test]
fn a_bar_is_decoded_where_the_guest_puts_it_while_it_wants_that() {
    let rig = rig(|builder| {
        builder
            .bar(0, Bar::mem32(0x1000).served_by(Id(1)))
            .bar(1, Bar::io(0x20).served_by(Id(2)))
            .bar(2, Bar::mem64(0x10_0000).served_by(Id(3)))
    });
    rig.set32(0x10, 0xfebf_0000);
    rig.set32(0x14, 0xc000);
    rig.set32(0x18, 0x4000_0000);
    rig.set32(0x1c, 0x12);
    assert_eq!(rig.routes.live(), [], "decoding is off");
    assert!(
        rig.function
            .bars()
            .iter()
            .all(|bar| bar.range.is_none() && !bar.is_decoded())
    );

    rig.command(IO);
    assert_eq!(
        rig.routes.live(),
        [("0000:00:05.0 bar1".into(), ports(0xc000, 0x20))]
    );
    rig.command(MEMORY);
    assert_eq!(
        rig.routes.live(),
        [
            ("0000:00:05.0 bar0".into(), mmio(0xfebf_0000, 0x1000)),
            ("0000:00:05.0 bar2".into(), mmio(0x12_4000_0000, 0x10_0000)),
        ]
    );
    rig.command(IO | MEMORY);
    assert_eq!(
        rig.load(Space::Mmio, 0xfebf_0ffc, Width::B8),
        None,
        "straddles the end"
    );
    assert_eq!(
        rig.load(Space::Mmio, 0xfebf_0ff8, Width::B8),
        Some(1 << 32 | 0xff8)
    );
    assert_eq!(rig.load(Space::Port, 0xc01e, Width::B2), Some(0x1e));
    assert_eq!(
        rig.load(Space::Mmio, 0x12_4000_0010, Width::B8),
        Some(3 << 32 | 0x10)
    );

    // Moved byte by byte: every step is where the registers say.
    assert!(rig.set(0x13, Width::B1, 0xfd));
    assert!(rig.set(0x12, Width::B1, 0x00));
    assert_eq!(rig.load(Space::Mmio, 0xfebf_0000, Width::B4), None);
    assert_eq!(rig.load(Space::Mmio, 0xfd00_0004, Width::B4), Some(4));
    rig.command(0);
    assert_eq!(rig.routes.live(), []);
    assert_eq!(rig.interrupts.failures(), 0);
}

#[test]
fn places_that_mean_nothing_are_not_decoded() {
    let rig = rig(|builder| {
        builder
            .bar(0, Bar::mem32(0x1000))
            .bar(1, Bar::io(0x20))
            .bar(2, Bar::mem64(0x1000))
    });
    rig.command(IO | MEMORY);
    let decoded = || rig.routes.ranges();
    assert_eq!(decoded(), [], "address 0");
    for (register, value) in [
        (0x10, 0xffff_ffff), // being sized
        (0x14, 0xffff_ffff),
        (0x14, 0x1_0000), // beyond the ports
        (0x14, 0xffff_ffe0),
        (0x18, 0xffff_ffff),
    ] {
        rig.set32(register, value);
        assert_eq!(decoded(), [], "{register:#x} = {value:#x}");
        rig.set32(register, 0);
    }
    // The last places that are decoded.
    for (register, value, range) in [
        (0x10, 0xffff_e000, mmio(0xffff_e000, 0x1000)),
        (0x10, 0x1000, mmio(0x1000, 0x1000)),
        (0x14, 0xffe1, ports(0xffe0, 0x20)),
        (0x14, 0x20, ports(0x20, 0x20)),
    ] {
        rig.set32(register, value);
        assert_eq!(decoded(), [range]);
        rig.set32(register, 0);
    }
    assert!(rig.set(0x18, Width::B8, u64::MAX));
    assert_eq!(decoded(), [], "both halves being sized");
    assert!(rig.set(0x18, Width::B8, 0xffff_ffff_ffff_e000));
    assert_eq!(decoded(), [mmio(0xffff_ffff_ffff_e000, 0x1000)]);
    rig.set32(0x18, 0);
    assert_eq!(decoded(), [mmio(0xffff_ffff_0000_0000, 0x1000)]);
    assert_eq!(rig.interrupts.failures(), 0);
}

#[test]
fn sizing_while_decoding_is_on_ends_where_it_began() {
    let rig = rig(|builder| {
        builder
            .bar(0, Bar::mem32(0x1000))
            .bar(2, Bar::mem64(0x1000))
    });
    rig.set32(0x10, 0xfe00_0000);
    rig.set32(0x18, 0xfe00_1000);
    rig.command(MEMORY);
    let before = rig.routes.live();
    assert_eq!(before.len(), 2);
    assert_eq!(
        (size(&rig, 0x10), size(&rig, 0x18), size(&rig, 0x1c)),
        (0xffff_f000, 0xffff_f004, 0xffff_ffff)
    );
    assert_eq!(rig.routes.live(), before);
}

#[test]
fn a_bar_in_anothers_place_is_not_decoded_and_says_why_until_there_is_room() {
    let rig = rig(|builder| builder.bar(0, Bar::mem32(0x1000).served_by(Id(1))));
    let other = rig
        .routes
        .other(MmioRange::sized(0xfe00_0800, 0x10).unwrap());
    rig.set32(0x10, 0xfe00_0000);
    rig.command(MEMORY);
    let bars = rig.function.bars();
    let error = bars[0].error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::RouteConflict);
    assert!(
        error.to_string().contains("bar0") && error.to_string().contains("\"other\""),
        "{error}"
    );
    assert_eq!(bars[0].range, Some(mmio(0xfe00_0000, 0x1000)));
    assert!(!bars[0].is_decoded());
    assert_eq!(
        rig.get32(0x10),
        0xfe00_0000,
        "the guest reads what it wrote"
    );
    assert_eq!(rig.load(Space::Mmio, 0xfe00_0000, Width::B4), None);
    assert_eq!(rig.interrupts.failures(), 1);

    rig.function.refresh(); // still in the way
    assert_eq!(rig.interrupts.failures(), 2);
    rig.routes.retract(other).unwrap();
    assert!(rig.set(0x3c, Width::B1, 9));
    assert!(!rig.function.bars()[0].is_decoded(), "no BAR was written");
    rig.function.refresh();
    assert!(rig.function.bars()[0].is_decoded());
    assert_eq!(rig.load(Space::Mmio, 0xfe00_0000, Width::B4), Some(0));

    // The guest's own next write does it, too; even one that changes nothing.
    let other = rig
        .routes
        .other(MmioRange::sized(0xfd00_0000, 0x10).unwrap());
    rig.set32(0x10, 0xfd00_0000);
    assert!(!rig.function.bars()[0].is_decoded());
    rig.routes.retract(other).unwrap();
    rig.command(MEMORY);
    assert!(rig.function.bars()[0].is_decoded());
}

#[test]
fn what_the_hypervisor_refuses_leaves_the_rest_alone() {
    let rig = rig(|builder| {
        builder
            .bar(0, Bar::mem32(0x1000))
            .bar(1, Bar::mem32(0x1000))
    });
    rig.set32(0x10, 0xfe00_0000);
    rig.command(MEMORY);
    rig.routes.full.store(true, Ordering::Relaxed);
    rig.set32(0x14, 0xfd00_0000);
    let bars = rig.function.bars();
    assert!(bars[0].is_decoded());
    assert_eq!(
        bars[1].error.as_ref().map(ioreq_core::Error::kind),
        Some(ErrorKind::TooManyRanges)
    );
    // The one that was decoded moves, and is lost: nobody is told the old address any more.
    rig.set32(0x10, 0xfc00_0000);
    assert_eq!(rig.routes.ranges(), []);
    rig.routes.full.store(false, Ordering::Relaxed);
    rig.function.refresh();
    assert_eq!(
        rig.routes.ranges(),
        [mmio(0xfc00_0000, 0x1000), mmio(0xfd00_0000, 0x1000)]
    );

    rig.routes.complains.store(true, Ordering::Relaxed);
    let before = rig.interrupts.failures();
    rig.set32(0x10, 0xfb00_0000);
    assert_eq!(
        rig.routes.ranges(),
        [mmio(0xfb00_0000, 0x1000), mmio(0xfd00_0000, 0x1000)]
    );
    assert_eq!(rig.interrupts.failures(), before + 1);
}

#[test]
fn bars_of_one_function_swap_places_in_one_write() {
    let rig = rig(|builder| {
        builder
            .bar(0, Bar::mem32(0x1000).served_by(Id(1)))
            .bar(1, Bar::mem32(0x1000).served_by(Id(2)))
    });
    rig.command(MEMORY);
    assert!(rig.set(0x10, Width::B8, 0xfe00_1000_fe00_0000));
    assert_eq!(rig.load(Space::Mmio, 0xfe00_0000, Width::B8), Some(1 << 32));
    assert!(rig.set(0x10, Width::B8, 0xfe00_0000_fe00_1000));
    assert_eq!(rig.load(Space::Mmio, 0xfe00_0000, Width::B8), Some(2 << 32));
    assert_eq!(rig.load(Space::Mmio, 0xfe00_1000, Width::B8), Some(1 << 32));
    assert_eq!(rig.interrupts.failures(), 0);
    // On the same place, one is left; when it goes away the other has its place.
    rig.set32(0x14, 0xfe00_1000);
    assert_eq!(rig.load(Space::Mmio, 0xfe00_1000, Width::B8), Some(1 << 32));
    rig.set32(0x10, 0);
    assert_eq!(rig.load(Space::Mmio, 0xfe00_1000, Width::B8), Some(2 << 32));
}

#[test]
fn a_region_without_a_handler_is_decoded_and_refuses() {
    let rig = rig(|builder| builder.bar(0, Bar::io(4)));
    rig.command(IO);
    rig.set32(0x10, 0x100);
    assert_eq!(rig.routes.ranges(), [ports(0x100, 4)]);
    assert_eq!(rig.load(Space::Port, 0x100, Width::B1), None);
    assert!(!rig.store(Space::Port, 0x100, Width::B1, 0));
}

#[test]
fn a_function_that_goes_takes_its_routes_along() {
    let rig = rig(|builder| builder.bar(0, Bar::mem32(0x1000)).bar(1, Bar::io(4)));
    rig.set32(0x10, 0xfe00_0000);
    rig.set32(0x14, 0x100);
    rig.command(IO | MEMORY);
    assert_eq!(rig.routes.ranges().len(), 2);
    let Rig {
        function, routes, ..
    } = rig;
    drop(function);
    assert_eq!(routes.ranges(), []);
}

/// Several vCPUs move the same BARs at once: the routes end as the registers do.
#[test]
fn routes_end_as_the_registers_do() {
    let rig = Arc::new(rig(|builder| {
        builder
            .bar(0, Bar::mem32(0x1000))
            .bar(2, Bar::mem64(0x1000))
    }));
    for round in 0..50_u64 {
        std::thread::scope(|scope| {
            for vcpu in 0..4_u64 {
                let rig = &rig;
                scope.spawn(move || {
                    for turn in 0..20 {
                        rig.set32(0x10, 0xfe00_0000 + (((round + 7 * vcpu + turn) % 16) << 12));
                        rig.set32(0x1c, (vcpu * turn) % 3);
                        rig.set32(0x18, 0xfd00_0000);
                        rig.command(if (vcpu + turn) % 4 == 0 { 0 } else { MEMORY });
                    }
                });
            }
        });
        let mut expected = Vec::new();
        if rig.get(COMMAND, Width::B2) == Some(MEMORY) {
            expected.push(mmio(rig.get32(0x10), 0x1000));
            expected.push(mmio(
                (rig.get32(0x1c) << 32 | rig.get32(0x18)) & !0xf,
                0x1000,
            ));
            expected.sort_by_key(|range| ends(*range));
        }
        assert_eq!(rig.routes.ranges(), expected);
    }
}

/// BARs of the function that the oracle knows: register, size, address bits of the register, ports, 64-bit.
const BARS: [(u64, u64, bool, bool); 4] = [
    (0x10, 0x1000, false, false),
    (0x14, 0x20, true, false),
    (0x18, 0x2000, false, true),
    (0x20, 0x10, false, false),
];

/// What a BAR decodes, straight from the specification.
fn wanted(registers: &[u32; 6], command: u64, bar: (u64, u64, bool, bool)) -> Option<IoRange> {
    let (register, size, is_port, is_64) = bar;
    if command & if is_port { IO } else { MEMORY } == 0 {
        return None;
    }
    let index = usize::try_from((register - 0x10) / 4).unwrap();
    let mut address = u128::from(registers[index]);
    if is_64 {
        address |= u128::from(registers[index + 1]) << 32;
    }
    address &= !(u128::from(size) - 1);
    let last = address + u128::from(size) - 1;
    if address == 0 || last == (1 << 32) - 1 || last == (1 << 64) - 1 || is_port && last > 0xffff {
        return None;
    }
    let address = u64::try_from(address).unwrap();
    Some(match is_port {
        true => ports(u16::try_from(address).unwrap(), size),
        false => mmio(address, size),
    })
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Width, u64),
    Command(u64),
    Other(u64, bool),
    OthersGo,
    Full(bool),
    Refresh,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    // Few places, so that they meet.
    let place = prop_oneof![
        (0..6_u64).prop_map(|page| 0xfe00_0000 + page * 0x1000),
        (0..4_u64).prop_map(|slot| 0x100 + slot * 0x10),
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
    ];
    let width = prop_oneof![
        Just(Width::B1),
        Just(Width::B2),
        Just(Width::B4),
        Just(Width::B4),
        Just(Width::B8)
    ];
    let register = prop_oneof![
        (0..6_u64).prop_map(|index| 0x10 + 4 * index),
        0x0c..0x28_u64
    ];
    prop_oneof![
        8 => (register, width, place.clone()).prop_map(|(at, width, value)| Step::Write(at, width, width.cut(value))),
        4 => (0..4_u64).prop_map(Step::Command),
        2 => (place, any::<bool>()).prop_map(|(at, port)| Step::Other(at, port)),
        1 => Just(Step::OthersGo),
        1 => any::<bool>().prop_map(Step::Full),
        1 => Just(Step::Refresh),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn bars_are_where_a_list_of_intervals_has_them(steps in proptest::collection::vec(step(), 1..80)) {
        let rig = rig(|mut builder| {
            for (register, size, is_port, is_64) in BARS {
                let bar = match (is_port, is_64) {
                    (true, _) => Bar::io(size),
                    (false, true) => Bar::mem64(size),
                    (false, false) => Bar::mem32(size),
                };
                builder = builder.bar(u8::try_from((register - 0x10) / 4).unwrap(), bar);
            }
            builder
        });
        // The oracle: six registers as the guest sees them, the command register, who is where, whether there is room.
        let writable = [0xffff_f000_u32, 0xffff_ffe0, 0xffff_e000, 0xffff_ffff, 0xffff_fff0, 0];
        let reset = [0_u32, 1, 4, 0, 0, 0];
        let (mut registers, mut command, mut full) = (reset, 0, false);
        let mut routed: [Option<IoRange>; 4] = [None; 4];
        let mut others: Vec<(RouteId, IoRange)> = Vec::new();

        for step in steps {
            let mut follows = true;
            match step {
                Step::Write(at, width, value) => {
                    prop_assert!(rig.set(at, width, value));
                    let written = at..at + width.bytes();
                    for (byte, value) in written.clone().zip(value.to_le_bytes()) {
                        if (0x10..0x28).contains(&byte) {
                            let (index, lane) = (usize::try_from((byte - 0x10) / 4).unwrap(), byte % 4 * 8);
                            let mask = writable[index] & (0xff << lane);
                            registers[index] = registers[index] & !mask | u32::from(value) << lane & mask;
                        }
                    }
                    follows = written.end > 0x10;
                }
                Step::Command(value) => {
                    rig.command(value);
                    command = value;
                }
                Step::Other(at, is_port) => {
                    let range = match is_port {
                        true => ports(u16::try_from(at % 0xff00).unwrap(), 0x18),
                        false => mmio(at % (1 << 40), 0x1800),
                    };
                    if !full && !routed.iter().flatten().chain(others.iter().map(|(_, range)| range)).any(|there| overlap(*there, range)) {
                        others.push((rig.routes.other(range), range));
                    }
                    follows = false;
                }
                Step::OthersGo => {
                    for (id, _) in others.drain(..) {
                        rig.routes.retract(id).unwrap();
                    }
                    follows = false;
                }
                Step::Full(now) => {
                    full = now;
                    rig.routes.full.store(full, Ordering::Relaxed);
                    follows = false;
                }
                Step::Refresh => rig.function.refresh(),
                Step::Reset => {
                    rig.function.reset();
                    (registers, command) = (reset, 0);
                }
            }
            if follows {
                let wanted = BARS.map(|bar| wanted(&registers, command, bar));
                for (routed, wanted) in routed.iter_mut().zip(&wanted) {
                    if routed != wanted {
                        *routed = None;
                    }
                }
                for (index, wanted) in wanted.iter().enumerate() {
                    let Some(range) = wanted.filter(|_| routed[index].is_none() && !full) else {
                        continue;
                    };
                    let taken = routed.iter().flatten().chain(others.iter().map(|(_, range)| range));
                    if !taken.into_iter().any(|there| overlap(*there, range)) {
                        routed[index] = Some(range);
                    }
                }
                for (status, (wanted, routed)) in rig.function.bars().iter().zip(wanted.iter().zip(&routed)) {
                    prop_assert_eq!(status.range, *wanted);
                    prop_assert_eq!(status.is_decoded(), routed.is_some());
                    prop_assert_eq!(status.error.is_some(), wanted.is_some() && routed.is_none());
                }
            }
            let mut expected: Vec<_> = routed.iter().flatten().copied().chain(others.iter().map(|(_, range)| *range)).collect();
            expected.sort_by_key(|range| ends(*range));
            prop_assert_eq!(rig.routes.ranges(), expected);
            for (index, register) in (0..).zip(registers) {
                prop_assert_eq!(rig.get32(0x10 + 4 * index), u64::from(register));
            }
        }
    }
}
