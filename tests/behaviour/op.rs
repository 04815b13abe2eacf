// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every DMOP by its number, and what all of them refuse.

use ioreq_core::{BufIoreq, DomId, DomainState, ShutdownReason, Transport, Width};

use crate::rig::{
    CREATE_SERVER, DESTROY_SERVER, DmOp, Domain, GuestOp, INJECT_EVENT, INJECT_MSI, IOREQ_SERVER,
    IRQ_LEVEL, ISA_IRQ, MAP_MEM_TYPE, MAP_RANGE, MMIO_DM, MODIFIED_MEMORY, NO_GFNS, NR_VCPUS,
    Options, PCI_INTX, PCI_LINK, PIN_CACHEATTR, RAM_RO, RAM_RW, REMOTE_SHUTDOWN, Rig, SERVER_INFO,
    SERVER_STATE, SET_MEM_TYPE, UNMAP_RANGE,
};
use crate::support::layout::{MMIO, PORT, TRACKED};
use crate::support::{Server, refused_raw, run};

/// The operation must work.
#[track_caller]
fn done<D: Domain>(domain: &D, mut op: DmOp) -> DmOp {
    if let Err(errno) = domain.dm_op(&mut op, &mut []) {
        panic!("DMOP {} gives errno {errno}", op.op);
    }
    op
}

#[track_caller]
fn fails<D: Domain>(domain: &D, mut op: DmOp, errno: i32) {
    refused_raw(domain.dm_op(&mut op, &mut []), errno);
}

/// So many interrupts went out, where the rig can tell; those that were refused did not.
#[track_caller]
fn sent<D: Domain>(domain: &D, expected: usize) {
    if let Some(count) = domain.injected() {
        assert_eq!(count, expected);
    }
}

#[track_caller]
fn create<D: Domain>(domain: &D) -> u16 {
    done(domain, DmOp::create(0)).get_u16(4)
}

pub(crate) fn op_01_create_server<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(CREATE_SERVER, 1);
    let first = create(&domain);
    let second = create(&domain);
    assert_ne!(first, second);
    done(&domain, DmOp::info(first, NO_GFNS));
    done(&domain, DmOp::info(second, NO_GFNS));
}

pub(crate) fn op_02_server_info<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(SERVER_INFO, 2);
    let with = done(&domain, DmOp::create(2)).get_u16(4);
    let without = create(&domain);
    assert_ne!(done(&domain, DmOp::info(with, NO_GFNS)).get_u32(4), 0);
    assert_eq!(done(&domain, DmOp::info(without, NO_GFNS)).get_u32(4), 0);
}

pub(crate) fn op_03_map_range<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(MAP_RANGE, 3);
    let id = create(&domain);
    for ty in 0..3 {
        let op = DmOp::range(MAP_RANGE, id, ty, 0x100, 0x100);
        done(&domain, op);
        fails(&domain, op, libc::EEXIST);
    }
}

pub(crate) fn op_04_unmap_range<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(UNMAP_RANGE, 4);
    let id = create(&domain);
    for ty in 0..3 {
        done(&domain, DmOp::range(MAP_RANGE, id, ty, 0x100, 0x10f));
        let op = DmOp::range(UNMAP_RANGE, id, ty, 0x100, 0x10f);
        done(&domain, op);
        fails(&domain, op, libc::ENOENT);
    }
}

pub(crate) fn op_05_server_state<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(SERVER_STATE, 5);
    let mut server = Server::create(&domain, BufIoreq::Off);
    server.acquire();
    done(&domain, DmOp::state(server.id.0, true));
    assert_ne!(server.page().vp_eport(0), 0);
    done(&domain, DmOp::state(server.id.0, false));
    server.map(crate::support::layout::ports(0x500, 0x5ff));
    let op = GuestOp::read_port(PORT, Width::B4);
    let value = run(&domain, &[op], &mut []).value();
    assert_eq!(value, 0xffff_ffff, "disabled: nothing is sent");
}

pub(crate) fn op_06_destroy_server<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(DESTROY_SERVER, 6);
    let id = create(&domain);
    done(&domain, DmOp::destroy(id));
    fails(&domain, DmOp::info(id, NO_GFNS), libc::ENOENT);
}

pub(crate) fn op_08_pci_intx<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    assert_eq!(PCI_INTX, 8);
    // domain u16 @0, bus u8 @2, device u8 @3, intx u8 @4, level u8 @5
    let op = |segment, bus, device, intx, level| {
        DmOp::new(PCI_INTX)
            .u16(0, segment)
            .u8(2, bus)
            .u8(3, device)
            .u8(4, intx)
            .u8(5, level)
    };
    done(&domain, op(0, 0, 3, 3, 1));
    done(&domain, op(0, 0, 31, 0, 0));
    for bad in [
        op(1, 0, 3, 0, 1),
        op(0, 1, 3, 0, 1),
        op(0, 0, 32, 0, 1),
        op(0, 0, 3, 4, 1),
        op(0, 0, 3, 0, 2),
    ] {
        fails(&domain, bad, libc::EINVAL);
    }
    sent(&domain, 2);
}

pub(crate) fn op_09_isa_irq<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    assert_eq!(ISA_IRQ, 9);
    // isa_irq u8 @0, level u8 @1
    let op = |irq, level| DmOp::new(ISA_IRQ).u8(0, irq).u8(1, level);
    done(&domain, op(15, 1));
    done(&domain, op(15, 0));
    fails(&domain, op(16, 1), libc::EINVAL);
    fails(&domain, op(4, 2), libc::EINVAL);
    sent(&domain, 2);
}

pub(crate) fn op_10_pci_link<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::full());
    assert_eq!(PCI_LINK, 10);
    // link u8 @0, isa_irq u8 @1
    let op = |link, irq| DmOp::new(PCI_LINK).u8(0, link).u8(1, irq);
    done(&domain, op(3, 15));
    done(&domain, op(0, 0));
    fails(&domain, op(4, 5), libc::EINVAL);
    fails(&domain, op(0, 16), libc::EINVAL);
    sent(&domain, 2);
}

pub(crate) fn op_11_modified_memory<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(MODIFIED_MEMORY, 11);
    // nr_extents u32 @0; extents of {nr u32, pad u32, first_pfn u64} in the second buffer
    let mut op = DmOp::new(MODIFIED_MEMORY).u32(0, 1);
    let mut extent = [0; 16];
    extent[0] = 2;
    extent[8..].copy_from_slice(&TRACKED.0.to_le_bytes());
    let result = domain.dm_op(&mut op, &mut extent);
    assert_eq!(result, Ok(()), "nothing to do: log-dirty mode is off");
    domain.log_dirty(true).expect("log-dirty mode");
    let mut op = DmOp::new(MODIFIED_MEMORY).u32(0, 1);
    assert_eq!(domain.dm_op(&mut op, &mut extent), Ok(()));
    domain.log_dirty(false).expect("log-dirty mode off");
}

pub(crate) fn op_12_set_mem_type<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(SET_MEM_TYPE, 12);
    let id = create(&domain);
    done(&domain, DmOp::map_mem_type(id, IOREQ_SERVER, 2));
    for ty in [RAM_RO, RAM_RW, IOREQ_SERVER, RAM_RW, MMIO_DM] {
        done(&domain, DmOp::mem_type(ty, TRACKED.0, 2));
        assert_eq!(domain.mem_type(TRACKED), ty);
    }
}

pub(crate) fn op_13_inject_event<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(2));
    assert_eq!(INJECT_EVENT, 13);
    // vcpuid u32 @0, vector u8 @4, type u8 @5
    let op = |vcpu| DmOp::new(INJECT_EVENT).u32(0, vcpu).u8(4, 14).u8(5, 3);
    done(&domain, op(1));
    fails(&domain, op(2), libc::EINVAL);
    sent(&domain, 1);
}

pub(crate) fn op_13_inject_event_busy<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(2));
    let op = |vcpu| DmOp::new(INJECT_EVENT).u32(0, vcpu).u8(4, 14).u8(5, 3);
    // Nobody takes it meanwhile.
    domain.pause();
    done(&domain, op(1));
    fails(&domain, op(1), libc::EBUSY);
    done(&domain, op(0));
    sent(&domain, 2);
}

pub(crate) fn op_14_inject_msi<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(INJECT_MSI, 14);
    // data u32 @0, pad u32 @4, addr u64 @8
    let op = DmOp::new(INJECT_MSI).u32(0, 0x41).u64(8, 0xfee0_0000);
    done(&domain, op);
    fails(&domain, op.u32(4, 1), libc::EINVAL);
    sent(&domain, 1);
}

pub(crate) fn op_15_map_mem_type<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(MAP_MEM_TYPE, 15);
    let id = create(&domain);
    done(&domain, DmOp::map_mem_type(id, IOREQ_SERVER, 2));
    done(&domain, DmOp::mem_type(IOREQ_SERVER, TRACKED.0, 1));
    done(&domain, DmOp::map_mem_type(id, IOREQ_SERVER, 0));
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    let op = DmOp::mem_type(IOREQ_SERVER, TRACKED.0, 1);
    fails(&domain, op, libc::EINVAL);
}

pub(crate) fn op_16_remote_shutdown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(REMOTE_SHUTDOWN, 16);
    let hv = domain.process();
    assert_eq!(hv.domain_state(), Ok(DomainState::Running));
    done(&domain, DmOp::new(REMOTE_SHUTDOWN).u32(0, 1));
    let reboot = DomainState::Shutdown(ShutdownReason::Reboot);
    assert_eq!(hv.domain_state(), Ok(reboot));
}

pub(crate) fn op_19_irq_level<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(IRQ_LEVEL, 19);
    let op = DmOp::new(IRQ_LEVEL).u32(0, 40).u8(4, 1);
    fails(&domain, op, libc::EOPNOTSUPP);
}

pub(crate) fn op_20_nr_vcpus<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::vcpus(3));
    assert_eq!(NR_VCPUS, 20);
    assert_eq!(done(&domain, DmOp::new(NR_VCPUS)).get_u32(0), 3);
    assert_eq!(domain.process().vcpus(), Ok(3));
}

pub(crate) fn op_pad<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let id = create(&domain);
    for op in [
        DmOp::create(0),
        DmOp::info(id, NO_GFNS),
        DmOp::range(MAP_RANGE, id, 1, MMIO, MMIO + 0xfff),
        DmOp::range(UNMAP_RANGE, id, 1, MMIO, MMIO + 0xfff),
        DmOp::state(id, true),
        DmOp::destroy(id),
        DmOp::mem_type(RAM_RO, TRACKED.0, 1),
        DmOp::map_mem_type(id, IOREQ_SERVER, 2),
        DmOp::new(NR_VCPUS),
    ] {
        fails(&domain, op.pad(1), libc::EINVAL);
    }
    // None of them was done.
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    done(&domain, DmOp::info(id, NO_GFNS));
    done(&domain, DmOp::map_mem_type(id, IOREQ_SERVER, 2));
}

pub(crate) fn op_unknown<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    for op in [21, 99, u32::MAX] {
        fails(&domain, DmOp::new(op), libc::EOPNOTSUPP);
    }
}

pub(crate) fn op_no_domain<R: Rig>(rig: &R) {
    for mut op in [
        DmOp::create(0),
        DmOp::info(0, NO_GFNS),
        DmOp::mem_type(0, 0, 1),
    ] {
        refused_raw(rig.dm_op(DomId(777), &mut op), libc::ESRCH);
    }
}

pub(crate) fn op_dom0<R: Rig>(rig: &R) {
    for mut op in [
        DmOp::create(0),
        DmOp::info(0, NO_GFNS),
        DmOp::mem_type(0, 0, 1),
    ] {
        refused_raw(rig.dm_op(DomId(0), &mut op), libc::EPERM);
    }
}

pub(crate) fn op_18_pin_cacheattr<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    assert_eq!(PIN_CACHEATTR, 18);
    // start u64 @0, end u64 @8, type u32 @16
    let op = |first, last, ty| {
        DmOp::new(PIN_CACHEATTR)
            .u64(0, first)
            .u64(8, last)
            .u32(16, ty)
    };
    let (uncached, write_back, delete) = (0, 6, u32::MAX);
    fails(&domain, op(0x400, 0x40f, delete), libc::ENOENT);
    done(&domain, op(0x400, 0x40f, write_back));
    // The same range: another type. One that overlaps it: refused.
    done(&domain, op(0x400, 0x40f, uncached));
    fails(&domain, op(0x40f, 0x410, uncached), libc::EBUSY);
    done(&domain, op(0x410, 0x410, uncached));
    for bad in [
        op(0x500, 0x4ff, uncached),
        op(0x500, 0x500, 2),
        op(0x500, 0x500, 8),
        op(0x500, 1 << 52, uncached),
    ] {
        fails(&domain, bad, libc::EINVAL);
    }
    // Only as it was pinned, and only once.
    fails(&domain, op(0x400, 0x404, delete), libc::ENOENT);
    done(&domain, op(0x400, 0x40f, delete));
    fails(&domain, op(0x400, 0x40f, delete), libc::ENOENT);
    done(&domain, op(0x40f, 0x40f, uncached));
}

pub(crate) fn op_inner_pad<R: Rig>(rig: &R) {
    let domain = rig.domain(Options::default());
    let id = create(&domain);
    done(&domain, DmOp::range(MAP_RANGE, id, 0, 0x100, 0x10f));
    let event = DmOp::new(INJECT_EVENT).u8(4, 14).u8(5, 3);
    for op in [
        DmOp::range(MAP_RANGE, id, 1, MMIO, MMIO + 0xfff).u16(2, 1),
        DmOp::range(UNMAP_RANGE, id, 0, 0x100, 0x10f).u16(2, 1),
        DmOp::state(id, true).u8(3, 1),
        DmOp::destroy(id).u16(2, 1),
        DmOp::track_dirty_vram(0x400, 8).u32(4, 1),
        DmOp::mem_type(RAM_RO, TRACKED.0, 1).u16(6, 1),
        event.u8(7, 1),
        event.u32(12, 1),
        DmOp::new(INJECT_MSI).u64(8, 0xfee0_0000).u32(4, 1),
        DmOp::new(PIN_CACHEATTR).u32(20, 1),
    ] {
        let mut op = op;
        let result = domain.dm_op(&mut op, &mut [0; 8]);
        assert_eq!(result, Err(libc::EINVAL), "DMOP {}", op.op);
    }
    // None of them was done.
    sent(&domain, 0);
    assert_eq!(domain.mem_type(TRACKED), RAM_RW);
    done(&domain, DmOp::range(UNMAP_RANGE, id, 0, 0x100, 0x10f));
    done(&domain, DmOp::range(MAP_RANGE, id, 1, MMIO, MMIO + 0xfff));
    done(&domain, DmOp::info(id, NO_GFNS));
}
