// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What reaches the server, row by row.

mod common;

use common::{GFN, MMIO, PAGE, Peer, brief, domain};
use ioreq_core::abi::{IOREQ_TYPE_COPY, IOREQ_TYPE_PIO, Ioreq};
use ioreq_core::memory::Width;
use ioreq_core::{MmioRange, PortRange, Sbdf};
use ioreq_sim::{CrashReason, VcpuExit, XenVersion};

const COPY: u8 = IOREQ_TYPE_COPY;
const PIO: u8 = IOREQ_TYPE_PIO;
const W: bool = false;
const R: bool = true;

fn briefs(reqs: &[Ioreq]) -> Vec<(u8, bool, u64, u64, u32, u32)> {
    reqs.iter().map(brief).collect()
}

/// A peer with ports 0x500–0x5ff and the MMIO page, with two tracked pages.
fn peer(version: XenVersion) -> Peer {
    let peer = Peer::new(&domain(version));
    peer.range(PortRange::new(0x500, 0x5ff).unwrap());
    peer.range(MmioRange::sized(MMIO, 0x1000).unwrap());
    peer.track(1);
    peer
}

/// Runs the test on every version.
fn on_all(test: impl Fn(&mut Peer)) {
    for version in XenVersion::ALL {
        let mut peer = peer(version);
        test(&mut peer);
        assert_eq!(peer.domain.crash_reason(), None, "{version}");
    }
}

#[test]
fn port_and_mmio_accesses_of_each_size() {
    on_all(|p| {
        let (value, reqs) = p.run(|c| {
            c.outl(0x510, 0x1234_5678)?;
            c.outb(0x511, 0xab)?;
            c.store32(MMIO + 0x11, 0xabcd_1234)?; // unaligned
            c.store16(MMIO + 0x20, 0x55aa)?;
            c.store64(MMIO + 0x28, 7)?;
            Ok((c.inl(0x514)?, c.load32(MMIO + 0x14)?, c.inb(0x518)?))
        });
        assert_eq!(value, Ok((0xa5a5_0000, 0xa5a5_0001, 0x02)));
        assert_eq!(
            briefs(&reqs),
            [
                (PIO, W, 0x510, 0x1234_5678, 4, 1),
                (PIO, W, 0x511, 0xab, 1, 1),
                (COPY, W, MMIO + 0x11, 0xabcd_1234, 4, 1),
                (COPY, W, MMIO + 0x20, 0x55aa, 2, 1),
                (COPY, W, MMIO + 0x28, 7, 8, 1),
                (PIO, R, 0x514, 0, 4, 1),
                (COPY, R, MMIO + 0x14, 0, 4, 1),
                (PIO, R, 0x518, 0, 1, 1),
            ]
        );
    });
}

#[test]
fn nobodys_accesses_give_all_ones_and_drop_writes() {
    on_all(|p| {
        let (value, reqs) = p.run(|c| {
            c.outl(0x900, 1)?;
            c.outl(0x5fe, 1)?; // straddles the end of the range
            c.store32(MMIO + 0x10_0000, 1)?;
            Ok((
                c.inl(0x900)?,
                c.inw(0x5ff)?,
                c.load32(MMIO + 0x10_0000)?,
                c.load8(u64::MAX)?,
            ))
        });
        assert_eq!(value, Ok((u32::MAX, u16::MAX, u32::MAX, 0xff)));
        assert_eq!(reqs, []);
    });
}

#[test]
fn mmio_across_the_end_of_page_and_range_is_split() {
    on_all(|p| {
        let (value, reqs) = p.run(|c| {
            c.store32(MMIO + 0xffe, 0xabcd_1234)?;
            c.load32(MMIO + 0xffe)
        });
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, W, MMIO + 0xffe, 0x1234, 2, 1),
                (COPY, R, MMIO + 0xffe, 0, 2, 1)
            ]
        );
        assert_eq!(value, Ok(0xffff_0000)); // the part outside gives all-ones
    });
}

#[test]
fn an_sse_store_is_two_of_eight_bytes() {
    on_all(|p| {
        let value = 0x1111_1111_2222_2222_3333_3333_4444_4444_u128;
        let (_, reqs) = p.run(move |c| {
            c.store128(MMIO + 0x300, value)?;
            c.store128(PAGE + 0x500, value)
        });
        for (req, base) in reqs.chunks(2).zip([MMIO + 0x300, PAGE + 0x500]) {
            assert_eq!(
                briefs(req),
                [
                    (COPY, W, base, 0x3333_3333_4444_4444, 8, 1),
                    (COPY, W, base + 8, 0x1111_1111_2222_2222, 8, 1)
                ]
            );
        }
        assert_eq!(p.load(PAGE + 0x508, Width::B8), 0x1111_1111_2222_2222);
    });
}

#[test]
fn a_locked_add_to_mmio_is_a_read_then_a_write() {
    on_all(|p| {
        let (old, reqs) = p.run(|c| c.lock_add(MMIO + 0x30, Width::B4, 3));
        assert_eq!(old, Ok(0xa5a5_0000));
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, R, MMIO + 0x30, 0, 4, 1),
                (COPY, W, MMIO + 0x30, 0xa5a5_0003, 4, 1)
            ]
        );
    });
}

#[test]
fn repeated_stores_to_mmio_are_one_request() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| {
            c.rep_stos(MMIO, Width::B4, 0x11, 1024)?;
            c.set_df(true);
            c.rep_stos(MMIO + 0x60, Width::B4, 0x22, 4)
        });
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, W, MMIO, 0x11, 4, 1024),
                (COPY, W, MMIO + 0x60, 0x22, 4, 4)
            ]
        );
        assert!(!reqs[0].df() && reqs[1].df());
    });
}

#[test]
fn repeated_mmio_not_wholly_inside_is_dropped() {
    on_all(|p| {
        // The page itself ends the repetition, so take a range that is smaller than a page.
        p.range(MmioRange::sized(MMIO + 0x2000, 0x10).unwrap());
        let (_, reqs) = p.run(|c| c.rep_stos(MMIO + 0x2000, Width::B4, 1, 5));
        assert_eq!(reqs, []);
        let (_, reqs) = p.run(|c| c.rep_stos(MMIO + 0x2000, Width::B4, 1, 4));
        assert_eq!(briefs(&reqs), [(COPY, W, MMIO + 0x2000, 1, 4, 4)]);
    });
}

#[test]
fn moves_between_ram_and_mmio_carry_a_pointer_and_split_at_pages_of_both() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| {
            c.rep_movs(MMIO + 0x80, 0x13_0000, Width::B4, 8)?;
            c.rep_movs(0x13_0000, MMIO + 0x80, Width::B4, 8)?;
            c.rep_movs(MMIO + 0x80, 0x13_0ff0, Width::B4, 8)?;
            c.rep_outs(0x520, 0x13_0000, Width::B4, 8)?;
            c.rep_ins(0x524, 0x13_1000, Width::B4, 8)
        });
        assert!(reqs.iter().all(Ioreq::data_is_ptr));
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, W, MMIO + 0x80, 0x13_0000, 4, 8),
                (COPY, R, MMIO + 0x80, 0x13_0000, 4, 8),
                (COPY, W, MMIO + 0x80, 0x13_0ff0, 4, 4),
                (COPY, W, MMIO + 0x90, 0x13_1000, 4, 4),
                (PIO, W, 0x520, 0x13_0000, 4, 8),
                (PIO, R, 0x524, 0x13_1000, 4, 8),
            ]
        );
    });
}

#[test]
fn an_element_across_two_pages_goes_alone() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| c.rep_movs(MMIO + 0x80, 0x13_0ffa, Width::B4, 3));
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, W, MMIO + 0x80, 0x13_0ffa, 4, 1),
                (COPY, W, MMIO + 0x84, 0x13_0ffe, 4, 1),
                // One repetition left is no string any more: its value comes inline.
                (COPY, W, MMIO + 0x88, 0, 4, 1),
            ]
        );
        assert!(reqs[1].data_is_ptr() && !reqs[2].data_is_ptr());
    });
}

#[test]
fn mmio_to_mmio_moves_go_element_by_element() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| c.rep_movs(MMIO + 0x100, MMIO + 0x80, Width::B4, 2));
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, R, MMIO + 0x80, 0, 4, 1),
                (COPY, W, MMIO + 0x100, 0xa5a5_0000, 4, 1),
                (COPY, R, MMIO + 0x84, 0, 4, 1),
                (COPY, W, MMIO + 0x104, 0xa5a5_0001, 4, 1),
            ]
        );
    });
}

#[test]
fn reads_of_a_tracked_page_do_not_leave_the_guest_and_writes_do_not_touch_ram() {
    on_all(|p| {
        p.poke(PAGE, Width::B4, 0x1000);
        let guest = p
            .domain
            .spawn(ioreq_core::VcpuId(0), |c| {
                let before = c.load32(PAGE)?;
                c.store32(PAGE, 0x2000)?;
                Ok((before, c.load32(PAGE)?))
            })
            .unwrap();
        let req = p.wait(0);
        assert_eq!(brief(&req), (COPY, W, PAGE, 0x2000, 4, 1));
        assert_eq!(
            p.load(PAGE, Width::B4),
            0x1000,
            "RAM is the server's to store to"
        );
        p.answer(0, 0); // dropped
        assert_eq!(guest.join(), Ok((0x1000, 0x1000)));
    });
}

#[test]
fn atomics_on_a_tracked_page_are_one_write_of_the_final_value() {
    on_all(|p| {
        p.poke(PAGE, Width::B4, 0x2000);
        p.poke(PAGE + 8, Width::B8, 0x2_0000_0001);
        let (values, reqs) = p.run(|c| {
            Ok([
                c.lock_add(PAGE, Width::B4, 5)?,
                c.lock_or(PAGE, Width::B1, 0xf0)?,
                c.xchg(PAGE, Width::B4, 0x7777)?,
                c.cmpxchg(PAGE, Width::B4, 0x7777, 0x8888)?,
                c.cmpxchg(PAGE, Width::B4, 0x1, 0x9999)?, // fails: no request
                c.cmpxchg(PAGE + 8, Width::B8, 0x2_0000_0001, 0x4_0000_0003)?,
            ])
        });
        assert_eq!(
            values,
            Ok([0x2000, 0x05, 0x20f5, 0x7777, 0x8888, 0x2_0000_0001])
        );
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, W, PAGE, 0x2005, 4, 1),
                (COPY, W, PAGE, 0xf5, 1, 1),
                (COPY, W, PAGE, 0x7777, 4, 1),
                (COPY, W, PAGE, 0x8888, 4, 1),
                (COPY, W, PAGE + 8, 0x4_0000_0003, 8, 1),
            ]
        );
        assert_eq!(p.load(PAGE + 8, Width::B8), 0x4_0000_0003);
    });
}

#[test]
fn repeated_stores_to_a_tracked_page_go_element_by_element() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| {
            c.rep_stos(PAGE + 0x40, Width::B4, 0x33, 8)?;
            c.rep_movs(PAGE + 0xc0, 0x13_1000, Width::B4, 4)?;
            // The last two fall on ordinary RAM.
            c.rep_stos(PAGE + 0xff8, Width::B4, 0x66, 4)
        });
        assert_eq!(reqs.len(), 8 + 4 + 2);
        assert!(
            reqs.iter()
                .all(|r| r.count == 1 && r.kind == COPY && !r.is_read())
        );
        assert_eq!(p.load(PAGE + 0x5c, Width::B4), 0x33);
        assert_eq!(p.load(PAGE + 0x1004, Width::B4), 0x66);
    });
}

#[test]
fn moves_from_a_device_into_a_tracked_page_show_only_the_read() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| {
            c.rep_movs(PAGE + 0x200, MMIO + 0x80, Width::B4, 4)?;
            c.rep_ins(0x524, PAGE + 0x300, Width::B4, 4)
        });
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, R, MMIO + 0x80, PAGE + 0x200, 4, 4),
                (PIO, R, 0x524, PAGE + 0x300, 4, 4)
            ]
        );
        assert!(reqs.iter().all(Ioreq::data_is_ptr));
    });
}

#[test]
fn moves_from_a_tracked_page_are_ordinary() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| {
            c.rep_movs(0x13_2000, PAGE, Width::B4, 4)?;
            c.rep_movs(MMIO + 0x200, PAGE, Width::B4, 4)
        });
        assert_eq!(briefs(&reqs), [(COPY, W, MMIO + 0x200, PAGE, 4, 4)]);
    });
}

#[test]
fn a_write_across_a_tracked_and_a_plain_page_is_split() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| {
            c.store32(PAGE + 0xffe, 0xaabb_ccdd)?;
            c.store32(PAGE - 2, 0x1122_3344)
        });
        assert_eq!(
            briefs(&reqs),
            [
                (COPY, W, PAGE + 0xffe, 0xccdd, 2, 1),
                (COPY, W, PAGE, 0x1122, 2, 1)
            ]
        );
        assert_eq!(
            p.load(PAGE + 0x1000, Width::B2),
            0xaabb,
            "Xen writes the rest"
        );
        assert_eq!(p.load(PAGE - 2, Width::B2), 0x3344);
    });
}

#[test]
fn an_odd_part_goes_in_powers_of_two() {
    on_all(|p| {
        let (_, reqs) = p.run(|c| c.store64(PAGE + 0xff9, 0x8877_6655_4433_2211));
        let sizes: Vec<_> = reqs
            .iter()
            .map(|r| (r.addr - PAGE, r.size, r.data))
            .collect();
        assert_eq!(
            sizes,
            [
                (0xff9, 4, 0x4433_2211),
                (0xffd, 2, 0x6655),
                (0xfff, 1, 0x77)
            ]
        );
        assert_eq!(p.load(PAGE + 0x1000, Width::B1), 0x88);
    });
}

#[test]
fn the_types_owner_wins_over_an_mmio_range() {
    on_all(|p| {
        let mut other = Peer::new(&p.domain);
        other.range(MmioRange::sized(PAGE, 0x1000).unwrap());
        let (_, reqs) = p.run(|c| c.store32(PAGE, 9));
        assert_eq!(reqs.len(), 1);
        assert_eq!(other.take(0), None);
    });
}

#[test]
fn writes_from_outside_are_not_trapped() {
    on_all(|p| {
        p.poke(PAGE, Width::B4, 0x4242);
        assert_eq!(p.domain.counts().sent(), 0);
        assert_eq!(p.load(PAGE, Width::B4), 0x4242);
    });
}

#[test]
fn configuration_cycles_become_pci_requests_and_ecam_stays_mmio() {
    on_all(|p| {
        let function = Sbdf::new(0, 1, 3, 2).unwrap();
        p.range(function);
        p.range(MmioRange::sized(0xf000_0000, 0x10_0000).unwrap());
        let (value, reqs) = p.run(move |c| {
            c.pci_config_write(function, 0x3e, Width::B2, 0x1234)?;
            let value = c.pci_config_read(function, 0x3d, Width::B1)?;
            c.load32(0xf000_0010)?;
            // Another function: nobody's.
            let other = Sbdf::new(0, 1, 3, 3).unwrap();
            Ok((value, c.pci_config_read(other, 0, Width::B4)?))
        });
        assert_eq!(value, Ok((0, 0xffff_ffff)));
        let addr = |register: u64| u64::from(function.bits()) << 32 | register;
        assert_eq!(
            briefs(&reqs),
            [
                (2, W, addr(0x3e), 0x1234, 2, 1),
                (2, R, addr(0x3d), 0, 1, 1),
                (COPY, R, 0xf000_0010, 0, 4, 1)
            ]
        );
    });
}

#[test]
fn without_an_enabled_address_port_cfc_is_a_port() {
    on_all(|p| {
        p.range(PortRange::new(0xcf8, 0xcff).unwrap());
        let (_, reqs) = p.run(|c| {
            c.outl(0xcf8, 0x0000_0010)?; // enable bit clear
            c.outl(0xcfc, 5)
        });
        assert_eq!(
            briefs(&reqs),
            [(PIO, W, 0xcf8, 0x10, 4, 1), (PIO, W, 0xcfc, 5, 4, 1)]
        );
    });
}

#[test]
fn neighbouring_ranges_of_one_server_are_one() {
    on_all(|p| {
        p.range(MmioRange::sized(MMIO + 0x4000, 0x10).unwrap());
        p.range(MmioRange::sized(MMIO + 0x4010, 0x10).unwrap());
        let (_, reqs) = p.run(|c| c.store32(MMIO + 0x400e, 1));
        assert_eq!(reqs.len(), 1);
    });
}

#[test]
fn rep_ins_of_nobodys_port_into_mmio_crashes_the_domain() {
    let mut p = peer(XenVersion::V4_17);
    let (result, reqs) = p.run(|c| c.rep_ins(0x900, MMIO, Width::B4, 2));
    assert_eq!(briefs(&reqs), [(COPY, W, MMIO, 0xffff_ffff, 4, 1)]);
    assert!(
        matches!(
            result,
            Err(VcpuExit::DomainCrashed {
                reason: CrashReason::AnswerNotConsumed { .. }
            })
        ),
        "{result:?}"
    );
}

#[test]
fn read_only_memory_drops_writes_without_a_request() {
    on_all(|p| {
        let ro = ioreq_core::P2mType::RamRo;
        p.hv.raw().set_mem_type(ro.raw(), 0, GFN + 4, 1).unwrap();
        let (value, reqs) = p.run(|c| {
            let addr = (GFN + 4) << 12;
            c.store32(addr, 1)?;
            c.lock_add(addr, Width::B4, 1)?;
            c.rep_stos(addr, Width::B4, 1, 4)?;
            c.load32(addr)
        });
        assert_eq!((value, reqs.len()), (Ok(0), 0));
    });
}
