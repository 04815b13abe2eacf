// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every operation as bytes, against layouts written out by hand from `dm_op.h`; and errors from errno values.

use std::sync::{Arc, Mutex};

use ioreq_core::abi::dm_op::DmOpBytes;
use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{
    BufIoreq, DomId, ErrorKind, EvtchnPort, Gfn, GfnRange, MarkAuthority, P2mType, PortRange,
    Result, Sbdf, ServerId, ShutdownReason, VcpuId,
};
use ioreq_xen::{CacheAttr, DeviceModel, DmOpCarrier};

const D: DomId = DomId(3);
const S: ServerId = ServerId(0x0102);
const AUTHORITY: MarkAuthority = MarkAuthority::for_conformance_tests();

/// Keeps what it is given; answers as it is told.
#[derive(Default)]
struct Recorder {
    sent: Mutex<Vec<(DmOpBytes, Vec<u8>)>>,
    answer: Mutex<Option<Result<DmOpBytes, i32>>>,
}

impl DmOpCarrier for Recorder {
    fn dm_op(&self, domid: DomId, op: &mut DmOpBytes, buffer: &mut [u8]) -> Result<(), i32> {
        assert_eq!(domid, D);
        self.sent.lock().unwrap().push((*op, buffer.to_vec()));
        buffer.fill(0xff);
        match *self.answer.lock().unwrap() {
            Some(Ok(answer)) => *op = answer,
            Some(Err(errno)) => return Err(errno),
            None => {}
        }
        Ok(())
    }
}

fn model() -> (Arc<Recorder>, DeviceModel) {
    let recorder = Arc::new(Recorder::default());
    (Arc::clone(&recorder), DeviceModel::new(recorder as _, D))
}

/// The one operation that `call` sends: 8 bytes of head, then `body`, then zeros.
#[track_caller]
fn sends<T>(call: impl FnOnce(&DeviceModel) -> Result<T>, number: u8, body: &[u8]) -> T {
    let (recorder, dm) = model();
    let result = call(&dm).unwrap();
    let sent = recorder.sent.lock().unwrap();
    let mut expected = [0; 32];
    expected[0] = number;
    expected[8..8 + body.len()].copy_from_slice(body);
    assert_eq!(
        sent.iter().map(|sent| sent.0).collect::<Vec<_>>(),
        [expected]
    );
    result
}

fn gfns(first: u64, pages: u64) -> GfnRange {
    GfnRange::sized(first, pages).unwrap()
}

#[test]
fn servers() {
    sends(|dm| dm.create_server(BufIoreq::Off), 1, &[0]);
    sends(|dm| dm.create_server(BufIoreq::Atomic), 1, &[2]);
    sends(|dm| dm.server_info(S), 2, &[2, 1, 1, 0]);
    sends(|dm| dm.set_server_state(S, true), 5, &[2, 1, 1, 0]);
    sends(|dm| dm.set_server_state(S, false), 5, &[2, 1, 0, 0]);
    sends(|dm| dm.destroy_server(S), 6, &[2, 1]);
}

#[test]
fn ranges() {
    let ports = PortRange::new(0x70, 0x71).unwrap().into();
    let body = [2, 1, 0, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 0, 0, 0, 0, 0x71];
    sends(|dm| dm.map_range(S, ports), 3, &body);
    sends(|dm| dm.unmap_range(S, ports), 4, &body);
    let mmio = ioreq_core::MmioRange::new(0x1234_5678_9abc_def0, u64::MAX).unwrap();
    let body = [
        2, 1, 0, 0, 1, 0, 0, 0, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 255, 255, 255, 255,
        255, 255, 255, 255,
    ];
    sends(|dm| dm.map_range(S, mmio.into()), 3, &body);
    let function = Sbdf::new(0xfedc, 0xba, 0x1f, 7).unwrap();
    let sbdf = [0xff, 0xba, 0xdc, 0xfe, 0, 0, 0, 0];
    let body = [&[2, 1, 0, 0, 2, 0, 0, 0][..], &sbdf, &sbdf].concat();
    sends(|dm| dm.map_range(S, function.into()), 3, &body);
}

#[test]
fn memory() {
    sends(|dm| dm.claim_mem_type(S), 15, &[2, 1, 4, 0, 2]);
    sends(|dm| dm.disclaim_mem_type(S), 15, &[2, 1, 4, 0, 0]);
    let body = [3, 0, 0, 0, 4, 0, 0, 0, 0x34, 0x12];
    let set = |dm: &DeviceModel| dm.set_mem_type(&AUTHORITY, P2mType::IoreqServer, gfns(0x1234, 3));
    sends(set, 12, &body);
    let body = [2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9];
    sends(|dm| dm.relocate_memory(gfns(5, 2), Gfn(9)), 17, &body);
    let body = [5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 4];
    sends(
        |dm| dm.pin_cacheattr(gfns(5, 2), CacheAttr::WriteThrough),
        18,
        &body,
    );
    let body = [&body[..16], &[255; 4]].concat();
    sends(|dm| dm.unpin_cacheattr(gfns(5, 2)), 18, &body);
}

#[test]
fn interrupts() {
    let function = Sbdf::new(0, 0, 0x1f, 7).unwrap();
    let body = [0, 0, 0, 0x1f, 2, 1];
    sends(|dm| dm.set_pci_intx(function, Intx::C, true), 8, &body);
    sends(|dm| dm.set_isa_irq(15, true), 9, &[15, 1]);
    sends(|dm| dm.set_pci_link_route(3, 11), 10, &[3, 11]);
    let body = [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0x10, 0xe0, 0xfe];
    sends(|dm| dm.inject_msi(0xfee0_1000, 0x1234_5678), 14, &body);
    sends(|dm| dm.set_irq_level(0x102, true), 19, &[2, 1, 0, 0, 1]);
    let event = InjectedEvent {
        vector: 14,
        kind: 3,
        error_code: Some(2),
        insn_len: 1,
        cr2: 0x1000,
    };
    let body = [1, 0, 0, 0, 14, 3, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
    sends(|dm| dm.inject_event(VcpuId(1), event), 13, &body);
    let event = InjectedEvent {
        error_code: None,
        cr2: 0,
        ..event
    };
    let body = [1, 0, 0, 0, 14, 3, 1, 0, 255, 255, 255, 255];
    sends(|dm| dm.inject_event(VcpuId(1), event), 13, &body);
}

#[test]
fn the_domain() {
    sends(DeviceModel::vcpus, 20, &[]);
    let reason = ShutdownReason::Other(9);
    sends(|dm| dm.remote_shutdown(reason), 16, &[9]);
}

#[test]
fn second_buffers() {
    let (recorder, dm) = model();
    dm.modified_memory(&[gfns(0x10, 2), gfns(0x1_0000_0020, 1)])
        .unwrap();
    dm.track_dirty_vram(gfns(7, 9)).unwrap();
    dm.stop_dirty_vram().unwrap();
    let sent = recorder.sent.lock().unwrap();
    let extents = [
        [2, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 1, 0, 0, 0],
    ];
    assert_eq!((sent[0].0[0], sent[0].0[8]), (11, 2));
    assert_eq!(sent[0].1, extents.concat());
    assert_eq!((sent[1].0[0], sent[1].0[8], sent[1].0[16]), (7, 9, 7));
    assert_eq!(sent[1].1.len(), 2, "a bit for each page");
    assert_eq!((sent[2].0[0], sent[2].0[8]), (7, 0));
    assert!(!sent[2].1.is_empty(), "Xen wants the buffer to be there");
}

/// Bits beyond the range, which the hypervisor may have set, are no pages.
#[test]
fn a_dirty_bitmap_ends_with_its_range() {
    let (_, dm) = model();
    let dirty = dm.track_dirty_vram(gfns(7, 9)).unwrap();
    assert_eq!(dirty.iter().count(), 9);
    assert!(dirty.is_dirty(Gfn(15)) && !dirty.is_dirty(Gfn(16)) && !dirty.is_dirty(Gfn(6)));
}

#[test]
fn answers_are_read_back() {
    let (recorder, dm) = model();
    let mut answer = [0; 32];
    answer[12..14].copy_from_slice(&[7, 1]);
    *recorder.answer.lock().unwrap() = Some(Ok(answer));
    assert_eq!(dm.create_server(BufIoreq::Off).unwrap(), ServerId(0x107));
    assert_eq!(
        dm.server_info(S).unwrap().bufioreq_port,
        Some(EvtchnPort(0x107))
    );
    *recorder.answer.lock().unwrap() = Some(Ok([0; 32]));
    assert_eq!(dm.server_info(S).unwrap().bufioreq_port, None);
}

#[test]
fn more_than_an_operation_can_name_is_sent_in_parts() {
    let (recorder, dm) = model();
    let pages = gfns(0, (1 << 32) + 5);
    dm.set_mem_type(&AUTHORITY, P2mType::RamRw, pages).unwrap();
    dm.relocate_memory(pages, Gfn(0x10)).unwrap();
    let sent = recorder.sent.lock().unwrap();
    let word =
        |at: usize, from: usize| u64::from_ne_bytes(sent[at].0[from..from + 8].try_into().unwrap());
    let nr = |at: usize| u32::from_ne_bytes(sent[at].0[8..12].try_into().unwrap());
    assert_eq!((nr(0), word(0, 16)), (u32::MAX, 0));
    assert_eq!((nr(1), word(1, 16)), (6, u32::MAX.into()));
    assert_eq!((word(3, 16), word(3, 24)), (0xffff_ffff, 0x1_0000_000f));
    assert_eq!(sent.len(), 4);
}

#[test]
fn what_xen_could_only_call_invalid_is_refused_before() {
    let (recorder, dm) = model();
    let bus = Sbdf::new(0, 1, 0, 0).unwrap();
    let segment = Sbdf::new(1, 0, 0, 0).unwrap();
    let refused = [
        dm.set_pci_intx(bus, Intx::A, true),
        dm.set_pci_intx(segment, Intx::A, true),
        dm.set_isa_irq(16, true),
        dm.set_pci_link_route(4, 1),
        dm.set_pci_link_route(0, 16),
    ];
    for result in refused {
        let err = result.unwrap_err();
        assert_eq!(
            (err.kind(), err.errno()),
            (ErrorKind::InvalidArgument, None)
        );
        assert_eq!(err.domid(), Some(D));
    }
    assert!(recorder.sent.lock().unwrap().is_empty());
}

/// One errno, several meanings: the table of what Xen says.
#[test]
fn errno_values_become_kinds_by_their_operation() {
    use ErrorKind::*;
    let kind = |errno: i32, call: &dyn Fn(&DeviceModel) -> Result<()>| {
        let (recorder, dm) = model();
        *recorder.answer.lock().unwrap() = Some(Err(errno));
        let err = call(&dm).unwrap_err();
        assert_eq!((err.errno(), err.domid()), (Some(errno), Some(D)), "{err}");
        err.kind()
    };
    let ports = PortRange::new(1, 2).unwrap().into();
    let claim = |dm: &DeviceModel| dm.claim_mem_type(S);
    let disclaim = |dm: &DeviceModel| dm.disclaim_mem_type(S);
    let mark = |dm: &DeviceModel| dm.set_mem_type(&AUTHORITY, P2mType::IoreqServer, gfns(1, 1));
    let create = |dm: &DeviceModel| dm.create_server(BufIoreq::Off).map(drop);
    let map = |dm: &DeviceModel| dm.map_range(S, ports);
    let unmap = |dm: &DeviceModel| dm.unmap_range(S, ports);
    let vcpus = |dm: &DeviceModel| dm.vcpus().map(drop);
    assert_eq!(kind(libc::EBUSY, &claim), AlreadyClaimed);
    assert_eq!(kind(libc::EOPNOTSUPP, &claim), NoHap);
    assert_eq!(kind(libc::EINVAL, &disclaim), WrongState);
    assert_eq!(kind(libc::EINVAL, &mark), WrongState);
    assert_eq!(kind(libc::ENOSPC, &create), TooManyServers);
    assert_eq!(kind(libc::EEXIST, &map), RangeExists);
    assert_eq!(kind(libc::ENOMEM, &map), TooManyRanges);
    assert_eq!(kind(libc::ENOENT, &map), NoSuchServer);
    assert_eq!(kind(libc::ENOENT, &unmap), NoSuchRange);
    assert_eq!(kind(libc::EOPNOTSUPP, &vcpus), NotSupported);
    for call in [
        &claim as &dyn Fn(&DeviceModel) -> _,
        &mark,
        &create,
        &map,
        &vcpus,
    ] {
        assert_eq!(kind(libc::ESRCH, call), DomainGone);
        assert_eq!(kind(libc::EPERM, call), NotPermitted);
    }
}

#[test]
fn errors_name_server_and_range() {
    let (recorder, dm) = model();
    *recorder.answer.lock().unwrap() = Some(Err(libc::EEXIST));
    let err = dm
        .map_range(S, PortRange::new(1, 2).unwrap().into())
        .unwrap_err();
    let text =
        "map_io_range_to_ioreq_server on d3 ioserv258, ports 0x1–0x2: RangeExists (errno 17)";
    assert!(err.to_string().starts_with(text), "{err}");
    *recorder.answer.lock().unwrap() = Some(Err(libc::EINVAL));
    let err = dm.modified_memory(&[gfns(1, 1), gfns(9, 2)]).unwrap_err();
    let text = "modified_memory on d3, one of 2 extents, gfns 0x1–0x1 … gfns 0x9–0xa:";
    assert!(err.to_string().starts_with(text), "{err}");
}
