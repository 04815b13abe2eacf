// SPDX-License-Identifier: Apache-2.0 OR MIT

use vm_memory::{Bytes, GuestAddress};

use super::super::fake::FakeFrames;
use super::*;

const CHUNK: u64 = CHUNK_PAGES as u64 * 4096;

fn cache(limit: usize) -> (Arc<FakeFrames>, Cache) {
    let fake = Arc::new(FakeFrames::new(8 * 512));
    let ranges = vec![
        GfnRange::sized(1024, 3072).unwrap(),
        GfnRange::sized(0, 1000).unwrap(),
    ];
    let cache = Cache::new(DomId(1), ranges, Arc::clone(&fake) as _, limit).unwrap();
    (fake, cache)
}

#[test]
fn the_memory_is_the_same_until_it_is_flushed() {
    let (fake, cache) = cache(usize::MAX);
    let before = cache.memory();
    let generation = cache.generation();
    assert!(Arc::ptr_eq(&before, &cache.memory()));
    before.write_obj(5_u32, GuestAddress(0x1000)).unwrap();
    cache.flush().unwrap();
    assert_ne!(cache.generation(), generation);
    let after = cache.memory();
    assert!(!Arc::ptr_eq(&before, &after));
    // Mapped anew: what the guest has there now.
    assert_eq!(after.read_obj::<u32>(GuestAddress(0x1000)).unwrap(), 5);
    assert_eq!(fake.with(|state| state.calls.len()), 2);
    // Who still holds the old one may use it.
    assert_eq!(before.read_obj::<u32>(GuestAddress(0x1000)).unwrap(), 5);
}

#[test]
fn at_the_limit_a_new_memory_begins() {
    let (_, cache) = cache(2 * CHUNK_PAGES);
    let before = cache.memory();
    let generation = cache.generation();
    let touch = |memory: &XenMemory, chunk: u64| {
        memory.read_obj::<u8>(GuestAddress(chunk * CHUNK)).unwrap();
    };
    touch(&before, 0);
    touch(&before, 0);
    assert_eq!(cache.generation(), generation);
    assert!(Arc::ptr_eq(&before, &cache.memory()));
    touch(&before, 2);
    assert_ne!(cache.generation(), generation);
    // The request in hand is still served.
    touch(&before, 3);
    let after = cache.memory();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&after, &cache.memory()));
    let old = Arc::downgrade(&before);
    drop(before);
    assert!(old.upgrade().is_none(), "unmapped with its last user");
}

#[test]
fn closed_it_has_no_memory_and_keeps_none() {
    let (_, cache) = cache(CHUNK_PAGES);
    let before = cache.memory();
    before.read_obj::<u8>(GuestAddress(0)).unwrap();
    let old = Arc::downgrade(&before);
    drop(before);
    let generation = cache.generation();
    cache.close();
    assert!(old.upgrade().is_none());
    assert_ne!(cache.generation(), generation);
    let generation = cache.generation();
    cache.memory().read_obj::<u8>(GuestAddress(0)).unwrap_err();
    cache.flush().unwrap();
    cache.close();
    assert_eq!(cache.generation(), generation);
    cache.memory().read_obj::<u8>(GuestAddress(0)).unwrap_err();
}

#[test]
fn overlapping_ranges_are_refused() {
    let fake = Arc::new(FakeFrames::new(16));
    let ranges = vec![
        GfnRange::sized(0, 10).unwrap(),
        GfnRange::sized(9, 2).unwrap(),
    ];
    let err = Cache::new(DomId(1), ranges, fake, 1).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn no_ranges_is_no_memory() {
    let fake = Arc::new(FakeFrames::new(16));
    let cache = Cache::new(DomId(1), vec![], fake, 1).unwrap();
    cache.memory().read_obj::<u8>(GuestAddress(0)).unwrap_err();
    cache.flush().unwrap();
}
