// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI interrupts: pin, MSI and MSI-X at their edges, and against simple models.

mod pci_fakes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioreq_backends::pci::{Bar, Delivery, FunctionInterrupts, Msi, Msix, PciFunction, Signals};
use ioreq_core::handler::{Batch, BatchOutcome, Space};
use ioreq_core::hypervisor::{Interrupts, Intx};
use ioreq_core::{ErrorKind, Result, Sbdf, Width};
use pci_fakes::*;
use proptest::prelude::*;

/// The MSI capability when it is the first.
const MSI: u64 = 0x40;
const BAR: u64 = 0xfe00_0000;
/// Where the pending bits are.
const PENDING: u64 = 0x800;

fn msi(spec: Msi) -> Rig {
    Rig::new(Signals::new().intx(Intx::A).msi(spec), |builder| builder)
}

/// MSI-X in BAR 0, which is decoded; messages are enabled.
fn msix(vectors: u16) -> Rig {
    let signals = Signals::new()
        .intx(Intx::A)
        .msix(Msix::new(vectors, (0, 0), (0, 0x800)));
    let rig = Rig::new(signals, |builder| {
        builder.bar(0, Bar::mem32(0x1000).served_by(Id(7)))
    });
    rig.set32(0x10, BAR);
    rig.command(MEMORY | MASTER);
    control(&rig, true, false);
    rig
}

/// Writes MSI-X message control.
fn control(rig: &Rig, enabled: bool, masked: bool) {
    let at = rig.function.capability(0x11).unwrap();
    let value = u64::from(enabled) << 15 | u64::from(masked) << 14;
    assert!(rig.set(u64::from(at) + 2, Width::B2, value));
}

fn table(rig: &Rig, vector: u64, word: u64, value: u64) {
    assert!(rig.store(Space::Mmio, BAR + 16 * vector + 4 * word, Width::B4, value));
}

/// Programs a vector and unmasks it.
fn program(rig: &Rig, vector: u64, addr: u64, data: u64) {
    table(rig, vector, 0, addr & 0xffff_ffff);
    table(rig, vector, 1, addr >> 32);
    table(rig, vector, 2, data);
    table(rig, vector, 3, 0);
}

fn pending(rig: &Rig, qword: u64) -> u64 {
    rig.load(Space::Mmio, BAR + PENDING + 8 * qword, Width::B8)
        .unwrap()
}

#[test]
fn the_pin_follows_the_device_unless_the_guest_forbids_it() {
    let rig = msi(Msi::new(1));
    let shown = || rig.get(STATUS, Width::B2).unwrap() & 8 != 0;
    rig.interrupts.set_intx(true).unwrap();
    rig.interrupts.set_intx(true).unwrap();
    assert_eq!(
        rig.guest.take_pin(),
        [(Intx::A, true)],
        "a level, told once"
    );
    assert!(shown());
    rig.command(NO_INTX);
    assert_eq!(rig.guest.take_pin(), [(Intx::A, false)]);
    assert!(shown(), "the status bit is before the disable bit");
    rig.interrupts.set_intx(false).unwrap();
    rig.interrupts.set_intx(true).unwrap();
    assert_eq!(rig.guest.take_pin(), []);
    rig.command(0);
    assert_eq!(rig.guest.take_pin(), [(Intx::A, true)]);
    assert!(rig.set(MSI + 2, Width::B2, 1));
    assert_eq!(rig.guest.take_pin(), [(Intx::A, false)], "MSI is on");
    assert!(rig.set(MSI + 2, Width::B2, 0));
    assert_eq!(rig.guest.take_pin(), [(Intx::A, true)]);
    rig.function.reset();
    assert_eq!(rig.guest.take_pin(), [(Intx::A, false)]);
    assert!(!shown());
    rig.interrupts.set_intx(true).unwrap();
    let Rig {
        function, guest, ..
    } = rig;
    drop(function);
    assert_eq!(
        guest.take_pin(),
        [(Intx::A, true), (Intx::A, false)],
        "the line is left low"
    );
}

#[test]
fn the_status_bit_is_not_the_guests_to_change() {
    let rig = msi(Msi::new(1));
    rig.interrupts.set_intx(true).unwrap();
    assert!(rig.set(STATUS, Width::B2, 0xffff));
    assert_eq!(rig.get(STATUS, Width::B2), Some(0x18));
    rig.interrupts.set_intx(false).unwrap();
    assert_eq!(rig.get(STATUS, Width::B2), Some(0x10));
}

#[test]
fn msix_keeps_the_pin_low_too() {
    let rig = msix(1);
    rig.interrupts.set_intx(true).unwrap();
    assert_eq!(rig.guest.take_pin(), []);
    control(&rig, false, false);
    assert_eq!(rig.guest.take_pin(), [(Intx::A, true)]);
}

#[test]
fn a_level_that_was_refused_is_tried_again() {
    let rig = msi(Msi::new(1));
    rig.guest.refuses.store(true, Ordering::Relaxed);
    assert_eq!(
        rig.interrupts.set_intx(true).unwrap_err().kind(),
        ErrorKind::Retry
    );
    rig.guest.refuses.store(false, Ordering::Relaxed);
    rig.interrupts.set_intx(true).unwrap();
    assert_eq!(rig.guest.take_pin(), [(Intx::A, true)]);
    rig.guest.refuses.store(true, Ordering::Relaxed);
    rig.command(NO_INTX);
    assert_eq!(
        rig.interrupts.failures(),
        1,
        "the guest's own doing: counted"
    );
    rig.guest.refuses.store(false, Ordering::Relaxed);
    rig.command(NO_INTX);
    assert_eq!(rig.guest.take_pin(), [(Intx::A, false)]);
}

#[test]
fn functions_without_a_way_to_interrupt_say_so() {
    let rig = Rig::new(Signals::new(), |builder| builder);
    let err = rig.interrupts.set_intx(true).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    assert!(err.to_string().contains("no interrupt pin"), "{err}");
    for result in [
        rig.interrupts.trigger(0).map(drop),
        rig.interrupts.withdraw(0),
    ] {
        let err = result.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument);
        assert!(err.to_string().contains("no vector 0"), "{err}");
    }
    assert!(!rig.interrupts.is_pending(0));
}

#[test]
fn msi_sends_what_the_guest_programmed_in_each_layout() {
    for (spec, data_at, address) in [
        (Msi::new(4), 0xc, 0x1_fee0_1004),
        (Msi::new(4).per_vector_masking(), 0xc, 0x1_fee0_1004),
        (Msi::new(4).address_32(), 0x8, 0xfee0_1004),
        (
            Msi::new(4).address_32().per_vector_masking(),
            0x8,
            0xfee0_1004,
        ),
    ] {
        let rig = msi(spec);
        rig.command(MASTER);
        assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Disabled);
        assert!(rig.set(MSI + 4, Width::B4, 0xfee0_1007)); // the two low bits are not there
        if data_at == 0xc {
            assert!(rig.set(MSI + 8, Width::B4, 1));
        }
        assert!(rig.set(MSI + data_at, Width::B2, 0x41f7));
        assert!(rig.set(MSI + 2, Width::B2, 1 | 2 << 4));
        for vector in 0..4 {
            assert_eq!(rig.interrupts.trigger(vector).unwrap(), Delivery::Sent);
        }
        let data = [0x41f4, 0x41f5, 0x41f6, 0x41f7];
        assert_eq!(
            rig.guest.take(),
            data.map(|data| (address, data)),
            "{spec:?}"
        );
        assert_eq!(
            rig.interrupts.trigger(4).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        // The guest allows fewer: others stand for them, and the data's bits are the guest's.
        for (allowed, expected) in [(1, 0x41f7), (0, 0x41f7)] {
            assert!(rig.set(MSI + 2, Width::B2, 1 | allowed << 4));
            assert_eq!(rig.interrupts.trigger(3).unwrap(), Delivery::Sent);
            assert_eq!(rig.guest.take(), [(address, expected)]);
        }
        // More than there are, and numbers that mean nothing, are as many as there are.
        for allowed in 3..8 {
            assert!(rig.set(MSI + 2, Width::B2, 1 | allowed << 4));
            assert_eq!(rig.interrupts.trigger(1).unwrap(), Delivery::Sent);
            assert_eq!(rig.guest.take(), [(address, 0x41f5)]);
        }
    }
}

#[test]
fn msi_vectors_are_masked_one_by_one() {
    let rig = msi(Msi::new(32).per_vector_masking());
    rig.command(MASTER);
    rig.set32(MSI + 0x10, 0x8000_0001);
    assert!(rig.set(MSI + 2, Width::B2, 1 | 5 << 4));
    for vector in [0, 1, 31] {
        let sent = rig.interrupts.trigger(vector).unwrap();
        assert_eq!(sent == Delivery::Sent, vector == 1);
    }
    assert_eq!(rig.guest.take(), [(0, 1)]);
    assert_eq!(rig.get32(MSI + 0x14), 0x8000_0001);
    assert!(rig.interrupts.is_pending(31) && !rig.interrupts.is_pending(1));
    assert!(
        rig.set(MSI + 0x14, Width::B4, 0),
        "pending bits are read-only"
    );
    assert_eq!(rig.get32(MSI + 0x14), 0x8000_0001);
    rig.interrupts.withdraw(0).unwrap();
    assert!(
        rig.set(MSI + 0x13, Width::B1, 0),
        "the mask's last byte alone"
    );
    assert_eq!(rig.guest.take(), [(0, 31)]);
    rig.set32(MSI + 0x10, 0);
    assert_eq!(rig.guest.take(), [], "what was withdrawn is gone");
}

#[test]
fn msi_waits_for_bus_mastering_and_is_forgotten_when_disabled() {
    let rig = msi(Msi::new(1));
    assert!(rig.set(MSI + 2, Width::B2, 1));
    assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Pending);
    rig.command(MASTER);
    assert_eq!(rig.guest.take(), [(0, 0)]);
    rig.command(0);
    assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Pending);
    assert!(rig.set(MSI + 2, Width::B2, 0));
    rig.command(MASTER);
    assert!(rig.set(MSI + 2, Width::B2, 1));
    assert_eq!(rig.guest.take(), []);
}

#[test]
fn msix_vectors_have_their_own_message_and_mask() {
    let rig = msix(3);
    program(&rig, 1, 0x1_fee0_0007, 0x1234_5678);
    assert_eq!(rig.interrupts.trigger(1).unwrap(), Delivery::Sent);
    assert_eq!(rig.guest.take(), [(0x1_fee0_0004, 0x1234_5678)]);
    assert_eq!(
        rig.interrupts.trigger(2).unwrap(),
        Delivery::Pending,
        "masked after reset"
    );
    assert_eq!(rig.interrupts.trigger(2).unwrap(), Delivery::Pending);
    assert_eq!(pending(&rig, 0), 0b100);
    program(&rig, 2, 0xfee0_0000, 9);
    assert_eq!(rig.guest.take(), [(0xfee0_0000, 9)], "once");
    assert_eq!(pending(&rig, 0), 0);
    assert_eq!(
        rig.interrupts.trigger(3).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn msix_is_masked_as_a_whole_and_waits_for_bus_mastering() {
    let rig = msix(2);
    program(&rig, 0, 0x1000, 1);
    program(&rig, 1, 0x2000, 2);
    for (close, open) in [
        (
            (true, true, MEMORY | MASTER),
            (true, false, MEMORY | MASTER),
        ),
        ((true, false, MEMORY), (true, false, MEMORY | MASTER)),
    ] {
        let set = |(enabled, masked, command): (bool, bool, u64)| {
            control(&rig, enabled, masked);
            rig.command(command);
        };
        set(close);
        assert_eq!(rig.interrupts.trigger(1).unwrap(), Delivery::Pending);
        assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Pending);
        rig.interrupts.withdraw(0).unwrap();
        table(&rig, 1, 3, 0); // unmasked already
        assert_eq!(rig.guest.take(), []);
        assert_eq!(pending(&rig, 0), 0b10);
        set(open);
        assert_eq!(rig.guest.take(), [(0x2000, 2)]);
    }
    control(&rig, true, true);
    assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Pending);
    control(&rig, false, false);
    assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Disabled);
    control(&rig, true, false);
    assert_eq!(rig.guest.take(), [], "disabling forgets");
}

#[test]
fn msix_structures_take_aligned_dwords_and_qwords_only() {
    let rig = msix(2);
    let load = |offset, width| rig.load(Space::Mmio, BAR + offset, width);
    let store = |offset, width, value| rig.store(Space::Mmio, BAR + offset, width, value);
    assert!(store(0x10, Width::B8, 0x1_0000_2003));
    assert!(store(0x18, Width::B8, 0xffff_fffe_0000_0042));
    assert_eq!(load(0x10, Width::B8), Some(0x1_0000_2000));
    assert_eq!(
        load(0x18, Width::B8),
        Some(0x42),
        "vector control has one bit"
    );
    assert_eq!(
        (load(0x10, Width::B4), load(0x14, Width::B4)),
        (Some(0x2000), Some(1))
    );
    assert_eq!(
        (load(0x18, Width::B4), load(0x1c, Width::B4)),
        (Some(0x42), Some(0))
    );
    assert_eq!(load(0x0c, Width::B4), Some(1), "masked after reset");
    for (offset, width) in [
        (0x10, Width::B1),
        (0x10, Width::B2),
        (0x12, Width::B4),
        (0x14, Width::B8),
        (0x1d, Width::B4), // half out of the table
        (0x1c, Width::B8),
        (PENDING, Width::B2),
        (PENDING + 4, Width::B8),
        (PENDING - 4, Width::B8),
        (PENDING + 2, Width::B4),
    ] {
        assert_eq!(load(offset, width), None, "{offset:#x} {width:?}");
        assert!(!store(offset, width, 0), "{offset:#x} {width:?}");
    }
    assert_eq!(load(PENDING + 4, Width::B4), Some(0));
    assert!(!store(PENDING, Width::B8, 0), "read-only");
    // Everything else is the device's.
    for offset in [0x20, PENDING - 8, PENDING + 8, 0xff8] {
        assert_eq!(load(offset, Width::B8), Some(7 << 32 | offset));
        assert!(store(offset, Width::B8, 0));
    }
}

#[test]
fn batches_reach_the_device_unless_they_may_touch_msix_structures() {
    let rig = msix(2);
    let (handler, first) = rig.routes.find(Space::Mmio, BAR + 0x40, Width::B4).unwrap();
    for (offset, stride, len, taken) in [
        (0x20, 4, 64, true),
        (0x1c, 4, 2, false),
        (0x24, -4, 2, true),
        (0x24, -4, 3, false),
        (PENDING - 8, 4, 2, true),
        (PENDING - 8, 4, 3, false),
        (PENDING + 8, 4, 64, true),
        (PENDING + 4, 0, 9, false),
        (0x20, 4, 0, false),
    ] {
        let first = ioreq_core::handler::Access {
            offset,
            addr: BAR + offset,
            ..first
        };
        let batch = Batch { first, stride, len };
        let mut values = vec![0; len];
        let (read, write) = with_context(|cx| {
            let read = handler.read_batch(cx, &batch, &mut values);
            (read, handler.write_batch(cx, &batch, &values))
        });
        let expected = if taken {
            BatchOutcome::Done
        } else {
            BatchOutcome::OneByOne
        };
        assert_eq!((read, write), (expected, expected), "{batch:?}");
        assert!(
            values
                .iter()
                .all(|value| *value == if taken { 7 } else { 0 })
        );
    }
}

#[test]
fn a_message_that_is_refused_stays_pending_and_is_tried_again() {
    let rig = msix(2);
    program(&rig, 0, 0x1000, 1);
    rig.guest.refuses.store(true, Ordering::Relaxed);
    assert_eq!(
        rig.interrupts.trigger(0).unwrap_err().kind(),
        ErrorKind::Retry
    );
    assert!(rig.interrupts.is_pending(0));
    table(&rig, 0, 3, 0);
    assert_eq!(
        rig.interrupts.failures(),
        1,
        "the guest's own doing: counted"
    );
    rig.guest.refuses.store(false, Ordering::Relaxed);
    assert_eq!(rig.interrupts.trigger(0).unwrap(), Delivery::Sent);
    assert_eq!(rig.guest.take(), [(0x1000, 1)], "once");
}

#[test]
fn msix_goes_before_msi_and_a_vector_that_only_msi_has_cannot_go_by_msix() {
    let signals = Signals::new()
        .msi(Msi::new(4))
        .msix(Msix::new(2, (0, 0), (0, 0x800)));
    let rig = Rig::new(signals, |builder| builder.bar(0, Bar::mem32(0x1000)));
    rig.set32(0x10, BAR);
    rig.command(MEMORY | MASTER);
    assert!(rig.set(MSI + 2, Width::B2, 1 | 2 << 4));
    assert_eq!(rig.interrupts.trigger(3).unwrap(), Delivery::Sent);
    assert_eq!(rig.guest.take(), [(0, 3)]);
    control(&rig, true, false);
    assert_eq!(
        rig.interrupts.trigger(3).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    program(&rig, 1, 0x5000, 5);
    assert_eq!(rig.interrupts.trigger(1).unwrap(), Delivery::Sent);
    assert_eq!(rig.guest.take(), [(0x5000, 5)]);
}

#[test]
fn reset_masks_every_vector_and_forgets() {
    let rig = msix(65);
    program(&rig, 64, 0x1000, 1);
    control(&rig, true, true);
    assert_eq!(rig.interrupts.trigger(64).unwrap(), Delivery::Pending);
    assert_eq!((pending(&rig, 0), pending(&rig, 1)), (0, 1));
    rig.function.reset();
    assert!(!rig.interrupts.is_pending(64));
    rig.set32(0x10, BAR);
    rig.command(MEMORY | MASTER);
    control(&rig, true, false);
    assert_eq!(rig.guest.take(), []);
    let words = [0, 4, 8, 12].map(|at| rig.load(Space::Mmio, BAR + 0x400 + at, Width::B4));
    assert_eq!(words, [Some(0), Some(0), Some(0), Some(1)]);
}

#[test]
fn the_largest_table_fits_and_its_last_vector_works() {
    let signals = Signals::new().msix(Msix::new(2048, (0, 0), (0, 0x8000)));
    let rig = Rig::new(signals, |builder| builder.bar(0, Bar::mem32(0x1_0000)));
    rig.set32(0x10, BAR);
    rig.command(MEMORY | MASTER);
    control(&rig, true, false);
    assert_eq!(rig.interrupts.trigger(2047).unwrap(), Delivery::Pending);
    assert_eq!(
        rig.load(Space::Mmio, BAR + 0x80f8, Width::B8),
        Some(1 << 63)
    );
    program(&rig, 2047, 0x1000, 7);
    assert_eq!(rig.guest.take(), [(0x1000, 7)]);
}

/// Says whether a message came while the guest had it masked.
#[derive(Default)]
struct Watch {
    masked: AtomicBool,
    early: AtomicBool,
    sent: AtomicU64,
}

impl Interrupts for Watch {
    fn set_pci_intx(&self, _: Sbdf, _: Intx, _: bool) -> Result<()> {
        Ok(())
    }
    fn set_isa_irq(&self, _: u8, _: bool) -> Result<()> {
        Ok(())
    }
    fn inject_msi(&self, _: u64, _: u32) -> Result<()> {
        if self.masked.load(Ordering::SeqCst) {
            self.early.store(true, Ordering::SeqCst);
        }
        self.sent.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Two threads of the device raise one interrupt, while the guest masks and unmasks it by every way there is: none comes while it
/// is masked, none is lost, none comes that nobody raised.
#[test]
fn no_message_comes_while_masked_and_none_is_lost() {
    let watch = Arc::new(Watch::default());
    let signals = Signals::new().msix(Msix::new(2, (0, 0), (0, 0x800)));
    let interrupts = FunctionInterrupts::new(at(), Arc::clone(&watch) as _, signals).unwrap();
    let routes = Arc::new(FakeRoutes::default());
    let rig = Rig {
        function: PciFunction::builder(header(), Arc::clone(&interrupts))
            .bar(0, Bar::mem32(0x1000))
            .build(Arc::clone(&routes) as _)
            .unwrap(),
        interrupts: Arc::clone(&interrupts),
        routes,
        guest: Arc::default(),
    };
    rig.set32(0x10, BAR);
    rig.command(MEMORY | MASTER);
    control(&rig, true, false);
    program(&rig, 0, 0x1000, 0);
    let stop = AtomicBool::new(false);
    let raised = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    raised.fetch_add(1, Ordering::SeqCst);
                    interrupts.trigger(0).unwrap();
                }
            });
        }
        for turn in 0..999 {
            let mask = |masked: bool| match turn % 3 {
                0 => table(&rig, 0, 3, masked.into()),
                1 => control(&rig, true, masked),
                _ => rig.command(if masked { MEMORY } else { MEMORY | MASTER }),
            };
            mask(true);
            watch.masked.store(true, Ordering::SeqCst);
            std::thread::yield_now();
            watch.masked.store(false, Ordering::SeqCst);
            mask(false);
        }
        // One that is raised while masked comes when it is unmasked.
        control(&rig, true, true);
        stop.store(true, Ordering::SeqCst);
    });
    let before = watch.sent.load(Ordering::SeqCst);
    assert_eq!(interrupts.trigger(0).unwrap(), Delivery::Pending);
    raised.fetch_add(1, Ordering::SeqCst);
    control(&rig, true, false);
    assert_eq!(watch.sent.load(Ordering::SeqCst), before + 1);
    assert!(!interrupts.is_pending(0));
    assert!(
        !watch.early.load(Ordering::SeqCst),
        "a message came while it was masked"
    );
    assert!(
        before < raised.load(Ordering::SeqCst),
        "a message that nobody raised"
    );
}

const VECTORS: u16 = 70;

#[derive(Debug, Clone)]
enum Step {
    Trigger(u16),
    Withdraw(u16),
    Table(u16, u64, u32),
    Table8(u16, u64, u64),
    Control(bool, bool),
    Master(bool),
    Refuse(bool),
}

fn vector() -> impl Strategy<Value = u16> {
    // Few, so that they meet; at the ends of both pending words.
    prop_oneof![Just(0), Just(1), Just(63), Just(64), Just(VECTORS - 1)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => vector().prop_map(Step::Trigger),
        1 => Just(Step::Trigger(VECTORS)),
        1 => vector().prop_map(Step::Withdraw),
        8 => (vector(), any::<bool>()).prop_map(|(vector, masked)| Step::Table(vector, 3, masked.into())),
        3 => (vector(), 0..4_u64, any::<u32>()).prop_map(|(vector, word, value)| Step::Table(vector, word, value)),
        3 => (vector(), 0..2_u64, any::<u64>()).prop_map(|(vector, half, value)| Step::Table8(vector, half, value)),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(enabled, masked)| Step::Control(enabled, masked)),
        2 => any::<bool>().prop_map(Step::Master),
        1 => any::<bool>().prop_map(Step::Refuse),
    ]
}

/// MSI-X as simple as can be.
struct Model {
    words: Vec<[u32; 4]>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
    master: bool,
    refuses: bool,
    sent: Vec<(u64, u32)>,
}

impl Model {
    /// What may go out, goes; false if it was refused.
    fn send(&mut self, vector: usize) -> bool {
        let [low, high, data, control] = self.words[vector];
        let open = self.enabled && !self.masked && self.master && control == 0;
        if !self.pending[vector] || !open {
            return true;
        }
        if !self.refuses {
            self.pending[vector] = false;
            self.sent
                .push((u64::from(high) << 32 | u64::from(low), data));
        }
        !self.refuses
    }

    fn set_word(&mut self, vector: usize, word: usize, value: u32) {
        self.words[vector][word] = value & [!3, !0, !0, 1][word];
    }

    /// The guest changed the function's controls.
    fn controls(&mut self, change: impl FnOnce(&mut Self)) {
        let now = |model: &Self| (model.enabled, !model.masked && model.master);
        let before = now(self);
        change(self);
        if now(self) == before {
            return;
        }
        for vector in 0..self.words.len() {
            if self.enabled {
                self.send(vector);
            } else {
                self.pending[vector] = false;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn msix_does_as_a_simple_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        let signals = Signals::new().msix(Msix::new(VECTORS, (0, 0), (0, 0x800)));
        let rig = Rig::new(signals, |builder| builder.bar(0, Bar::mem32(0x1000)));
        rig.set32(0x10, BAR);
        rig.command(MEMORY);
        let mut model = Model {
            words: vec![[0, 0, 0, 1]; VECTORS.into()],
            pending: vec![false; VECTORS.into()],
            enabled: false,
            masked: false,
            master: false,
            refuses: false,
            sent: Vec::new(),
        };
        for step in steps {
            match step {
                Step::Trigger(vector) => {
                    let result = rig.interrupts.trigger(vector);
                    let index = usize::from(vector);
                    if index >= model.pending.len() {
                        prop_assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidArgument);
                    } else if !model.enabled {
                        prop_assert_eq!(result.unwrap(), Delivery::Disabled);
                    } else {
                        model.pending[index] = true;
                        match (model.send(index), model.pending[index]) {
                            (false, _) => prop_assert_eq!(result.unwrap_err().kind(), ErrorKind::Retry),
                            (true, true) => prop_assert_eq!(result.unwrap(), Delivery::Pending),
                            (true, false) => prop_assert_eq!(result.unwrap(), Delivery::Sent),
                        }
                    }
                }
                Step::Withdraw(vector) => {
                    rig.interrupts.withdraw(vector).unwrap();
                    model.pending[usize::from(vector)] = false;
                }
                Step::Table(vector, word, value) => {
                    table(&rig, vector.into(), word, value.into());
                    model.set_word(vector.into(), usize::try_from(word).unwrap(), value);
                    model.send(vector.into());
                }
                Step::Table8(vector, half, value) => {
                    let at = BAR + 16 * u64::from(vector) + 8 * half;
                    prop_assert!(rig.store(Space::Mmio, at, Width::B8, value));
                    let word = usize::try_from(2 * half).unwrap();
                    model.set_word(vector.into(), word, u32::try_from(value & 0xffff_ffff).unwrap());
                    model.set_word(vector.into(), word + 1, u32::try_from(value >> 32).unwrap());
                    model.send(vector.into());
                }
                Step::Control(enabled, masked) => {
                    control(&rig, enabled, masked);
                    model.controls(|model| (model.enabled, model.masked) = (enabled, masked));
                }
                Step::Master(master) => {
                    rig.command(if master { MEMORY | MASTER } else { MEMORY });
                    model.controls(|model| model.master = master);
                }
                Step::Refuse(refuses) => {
                    rig.guest.refuses.store(refuses, Ordering::Relaxed);
                    model.refuses = refuses;
                }
            }
            prop_assert_eq!(rig.guest.take(), std::mem::take(&mut model.sent));
            for qword in 0..2 {
                let bits = model.pending.iter().skip(64 * qword).take(64);
                let bits = (0..).zip(bits).fold(0, |word, (bit, pending)| word | u64::from(*pending) << bit);
                prop_assert_eq!(pending(&rig, qword as u64), bits);
            }
        }
        for (vector, words) in (0..).zip(&model.words) {
            for (word, value) in (0..).zip(words) {
                let at = BAR + 16 * vector + 4 * word;
                prop_assert_eq!(rig.load(Space::Mmio, at, Width::B4), Some(u64::from(*value)));
            }
        }
    }

    /// MSI with masks: registers written in any order and width, messages as the registers say.
    #[test]
    fn msi_does_as_a_simple_model_does(
        steps in proptest::collection::vec((0..8_u8, any::<u32>()), 1..80),
    ) {
        let rig = msi(Msi::new(8).per_vector_masking());
        let (mut control, mut low, mut high, mut data, mut mask) = (0_u32, 0_u32, 0_u32, 0_u32, 0_u32);
        let (mut master, mut pending) = (false, 0_u32);
        for (step, value) in steps {
            let mut raised = None;
            match step {
                0 => {
                    control = value & 0x71;
                    prop_assert!(rig.set(MSI + 2, Width::B2, value.into()));
                }
                1 => {
                    low = value & !3;
                    rig.set32(MSI + 4, value.into());
                }
                2 => {
                    high = value;
                    rig.set32(MSI + 8, value.into());
                }
                3 => {
                    data = value & 0xffff;
                    prop_assert!(rig.set(MSI + 0xc, Width::B2, value.into()));
                }
                4 => {
                    mask = value & 0xff;
                    rig.set32(MSI + 0x10, value.into());
                }
                5 => {
                    master = value & 1 != 0;
                    rig.command(if master { MASTER } else { 0 });
                }
                _ => {
                    raised = Some(value % 8);
                }
            }
            let enabled = control & 1 != 0;
            let messages = 1 << (control >> 4).min(3);
            let mut result = None;
            if let Some(vector) = raised {
                result = Some(rig.interrupts.trigger(u16::try_from(vector).unwrap()).unwrap());
                pending |= 1 << (vector % messages);
            }
            let mut expected = Vec::new();
            for number in 0..messages {
                let bit = 1 << number;
                if enabled && master && mask & bit == 0 && pending & bit != 0 {
                    pending &= !bit;
                    expected.push((u64::from(high) << 32 | u64::from(low), data & !(messages - 1) | number));
                }
            }
            if !enabled {
                pending = 0;
            }
            if let Some(result) = result {
                let waits = raised.is_some_and(|vector| pending & 1 << (vector % messages) != 0);
                let told = match (enabled, waits) {
                    (false, _) => Delivery::Disabled,
                    (true, true) => Delivery::Pending,
                    (true, false) => Delivery::Sent,
                };
                prop_assert_eq!(result, told);
            }
            prop_assert_eq!(rig.guest.take(), expected);
            prop_assert_eq!(rig.get32(MSI + 0x14), u64::from(pending));
        }
    }
}
