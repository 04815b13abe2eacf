// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Saved state of the backends: given to another device of the same kind, and refused where it does not fit.

mod pci_fakes;
mod vgpu_rig;

use std::sync::Mutex;

use ioreq_backends::pci::{Bar, Capability, Delivery, Msi, Msix, Signals};
use ioreq_backends::register_bank::{Register, RegisterBank};
use ioreq_backends::vgpu::{Pvinfo, Root};
use ioreq_backends::write_log::WriteLog;
use ioreq_core::handler::{PageHandler, PageWrite, Space, WriteSource};
use ioreq_core::hypervisor::Intx;
use ioreq_core::snapshot::{MutSnapshot, Snapshot};
use ioreq_core::{Gfn, GfnRange, Width};
use pci_fakes::{COMMAND, MASTER, MEMORY, Rig, STATUS, with_context};
use vm_memory::GuestAddress;

fn bank(registers: &[(&str, u64, Width)]) -> RegisterBank {
    let registers = registers.iter();
    let registers = registers.map(|(name, offset, width)| Register::new(name, *offset, *width));
    RegisterBank::new(0x20, registers).unwrap()
}

#[test]
fn a_bank_takes_every_register_or_none() {
    let layout = [
        ("a", 0, Width::B4),
        ("b", 8, Width::B8),
        ("c", 4, Width::B2),
    ];
    let (mut here, mut there) = (bank(&layout), bank(&layout));
    here.set(0, 1);
    here.set(4, 2);
    here.set(8, u64::MAX);
    let saved = here.save();
    MutSnapshot::restore(&mut there, saved.clone()).unwrap();
    assert_eq!(there.save(), saved);
    for other in [
        &layout[..2],
        &[layout[0], layout[1], ("d", 4, Width::B2)],
        &[layout[0], layout[1], ("c", 6, Width::B2)],
        &[layout[0], layout[1], ("c", 4, Width::B1)],
        &[layout[0], layout[1], layout[2], ("d", 0x10, Width::B1)],
    ] {
        let mut other = bank(other);
        let before = other.save();
        let err = MutSnapshot::restore(&mut other, saved.clone()).unwrap_err();
        assert_eq!(err.kind(), "register bank");
        assert_eq!(other.save(), before);
    }
}

#[test]
fn a_logs_numbers_go_on() {
    let pages = GfnRange::sized(0x10, 2).unwrap();
    let write = |handler: &dyn PageHandler, page: u64| {
        with_context(|cx| {
            let at = GuestAddress(page << 12);
            let write = PageWrite::new(at, Width::B4, 7, WriteSource::Trapped, cx.ram()).unwrap();
            let _applied = handler.write(cx, &write);
        });
    };
    let (here, _reader) = WriteLog::new(16).unwrap();
    let handler = here.handler(pages).unwrap();
    for page in [0x10, 0x11, 0x11] {
        write(&handler, page);
    }
    let (there, mut reader) = WriteLog::new(16).unwrap();
    let next = there.handler(pages).unwrap();
    next.restore(handler.save()).unwrap();
    for page in [0x10, 0x11] {
        write(&next, page);
    }
    let numbers = reader.drain().map(|record| (record.gfn.0, record.sequence));
    assert_eq!(numbers.collect::<Vec<_>>(), [(0x10, 1), (0x11, 2)]);
    for other in [GfnRange::sized(0x10, 1), GfnRange::sized(0x11, 2)] {
        let other = there.handler(other.unwrap()).unwrap();
        other.restore(handler.save()).unwrap_err();
    }
}

/// A function with everything: a BAR with MSI-X's structures, MSI, a pin, a capability of its own.
fn function(own: u8) -> Rig {
    let signals = Signals::new()
        .intx(Intx::A)
        .msi(Msi::new(2).address_32().per_vector_masking())
        .msix(Msix::new(3, (0, 0), (0, 0x800)));
    Rig::new(signals, |builder| {
        builder
            .bar(0, Bar::mem32(0x1000))
            .capability(Capability::new(9, vec![4, own]))
    })
}

const BAR0: u64 = 0x10;
const AT: u64 = 0xfe00_0000;

#[test]
fn a_function_is_where_the_guest_had_it() {
    let here = function(1);
    here.set32(BAR0, AT);
    here.command(MEMORY);
    let msix = u64::from(here.function.capability(0x11).unwrap());
    // Enabled; vector 1 has a message and is open, vector 2 is masked and pending. Nothing may be sent without mastering.
    assert!(here.set(msix + 2, Width::B2, 1 << 15));
    for (word, value) in [(4, 0xfee0_1000), (5, 0), (6, 0x41), (7, 0)] {
        assert!(here.store(Space::Mmio, AT + 4 * word, Width::B4, value));
    }
    assert_eq!(here.interrupts.trigger(1).unwrap(), Delivery::Pending);
    assert_eq!(here.interrupts.trigger(2).unwrap(), Delivery::Pending);
    let own = here.function.capability(9).unwrap();
    here.function
        .set_register(own + 3, Width::B1, 0x77)
        .unwrap();
    here.function.raise_status(1 << 13);
    here.interrupts.set_intx(true).unwrap();
    let saved = here.function.save();

    let there = function(2);
    there.function.restore(saved.clone()).unwrap();
    let range = there.function.bars()[0].range;
    assert_eq!(
        (range, there.routes.ranges().len()),
        (here.function.bars()[0].range, 1)
    );
    assert_eq!(there.get(u64::from(own) + 3, Width::B1), Some(0x77));
    let status = there.get(STATUS, Width::B2).unwrap();
    assert_eq!(
        (status >> 13 & 1, status >> 3 & 1),
        (1, 0),
        "the pin is the device's to set"
    );
    assert!(there.interrupts.is_pending(1) && there.interrupts.is_pending(2));
    assert_eq!(there.guest.take(), []);
    // What was pending goes out as soon as it may.
    assert!(there.set(COMMAND, Width::B2, MEMORY | MASTER));
    assert_eq!(there.guest.take(), [(0xfee0_1000, 0x41)]);
    assert!(there.interrupts.is_pending(2));

    let other = Rig::new(Signals::new(), |builder| builder);
    let before = other.function.save();
    let err = other.function.restore(saved).unwrap_err();
    assert!(
        err.to_string().contains("3 messages of MSI-X, not 0"),
        "{err}"
    );
    assert_eq!(other.function.save(), before);
    let without = Signals::new().msix(Msix::new(3, (0, 0), (0, 0x800)));
    let large = Rig::new(without, |builder| builder.bar(0, Bar::mem32(0x2000)));
    let err = large.function.restore(here.function.save()).unwrap_err();
    assert!(err.to_string().contains("read-only byte"), "{err}");
    assert_eq!(large.routes.ranges(), []);
}

#[test]
fn messages_pending_by_msi_stay_so() {
    let here = function(1);
    let msi = u64::from(here.function.capability(5).unwrap());
    here.command(MASTER);
    here.set32(msi + 4, 0xfee0_2000);
    assert!(here.set(msi + 2, Width::B2, 1 | 1 << 4)); // enabled, two messages
    here.set32(msi + 0xc, 0b10); // the second one masked
    assert_eq!(here.interrupts.trigger(1).unwrap(), Delivery::Pending);
    here.guest.take();
    let there = function(1);
    there.function.restore(here.function.save()).unwrap();
    assert_eq!(there.guest.take(), []);
    assert_eq!(there.get32(msi + 0x10), 0b10, "shown");
    there.set32(msi + 0xc, 0);
    assert_eq!(there.guest.take(), [(0xfee0_2000, 1)]);
    // As it was when the state was saved, on the same device as well.
    here.function.restore(here.function.save()).unwrap();
    assert_eq!(here.get32(msi + 0x10), 0b10);
}

const PRESENT: u64 = 3;

#[test]
fn shadows_are_made_again_from_guest_memory() {
    let rig = vgpu_rig::Rig::new(1);
    let page = Mutex::new(Pvinfo::new(rig.shadow.clone(), 7));
    for (table, next) in [(0x10, 0x11), (0x11, 0x12), (0x12, 0x13), (0x13, 0x20)] {
        rig.entry(table, 0, next << 12 | PRESENT);
    }
    assert!(rig.write(&page, 0x838, Width::B8, 0x1_0000));
    assert!(rig.write(&page, 0x818, Width::B4, 4));
    let l3 = Root::L3([Some(Gfn(0x30)), None, None, None]);
    rig.shadow.create(l3).unwrap();
    let roots = [Root::L4(Gfn(0x10)), l3];
    assert_eq!(rig.shadow.roots(), roots);
    let saved = page.save();
    // The guest writes while nothing traps.
    rig.entry(0x13, 0, 0x21 << 12 | PRESENT);
    page.restore(saved.clone()).unwrap();
    assert_eq!(rig.shadow.roots(), roots);
    let root = rig.shadow.find(roots[0]).unwrap();
    assert_eq!(rig.leads_to(root, 0), Some(0x2_1000));
    assert_eq!(rig.shadow.stats().tables, 5);
    assert_eq!(page.save(), saved);

    // Another vGPU's page, and one on which a root is no memory.
    let other = Mutex::new(Pvinfo::new(rig.shadow.clone(), 8));
    other.restore(saved.clone()).unwrap_err();
    assert_eq!(rig.shadow.roots(), roots, "nothing is changed");
    let beyond = vgpu_rig::FRAMES;
    let more = vgpu_rig::Rig::new(1);
    let target = Mutex::new(Pvinfo::new(more.shadow.clone(), 7));
    target.restore(saved.clone()).unwrap();
    assert_eq!(more.shadow.roots(), roots);
    more.shadow.create(Root::L4(Gfn(0x40))).unwrap();
    let json_free = target.save();
    assert_eq!(json_free.clone(), json_free);
    assert!(rig.shadow.create(Root::L4(Gfn(beyond))).is_err());
}

#[cfg(feature = "serde")]
mod written {
    use super::*;
    use ioreq_core::snapshot::{SavedState, Versioned};
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    fn again<S>(state: &S) -> String
    where
        S: SavedState + Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug,
    {
        let text = serde_json::to_string(&Versioned(state.clone())).unwrap();
        let Versioned(back) = serde_json::from_str::<Versioned<S>>(&text).unwrap();
        assert_eq!(&back, state);
        text
    }

    #[test]
    fn every_state_is_written_and_read() {
        let text = again(&bank(&[("a", 4, Width::B2)]).save());
        assert_eq!(text, r#"["register bank",1,{"registers":[["a",4,2,0]]}]"#);
        let (log, _reader) = WriteLog::new(16).unwrap();
        let text = again(&log.handler(GfnRange::sized(5, 2).unwrap()).unwrap().save());
        assert_eq!(text, r#"["write log",1,{"pages":[5,6],"next":[0,0]}]"#);
        again(&function(1).function.save());
        let rig = vgpu_rig::Rig::new(1);
        rig.shadow.create(Root::L4(Gfn(0x10))).unwrap();
        let text = again(&Pvinfo::new(rig.shadow.clone(), 7).save());
        assert!(text.ends_with(r#""roots":[{"l4":16}]}]"#), "{text}");
    }

    /// What another machine sends may be anything.
    #[test]
    fn roots_that_are_none_leave_no_address_space() {
        let rig = vgpu_rig::Rig::new(1);
        rig.shadow.create(Root::L4(Gfn(0x10))).unwrap();
        let page = Mutex::new(Pvinfo::new(rig.shadow.clone(), 7));
        let text = serde_json::to_string(&Versioned(page.save())).unwrap();
        let bad = text.replace(
            r#"{"l4":16}"#,
            r#"{"l4":16},{"l3":[17,null,4503599627370495,null]}"#,
        );
        let Versioned(state) = serde_json::from_str(&bad).unwrap();
        let err = page.restore(state).unwrap_err();
        assert!(err.to_string().contains("L3"), "{err}");
        assert_eq!(rig.shadow.roots(), []);
        assert_eq!(rig.shadow.stats().tables, 0);
        serde_json::from_str::<Versioned<ioreq_backends::vgpu::SavedPvinfo>>(
            &text.replace("16}", "18446744073709551615}"),
        )
        .unwrap_err();
    }

    #[test]
    fn numbers_that_do_not_fit_the_pages_are_refused() {
        let (log, _reader) = WriteLog::new(16).unwrap();
        let handler = log.handler(GfnRange::sized(5, 2).unwrap()).unwrap();
        for (next, fits) in [("[1,2]", true), ("[1]", false), ("[1,2,3]", false)] {
            let text = format!(r#"["write log",1,{{"pages":[5,6],"next":{next}}}]"#);
            let Versioned(state) = serde_json::from_str(&text).unwrap();
            assert_eq!(handler.restore(state).is_ok(), fits, "{next}");
        }
        let mut registers = bank(&[("a", 0, Width::B1), ("b", 1, Width::B1)]);
        for (saved, fits) in [
            (r#"["a",0,1,255],["b",1,1,1]"#, true),
            (r#"["a",0,1,256],["b",1,1,1]"#, false),
            (r#"["a",0,1,1],["a",0,1,1]"#, false),
            (r#"["b",1,1,1],["a",0,1,1]"#, false),
        ] {
            let text = format!(r#"["register bank",1,{{"registers":[{saved}]}}]"#);
            let Versioned(state) = serde_json::from_str(&text).unwrap();
            assert_eq!(
                MutSnapshot::restore(&mut registers, state).is_ok(),
                fits,
                "{saved}"
            );
        }
    }
}
