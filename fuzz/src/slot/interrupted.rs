// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A slot that its other half rewrites between any two accesses: what was taken is one copy, each field read once, and what is
//! written back is made from that copy.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use ioreq_core::VcpuId;
use ioreq_core::abi::{
    IOREQ_STATE_MASK, Ioreq, STATE_IOREQ_INPROCESS, STATE_IOREQ_READY, STATE_IORESP_READY,
};
use ioreq_core::request::{Kind, decode};
use ioreq_core::slot::{SlotIndex, SlotMemory, Slots};

use super::oracle;
use crate::script::Script;

/// A page whose fields change by a script.
#[derive(Clone)]
struct Changing(Rc<Inner>);

struct Inner {
    script: RefCell<Script>,
    raw: Cell<Ioreq>,
    /// Loads of each field since the last look: flags, addr, data, count, size, vp_eport, kind.
    loads: Cell<[u8; 7]>,
    /// What those loads gave.
    seen: Cell<Ioreq>,
    stored_flags: RefCell<Vec<u8>>,
    stored_data: RefCell<Vec<u64>>,
}

impl Changing {
    fn change(&self) {
        let mut script = self.0.script.borrow_mut();
        let what = script.take::<u8>();
        let mut raw = self.0.raw.get();
        match what % 16 {
            0 => raw.flags = script.take(),
            1 => raw.addr = script.edgy(),
            2 => raw.data = script.edgy(),
            3 => raw.count = script.take(),
            4 => raw.size = script.take(),
            5 => raw.kind = script.take(),
            6 => raw.vp_eport = script.take(),
            7 => raw.flags = what & 0xf0 | STATE_IOREQ_READY,
            8 => raw.flags = what & 0xf0 | STATE_IOREQ_INPROCESS,
            _ => {}
        }
        self.0.raw.set(raw);
    }

    fn load<T>(&self, field: usize, get: impl Fn(&mut Ioreq) -> &mut T) -> T
    where
        T: Copy,
    {
        self.change();
        let mut loads = self.0.loads.get();
        loads[field] = loads[field].saturating_add(1);
        self.0.loads.set(loads);
        let (mut raw, mut seen) = (self.0.raw.get(), self.0.seen.get());
        *get(&mut seen) = *get(&mut raw);
        self.0.seen.set(seen);
        *get(&mut raw)
    }
}

impl SlotMemory for Changing {
    fn flags(&self, _: SlotIndex, _: Ordering) -> u8 {
        self.load(0, |raw| &mut raw.flags)
    }
    fn set_flags(&self, _: SlotIndex, flags: u8, _: Ordering) {
        self.change();
        self.0.stored_flags.borrow_mut().push(flags);
        let raw = self.0.raw.get();
        self.0.raw.set(Ioreq { flags, ..raw });
    }
    fn addr(&self, _: SlotIndex) -> u64 {
        self.load(1, |raw| &mut raw.addr)
    }
    fn data(&self, _: SlotIndex) -> u64 {
        self.load(2, |raw| &mut raw.data)
    }
    fn set_data(&self, _: SlotIndex, data: u64) {
        self.change();
        self.0.stored_data.borrow_mut().push(data);
        let raw = self.0.raw.get();
        self.0.raw.set(Ioreq { data, ..raw });
    }
    fn count(&self, _: SlotIndex) -> u32 {
        self.load(3, |raw| &mut raw.count)
    }
    fn size(&self, _: SlotIndex) -> u32 {
        self.load(4, |raw| &mut raw.size)
    }
    fn vp_eport(&self, _: SlotIndex) -> u32 {
        self.load(5, |raw| &mut raw.vp_eport)
    }
    fn kind(&self, _: SlotIndex) -> u8 {
        self.load(6, |raw| &mut raw.kind)
    }
}

/// One input.
pub(super) fn run(script: Script) {
    let inner = Inner {
        script: RefCell::new(script),
        raw: Cell::default(),
        loads: Cell::default(),
        seen: Cell::default(),
        stored_flags: RefCell::default(),
        stored_data: RefCell::default(),
    };
    let page = Changing(Rc::new(inner));
    let inner = &page.0;
    let slots = Slots::in_memory(page.clone(), 3).expect("three vCPUs");
    assert!(slots.get(VcpuId(3)).is_none());
    let mut abandoned = 0;
    for _ in 0..32 {
        if inner.script.borrow().is_over() {
            break;
        }
        let how = inner.script.borrow_mut().take::<u8>();
        let slot = slots.get(VcpuId(u32::from(how) % 3)).expect("one of three");
        inner.loads.set([0; 7]);
        if how & 0x20 != 0 {
            let raw = super::request(&mut inner.script.borrow_mut());
            let state = if how & 0x40 == 0 {
                STATE_IOREQ_READY
            } else {
                STATE_IOREQ_INPROCESS
            };
            let flags = raw.flags & !IOREQ_STATE_MASK | state;
            inner.raw.set(Ioreq { flags, ..raw });
        }
        if how & 0x80 != 0 {
            let view = slot.peek();
            let seen = inner.seen.get();
            assert_eq!((view.state, view.addr), (seen.state(), seen.addr));
            assert_eq!((view.is_read, view.df), (seen.is_read(), seen.df()));
            let _port = slot.vp_eport();
            continue;
        }
        let (state, taken) = match how & 0x40 {
            0 => (STATE_IOREQ_READY, slot.take()),
            _ => (STATE_IOREQ_INPROCESS, slot.resume()),
        };
        let seen = inner.seen.get();
        let loads = inner.loads.get();
        assert!(
            loads.iter().all(|loads| *loads <= 1),
            "read twice: {loads:?}"
        );
        let Some(taken) = taken else {
            assert_ne!(seen.state(), state, "there was something to take");
            assert!(inner.stored_flags.take().is_empty(), "it wrote");
            continue;
        };
        assert_eq!(seen.state(), state);
        assert_eq!(*taken.raw(), Ioreq { pad: 0, ..seen });
        check_decoded(&seen);
        let with = |state| seen.flags & !IOREQ_STATE_MASK | state;
        assert_eq!(inner.stored_flags.take(), [with(STATE_IOREQ_INPROCESS)]);
        let value = inner.script.borrow_mut().take::<u64>();
        let data = match how >> 2 & 7 {
            0 | 1 => {
                let _told = taken.answer(Some(value));
                Some(value)
            }
            2 => {
                let _told = taken.answer(None);
                None
            }
            3 => {
                let _told = taken.refuse();
                oracle::refusal(&seen)
            }
            4 => {
                drop(taken);
                abandoned += 1;
                oracle::refusal(&seen)
            }
            5 => {
                drop(taken.into_owned());
                abandoned += 1;
                oracle::refusal(&seen)
            }
            _ => {
                let owned = taken.into_owned();
                assert!(
                    inner.stored_flags.borrow().is_empty(),
                    "it answered on the way"
                );
                let told = owned.answer(Some(value));
                assert_eq!(told.vcpu(), slot.vcpu());
                Some(value)
            }
        };
        assert_eq!(inner.stored_flags.take(), [with(STATE_IORESP_READY)]);
        assert_eq!(inner.stored_data.take(), Vec::from_iter(data));
        assert_eq!(inner.loads.get(), loads, "it read the slot again");
    }
    assert_eq!(slots.abandoned(), abandoned);
}

fn check_decoded(raw: &Ioreq) {
    let decoded = decode(raw, VcpuId(1));
    assert_eq!(decoded.is_ok(), oracle::makes_sense(raw), "{raw:?}");
    let request = match decoded {
        Ok(request) => request,
        Err(malformed) => {
            assert!(!malformed.to_string().is_empty());
            return;
        }
    };
    assert!(request.to_string().starts_with("v1: "));
    if let Kind::Io(io) = request.kind() {
        let elements = io.elements();
        assert_eq!(elements.len(), raw.count as usize);
        let last = elements.last().expect("one at least");
        let moved = i128::from(last.addr) - i128::from(io.target().addr());
        assert_eq!(moved, i128::from(raw.count - 1) * i128::from(io.stride()));
    }
}
