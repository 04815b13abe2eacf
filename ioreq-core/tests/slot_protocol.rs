// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The slot protocol on a real page, from both sides, one step at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ioreq_core::abi::*;
use ioreq_core::hypervisor::SharedPage;
use ioreq_core::slot::{SlotIndex, Slots};
use ioreq_core::{ErrorKind, EvtchnPort, Op, VcpuId};

#[repr(align(4096))]
struct Page([AtomicU8; 4096]);

impl Page {
    fn new() -> Arc<Page> {
        Arc::new(Page([const { AtomicU8::new(0) }; 4096]))
    }

    fn shared(self: &Arc<Page>) -> SharedPage {
        let addr = NonNull::from(&**self).cast();
        // SAFETY: 4096 bytes of atomics, which live as long as the Arc that the page keeps.
        unsafe { SharedPage::new(addr, Arc::clone(self) as _) }.expect("aligned")
    }

    /// Xen's side: fills a slot, the flag byte last.
    fn put(&self, vcpu: usize, raw: &Ioreq) {
        let at = vcpu * 32;
        let bytes = [
            &raw.addr.to_le_bytes()[..],
            &raw.data.to_le_bytes(),
            &raw.count.to_le_bytes(),
            &raw.size.to_le_bytes(),
            &raw.vp_eport.to_le_bytes(),
            &raw.pad.to_le_bytes(),
        ]
        .concat();
        for (offset, byte) in bytes.into_iter().enumerate() {
            self.0[at + offset].store(byte, Ordering::Relaxed);
        }
        self.0[at + 31].store(raw.kind, Ordering::Relaxed);
        self.0[at + 30].store(raw.flags, Ordering::Release);
    }

    fn data(&self, vcpu: usize) -> u64 {
        let at = vcpu * 32 + 8;
        u64::from_le_bytes(std::array::from_fn(|i| {
            self.0[at + i].load(Ordering::Relaxed)
        }))
    }

    fn flags(&self, vcpu: usize) -> u8 {
        self.0[vcpu * 32 + 30].load(Ordering::Acquire)
    }

    fn all(&self) -> Vec<u8> {
        self.0.iter().map(|b| b.load(Ordering::Relaxed)).collect()
    }
}

fn request(flags: u8) -> Ioreq {
    Ioreq {
        addr: 0x1122_3344_5566_7788,
        data: 0x99aa_bbcc_ddee_ff01,
        count: 0x0203_0405,
        size: 0x0607_0809,
        vp_eport: 0x0a0b_0c0d,
        pad: 0,
        flags,
        kind: 0xe1,
    }
}

#[test]
fn the_number_of_vcpus_is_checked() {
    let page = Page::new().shared();
    for good in [1, 2, 127, 128] {
        assert_eq!(Slots::new(page.clone(), good).unwrap().vcpus(), good);
    }
    for bad in [0, 129, u32::MAX] {
        let err = Slots::new(page.clone(), bad).unwrap_err();
        assert_eq!(
            (err.op(), err.kind()),
            (Op::Configure, ErrorKind::InvalidArgument)
        );
        assert!(err.to_string().contains(&format!("{bad} vCPUs")), "{err}");
    }
}

#[test]
fn only_the_domains_vcpus_have_slots() {
    let slots = Slots::new(Page::new().shared(), 3).unwrap();
    assert!(slots.get(VcpuId(2)).is_some());
    for beyond in [3, 127, 128, 256, 1 << 31, u32::MAX] {
        assert!(slots.get(VcpuId(beyond)).is_none(), "{beyond}");
    }
    let all: Vec<_> = slots.iter().map(|slot| slot.vcpu()).collect();
    assert_eq!(all, [VcpuId(0), VcpuId(1), VcpuId(2)]);
    assert_eq!(SlotIndex::new(VcpuId(u32::MAX)), None);
}

#[test]
fn take_copies_every_field_and_touches_the_state_only() {
    for id in [0_u32, 1, 127] {
        let vcpu = id as usize;
        let page = Page::new();
        let other_bits = IOREQ_DATA_IS_PTR | IOREQ_DIR_READ | IOREQ_DF | 0x80;
        let raw = request(other_bits | STATE_IOREQ_READY);
        page.put(vcpu, &raw);
        let mut expected = page.all();

        let slots = Slots::new(page.shared(), 128).unwrap();
        let slot = slots.get(VcpuId(id)).unwrap();
        assert_eq!(slot.vp_eport(), EvtchnPort(0x0a0b_0c0d));
        let taken = slot.take().expect("ready");
        assert_eq!(*taken.raw(), raw);
        assert_eq!(taken.vcpu(), VcpuId(id));
        expected[vcpu * 32 + 30] = other_bits | STATE_IOREQ_INPROCESS;
        assert_eq!(page.all(), expected);

        assert!(slot.take().is_none(), "taken twice");
        assert_eq!(taken.answer(None).vcpu(), VcpuId(id));
        expected[vcpu * 32 + 30] = other_bits | STATE_IORESP_READY;
        assert_eq!(page.all(), expected, "an answer without data leaves data");
        assert_eq!(slots.abandoned(), 0);
    }
}

#[test]
fn only_ready_is_taken_and_only_inprocess_is_resumed() {
    let page = Page::new();
    let slots = Slots::new(page.shared(), 1).unwrap();
    let slot = slots.get(VcpuId(0)).unwrap();
    for state in 0..16 {
        for bits in [0, 0xf0] {
            page.put(0, &request(bits | state));
            assert_eq!(slot.state(), state);
            if state != STATE_IOREQ_READY {
                assert!(slot.take().is_none(), "took state {state}");
                assert_eq!(page.flags(0), bits | state);
            }
            if state != STATE_IOREQ_INPROCESS {
                assert!(slot.resume().is_none(), "resumed state {state}");
                assert_eq!(page.flags(0), bits | state);
            }
        }
    }
    page.put(0, &request(IOREQ_DIR_READ | STATE_IOREQ_INPROCESS));
    let taken = slot.resume().expect("left in process");
    let _ = taken.answer(Some(5));
    assert_eq!(page.flags(0), IOREQ_DIR_READ | STATE_IORESP_READY);
    assert_eq!(page.data(0), 5);
}

#[test]
fn the_answer_keeps_the_bits_of_the_copy_not_of_the_page() {
    let page = Page::new();
    let slots = Slots::new(page.shared(), 1).unwrap();
    page.put(0, &request(IOREQ_DIR_READ | STATE_IOREQ_READY));
    let taken = slots.get(VcpuId(0)).unwrap().take().unwrap();
    // A hostile guest rewrites its slot while it is served.
    page.put(
        0,
        &Ioreq {
            flags: 0xff,
            kind: 0xff,
            addr: 0,
            ..Ioreq::default()
        },
    );
    assert_eq!(taken.raw().addr, 0x1122_3344_5566_7788);
    let _ = taken.answer(Some(u64::MAX));
    assert_eq!(page.flags(0), IOREQ_DIR_READ | STATE_IORESP_READY);
}

#[test]
fn a_dropped_or_refused_request_is_answered_as_nobodys() {
    const DATA: u64 = 0x99aa_bbcc_ddee_ff01;
    let cases = [
        (0, DATA),                                  // a write: dropped
        (IOREQ_DIR_READ, u64::MAX),                 // an inline read: all-ones
        (IOREQ_DATA_IS_PTR, DATA),                  // data stays an address
        (IOREQ_DIR_READ | IOREQ_DATA_IS_PTR, DATA), // likewise
    ];
    for owned in [false, true] {
        let page = Page::new();
        let slots = Slots::new(page.shared(), 1).unwrap();
        for (done, (bits, data)) in (1..).zip(cases) {
            page.put(0, &request(bits | STATE_IOREQ_READY));
            let taken = slots.get(VcpuId(0)).unwrap().take().unwrap();
            if owned {
                drop(taken.into_owned());
            } else {
                drop(taken);
            }
            assert_eq!(page.flags(0), bits | STATE_IORESP_READY);
            assert_eq!(page.data(0), data);
            assert_eq!(slots.abandoned(), done);

            page.put(0, &request(bits | STATE_IOREQ_READY));
            let taken = slots.get(VcpuId(0)).unwrap().take().unwrap();
            assert_eq!(taken.refuse().vcpu(), VcpuId(0));
            assert_eq!(page.flags(0), bits | STATE_IORESP_READY);
            assert_eq!(page.data(0), data);
            assert_eq!(slots.abandoned(), done, "refused on purpose");
        }
    }
}

#[test]
fn a_panic_answers() {
    let page = Page::new();
    let slots = Slots::new(page.shared(), 1).unwrap();
    page.put(0, &request(IOREQ_DIR_READ | STATE_IOREQ_READY));
    let taken = slots.get(VcpuId(0)).unwrap().take().unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _held = taken;
        panic!("a handler's");
    }));
    assert!(panicked.is_err());
    assert_eq!(page.flags(0), IOREQ_DIR_READ | STATE_IORESP_READY);
    assert_eq!((page.data(0), slots.abandoned()), (u64::MAX, 1));
}

#[test]
fn an_owned_request_outlives_slots_and_keeps_the_page() {
    let page = Page::new();
    let slots = Slots::new(page.shared(), 1).unwrap();
    page.put(0, &request(STATE_IOREQ_READY));
    let parked = slots.get(VcpuId(0)).unwrap().take().unwrap().into_owned();
    drop(slots);
    assert_eq!(
        page.flags(0),
        STATE_IOREQ_INPROCESS,
        "parking does not answer"
    );
    assert_eq!(Arc::strong_count(&page), 2, "the guard keeps the page");
    std::thread::spawn(move || drop(parked.into_owned().answer(Some(3))))
        .join()
        .unwrap();
    assert_eq!((page.flags(0), page.data(0)), (STATE_IORESP_READY, 3));
    assert_eq!(Arc::strong_count(&page), 1);
}

#[test]
fn peek_shows_the_slot_and_changes_nothing() {
    let page = Page::new();
    let slots = Slots::new(page.shared(), 2).unwrap();
    for flags in 0..=u8::MAX {
        page.put(1, &request(flags));
        let before = page.all();
        let view = slots.get(VcpuId(1)).unwrap().peek();
        assert_eq!(page.all(), before);
        assert_eq!(view.state, flags & 0xf);
        assert_eq!(
            (view.data_is_ptr, view.is_read, view.df),
            (
                flags & 1 << 4 != 0,
                flags & 1 << 5 != 0,
                flags & 1 << 6 != 0
            )
        );
        assert_eq!(
            (view.addr, view.data),
            (0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff01)
        );
        assert_eq!(
            (view.count, view.size, view.kind),
            (0x0203_0405, 0x0607_0809, 0xe1)
        );
    }
    assert_eq!(slots.get(VcpuId(0)).unwrap().peek().state, STATE_IOREQ_NONE);
}
