// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The operations' encoding against the model: the same calls, on one domain of the model through its typed traits, on its
//! twin as the bytes that `DeviceModel` makes of them, must answer the same and leave the same behind.

use std::sync::Arc;

use ioreq_core::abi::dm_op::DmOpBytes;
use ioreq_core::hypervisor::{InjectedEvent, Intx};
use ioreq_core::{
    BufIoreq, DomId, DomainState, Error, Gfn, GfnRange, Interrupts, IoRange, MarkAuthority,
    MemTypes, MmioRange, P2mType, PortRange, Sbdf, ServerId, ShutdownReason, Transport, VcpuId,
};
use ioreq_sim::{Domain, DomainConfig, Machine, RawDmop, SimHypervisor};
use ioreq_xen::{DeviceModel, DmOpCarrier};
use proptest::prelude::*;

struct Model(RawDmop);

impl DmOpCarrier for Model {
    fn dm_op(&self, _: DomId, op: &mut DmOpBytes, buffer: &mut [u8]) -> Result<(), i32> {
        self.0.dm_op(op, buffer)
    }
}

/// The last frame of the domains is below 256 MiB.
const FRAMES: u64 = 1 << 16;

fn domain() -> Domain {
    Machine::new()
        .create_domain(DomainConfig::new(2))
        .expect("the model makes domains")
}

fn by_bytes(domain: &Domain) -> DeviceModel {
    let raw = domain.hypervisor().raw();
    DeviceModel::new(Arc::new(Model(raw)), domain.domid())
}

#[derive(Debug, Clone)]
enum Call {
    Create(BufIoreq),
    Info(ServerId),
    Map(ServerId, IoRange),
    Unmap(ServerId, IoRange),
    State(ServerId, bool),
    Destroy(ServerId),
    Claim(ServerId),
    Disclaim(ServerId),
    SetType(P2mType, GfnRange),
    Intx(Sbdf, Intx, bool),
    Isa(u8, bool),
    Link(u8, u8),
    Msi(u64, u32),
    Event(VcpuId, InjectedEvent),
    Vcpus,
}

/// An answer, as far as the two can be compared.
type Answer = Result<u64, (String, Option<i32>)>;

fn answer<T>(result: Result<T, Error>, value: impl FnOnce(T) -> u64) -> Answer {
    result
        .map(value)
        .map_err(|err| (format!("{:?} {:?}", err.op(), err.kind()), err.errno()))
}

fn unit(result: Result<(), Error>) -> Answer {
    answer(result, |()| 0)
}

const AUTHORITY: MarkAuthority = MarkAuthority::for_conformance_tests();

/// The same list of methods for both: they have the same names, in traits here and inherent there.
macro_rules! perform {
    ($on:expr, $call:expr) => {
        match $call.clone() {
            Call::Create(mode) => answer($on.create_server(mode), |id| id.0.into()),
            Call::Info(id) => answer($on.server_info(id), |info| {
                // The port's number is the model's own choice; that there is one is not.
                info.bufioreq_port.is_some().into()
            }),
            Call::Map(id, range) => unit($on.map_range(id, range)),
            Call::Unmap(id, range) => unit($on.unmap_range(id, range)),
            Call::State(id, on) => unit($on.set_server_state(id, on)),
            Call::Destroy(id) => unit($on.destroy_server(id)),
            Call::Claim(id) => unit($on.claim_mem_type(id)),
            Call::Disclaim(id) => unit($on.disclaim_mem_type(id)),
            Call::SetType(ty, pages) => unit($on.set_mem_type(&AUTHORITY, ty, pages)),
            Call::Intx(function, pin, on) => unit($on.set_pci_intx(function, pin, on)),
            Call::Isa(irq, on) => unit($on.set_isa_irq(irq, on)),
            Call::Link(link, irq) => unit($on.set_pci_link_route(link, irq)),
            Call::Msi(addr, data) => unit($on.inject_msi(addr, data)),
            Call::Event(vcpu, event) => unit($on.inject_event(vcpu, event)),
            Call::Vcpus => answer($on.vcpus(), u64::from),
        }
    };
}

fn id() -> impl Strategy<Value = ServerId> {
    prop_oneof![4 => 0..3_u16, 1 => Just(77)].prop_map(ServerId)
}

fn range() -> impl Strategy<Value = IoRange> {
    prop_oneof![
        (0..40_u16, 1..8_u64).prop_map(|(first, len)| PortRange::sized(first, len).unwrap().into()),
        (0..40_u64, 1..8_u64)
            .prop_map(|(first, len)| MmioRange::sized(first << 20, len).unwrap().into()),
        (0..4_u8).prop_map(|device| Sbdf::new(1, 2, device, 3).unwrap().into()),
    ]
}

fn pages() -> impl Strategy<Value = GfnRange> {
    let first = prop_oneof![6 => 0x100..0x110_u64, 1 => Just(FRAMES * 16)];
    (first, 1..5_u64).prop_map(|(first, len)| GfnRange::sized(first, len).unwrap())
}

fn call() -> impl Strategy<Value = Call> {
    let ty = prop_oneof![
        3 => Just(P2mType::IoreqServer),
        3 => Just(P2mType::RamRw),
        1 => Just(P2mType::RamRo),
        1 => Just(P2mType::MmioDm),
    ];
    let pin = prop_oneof![Just(Intx::A), Just(Intx::D)];
    let event = (
        any::<u8>(),
        any::<u8>(),
        any::<Option<u16>>(),
        any::<u8>(),
        any::<u64>(),
    );
    prop_oneof![
        2 => prop_oneof![Just(BufIoreq::Off), Just(BufIoreq::Atomic)].prop_map(Call::Create),
        1 => id().prop_map(Call::Info),
        3 => (id(), range()).prop_map(|(id, range)| Call::Map(id, range)),
        2 => (id(), range()).prop_map(|(id, range)| Call::Unmap(id, range)),
        1 => (id(), any::<bool>()).prop_map(|(id, on)| Call::State(id, on)),
        1 => id().prop_map(Call::Destroy),
        3 => id().prop_map(Call::Claim),
        1 => id().prop_map(Call::Disclaim),
        6 => (ty, pages()).prop_map(|(ty, pages)| Call::SetType(ty, pages)),
        1 => (0..32_u8, pin, any::<bool>()).prop_map(|(device, pin, on)| {
            // The operation has no field for the function: functions of a device share its pins.
            Call::Intx(Sbdf::new(0, 0, device, 0).unwrap(), pin, on)
        }),
        1 => (0..18_u8, any::<bool>()).prop_map(|(irq, on)| Call::Isa(irq, on)),
        1 => (0..6_u8, 0..18_u8).prop_map(|(link, irq)| Call::Link(link, irq)),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(addr, data)| Call::Msi(addr, data)),
        1 => (0..4_u32, event).prop_map(|(vcpu, (vector, kind, code, insn_len, cr2))| {
            let error_code = code.map(u32::from);
            Call::Event(VcpuId(vcpu), InjectedEvent { vector, kind, error_code, insn_len, cr2 })
        }),
        1 => Just(Call::Vcpus),
    ]
}

/// Refused before the call or by Xen: the same kind, and no errno in the one case.
fn agree(typed: &Answer, bytes: &Answer) -> bool {
    match (typed, bytes) {
        (Err((typed, _)), Err((bytes, None))) => typed == bytes,
        _ => typed == bytes,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bytes_do_what_the_typed_model_does(calls in prop::collection::vec(call(), 1..60)) {
        let (typed_domain, bytes_domain) = (domain(), domain());
        let typed: SimHypervisor = typed_domain.hypervisor();
        let bytes = by_bytes(&bytes_domain);
        for call in &calls {
            let (typed, bytes) = (perform!(typed, call), perform!(bytes, call));
            prop_assert!(agree(&typed, &bytes), "{call:?}: {typed:?}, by bytes {bytes:?}");
        }
        for gfn in (0x100..0x118).map(Gfn) {
            prop_assert_eq!(typed_domain.mem_type(gfn), bytes_domain.mem_type(gfn));
        }
        prop_assert_eq!(typed_domain.injected(), bytes_domain.injected());
    }
}

#[test]
fn modified_memory_in_more_than_one_batch_reaches_every_frame() {
    let domain = domain();
    domain.set_log_dirty(true).unwrap();
    let dm = by_bytes(&domain);
    for count in [1, 255, 256, 257, 600] {
        let extents: Vec<GfnRange> = (0..count)
            .map(|at| GfnRange::sized(0x200 + 3 * at, 2).unwrap())
            .collect();
        dm.modified_memory(&extents).unwrap();
        let mut seen = domain.take_modified();
        seen.sort_unstable();
        let expected: Vec<Gfn> = extents.iter().flat_map(GfnRange::iter).collect();
        assert_eq!(seen, expected, "{count} extents");
    }
    dm.modified_memory(&[]).unwrap();
}

#[test]
fn vram_up_to_the_limit_of_a_buffer() {
    let domain = domain();
    let dm = by_bytes(&domain);
    let most = GfnRange::sized(0, 32768).unwrap();
    let dirty = || dm.track_dirty_vram(most).unwrap();
    assert_eq!(dirty().iter().count(), 32768, "the first call");
    assert_eq!(dirty().iter().count(), 0);
    let mut cpu = domain.cpu(VcpuId(0)).unwrap();
    cpu.store32(0x5008, 1).unwrap();
    assert_eq!(dirty().iter().collect::<Vec<_>>(), [Gfn(5)]);
    dm.stop_dirty_vram().unwrap();
    let err = dm
        .track_dirty_vram(GfnRange::sized(0, 32769).unwrap())
        .unwrap_err();
    assert_eq!(err.errno(), None, "refused before the call");
    assert!(err.to_string().contains("32768"), "{err}");
}

#[test]
fn a_remote_shutdown_has_its_reason() {
    let domain = domain();
    by_bytes(&domain)
        .remote_shutdown(ShutdownReason::Watchdog)
        .unwrap();
    let expected = DomainState::Shutdown(ShutdownReason::Watchdog);
    assert_eq!(domain.state(), expected);
}
