// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The members of `struct xen_dm_op` against Xen's public headers, as the C compiler sees them.
//!
//! Needs what `abi_headers.rs` needs, and fails without it.

mod c_program;

use std::mem::{offset_of, size_of};

use ioreq_core::abi::dm_op::*;

/// A value of ours, and the C expression that must give it.
struct Pin(String, u64);

/// One member of the union: its number, size, and each field's place and size.
macro_rules! member {
    ($pins:ident, $ty:ident, $number:literal, $c:literal, [$($field:ident = $c_field:literal),*]) => {{
        $pins.push(Pin(format!("XEN_DMOP_{}", $number), $ty::NUMBER.into()));
        let c = concat!("struct xen_dm_op_", $c);
        $pins.push(Pin(format!("sizeof({c})"), size_of::<$ty>() as u64));
        $(
            let at = offset_of!($ty, $field) as u64;
            $pins.push(Pin(format!("offsetof({c}, {})", $c_field), at));
            let size = size_of_field(|v: &$ty| v.$field);
            $pins.push(Pin(format!("sizeof((({c} *)0)->{})", $c_field), size));
        )*
    }};
}

fn size_of_field<T, F>(_: impl Fn(&T) -> F) -> u64 {
    size_of::<F>() as u64
}

fn pins() -> Vec<Pin> {
    let mut pins = vec![
        Pin(
            "sizeof(struct xen_dm_op)".into(),
            size_of::<DmOpBytes>() as u64,
        ),
        Pin("offsetof(struct xen_dm_op, u)".into(), BODY as u64),
        Pin("offsetof(struct xen_dm_op, op)".into(), 0),
        Pin("XEN_DMOP_no_gfns".into(), XEN_DMOP_NO_GFNS.into()),
    ];
    member!(
        pins,
        CreateIoreqServer,
        "create_ioreq_server",
        "create_ioreq_server",
        [handle_bufioreq = "handle_bufioreq", pad = "pad", id = "id"]
    );
    member!(
        pins,
        GetIoreqServerInfo,
        "get_ioreq_server_info",
        "get_ioreq_server_info",
        [
            id = "id",
            flags = "flags",
            bufioreq_port = "bufioreq_port",
            ioreq_gfn = "ioreq_gfn",
            bufioreq_gfn = "bufioreq_gfn"
        ]
    );
    member!(
        pins,
        MapIoRange,
        "map_io_range_to_ioreq_server",
        "ioreq_server_range",
        [
            id = "id",
            pad = "pad",
            kind = "type",
            start = "start",
            end = "end"
        ]
    );
    member!(
        pins,
        UnmapIoRange,
        "unmap_io_range_from_ioreq_server",
        "ioreq_server_range",
        [
            id = "id",
            pad = "pad",
            kind = "type",
            start = "start",
            end = "end"
        ]
    );
    member!(
        pins,
        SetIoreqServerState,
        "set_ioreq_server_state",
        "set_ioreq_server_state",
        [id = "id", enabled = "enabled", pad = "pad"]
    );
    member!(
        pins,
        DestroyIoreqServer,
        "destroy_ioreq_server",
        "destroy_ioreq_server",
        [id = "id", pad = "pad"]
    );
    member!(
        pins,
        TrackDirtyVram,
        "track_dirty_vram",
        "track_dirty_vram",
        [nr = "nr", pad = "pad", first_pfn = "first_pfn"]
    );
    member!(
        pins,
        SetPciIntxLevel,
        "set_pci_intx_level",
        "set_pci_intx_level",
        [
            domain = "domain",
            bus = "bus",
            device = "device",
            intx = "intx",
            level = "level"
        ]
    );
    member!(
        pins,
        SetIsaIrqLevel,
        "set_isa_irq_level",
        "set_isa_irq_level",
        [isa_irq = "isa_irq", level = "level"]
    );
    member!(
        pins,
        SetPciLinkRoute,
        "set_pci_link_route",
        "set_pci_link_route",
        [link = "link", isa_irq = "isa_irq"]
    );
    member!(
        pins,
        ModifiedMemory,
        "modified_memory",
        "modified_memory",
        [nr_extents = "nr_extents", opaque = "opaque"]
    );
    member!(
        pins,
        SetMemType,
        "set_mem_type",
        "set_mem_type",
        [
            nr = "nr",
            mem_type = "mem_type",
            pad = "pad",
            first_pfn = "first_pfn"
        ]
    );
    member!(
        pins,
        InjectEvent,
        "inject_event",
        "inject_event",
        [
            vcpuid = "vcpuid",
            vector = "vector",
            kind = "type",
            insn_len = "insn_len",
            pad0 = "pad0",
            error_code = "error_code",
            pad1 = "pad1",
            cr2 = "cr2"
        ]
    );
    member!(
        pins,
        InjectMsi,
        "inject_msi",
        "inject_msi",
        [data = "data", pad = "pad", addr = "addr"]
    );
    member!(
        pins,
        MapMemType,
        "map_mem_type_to_ioreq_server",
        "map_mem_type_to_ioreq_server",
        [id = "id", kind = "type", flags = "flags", opaque = "opaque"]
    );
    member!(
        pins,
        RemoteShutdown,
        "remote_shutdown",
        "remote_shutdown",
        [reason = "reason"]
    );
    member!(
        pins,
        RelocateMemory,
        "relocate_memory",
        "relocate_memory",
        [
            size = "size",
            pad = "pad",
            src_gfn = "src_gfn",
            dst_gfn = "dst_gfn"
        ]
    );
    member!(
        pins,
        PinMemoryCacheattr,
        "pin_memory_cacheattr",
        "pin_memory_cacheattr",
        [start = "start", end = "end", kind = "type", pad = "pad"]
    );
    member!(
        pins,
        SetIrqLevel,
        "set_irq_level",
        "set_irq_level",
        [irq = "irq", level = "level", pad = "pad"]
    );
    member!(pins, NrVcpus, "nr_vcpus", "nr_vcpus", [vcpus = "vcpus"]);
    member_extent(&mut pins);
    pins
}

/// The elements of modified_memory's second buffer: no operation, so no number.
fn member_extent(pins: &mut Vec<Pin>) {
    let c = "struct xen_dm_op_modified_memory_extent";
    for (expression, value) in [
        (format!("sizeof({c})"), size_of::<ModifiedMemoryExtent>()),
        (
            format!("offsetof({c}, nr)"),
            offset_of!(ModifiedMemoryExtent, nr),
        ),
        (
            format!("offsetof({c}, pad)"),
            offset_of!(ModifiedMemoryExtent, pad),
        ),
        (
            format!("offsetof({c}, first_pfn)"),
            offset_of!(ModifiedMemoryExtent, first_pfn),
        ),
    ] {
        pins.push(Pin(expression, value as u64));
    }
}

#[test]
fn operations_are_what_the_headers_say() {
    let pins = pins();
    let mut program = String::from(
        "#define __XEN_TOOLS__ 1\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n\
         #include <xen/xen.h>\n#include <xen/hvm/dm_op.h>\nint main(void)\n{\n",
    );
    for (index, Pin(expression, _)) in pins.iter().enumerate() {
        let line =
            format!("    printf(\"{index} %llu\\n\", (unsigned long long)({expression}));\n");
        program.push_str(&line);
    }
    program.push_str("    return 0;\n}\n");
    let theirs = c_program::run("abi_dm_op", &program, &[], "libxen-dev");
    for (index, Pin(expression, ours)) in pins.iter().enumerate() {
        assert_eq!(theirs.get(&index.to_string()), Some(ours), "{expression}");
    }
}
