// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Accesses of guest memory of one region, of a few, which are looked through, and of many, which are searched.

use ioreq::memory::RamError;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{GfnRange, GuestMap, GuestRam, Width};
use vm_memory::GuestAddress;

const WIDTHS: [Width; 4] = [Width::B1, Width::B2, Width::B4, Width::B8];

/// Every width at the first and the last byte of each region, around its ends, and in what lies between regions.
fn edges(regions: u64) {
    let frames = |region: u64| GfnRange::sized(8 + region * 4, 2).unwrap();
    let config = (0..regions).fold(DomainConfig::new(1), |config, region| {
        config.memory(frames(region))
    });
    let domain = Machine::new().create_domain(config).unwrap();
    let memory = domain.hypervisor().memory();
    let ram: &dyn GuestRam = &*memory;
    for region in 0..regions {
        let first = (8 + region * 4) << 12;
        let last = first + 0x1fff;
        for width in WIDTHS {
            let bytes = width.bytes();
            for addr in [first, first + 1, last + 1 - bytes, last - 2 * bytes] {
                let value = width.cut(0x8877_6655_4433_2211 ^ addr);
                ram.store(GuestAddress(addr), width, value).unwrap();
                let mut stored = [0; 8];
                let part = &mut stored[..width.size()];
                ram.read(GuestAddress(addr), part).unwrap();
                assert_eq!(u64::from_le_bytes(stored), value, "{addr:#x} {width:?}");
                assert_eq!(ram.load(GuestAddress(addr), width), Ok(value));
            }
            let beside = [first - 1, first - bytes, last + 2 - bytes, last + 1];
            for addr in beside.into_iter().filter(|addr| {
                let whole = *addr >= first && addr + bytes - 1 <= last;
                !whole
            }) {
                let addr = GuestAddress(addr);
                let len = width.size();
                assert_eq!(ram.load(addr, width), Err(RamError { addr, len }));
                let err = ram.store(addr, width, u64::MAX).unwrap_err();
                assert_eq!((err.addr, err.len), (addr, len));
            }
        }
    }
    let far = GuestAddress(u64::MAX - 7);
    assert!(ram.load(far, Width::B8).is_err());
    assert!(ram.load(GuestAddress(0), Width::B8).is_err());
}

#[test]
fn accesses_of_a_memory_of_one_region_end_where_it_ends() {
    edges(1);
}

#[test]
fn accesses_of_a_few_regions_each_reach_their_own() {
    edges(2);
    edges(4);
}

#[test]
fn accesses_of_many_regions_each_reach_their_own() {
    edges(5);
    edges(33);
}
