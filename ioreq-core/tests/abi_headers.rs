// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The layouts and constants of `abi` against Xen's public headers, as the C compiler sees them.
//!
//! Needs a C compiler (`cc`, or what `CC` says) and the headers (Debian: `apt-get install gcc libc6-dev libxen-dev`). Without
//! them the test fails: a check that is skipped in silence checks nothing.

mod c_program;

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use ioreq_core::abi::*;

/// Prints `name value` lines. Each bit-field is set alone, all its bits, in a struct of zeros; the line shows the first eight
/// bytes from the struct's given offset on, as one little-endian number.
const PROGRAM: &str = r#"
#define __XEN_TOOLS__ 1
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <xen/xen.h>
#include <xen/hvm/ioreq.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/dm_op.h>
#include <xen/memory.h>

#define SIZE(type, name) printf("sizeof." name " %llu\n", (unsigned long long)sizeof(type))
#define OFFSET(type, name, field) \
    printf("offsetof." name "." #field " %llu\n", (unsigned long long)offsetof(type, field))
#define CONST(name) printf(#name " %llu\n", (unsigned long long)(name))
#define BITS(type, name, field, from) do {                                  \
        type whole; uint64_t word = 0;                                      \
        memset(&whole, 0, sizeof(whole));                                   \
        whole.field = ~whole.field;                                          \
        memcpy(&word, (char *)&whole + (from),                              \
               sizeof(whole) - (from) < 8 ? sizeof(whole) - (from) : 8);    \
        printf("bits." name "." #field " %llu\n", (unsigned long long)word);\
    } while (0)

int main(void)
{
    SIZE(struct ioreq, "ioreq");
    OFFSET(struct ioreq, "ioreq", addr);
    OFFSET(struct ioreq, "ioreq", data);
    OFFSET(struct ioreq, "ioreq", count);
    OFFSET(struct ioreq, "ioreq", size);
    OFFSET(struct ioreq, "ioreq", vp_eport);
    OFFSET(struct ioreq, "ioreq", type);
    BITS(struct ioreq, "ioreq", state, 30);
    BITS(struct ioreq, "ioreq", data_is_ptr, 30);
    BITS(struct ioreq, "ioreq", dir, 30);
    BITS(struct ioreq, "ioreq", df, 30);
    OFFSET(struct shared_iopage, "shared_iopage", vcpu_ioreq);

    SIZE(struct buf_ioreq, "buf_ioreq");
    BITS(struct buf_ioreq, "buf_ioreq", type, 0);
    BITS(struct buf_ioreq, "buf_ioreq", dir, 0);
    BITS(struct buf_ioreq, "buf_ioreq", size, 0);
    BITS(struct buf_ioreq, "buf_ioreq", addr, 0);
    BITS(struct buf_ioreq, "buf_ioreq", data, 0);
    SIZE(struct buffered_iopage, "buffered_iopage");
    OFFSET(struct buffered_iopage, "buffered_iopage", read_pointer);
    OFFSET(struct buffered_iopage, "buffered_iopage", write_pointer);
    OFFSET(struct buffered_iopage, "buffered_iopage", buf_ioreq);

    CONST(IOREQ_BUFFER_SLOT_NUM);
    CONST(IOREQ_READ);
    CONST(IOREQ_WRITE);
    CONST(STATE_IOREQ_NONE);
    CONST(STATE_IOREQ_READY);
    CONST(STATE_IOREQ_INPROCESS);
    CONST(STATE_IORESP_READY);
    CONST(IOREQ_TYPE_PIO);
    CONST(IOREQ_TYPE_COPY);
    CONST(IOREQ_TYPE_PCI_CONFIG);
    CONST(IOREQ_TYPE_TIMEOFFSET);
    CONST(IOREQ_TYPE_INVALIDATE);

    CONST(HVM_IOREQSRV_BUFIOREQ_OFF);
    CONST(HVM_IOREQSRV_BUFIOREQ_LEGACY);
    CONST(HVM_IOREQSRV_BUFIOREQ_ATOMIC);
    CONST(XEN_DMOP_IO_RANGE_PORT);
    CONST(XEN_DMOP_IO_RANGE_MEMORY);
    CONST(XEN_DMOP_IO_RANGE_PCI);
    CONST(XEN_DMOP_IOREQ_MEM_ACCESS_READ);
    CONST(XEN_DMOP_IOREQ_MEM_ACCESS_WRITE);
    CONST(HVMMEM_ram_rw);
    CONST(HVMMEM_ram_ro);
    CONST(HVMMEM_mmio_dm);
    CONST(HVMMEM_ioreq_server);
    CONST(XENMEM_resource_ioreq_server_frame_bufioreq);
    printf("XENMEM_resource_ioreq_server_frame_ioreq(0) %llu\n",
           (unsigned long long)XENMEM_resource_ioreq_server_frame_ioreq(0));
    printf("pci_sbdf_in_io_range %llu\n",
           (unsigned long long)(uint32_t)XEN_DMOP_PCI_SBDF(0xfedc, 0xba, 0x1f, 7));
    return 0;
}
"#;

/// The same lines, from `abi`.
fn ours() -> BTreeMap<String, u64> {
    let entry = |kind, read, log2, addr, data| BufIoreqEntry::new(kind, read, log2, addr, data);
    let sbdf = ioreq_core::Sbdf::new(0xfedc, 0xba, 0x1f, 7).expect("in range");
    [
        ("sizeof.ioreq", size_of::<Ioreq>() as u64),
        ("offsetof.ioreq.addr", offset_of!(Ioreq, addr) as u64),
        ("offsetof.ioreq.data", offset_of!(Ioreq, data) as u64),
        ("offsetof.ioreq.count", offset_of!(Ioreq, count) as u64),
        ("offsetof.ioreq.size", offset_of!(Ioreq, size) as u64),
        (
            "offsetof.ioreq.vp_eport",
            offset_of!(Ioreq, vp_eport) as u64,
        ),
        ("offsetof.ioreq.type", offset_of!(Ioreq, kind) as u64),
        ("bits.ioreq.state", IOREQ_STATE_MASK.into()),
        ("bits.ioreq.data_is_ptr", IOREQ_DATA_IS_PTR.into()),
        ("bits.ioreq.dir", IOREQ_DIR_READ.into()),
        ("bits.ioreq.df", IOREQ_DF.into()),
        ("offsetof.shared_iopage.vcpu_ioreq", 0),
        ("sizeof.buf_ioreq", size_of::<BufIoreqEntry>() as u64),
        ("bits.buf_ioreq.type", entry(0xff, false, 0, 0, 0).bits()),
        ("bits.buf_ioreq.dir", entry(0, true, 0, 0, 0).bits()),
        ("bits.buf_ioreq.size", entry(0, false, 3, 0, 0).bits()),
        (
            "bits.buf_ioreq.addr",
            entry(0, false, 0, u32::MAX, 0).bits(),
        ),
        (
            "bits.buf_ioreq.data",
            entry(0, false, 0, 0, u32::MAX).bits(),
        ),
        ("sizeof.buffered_iopage", size_of::<BufferedIopage>() as u64),
        (
            "offsetof.buffered_iopage.read_pointer",
            offset_of!(BufferedIopage, read_pointer) as u64,
        ),
        (
            "offsetof.buffered_iopage.write_pointer",
            offset_of!(BufferedIopage, write_pointer) as u64,
        ),
        (
            "offsetof.buffered_iopage.buf_ioreq",
            offset_of!(BufferedIopage, slots) as u64,
        ),
        ("IOREQ_BUFFER_SLOT_NUM", IOREQ_BUFFER_SLOT_NUM.into()),
        ("IOREQ_READ", IOREQ_READ.into()),
        ("IOREQ_WRITE", IOREQ_WRITE.into()),
        ("STATE_IOREQ_NONE", STATE_IOREQ_NONE.into()),
        ("STATE_IOREQ_READY", STATE_IOREQ_READY.into()),
        ("STATE_IOREQ_INPROCESS", STATE_IOREQ_INPROCESS.into()),
        ("STATE_IORESP_READY", STATE_IORESP_READY.into()),
        ("IOREQ_TYPE_PIO", IOREQ_TYPE_PIO.into()),
        ("IOREQ_TYPE_COPY", IOREQ_TYPE_COPY.into()),
        ("IOREQ_TYPE_PCI_CONFIG", IOREQ_TYPE_PCI_CONFIG.into()),
        ("IOREQ_TYPE_TIMEOFFSET", IOREQ_TYPE_TIMEOFFSET.into()),
        ("IOREQ_TYPE_INVALIDATE", IOREQ_TYPE_INVALIDATE.into()),
        (
            "HVM_IOREQSRV_BUFIOREQ_OFF",
            HVM_IOREQSRV_BUFIOREQ_OFF.into(),
        ),
        (
            "HVM_IOREQSRV_BUFIOREQ_LEGACY",
            HVM_IOREQSRV_BUFIOREQ_LEGACY.into(),
        ),
        (
            "HVM_IOREQSRV_BUFIOREQ_ATOMIC",
            HVM_IOREQSRV_BUFIOREQ_ATOMIC.into(),
        ),
        ("XEN_DMOP_IO_RANGE_PORT", XEN_DMOP_IO_RANGE_PORT.into()),
        ("XEN_DMOP_IO_RANGE_MEMORY", XEN_DMOP_IO_RANGE_MEMORY.into()),
        ("XEN_DMOP_IO_RANGE_PCI", XEN_DMOP_IO_RANGE_PCI.into()),
        (
            "XEN_DMOP_IOREQ_MEM_ACCESS_READ",
            XEN_DMOP_IOREQ_MEM_ACCESS_READ.into(),
        ),
        (
            "XEN_DMOP_IOREQ_MEM_ACCESS_WRITE",
            XEN_DMOP_IOREQ_MEM_ACCESS_WRITE.into(),
        ),
        ("HVMMEM_ram_rw", HVMMEM_RAM_RW.into()),
        ("HVMMEM_ram_ro", HVMMEM_RAM_RO.into()),
        ("HVMMEM_mmio_dm", HVMMEM_MMIO_DM.into()),
        ("HVMMEM_ioreq_server", HVMMEM_IOREQ_SERVER.into()),
        (
            "XENMEM_resource_ioreq_server_frame_bufioreq",
            XENMEM_RESOURCE_FRAME_BUFIOREQ,
        ),
        (
            "XENMEM_resource_ioreq_server_frame_ioreq(0)",
            XENMEM_RESOURCE_FRAME_IOREQ,
        ),
        ("pci_sbdf_in_io_range", sbdf.bits().into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[test]
fn abi_is_what_the_headers_say() {
    let (ours, theirs) = (
        ours(),
        c_program::run("abi_headers", PROGRAM, &[], "libxen-dev"),
    );
    for (name, value) in &theirs {
        assert_eq!(ours.get(name), Some(value), "{name}");
    }
    assert_eq!(
        ours.len(),
        theirs.len(),
        "a line of ours that the program does not print"
    );
}

/// The flag byte is where `Ioreq` has it: the bits above were read from byte 30 on, and `type` follows.
#[test]
fn the_flag_byte_is_byte_30() {
    assert_eq!(IOREQ_FLAGS_OFFSET, 30);
    assert_eq!(offset_of!(Ioreq, kind), IOREQ_FLAGS_OFFSET + 1);
}
