// SPDX-License-Identifier: Apache-2.0 OR MIT

use std::sync::Arc;

use ioreq_core::GuestRam;
use ioreq_core::memory::Width;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::super::XenMemory;
use super::super::fake::FakeFrames;
use super::*;

fn memory(ranges: &[(u64, u64)]) -> (Arc<FakeFrames>, XenMemory) {
    let frames = ranges.iter().map(|(first, len)| first + len).max().unwrap();
    let fake = Arc::new(FakeFrames::new(frames));
    let regions = ranges.iter().map(|(first, len)| {
        let tally = Arc::new(Tally::new(usize::MAX, Arc::default()));
        let frames = GfnRange::sized(*first, *len).unwrap();
        ForeignRegion::new(frames, Arc::clone(&fake) as _, tally).unwrap()
    });
    let memory = XenMemory::from_regions(regions.collect()).unwrap();
    (fake, memory)
}

#[test]
fn an_access_across_chunks_is_one_slice() {
    let (_, memory) = memory(&[(0, 1024)]);
    let at = GuestAddress(512 * 4096 - 3);
    memory.write_slice(b"across", at).unwrap();
    let slice = memory.get_slice(at, 6).unwrap();
    let mut bytes = [0; 6];
    slice.copy_to(&mut bytes);
    assert_eq!(&bytes, b"across");
}

#[test]
fn an_access_maps_its_own_chunk_only() {
    let (fake, memory) = memory(&[(0, 2048)]);
    memory.write_obj(7_u32, GuestAddress(0x1000)).unwrap();
    let region = memory.iter().next().unwrap();
    // Through the region as well, whose methods the collection does not use.
    region
        .write_obj(8_u32, MemoryRegionAddress(0x2000))
        .unwrap();
    assert_eq!(fake.with(|state| state.calls.len()), 1);
}

#[test]
fn holes_and_the_end_are_errors() {
    let (fake, memory) = memory(&[(0, 16), (32, 16)]);
    fake.with(|state| state.holes.insert(3));
    let mut bytes = [0; 16];
    let hole = GuestAddress(3 * 4096);
    GuestRam::read(&memory, hole, &mut bytes).unwrap_err();
    GuestRam::store(&memory, hole, Width::B8, 1).unwrap_err();
    GuestRam::read(&memory, GuestAddress(3 * 4096 - 8), &mut bytes).unwrap_err();
    GuestRam::read(&memory, GuestAddress(3 * 4096 - 16), &mut bytes).unwrap();
    GuestRam::read(&memory, GuestAddress(4 * 4096), &mut bytes).unwrap();
    GuestRam::load(&memory, GuestAddress(16 * 4096), Width::B1).unwrap_err();
    GuestRam::load(&memory, GuestAddress(48 * 4096 - 1), Width::B1).unwrap();
    GuestRam::load(&memory, GuestAddress(48 * 4096 - 1), Width::B2).unwrap_err();
    let region = memory.iter().next().unwrap();
    region
        .get_slice(MemoryRegionAddress(u64::MAX), 2)
        .unwrap_err();
    region
        .get_slice(MemoryRegionAddress(16 * 4096), 1)
        .unwrap_err();
    assert_eq!(
        region
            .get_slice(MemoryRegionAddress(16 * 4096), 0)
            .unwrap()
            .len(),
        0
    );
    region
        .get_host_address(MemoryRegionAddress(3 * 4096))
        .unwrap_err();
}

#[test]
fn a_short_read_at_the_region_end_says_how_much() {
    let (_, memory) = memory(&[(0, 1)]);
    let region = memory.iter().next().unwrap();
    let mut bytes = [0; 8];
    assert_eq!(
        region.read(&mut bytes, MemoryRegionAddress(4092)).unwrap(),
        4
    );
    region
        .read(&mut bytes, MemoryRegionAddress(4096))
        .unwrap_err();
    region
        .read_slice(&mut bytes, MemoryRegionAddress(4092))
        .unwrap_err();
}

#[test]
fn mapping_all_names_the_frame_that_is_missing() {
    let (fake, memory) = memory(&[(0x10, 1000)]);
    let region = memory.iter().next().unwrap();
    fake.with(|state| state.holes.insert(0x10 + 700));
    let err = region.map_all(DomId(4)).unwrap_err();
    assert_eq!(err.kind(), ioreq_core::ErrorKind::BadAddress);
    assert!(err.to_string().contains("d4, gfn 0x2cc"), "{err}");
    fake.with(|state| state.holes.clear());
    region.map_all(DomId(4)).unwrap();
}
