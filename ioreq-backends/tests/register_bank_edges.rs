// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Register bank: declarations that must fail, accesses at the edges, hooks, snapshots.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ioreq_backends::register_bank::{Gaps, Register, RegisterBank};
use ioreq_core::handler::{Access, Context, Handler, MutHandler, ReadOutcome, Space, WriteOutcome};
use ioreq_core::memory::MappedRegion;
use ioreq_core::{DomId, ErrorKind, VcpuId, Width};
use vm_memory::GuestRegionCollection;

fn ram() -> GuestRegionCollection<MappedRegion> {
    GuestRegionCollection::new()
}

fn at(offset: u64, width: Width) -> Access {
    Access {
        space: Space::Mmio,
        addr: 0xfe00_0000_u64.wrapping_add(offset),
        offset,
        width,
    }
}

/// Reads; `None` if refused.
fn read(bank: &mut RegisterBank, offset: u64, width: Width) -> Option<u64> {
    let ram = ram();
    let cx = Context::detached(DomId(1), VcpuId(0), &ram);
    match bank.read(&cx, at(offset, width)) {
        ReadOutcome::Value(value) => Some(value),
        ReadOutcome::Refused(_) => None,
        ReadOutcome::Defer(_) => panic!("a register bank never defers"),
    }
}

/// Writes; false if refused.
fn write(bank: &mut RegisterBank, offset: u64, width: Width, value: u64) -> bool {
    let ram = ram();
    let cx = Context::detached(DomId(1), VcpuId(0), &ram);
    matches!(
        bank.write(&cx, at(offset, width), value),
        WriteOutcome::Done
    )
}

/// The error's text; it must be about a bad argument.
fn refusal(len: u64, registers: Vec<Register>) -> String {
    let err = RegisterBank::new(len, registers).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
    err.to_string()
}

#[test]
fn bad_declarations_are_refused_and_say_what_was_wrong() {
    let plain = |offset, width| Register::new("r", offset, width);
    assert!(refusal(0, vec![]).contains("0x0 bytes"));
    assert!(refusal(RegisterBank::MAX_LEN + 1, vec![]).contains("0x1000001 bytes"));
    for offset in [5, 8, 9, u64::MAX] {
        let text = refusal(8, vec![plain(offset, Width::B4)]);
        assert!(
            text.contains("not all inside a bank of 0x8 bytes"),
            "{text}"
        );
    }
    let overlapping = vec![
        Register::new("high", 3, Width::B2),
        Register::new("low", 0, Width::B4),
    ];
    let text = refusal(8, overlapping);
    assert!(
        text.contains("\"high\"") && text.contains("overlaps register \"low\""),
        "{text}"
    );
    let wide = [
        ("reset value", plain(0, Width::B1).reset(0x100)),
        ("readable mask", plain(0, Width::B2).readable(0x1_0000)),
        ("writable mask", plain(0, Width::B4).writable(1 << 32)),
        (
            "clearable mask",
            plain(0, Width::B1).clearable(0x180).writable(0),
        ),
    ];
    for (what, register) in wide {
        let text = refusal(8, vec![register]);
        assert!(text.contains(what), "{text}");
    }
    let text = refusal(8, vec![plain(0, Width::B1).writable(0x3).clearable(0x6)]);
    assert!(
        text.contains("bits 0x2 are both writable and clearable"),
        "{text}"
    );
}

#[test]
fn a_register_may_fill_the_bank_to_its_last_byte() {
    let last = Register::new("last", 4, Width::B4);
    let mut bank = RegisterBank::new(8, [last]).unwrap();
    assert!(write(&mut bank, 7, Width::B1, 0xab));
    assert_eq!(bank.get(4), Some(0xab00_0000));
    assert_eq!(bank.len(), 8);
}

#[test]
fn accesses_beyond_the_bank_meet_a_gap() {
    let one = || [Register::new("one", 0, Width::B1).reset(0x5a)];
    let mut zeros = RegisterBank::new(1, one()).unwrap();
    let mut ones = RegisterBank::new(1, one()).unwrap().gaps(Gaps::Ones);
    let mut refuse = RegisterBank::new(1, one()).unwrap().gaps(Gaps::Refuse);
    assert_eq!(read(&mut zeros, 0, Width::B4), Some(0x5a));
    assert_eq!(read(&mut ones, 0, Width::B4), Some(0xffff_ff5a));
    assert_eq!(read(&mut refuse, 0, Width::B4), None);
    for offset in [1, u64::MAX, u64::MAX - 6] {
        assert_eq!(read(&mut zeros, offset, Width::B8), Some(0));
        assert_eq!(read(&mut ones, offset, Width::B8), Some(u64::MAX));
        assert_eq!(read(&mut refuse, offset, Width::B8), None);
        assert!(write(&mut zeros, offset, Width::B8, 0));
        assert!(!write(&mut refuse, offset, Width::B8, 0));
    }
    assert_eq!(zeros.get(0), Some(0x5a));
}

#[test]
fn a_refused_write_touches_no_register() {
    let registers = [
        Register::new("a", 0, Width::B2),
        Register::new("b", 2, Width::B1),
    ];
    let mut bank = RegisterBank::new(8, registers).unwrap().gaps(Gaps::Refuse);
    assert!(!write(&mut bank, 0, Width::B4, u64::MAX));
    assert_eq!((bank.get(0), bank.get(2)), (Some(0), Some(0)));
    assert!(
        write(&mut bank, 1, Width::B2, 0xbbaa),
        "wholly covered by two"
    );
    assert_eq!((bank.get(0), bank.get(2)), (Some(0xaa00), Some(0xbb)));
}

#[test]
fn masks_and_clearing_act_on_the_written_bytes_only() {
    let status = Register::new("status", 0, Width::B4)
        .reset(0xff00_00ff)
        .writable(0x0000_ff00)
        .clearable(0xff00_00ff);
    let mut bank = RegisterBank::new(4, [status]).unwrap();
    assert!(write(&mut bank, 1, Width::B2, 0xffff));
    assert_eq!(bank.get(0), Some(0xff00_ffff), "bits 23:16 are read-only");
    assert!(write(&mut bank, 3, Width::B1, 0x0f));
    assert_eq!(
        bank.get(0),
        Some(0xf000_ffff),
        "bits written as 1 are cleared"
    );
    assert!(write(&mut bank, 0, Width::B4, 0));
    assert_eq!(
        bank.get(0),
        Some(0xf000_00ff),
        "0 clears no event, and is stored"
    );
}

#[test]
fn unreadable_bits_read_as_zero_and_are_kept() {
    let key = Register::new("key", 0, Width::B2).readable(0x00ff);
    let mut bank = RegisterBank::new(2, [key]).unwrap();
    assert!(write(&mut bank, 0, Width::B2, 0x1234));
    assert_eq!(read(&mut bank, 0, Width::B2), Some(0x0034));
    assert_eq!(bank.get(0), Some(0x1234));
}

#[test]
fn hooks_run_once_for_each_register_in_ascending_order() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let logged = |name: &'static str, offset| {
        let (reads, writes) = (Arc::clone(&order), Arc::clone(&order));
        Register::new(name, offset, Width::B2)
            .on_read(move |_, read| {
                reads.lock().unwrap().push((name, 'r', read.lanes));
                read.value
            })
            .on_write(move |_, write| {
                writes.lock().unwrap().push((name, 'w', write.lanes));
            })
    };
    let mut bank = RegisterBank::new(8, [logged("b", 2), logged("a", 0), logged("c", 4)]).unwrap();
    assert!(write(&mut bank, 1, Width::B4, 0x4433_2211));
    assert_eq!(read(&mut bank, 1, Width::B4), Some(0x4433_2211));
    assert_eq!(
        std::mem::take(&mut *order.lock().unwrap()),
        [
            ("a", 'w', 0xff00),
            ("b", 'w', 0xffff),
            ("c", 'w', 0x00ff),
            ("a", 'r', 0xff00),
            ("b", 'r', 0xffff),
            ("c", 'r', 0x00ff),
        ]
    );
    assert!(write(&mut bank, 6, Width::B2, 0));
    assert!(order.lock().unwrap().is_empty(), "a gap has no hook");
}

#[test]
fn a_write_hook_sees_old_new_and_written_and_changes_others_before_they_are_written() {
    const DOORBELL: u64 = 0;
    const COUNT: u64 = 4;
    let seen = Arc::new(Mutex::new(None));
    let tell = Arc::clone(&seen);
    let doorbell = Register::new("doorbell", DOORBELL, Width::B4)
        .reset(1)
        .writable(0xf)
        .on_write(move |values, write| {
            *tell.lock().unwrap() = Some((write.old, write.new, write.value, write.cx.vcpu()));
            let count = values.get(COUNT).unwrap_or(0);
            values.set(COUNT, count + 0x100);
            values.set(DOORBELL, 0); // its own value, too
        });
    let count = Register::new("count", COUNT, Width::B4).writable(0xff);
    let mut bank = RegisterBank::new(8, [doorbell, count]).unwrap();
    // One access to both: the doorbell's hook comes before the count is written, and its change survives there.
    assert!(write(&mut bank, 0, Width::B8, 0x0000_0007_0000_00ff));
    assert_eq!(*seen.lock().unwrap(), Some((1, 0xf, 0xff, VcpuId(0))));
    assert_eq!(
        (bank.get(DOORBELL), bank.get(COUNT)),
        (Some(0), Some(0x107))
    );
}

#[test]
fn a_read_hook_is_cut_to_what_the_register_can_show() {
    let wide = Register::new("wide", 0, Width::B1)
        .readable(0x7f)
        .on_read(|values, _| {
            values.set(0, 0x55);
            u64::MAX
        });
    let mut bank = RegisterBank::new(4, [wide]).unwrap().gaps(Gaps::Ones);
    assert_eq!(read(&mut bank, 0, Width::B2), Some(0xff7f));
    assert_eq!(bank.get(0), Some(0x55));
}

#[test]
fn reset_and_restore_run_no_hooks() {
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let control = Register::new("control", 0, Width::B4)
        .reset(3)
        .on_write(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    let other = Register::new("other", 8, Width::B8);
    let mut bank = RegisterBank::new(16, [other, control]).unwrap();
    assert!(write(&mut bank, 0, Width::B4, 9));
    assert!(bank.set(8, u64::MAX));
    let saved = bank.snapshot();
    assert_eq!(
        saved.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["control@0x0 = 0x9", "other@0x8 = 0xffffffffffffffff"]
    );
    bank.reset();
    assert_eq!((bank.get(0), bank.get(8)), (Some(3), Some(0)));
    bank.restore(&saved).unwrap();
    assert_eq!(bank.snapshot(), saved);
    assert_eq!(calls.load(Ordering::Relaxed), 1, "only the guest's write");
}

#[test]
fn a_snapshot_of_another_bank_is_refused_and_changes_nothing() {
    let narrow = |name| RegisterBank::new(4, [Register::new(name, 0, Width::B2)]).unwrap();
    let mut bank = narrow("a");
    let pair = [
        Register::new("a", 0, Width::B2).reset(7),
        Register::new("b", 2, Width::B2),
    ];
    let wide = [Register::new("a", 0, Width::B4)];
    for other in [
        narrow("b"),
        RegisterBank::new(4, pair).unwrap(),
        RegisterBank::new(4, wide).unwrap(),
    ] {
        let err = bank.restore(&other.snapshot()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument);
        assert_eq!(bank.get(0), Some(0));
    }
    let mut too_big = bank.snapshot();
    too_big[0].value = 0x1_0000;
    assert!(bank.restore(&too_big).is_err());
}

#[test]
fn the_device_and_the_guest_share_a_bank() {
    let bank = RegisterBank::new(4, [Register::new("r", 0, Width::B4)]).unwrap();
    let shared = Arc::new(Mutex::new(bank));
    let ram = ram();
    let cx = Context::detached(DomId(1), VcpuId(0), &ram);
    let device = Arc::clone(&shared);
    std::thread::spawn(move || assert!(device.lock().unwrap().set(0, 42)))
        .join()
        .unwrap();
    let seen = Handler::read(&shared, &cx, at(0, Width::B4));
    assert!(matches!(seen, ReadOutcome::Value(42)), "{seen:?}");
}
