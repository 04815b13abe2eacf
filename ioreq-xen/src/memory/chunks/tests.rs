// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::super::fake::FakeFrames;
use super::*;

const FRAMES: usize = 2 * CHUNK_PAGES + 10;

fn chunks(first: u64) -> (Arc<FakeFrames>, Chunks) {
    let fake = Arc::new(FakeFrames::new(first + FRAMES as u64));
    let tally = Arc::new(Tally::new(usize::MAX, Arc::default()));
    let chunks = Chunks::new(first, FRAMES, Arc::clone(&fake) as _, tally).unwrap();
    (fake, chunks)
}

fn calls(fake: &FakeFrames) -> Vec<(&'static str, u64, usize)> {
    fake.with(|state| std::mem::take(&mut state.calls))
}

#[test]
fn a_chunk_is_mapped_once_and_whole() {
    let (fake, chunks) = chunks(0x100);
    assert_eq!(calls(&fake), []);
    chunks.require(3, 3).unwrap();
    chunks.require(0, CHUNK_PAGES - 1).unwrap();
    assert_eq!(calls(&fake), [("map", 0x100, CHUNK_PAGES)]);
    chunks.require(CHUNK_PAGES - 1, CHUNK_PAGES).unwrap();
    assert_eq!(calls(&fake), [("map", 0x100 + 512, CHUNK_PAGES)]);
}

#[test]
fn the_last_chunk_ends_with_the_range() {
    let (fake, chunks) = chunks(0);
    chunks.require(FRAMES - 1, FRAMES - 1).unwrap();
    assert_eq!(calls(&fake), [("map", 2 * 512, 10)]);
    assert_eq!(
        chunks.require(FRAMES - 1, FRAMES),
        Err(Unmapped {
            page: FRAMES,
            errno: libc::EFAULT
        })
    );
    assert_eq!(calls(&fake), []);
}

#[test]
fn a_hole_is_refused_and_its_neighbours_are_not() {
    let (fake, chunks) = chunks(0);
    fake.with(|state| state.holes.insert(5));
    let hole = Err(Unmapped {
        page: 5,
        errno: libc::EINVAL,
    });
    assert_eq!(chunks.require(4, 6), hole);
    chunks.require(4, 4).unwrap();
    chunks.require(6, CHUNK_PAGES - 1).unwrap();
    assert_eq!(chunks.require(5, 5), hole);
    assert_eq!(
        calls(&fake),
        [("map", 0, CHUNK_PAGES), ("fill", 5, 1), ("fill", 5, 1)]
    );
}

#[test]
fn a_hole_is_filled_when_the_guest_has_memory_there_later() {
    let (fake, chunks) = chunks(0);
    fake.with(|state| state.holes.extend([5, 9]));
    chunks.require(0, 9).unwrap_err();
    fake.with(|state| state.holes.clear());
    chunks.require(5, 5).unwrap();
    // Still one hole, and no call for what is mapped.
    calls(&fake);
    chunks.require(0, 8).unwrap();
    assert_eq!(calls(&fake), []);
    chunks.require(0, CHUNK_PAGES - 1).unwrap();
    assert_eq!(calls(&fake), [("fill", 9, 1)]);
    let chunk = &chunks.chunks[0];
    assert_eq!(chunk.state.load(Ordering::Relaxed), FULL);
}

#[test]
fn a_chunk_without_any_page_stays_empty_and_is_not_counted() {
    let (fake, chunks) = chunks(0);
    fake.with(|state| state.holes.extend(0..512));
    assert_eq!(
        chunks.require(7, 7),
        Err(Unmapped {
            page: 7,
            errno: libc::EINVAL
        })
    );
    assert_eq!(chunks.chunks[0].state.load(Ordering::Relaxed), EMPTY);
    fake.with(|state| state.holes.remove(&7));
    chunks.require(7, 7).unwrap();
}

#[test]
fn a_call_that_fails_leaves_the_chunk_as_it_was() {
    let (fake, chunks) = chunks(0);
    fake.with(|state| state.fail = Some(libc::ENOMEM));
    assert_eq!(chunks.require(0, 0).unwrap_err().errno, libc::ENOMEM);
    chunks.require(0, 0).unwrap();
    fake.with(|state| state.holes.insert(600));
    chunks.require(512, 512).unwrap();
    fake.with(|state| state.fail = Some(libc::EFAULT));
    assert_eq!(chunks.require(600, 600).unwrap_err().errno, libc::EFAULT);
}

/// Many readers, one map: the threads agree, and each chunk is mapped once.
#[test]
fn readers_in_parallel_map_a_chunk_once() {
    let (fake, chunks) = chunks(0);
    fake.with(|state| state.holes.extend([100, 700]));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let chunks = &chunks;
            scope.spawn(move || {
                for page in (0..FRAMES).map(|at| (at * 7 + thread * 13) % FRAMES) {
                    assert_eq!(
                        chunks.require(page, page).is_err(),
                        [100, 700].contains(&page)
                    );
                }
            });
        }
    });
    let maps = calls(&fake).iter().filter(|call| call.0 == "map").count();
    assert_eq!(maps, 3);
}
