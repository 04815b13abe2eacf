// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ioctl numbers and structs against Linux' uapi headers (`linux-libc-dev`), hypercall arguments against Xen's public
//! headers (`libxen-dev`), as the C compiler sees them. Fails without them: a check that is skipped checks nothing.

#[path = "../../ioreq-core/tests/c_program/mod.rs"]
mod c_program;

use std::mem::{offset_of, size_of};

use ioreq_xen::abi::*;

/// A C expression, and the value of ours that it must have.
type Pin = (&'static str, u64);

macro_rules! offsets {
    ($c:literal, $ty:ident, [$($field:ident = $c_field:literal),*]) => {
        [
            (concat!("sizeof(struct ", $c, ")"), size_of::<$ty>() as u64),
            $((concat!("offsetof(struct ", $c, ", ", $c_field, ")"), offset_of!($ty, $field) as u64),)*
        ]
    };
}

fn check(name: &str, includes: &str, options: &[&str], package: &str, pins: &[Pin]) {
    let mut program = format!(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n{includes}\nint main(void)\n{{\n"
    );
    for (index, (expression, _)) in pins.iter().enumerate() {
        program.push_str(&format!(
            "    printf(\"{index} %llu\\n\", (unsigned long long)({expression}));\n"
        ));
    }
    program.push_str("    return 0;\n}\n");
    let theirs = c_program::run(name, &program, options, package);
    for (index, (expression, ours)) in pins.iter().enumerate() {
        assert_eq!(theirs.get(&index.to_string()), Some(ours), "{expression}");
    }
}

/// What the uapi headers take from Xen's.
const XEN_TYPES: &str = "\
#include <stdint.h>
typedef uint16_t domid_t;
typedef unsigned long xen_pfn_t;
";

#[test]
fn ioctls_are_what_linux_says() {
    let numbers = [
        ("IOCTL_PRIVCMD_HYPERCALL", IOCTL_PRIVCMD_HYPERCALL),
        ("IOCTL_PRIVCMD_MMAPBATCH_V2", IOCTL_PRIVCMD_MMAPBATCH_V2),
        ("IOCTL_PRIVCMD_DM_OP", IOCTL_PRIVCMD_DM_OP),
        ("IOCTL_PRIVCMD_RESTRICT", IOCTL_PRIVCMD_RESTRICT),
        ("IOCTL_PRIVCMD_MMAP_RESOURCE", IOCTL_PRIVCMD_MMAP_RESOURCE),
        (
            "IOCTL_EVTCHN_BIND_INTERDOMAIN",
            IOCTL_EVTCHN_BIND_INTERDOMAIN,
        ),
        (
            "IOCTL_EVTCHN_BIND_UNBOUND_PORT",
            IOCTL_EVTCHN_BIND_UNBOUND_PORT,
        ),
        ("IOCTL_EVTCHN_UNBIND", IOCTL_EVTCHN_UNBIND),
        ("IOCTL_EVTCHN_NOTIFY", IOCTL_EVTCHN_NOTIFY),
        ("IOCTL_EVTCHN_RESET", IOCTL_EVTCHN_RESET),
        ("IOCTL_EVTCHN_RESTRICT_DOMID", IOCTL_EVTCHN_RESTRICT_DOMID),
    ];
    let pins: Vec<Pin> = [
        &numbers[..],
        &offsets!(
            "privcmd_hypercall",
            PrivcmdHypercall,
            [op = "op", arg = "arg"]
        ),
        &offsets!(
            "privcmd_mmapbatch_v2",
            PrivcmdMmapBatchV2,
            [
                num = "num",
                dom = "dom",
                addr = "addr",
                arr = "arr",
                err = "err"
            ]
        ),
        &offsets!(
            "privcmd_dm_op_buf",
            PrivcmdDmOpBuf,
            [uptr = "uptr", size = "size"]
        ),
        &offsets!(
            "privcmd_dm_op",
            PrivcmdDmOp,
            [dom = "dom", num = "num", ubufs = "ubufs"]
        ),
        &offsets!(
            "privcmd_mmap_resource",
            PrivcmdMmapResource,
            [
                dom = "dom",
                kind = "type",
                id = "id",
                idx = "idx",
                num = "num",
                addr = "addr"
            ]
        ),
        &offsets!(
            "ioctl_evtchn_bind_interdomain",
            EvtchnBindInterdomain,
            [remote_domain = "remote_domain", remote_port = "remote_port"]
        ),
        &offsets!(
            "ioctl_evtchn_bind_unbound_port",
            EvtchnBindUnboundPort,
            [remote_domain = "remote_domain"]
        ),
        &offsets!("ioctl_evtchn_unbind", EvtchnPortArg, [port = "port"]),
        &offsets!("ioctl_evtchn_notify", EvtchnPortArg, [port = "port"]),
        &offsets!(
            "ioctl_evtchn_restrict_domid",
            EvtchnRestrictDomid,
            [domid = "domid"]
        ),
    ]
    .concat();
    // Stands in for the kernel's own <xen/interface/xen.h>, which is not installed.
    let include = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("uapi");
    let dir = include.join("xen/interface");
    std::fs::create_dir_all(&dir).expect("the target directory is writable");
    std::fs::write(dir.join("xen.h"), XEN_TYPES).expect("the target directory is writable");
    let include = format!("-I{}", include.display());
    let includes = "#include <sys/ioctl.h>\n#include <xen/privcmd.h>\n#include <xen/evtchn.h>";
    check("abi_linux", includes, &[&include], "linux-libc-dev", &pins);
}

#[test]
fn hypercalls_are_what_xen_says() {
    let mut pins: Vec<Pin> = vec![
        ("__HYPERVISOR_memory_op", HYPERVISOR_MEMORY_OP),
        ("__HYPERVISOR_hvm_op", HYPERVISOR_HVM_OP),
        ("__HYPERVISOR_domctl", HYPERVISOR_DOMCTL),
        ("XENMEM_maximum_gpfn", XENMEM_MAXIMUM_GPFN),
        (
            "XENMEM_resource_ioreq_server",
            XENMEM_RESOURCE_IOREQ_SERVER.into(),
        ),
        ("HVMOP_get_mem_type", HVMOP_GET_MEM_TYPE),
        ("XEN_DOMCTL_getdomaininfo", XEN_DOMCTL_GETDOMAININFO.into()),
        ("XEN_DOMINF_dying", XEN_DOMINF_DYING.into()),
        ("XEN_DOMINF_shutdown", XEN_DOMINF_SHUTDOWN.into()),
        ("XEN_DOMINF_shutdownshift", XEN_DOMINF_SHUTDOWN_SHIFT.into()),
        (
            "sizeof(struct xen_domctl)",
            size_of::<DomctlGetDomainInfo>() as u64,
        ),
        (
            "offsetof(struct xen_domctl, interface_version)",
            offset_of!(DomctlGetDomainInfo, interface_version) as u64,
        ),
        (
            "offsetof(struct xen_domctl, domain)",
            offset_of!(DomctlGetDomainInfo, domain) as u64,
        ),
        (
            "offsetof(struct xen_domctl, u.getdomaininfo.domain)",
            offset_of!(DomctlGetDomainInfo, info_domain) as u64,
        ),
        (
            "offsetof(struct xen_domctl, u.getdomaininfo.flags)",
            offset_of!(DomctlGetDomainInfo, info_flags) as u64,
        ),
        (
            "offsetof(struct xen_domctl, u.getdomaininfo.handle)",
            offset_of!(DomctlGetDomainInfo, info_handle) as u64,
        ),
    ];
    pins.extend(offsets!(
        "xen_hvm_get_mem_type",
        HvmGetMemType,
        [domid = "domid", mem_type = "mem_type", pfn = "pfn"]
    ));
    let includes = "#define __XEN_TOOLS__ 1\n#include <xen/xen.h>\n#include <xen/memory.h>\n\
                    #include <xen/domctl.h>\n#include <xen/hvm/hvm_op.h>";
    check("abi_xen", includes, &[], "libxen-dev", &pins);
}
