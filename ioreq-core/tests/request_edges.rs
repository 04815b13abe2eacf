// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The decoder at the edges of every field.

use ioreq_core::abi::*;
use ioreq_core::handler::Space;
use ioreq_core::request::{
    BufferedRequest, Data, Direction, Io, Kind, MAX_COUNT, Malformed, Target, decode,
};
use ioreq_core::{Sbdf, VcpuId, Width};
use vm_memory::GuestAddress;

fn raw(kind: u8) -> Ioreq {
    Ioreq {
        kind,
        size: 1,
        count: 1,
        ..Ioreq::default()
    }
}

fn io(raw: &Ioreq) -> Io {
    match *decode(raw, VcpuId(0)).expect("well-formed").kind() {
        Kind::Io(io) => io,
        other => panic!("{other:?}"),
    }
}

fn wrong(raw: &Ioreq) -> Malformed {
    decode(raw, VcpuId(0)).expect_err("malformed")
}

#[test]
fn ports_are_sixteen_bits() {
    for (addr, size, good) in [
        (0, 1, true),
        (0, 4, true),
        (0xffff, 1, true),
        (0xffff, 2, false),
        (0xfffe, 2, true),
        (0xfffd, 4, false),
        (0xfffc, 4, true),
        (0x1_0000, 1, false),
        (0x1_0000_0000_0070, 1, false),
        (u64::MAX, 1, false),
        (u64::MAX, 4, false),
    ] {
        let raw = Ioreq {
            addr,
            size,
            ..raw(IOREQ_TYPE_PIO)
        };
        if good {
            assert_eq!(
                io(&raw).target(),
                Target::Port(u16::try_from(addr).unwrap())
            );
        } else {
            assert_eq!(wrong(&raw), Malformed::Port { addr, size });
        }
    }
}

#[test]
fn sizes_are_those_of_the_kind() {
    for kind in [IOREQ_TYPE_PIO, IOREQ_TYPE_COPY, IOREQ_TYPE_PCI_CONFIG] {
        for size in [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 0x100, 0x1_0001, u32::MAX] {
            let raw = Ioreq { size, ..raw(kind) };
            match size {
                1 | 2 | 4 => assert_eq!(io(&raw).width().bytes(), u64::from(size)),
                8 if kind == IOREQ_TYPE_COPY => assert_eq!(io(&raw).width(), Width::B8),
                _ => assert_eq!(wrong(&raw), Malformed::Size { kind, size }),
            }
        }
    }
}

#[test]
fn counts_are_bounded() {
    for kind in [IOREQ_TYPE_PIO, IOREQ_TYPE_COPY, IOREQ_TYPE_PCI_CONFIG] {
        for count in [1, 2, MAX_COUNT] {
            assert_eq!(
                io(&Ioreq { count, ..raw(kind) }).elements().len(),
                count as usize
            );
        }
        for count in [0, MAX_COUNT + 1, u32::MAX] {
            assert_eq!(
                wrong(&Ioreq { count, ..raw(kind) }),
                Malformed::Count { count }
            );
        }
    }
}

#[test]
fn mmio_does_not_wrap() {
    let up = 0;
    let down = IOREQ_DF;
    for (addr, size, count, flags, good) in [
        (u64::MAX, 1, 1, up, true),
        (u64::MAX, 1, 1, down, true),
        (u64::MAX, 1, 2, up, false),
        (u64::MAX, 1, 4096, down, true),
        (u64::MAX - 7, 8, 1, up, true),
        (u64::MAX - 6, 8, 1, up, false),
        (u64::MAX - 6, 8, 2, down, false),
        (u64::MAX - 15, 8, 2, up, true),
        (u64::MAX - 14, 8, 2, up, false),
        (0, 8, 1, down, true),
        (0, 8, 2, down, false),
        (7, 8, 2, down, false),
        (8, 8, 2, down, true),
        (4095 * 8, 8, 4096, down, true),
        (4095 * 8 - 1, 8, 4096, down, false),
        (0, 8, 4096, up, true),
    ] {
        let mmio = Ioreq {
            addr,
            size,
            count,
            flags,
            ..raw(IOREQ_TYPE_COPY)
        };
        let pointer = Ioreq {
            data: addr,
            addr: 1 << 32,
            flags: flags | IOREQ_DATA_IS_PTR,
            ..mmio
        };
        let backward = flags == down;
        if good {
            assert_eq!(io(&mmio).target(), Target::Mmio(GuestAddress(addr)));
            assert_eq!(io(&pointer).data(), Data::Pointer(GuestAddress(addr)));
        } else {
            assert_eq!(
                wrong(&mmio),
                Malformed::Wrap {
                    addr,
                    size,
                    count,
                    backward
                }
            );
            assert_eq!(
                wrong(&pointer),
                Malformed::DataWrap {
                    data: addr,
                    size,
                    count,
                    backward
                }
            );
        }
    }
}

#[test]
fn pci_addresses_come_apart() {
    let sbdf = Sbdf::new(0xfedc, 0xba, 0x1f, 7).unwrap();
    let addr = u64::from(sbdf.bits()) << 32 | 0xffc;
    assert_eq!(
        addr >> 48,
        0xfedc,
        "segment 63:48, or this test is wrong too"
    );
    assert_eq!(
        (addr >> 40 & 0xff, addr >> 35 & 0x1f, addr >> 32 & 7),
        (0xba, 0x1f, 7)
    );
    let raw = Ioreq {
        addr,
        size: 4,
        ..raw(IOREQ_TYPE_PCI_CONFIG)
    };
    assert_eq!(
        io(&raw).target(),
        Target::Pci {
            sbdf,
            register: 0xffc
        }
    );
    assert_eq!(io(&raw).target().space(), Space::Pci);
    for register in [0xffd, 0xfff, 0x1000, 0x8000_0000, u32::MAX] {
        let addr = u64::from(sbdf.bits()) << 32 | u64::from(register);
        assert_eq!(
            wrong(&Ioreq { addr, ..raw }),
            Malformed::Register { register, size: 4 }
        );
    }
}

#[test]
fn data_is_cut_and_reads_have_none() {
    for (size, value) in [(1, 0xef), (2, 0xcdef), (4, 0x89ab_cdef), (8, u64::MAX)] {
        let data = if size == 8 {
            u64::MAX
        } else {
            0x0123_4567_89ab_cdef
        };
        let write = Ioreq {
            data,
            size,
            ..raw(IOREQ_TYPE_COPY)
        };
        assert_eq!(io(&write).data(), Data::Inline(value));
        let read = Ioreq {
            flags: IOREQ_DIR_READ,
            ..write
        };
        assert_eq!(
            (io(&read).data(), io(&read).direction()),
            (Data::Inline(0), Direction::Read)
        );
    }
}

#[test]
fn what_does_not_belong_to_the_request_does_not_matter() {
    let plain = raw(IOREQ_TYPE_COPY);
    for state in 0..16 {
        let odd = Ioreq {
            flags: state | 0x80,
            vp_eport: u32::MAX,
            pad: u16::MAX,
            ..plain
        };
        assert_eq!(decode(&odd, VcpuId(0)), decode(&plain, VcpuId(0)));
    }
}

#[test]
fn ports_and_registers_stay_while_data_moves() {
    for kind in [IOREQ_TYPE_PIO, IOREQ_TYPE_PCI_CONFIG] {
        for (flags, last) in [(0, 0x8000 + 2 * 3), (IOREQ_DF, 0x8000 - 2 * 3)] {
            let raw = Ioreq {
                addr: 0x40,
                size: 2,
                count: 4,
                data: 0x8000,
                flags: flags | IOREQ_DATA_IS_PTR,
                ..raw(kind)
            };
            let io = io(&raw);
            assert_eq!(io.stride(), 0);
            assert!(io.elements().all(|element| element.addr == 0x40));
            assert_eq!(
                io.element(3).unwrap().data,
                Some(GuestAddress(last)),
                "{flags:#x}"
            );
            assert_eq!(io.element(4), None);
            assert_eq!(io.element(u32::MAX), None);
        }
    }
}

#[test]
fn time_offsets_are_whole_or_malformed() {
    let kind = IOREQ_TYPE_TIMEOFFSET;
    let good = Ioreq {
        size: 8,
        data: (-3600_i64).cast_unsigned(),
        ..raw(kind)
    };
    assert_eq!(
        *decode(&good, VcpuId(0)).unwrap().kind(),
        Kind::TimeOffset { seconds: -3600 }
    );
    let read = Ioreq {
        flags: IOREQ_DIR_READ,
        ..good
    };
    assert_eq!(wrong(&read), Malformed::Read { kind });
    let pointer = Ioreq {
        flags: IOREQ_DATA_IS_PTR,
        ..good
    };
    assert_eq!(wrong(&pointer), Malformed::Pointer { kind });
    assert_eq!(
        wrong(&Ioreq { size: 4, ..good }),
        Malformed::Size { kind, size: 4 }
    );
    assert_eq!(
        wrong(&Ioreq { count: 2, ..good }),
        Malformed::Count { count: 2 }
    );
}

#[test]
fn other_types() {
    // As Xen sends it: no count.
    let invalidate = Ioreq {
        size: 4,
        count: 0,
        data: u64::MAX,
        ..raw(IOREQ_TYPE_INVALIDATE)
    };
    assert_eq!(
        *decode(&invalidate, VcpuId(0)).unwrap().kind(),
        Kind::InvalidateMapCache
    );
    for kind in (0..=u8::MAX).filter(|kind| ![0, 1, 2, 7, 8].contains(kind)) {
        let raw = Ioreq {
            count: 0,
            size: 3,
            flags: 0xff,
            addr: u64::MAX,
            ..raw(kind)
        };
        let request = decode(&raw, VcpuId(9)).unwrap();
        assert_eq!(*request.kind(), Kind::Unknown { kind });
        assert_eq!(request.vcpu(), VcpuId(9));
    }
}

#[test]
fn buffered_requests() {
    for (log2, width) in [(0, Width::B1), (1, Width::B2), (2, Width::B4)] {
        let entry = BufIoreqEntry::new(IOREQ_TYPE_COPY, false, log2, 0xf_ffff, u32::MAX);
        assert_eq!(BufferedRequest::pair(entry, entry), None);
        let request = BufferedRequest::single(entry).unwrap().decode().unwrap();
        let Kind::Io(io) = *request.kind() else {
            panic!("{request:?}")
        };
        assert_eq!(io.target(), Target::Mmio(GuestAddress(0xf_ffff)));
        assert_eq!((io.width(), io.count()), (width, 1));
        assert_eq!(io.data(), Data::Inline(width.all_ones()));
    }
    let head = BufIoreqEntry::new(IOREQ_TYPE_TIMEOFFSET, false, 3, 0, 2);
    let second = BufIoreqEntry::new(0xff, true, 0, 0xf_ffff, 1);
    assert_eq!(BufferedRequest::single(head), None);
    let pair = BufferedRequest::pair(head, second).unwrap();
    assert_eq!(
        *pair.decode().unwrap().kind(),
        Kind::TimeOffset {
            seconds: 0x1_0000_0002
        }
    );

    let read = BufIoreqEntry::new(IOREQ_TYPE_COPY, true, 0, 0, 0);
    assert_eq!(
        BufferedRequest::single(read).unwrap().decode(),
        Err(Malformed::Read {
            kind: IOREQ_TYPE_COPY
        })
    );
}

#[test]
fn requests_say_what_they_are() {
    let text = |raw: &Ioreq| decode(raw, VcpuId(3)).unwrap().to_string();
    let port = raw(IOREQ_TYPE_PIO);
    assert_eq!(text(&port), "v3: write of 1 byte to port 0x0");
    let ins = Ioreq {
        addr: 0x1f0,
        size: 2,
        count: 256,
        data: 0x8000,
        flags: IOREQ_DIR_READ | IOREQ_DATA_IS_PTR,
        ..port
    };
    assert_eq!(
        text(&ins),
        "v3: read of 2 bytes from port 0x1f0, 256 times upward, data at 0x8000"
    );
    let stos = Ioreq {
        addr: 0xe000_0008,
        size: 8,
        count: 2,
        flags: IOREQ_DF,
        ..raw(IOREQ_TYPE_COPY)
    };
    assert_eq!(
        text(&stos),
        "v3: write of 8 bytes to mmio 0xe0000008, 2 times downward"
    );
    let pci = Ioreq {
        addr: 0x0018_0000_0010,
        size: 4,
        ..raw(IOREQ_TYPE_PCI_CONFIG)
    };
    assert_eq!(
        text(&pci),
        "v3: write of 4 bytes to pci 0000:00:03.0 register 0x10"
    );
    assert_eq!(text(&raw(99)), "v3: unknown type 99");
    let invalidate = raw(IOREQ_TYPE_INVALIDATE);
    assert_eq!(text(&invalidate), "v3: map-cache invalidate");
    let offset = Ioreq {
        size: 8,
        data: 60,
        ..raw(IOREQ_TYPE_TIMEOFFSET)
    };
    assert_eq!(text(&offset), "v3: time offset 60 s");

    let wrap = Ioreq {
        addr: 7,
        flags: IOREQ_DF,
        ..stos
    };
    assert_eq!(
        wrong(&wrap).to_string(),
        "2 × 8 bytes at 0x7, downward, wrap around"
    );
    let wrap = Ioreq {
        data: u64::MAX,
        ..ins
    };
    assert_eq!(
        wrong(&wrap).to_string(),
        "data of 256 × 2 bytes at 0xffffffffffffffff, upward, wrap around"
    );
}

#[test]
fn elements_know_how_many_are_left() {
    let mut elements = io(&Ioreq {
        count: 3,
        ..raw(IOREQ_TYPE_COPY)
    })
    .elements();
    for left in (0..3).rev() {
        assert!(elements.next().is_some());
        assert_eq!(elements.size_hint(), (left, Some(left)));
    }
    assert_eq!((elements.next(), elements.next()), (None, None));
}
