// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadows against a small guest: memory, a tracker that calls handlers in page order, and a naive walk as the oracle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ioreq_core::claim::{MarkError, PageState, PageTracker};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, WriteSource};
use ioreq_core::memory::RamError;
use ioreq_core::{DomId, Error, ErrorKind, Gfn, GfnRange, GuestRam, Op, VcpuId, Width};
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::vgpu::{Level, LinearMap, PageSize};

const DISTANCE: u64 = 0x10_0000_0000;

/// Called with the address of an entry that has just been read, before its value is used.
type OnLoad = Box<dyn Fn(u64) + Send>;

/// Guest memory of some pages.
struct Ram(Box<[AtomicU64]>, Mutex<Option<OnLoad>>);

impl Ram {
    fn new(pages: usize) -> Arc<Self> {
        let words = (0..pages * 512).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Ram(words, Mutex::new(None)))
    }

    fn word(&self, addr: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(addr / 8).ok()?)
    }

    fn byte(&self, addr: u64) -> Option<u8> {
        Some(self.word(addr)?.load(Ordering::Acquire).to_le_bytes()[(addr % 8) as usize])
    }
}

impl GuestRam for Ram {
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), RamError> {
        let len = buf.len();
        for (at, byte) in (addr.0..).zip(buf) {
            *byte = self.byte(at).ok_or(RamError { addr, len })?;
        }
        Ok(())
    }
    fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), RamError> {
        for (at, byte) in (addr.0..).zip(buf) {
            self.store(GuestAddress(at), Width::B1, u64::from(*byte))?;
        }
        Ok(())
    }
    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes[..width.size()])?;
        if width == Width::B8 && addr.0.is_multiple_of(8) {
            let word = self.word(addr.0).expect("just read");
            let value = word.load(Ordering::Acquire);
            if let Some(hook) = self.1.lock().unwrap().take() {
                hook(addr.0);
            }
            return Ok(value);
        }
        Ok(u64::from_le_bytes(bytes))
    }
    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError> {
        let outside = RamError {
            addr,
            len: width.size(),
        };
        self.word(addr.0 + width.bytes() - 1).ok_or(outside)?;
        if width == Width::B8 && addr.0.is_multiple_of(8) {
            self.word(addr.0)
                .ok_or(outside)?
                .store(value, Ordering::Release);
            return Ok(());
        }
        for (at, byte) in (addr.0..).zip(value.to_le_bytes().into_iter().take(width.size())) {
            let shift = at % 8 * 8;
            let patch = |word: u64| word & !(0xff << shift) | u64::from(byte) << shift;
            let word = self.word(at).ok_or(outside)?;
            let _old = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                Some(patch(word))
            });
        }
        Ok(())
    }
}

/// Called with a page that has just been tracked.
type Hook = Box<dyn Fn(Gfn) + Send>;

type Pages = HashMap<u64, (Arc<Mutex<()>>, Option<Arc<dyn PageHandler>>)>;

/// Tracks at once; untracks at once, or leaves pages as `Leaving` for ever.
#[derive(Default)]
struct Tracker {
    pages: Mutex<Pages>,
    never_leaves: AtomicBool,
    refuse: Mutex<BTreeSet<u64>>,
    /// Run when a page has just been tracked, as a guest's write in that very moment would.
    on_track: Mutex<Option<Hook>>,
}

impl PageTracker for Tracker {
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError> {
        for gfn in pages.iter() {
            if self.refuse.lock().unwrap().contains(&gfn.0) {
                return Err(MarkError::new(Error::new(Op::Mark, ErrorKind::WrongState)));
            }
            let mut known = self.pages.lock().unwrap();
            let page = known.entry(gfn.0).or_default();
            assert!(page.1.is_none(), "{gfn} tracked twice");
            page.1 = Some(Arc::clone(&handler));
        }
        if let Some(hook) = &*self.on_track.lock().unwrap() {
            hook(Gfn(pages.first()));
        }
        Ok(())
    }
    fn replace(&self, _: GfnRange, _: Arc<dyn PageHandler>) -> ioreq_core::Result<()> {
        Err(Error::new(Op::Route, ErrorKind::NotSupported))
    }
    fn untrack(&self, pages: GfnRange) -> ioreq_core::Result<()> {
        for gfn in pages.iter() {
            if let Some(page) = self.pages.lock().unwrap().get_mut(&gfn.0) {
                page.1 = None;
            }
        }
        Ok(())
    }
    fn state(&self, gfn: Gfn) -> PageState {
        match self.pages.lock().unwrap().get(&gfn.0) {
            Some((_, Some(_))) => PageState::Tracked,
            Some(_) if self.never_leaves.load(Ordering::Relaxed) => PageState::Leaving,
            _ => PageState::Untracked,
        }
    }
}

impl Tracker {
    fn tracked(&self) -> BTreeSet<u64> {
        let pages = self.pages.lock().unwrap();
        pages
            .iter()
            .filter(|(_, page)| page.1.is_some())
            .map(|(gfn, _)| *gfn)
            .collect()
    }
}

struct World {
    ram: Arc<Ram>,
    tracker: Arc<Tracker>,
    shadow: Shadow,
    traps: AtomicU64,
}

impl World {
    fn with(pages: usize, configure: impl FnOnce(ShadowBuilder) -> ShadowBuilder) -> Self {
        let (ram, tracker) = (Ram::new(pages), Arc::new(Tracker::default()));
        let frames = Arc::new(LinearMap::new(ram.clone(), DISTANCE));
        let builder =
            Shadow::builder(tracker.clone(), ram.clone(), frames).out_of_sync(OutOfSync::off());
        let shadow = configure(builder).build().unwrap();
        World {
            ram,
            tracker,
            shadow,
            traps: AtomicU64::new(0),
        }
    }

    fn new(pages: usize) -> Self {
        Self::with(pages, |builder| builder)
    }

    /// A vCPU's store.
    fn write(&self, addr: u64, width: Width, value: u64) {
        let page = self
            .tracker
            .pages
            .lock()
            .unwrap()
            .get(&(addr >> 12))
            .cloned();
        let Some((order, Some(_))) = page else {
            self.ram.store(GuestAddress(addr), width, value).unwrap();
            return;
        };
        let _order = order.lock().unwrap();
        let handler = self
            .tracker
            .pages
            .lock()
            .unwrap()
            .get(&(addr >> 12))
            .and_then(|p| p.1.clone());
        let Some(handler) = handler else {
            self.ram.store(GuestAddress(addr), width, value).unwrap();
            return;
        };
        self.traps.fetch_add(1, Ordering::Relaxed);
        let cx = Context::detached(DomId(1), VcpuId(0), &*self.ram);
        let write = PageWrite::new(
            GuestAddress(addr),
            width,
            value,
            WriteSource::Trapped,
            &*self.ram,
        );
        let outcome = handler.write(&cx, &write.unwrap());
        assert!(matches!(outcome, PageOutcome::Done));
    }

    fn entry(&self, table: u64, index: u64, entry: u64) {
        self.write((table << 12) + index * 8, Width::B8, entry);
    }

    fn check(&self, root: RootId, frame: u64, level: Level) {
        let mut expected = BTreeMap::new();
        naive(&self.ram, frame, level, 0, &mut expected);
        let shown: BTreeMap<u64, (u64, bool)> = self
            .shadow
            .mappings(root)
            .into_iter()
            .map(|(addr, to)| {
                (
                    addr,
                    (
                        if to.scratch {
                            BAD
                        } else {
                            to.host.0 - DISTANCE
                        },
                        to.writable,
                    ),
                )
            })
            .collect();
        assert_eq!(shown, expected);
    }
}

/// What the oracle says of an entry that cannot be mapped.
const BAD: u64 = u64::MAX;

/// A walk that knows nothing of shadows: GPU address → (guest-physical address, writable).
fn naive(ram: &Ram, frame: u64, level: Level, base: u64, found: &mut BTreeMap<u64, (u64, bool)>) {
    for index in 0..512_u64 {
        let Some(entry) = ram
            .word((frame << 12) + index * 8)
            .map(|e| e.load(Ordering::Acquire))
        else {
            return;
        };
        let step = if level == Level::Pt64 { 16 } else { 1 };
        if entry & 1 == 0 || index % step != 0 {
            continue;
        }
        let (shift, below) = match level {
            Level::Pml4 => (39, Some(Level::Pdp)),
            Level::Pdp => (30, (entry & 0x80 == 0).then_some(Level::Pd)),
            Level::Pd if entry & 0x80 != 0 => (21, None),
            Level::Pd => (
                21,
                Some(if entry & 0x800 != 0 {
                    Level::Pt64
                } else {
                    Level::Pt
                }),
            ),
            Level::Pt | Level::Pt64 => (12, None),
        };
        let addr = base + (index << shift);
        let frame = entry >> 12 & 0x3_ffff_ffff;
        let memory = ram.0.len() as u64 / 512;
        match below {
            Some(_) if frame >= memory => {
                found.insert(addr, (BAD, entry & 2 != 0));
            }
            Some(below) => naive(ram, frame, below, addr, found),
            None => {
                let size = if level == Level::Pt64 {
                    16
                } else {
                    1 << (shift - 12)
                };
                let first = frame & !(size - 1);
                let to = if first + size <= memory {
                    first << 12
                } else {
                    BAD
                };
                found.insert(addr, (to, entry & 2 != 0));
            }
        }
    }
}

#[test]
fn a_whole_address_space_is_there_when_it_is_created() {
    let world = World::new(64);
    world.entry(1, 0, 0x2003); // PML4 → PDP
    world.entry(2, 511, 0x3003); // → PD
    world.entry(3, 1, 0x4003); // → PT
    world.entry(3, 2, 0x5803); // → PT of 64 KiB entries
    world.entry(4, 7, 0x20001);
    world.entry(5, 16, 0x10003);
    world.entry(5, 17, 0x10003); // not used
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert_eq!(world.traps.load(Ordering::Relaxed), 0);
    world.check(root, 1, Level::Pml4);
    assert_eq!(world.tracker.tracked(), BTreeSet::from([1, 2, 3, 4, 5]));
    let addr = 511 << 30 | 1 << 21 | 7 << 12 | 5;
    let found = world.shadow.lookup(root, addr).unwrap();
    assert_eq!(
        (found.host, found.size, found.writable),
        (HostAddr(DISTANCE + 0x20005), PageSize::Small, false)
    );
    assert_eq!(
        world.shadow.lookup(root, 0).unwrap_err().step,
        Step::Table(Level::Pdp)
    );
    assert_eq!(
        world.shadow.lookup(root, 1 << 48).unwrap_err().step,
        Step::Root
    );
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
    assert_eq!(
        world.shadow.destroy(root).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn pages_of_every_size_follow_their_entries() {
    let world = World::new(1 << 18 | 1); // a little over 1 GiB
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(2, 3, 0x83); // 1 GiB
    world.entry(2, 4, 0x3003);
    world.entry(3, 0, 0x20_0083); // 2 MiB
    world.entry(3, 1, 0x4803);
    world.entry(4, 32, 0x7_0003); // 64 KiB
    world.entry(3, 2, 0x5003);
    world.entry(5, 1, 0x7_1003); // 4 KiB
    world.check(root, 1, Level::Pml4);
    let sizes: Vec<_> = world
        .shadow
        .mappings(root)
        .iter()
        .map(|(_, to)| to.size)
        .collect();
    assert_eq!(
        sizes,
        [
            PageSize::Huge,
            PageSize::Large,
            PageSize::Medium,
            PageSize::Small
        ]
    );
    world.entry(2, 3, 0x4000_0083); // not wholly memory
    assert!(world.shadow.mappings(root)[0].1.scratch);
    assert_eq!(world.shadow.stats().bad_frames, 1);
    world.entry(2, 3, 0);
    world.check(root, 1, Level::Pml4);
}

#[test]
fn a_shared_table_lives_until_its_last_parent_lets_go() {
    let world = World::new(64);
    for (table, index, entry) in [
        (1, 0, 0x2003),
        (2, 0, 0x3003),
        (2, 1, 0x3003),
        (3, 0, 0x4003),
        (4, 0, 0x9003),
    ] {
        world.entry(table, index, entry);
    }
    let first = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    let second = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert_eq!(world.shadow.stats().tables, 4);
    world.shadow.destroy(first).unwrap();
    world.check(second, 1, Level::Pml4);
    world.entry(2, 0, 0);
    assert!(
        world.tracker.tracked().contains(&4),
        "reached by the other entry"
    );
    world.entry(2, 1, 0);
    assert_eq!(world.tracker.tracked(), BTreeSet::from([1, 2]));
    world.entry(4, 0, 0xdead_beef); // ordinary memory now
    world.check(second, 1, Level::Pml4);
}

#[test]
fn a_half_written_entry_is_not_shown_as_if_meant() {
    for (first, second) in [(0, 4), (4, 0)] {
        let world = World::new(64);
        let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
        world.entry(1, 0, 0x2003);
        world.entry(2, 0, 0x3003);
        let half = |offset: u64, value: u64| {
            let part = if offset == 0 {
                value & 0xffff_ffff
            } else {
                value >> 32
            };
            world.write(0x3000 + offset, Width::B4, part);
        };
        half(first, 0x1_0000_9083 & !0x1_0000_0000);
        assert!(
            !world
                .shadow
                .mappings(root)
                .iter()
                .any(|(_, to)| !to.scratch),
            "half an entry was shown"
        );
        half(second, 0x9083);
        world.check(root, 1, Level::Pml4);
        // Only one half changes: made whole at submission.
        world.write(0x3000, Width::B4, 0x20_0083);
        assert!(world.shadow.mappings(root)[0].1.scratch);
        world.shadow.submit();
        world.check(root, 1, Level::Pml4);
        // The half before the submission does not count for the next entry.
        half(first, 0);
        assert!(world.shadow.mappings(root).iter().all(|(_, to)| to.scratch));
        assert_eq!(world.shadow.stats().split_writes, 4);
    }
}

#[test]
fn a_write_in_the_middle_of_a_submission_is_not_lost() {
    let world = Arc::new(World::new(64));
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003), (4, 0x9003)] {
        world.entry(table, 0, entry);
    }
    world.write(0x4000, Width::B4, 0xa003);
    // The submission reads the entry; before it makes use of what it read, another vCPU writes it whole.
    let (go, wait) = std::sync::mpsc::channel();
    let (done, finished) = std::sync::mpsc::channel();
    let writer = std::thread::spawn({
        let world = Arc::clone(&world);
        move || {
            wait.recv().unwrap();
            world.entry(4, 0, 0xb003);
            let _nobody_waits = done.send(());
        }
    });
    *world.ram.1.lock().unwrap() = Some(Box::new(move |addr| {
        assert_eq!(addr, 0x4000);
        go.send(()).unwrap();
        // A writer that waits for the submission never comes here in time, as it should.
        let _in_time = finished.recv_timeout(std::time::Duration::from_millis(100));
    }));
    world.shadow.submit();
    writer.join().unwrap();
    world.check(root, 1, Level::Pml4);
    assert_eq!(
        world.shadow.lookup(root, 0).unwrap().host,
        HostAddr(DISTANCE + 0xb000)
    );
}

#[test]
fn nothing_waits_for_a_submission_on_behalf_of_tables_that_are_gone() {
    let hot =
        |builder: ShadowBuilder| builder.out_of_sync(OutOfSync::after(NonZeroU32::new(4).unwrap()));
    let world = World::with(64, hot);
    for (table, entry) in [(1, 0x2003), (2, 0x3003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    for _ in 0..3 {
        world.entry(3, 0, 0x4003);
        world.entry(3, 1, 0x1003); // a clash
        world.write(0x3010, Width::B4, 0x5003);
        world.write(0x4000, Width::B2, 0x9003);
        (1..8).for_each(|index| world.entry(4, index, 0x9003));
        assert_eq!(world.shadow.0.lock().pending.len(), 2);
        world.entry(2, 0, 0);
        assert_eq!(world.tracker.tracked(), BTreeSet::from([1, 2]));
        assert!(world.shadow.0.lock().pending.is_empty());
        world.entry(2, 0, 0x3003);
        world.entry(3, 1, 0);
        world.entry(3, 2, 0);
        world.shadow.submit();
        world.check(root, 1, Level::Pml4);
        world.entry(2, 0, 0);
        (0..8).for_each(|index| world.entry(4, index, 0));
        world.entry(3, 0, 0);
        world.entry(2, 0, 0x3003);
    }
}

#[test]
fn the_bound_on_address_spaces_holds() {
    let world = World::with(64, |builder| builder.most_roots(2));
    let (l4, l3) = (
        Root::L4(Gfn(1)),
        Root::L3([Some(Gfn(2)), None, None, Some(Gfn(2))]),
    );
    let first = world.shadow.create(l4).unwrap();
    let directories = world.shadow.create(l3).unwrap();
    assert_eq!(
        world.shadow.create(l4).unwrap_err().kind(),
        ErrorKind::OutOfMemory
    );
    world.shadow.destroy(directories).unwrap();
    let second = world.shadow.create(l4).unwrap();
    assert_eq!(
        world.shadow.find(l4),
        Some(second),
        "the newest of the same root"
    );
    world.shadow.destroy(second).unwrap();
    assert_eq!(world.shadow.find(l4), Some(first));
    assert_eq!(
        world.shadow.destroy(second).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let directories = world.shadow.create(l3).unwrap();
    assert_eq!(world.shadow.find_l3(Gfn(2)), Some((directories, l3)));
    assert_eq!(world.shadow.find_l3(Gfn(1)), None, "that is no 32-bit one");
    assert_eq!(
        world
            .shadow
            .find(Root::L3([Some(Gfn(2)), None, None, None])),
        None
    );
    world.shadow.destroy(directories).unwrap();
    world.shadow.destroy(first).unwrap();
    assert_eq!(world.shadow.find(l4), None);
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn a_write_between_tracking_and_reading_is_not_lost() {
    let world = World::new(64);
    let ram = Arc::clone(&world.ram);
    *world.tracker.on_track.lock().unwrap() = Some(Box::new(move |gfn| {
        if gfn == Gfn(2) {
            ram.store(GuestAddress(0x2000), Width::B8, 0x3003).unwrap();
        }
    }));
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.check(root, 1, Level::Pml4);
    assert_eq!(world.shadow.stats().tables, 3);
}

#[test]
fn tables_that_bite_their_own_tails_end_at_the_scratch_page() {
    let world = World::new(64);
    world.entry(1, 0, 0x1003); // the root as its own PDP
    world.entry(1, 1, 0x2003);
    world.entry(2, 0, 0x2003); // a PDP as its own PD
    world.entry(2, 1, 0x3003);
    world.entry(3, 0, 0x1003); // the root as a PT
    world.entry(3, 1, 0xffff_ffff_f003); // no memory
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert_eq!(world.shadow.stats().tables, 3);
    assert_eq!(
        (
            world.shadow.stats().clashes,
            world.shadow.stats().bad_frames
        ),
        (3, 1)
    );
    assert!(world.shadow.mappings(root).iter().all(|(_, to)| to.scratch));
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().tables, 0);
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn a_clash_is_resolved_once_the_other_use_is_gone() {
    let world = World::new(64);
    world.entry(1, 0, 0x2003);
    world.entry(2, 0, 0x3003);
    world.entry(3, 0, 0x4003); // 4 as a PT
    world.entry(4, 0, 0x9003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(2, 1, 0x4003); // 4 as a PD as well
    world.entry(3, 0, 0);
    world.shadow.submit();
    world.check(root, 1, Level::Pml4);
}

#[test]
fn the_bound_on_tables_degrades_and_recovers() {
    let world = World::with(64, |builder| builder.most_tables(3));
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(2, 0, 0x3003);
    world.entry(2, 1, 0x4003);
    assert_eq!(
        (world.shadow.stats().tables, world.shadow.stats().over_bound),
        (3, 1)
    );
    assert!(world.shadow.create(Root::L4(Gfn(9))).unwrap_err().kind() == ErrorKind::OutOfMemory);
    world.entry(2, 0, 0);
    world.entry(4, 0, 0x83);
    world.shadow.submit();
    assert_eq!(world.shadow.stats().tables, 3, "there is room now");
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().tables, 0);
}

#[test]
fn a_page_that_cannot_be_tracked_is_not_shadowed() {
    let world = World::new(64);
    world.tracker.refuse.lock().unwrap().extend([2, 9]);
    assert_eq!(
        world.shadow.create(Root::L4(Gfn(9))).unwrap_err().kind(),
        ErrorKind::WrongState
    );
    world.entry(1, 0, 0x2003);
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    assert!(world.shadow.mappings(root)[0].1.scratch);
    world.tracker.refuse.lock().unwrap().clear();
    world.shadow.submit();
    world.check(root, 1, Level::Pml4);
}

#[test]
fn bad_options_and_roots_are_refused() {
    let world = World::new(4);
    assert_eq!(
        world.shadow.create(Root::L4(Gfn(4))).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        world
            .shadow
            .create(Root::L4(Gfn(u64::MAX)))
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidArgument
    );
    let frames = Arc::new(LinearMap::new(world.ram.clone(), 0));
    let builder = || Shadow::builder(world.tracker.clone(), world.ram.clone(), frames.clone());
    for bad in [
        builder().most_tables(0),
        builder().most_tables(1 << 32),
        builder().most_roots(0),
    ] {
        assert_eq!(bad.build().unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn a_32_bit_address_space_has_four_directories() {
    let world = World::new(64);
    world.entry(2, 0, 0x4003);
    world.entry(4, 1, 0x9003);
    let l3 = Root::L3([None, Some(Gfn(2)), None, Some(Gfn(3))]);
    let root = world.shadow.create(l3).unwrap();
    assert_eq!(world.shadow.find(l3), Some(root));
    assert_eq!(
        world.shadow.lookup(root, (1 << 30) + 0x1234).unwrap().host,
        HostAddr(DISTANCE + 0x9234)
    );
    assert_eq!(
        world.shadow.lookup(root, 0x1234).unwrap_err().step,
        Step::Root
    );
    world.entry(3, 511, 0x20_0083 & !0x20_0000);
    assert!(
        world.shadow.lookup(root, 0xffff_f000).unwrap().scratch,
        "2 MiB are not wholly memory"
    );
    assert!(world.shadow.lookup(root, 1 << 32).is_err());
    world.shadow.destroy(root).unwrap();
    assert!(world.tracker.tracked().is_empty());
}

#[test]
fn a_hot_table_goes_out_of_sync_and_comes_back_right() {
    let hot =
        |builder: ShadowBuilder| builder.out_of_sync(OutOfSync::after(NonZeroU32::new(4).unwrap()));
    let world = World::with(64, hot);
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    for index in 0..100 {
        world.entry(4, index, 0x9003 + (index << 12 & 0xf000));
    }
    assert_eq!(
        world.traps.load(Ordering::Relaxed),
        4,
        "the rest did not trap"
    );
    assert!(!world.tracker.tracked().contains(&4));
    world.shadow.submit();
    world.check(root, 1, Level::Pml4);
    assert!(world.tracker.tracked().contains(&4));
    let stats = world.shadow.stats();
    assert_eq!(
        (
            stats.out_of_sync,
            stats.out_of_sync_in_vain,
            stats.traps_avoided
        ),
        (1, 0, 96)
    );
    // Freed while it is out of sync: nothing is left behind.
    for index in 0..4 {
        world.entry(4, index, 0);
    }
    assert!(!world.tracker.tracked().contains(&4));
    world.shadow.destroy(root).unwrap();
    world.shadow.submit();
    assert!(world.tracker.tracked().is_empty());
    assert_eq!(world.shadow.stats().tables, 0);
}

#[test]
fn out_of_sync_in_vain_is_noticed() {
    let hot = |builder: ShadowBuilder| builder.out_of_sync(OutOfSync::after(NonZeroU32::MIN));
    let world = World::with(64, hot);
    world.tracker.never_leaves.store(true, Ordering::Relaxed);
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    world.entry(4, 0, 0x9003);
    world.shadow.submit();
    assert_eq!(world.shadow.stats().out_of_sync_in_vain, 1);
    world.check(root, 1, Level::Pml4);
}

#[test]
fn two_vcpus_on_one_table_and_one_that_moves_it() {
    let world = World::new(64);
    for (table, entry) in [(1, 0x2003), (2, 0x3003), (3, 0x4003)] {
        world.entry(table, 0, entry);
    }
    let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
    let rounds = 3000;
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..rounds {
                    let index = round % 8;
                    if (round + writer) % 5 == 0 {
                        let addr = 0x4000 + index * 8;
                        world.write(addr + 4, Width::B4, 0);
                        world.write(addr, Width::B4, (round % 50) << 12 | 3);
                    } else {
                        world.entry(4, index, (round % 50) << 12 | 1 | writer << 1);
                    }
                }
            });
        }
        let world = &world;
        scope.spawn(move || {
            for round in 0..rounds / 4 {
                world.entry(3, 0, if round % 2 == 0 { 0 } else { 0x4003 });
                world.entry(2, round % 3, 0x3003);
            }
            world.entry(3, 0, 0x4003);
        });
    });
    world.shadow.submit();
    world.check(root, 1, Level::Pml4);
    world.shadow.destroy(root).unwrap();
    assert_eq!(world.shadow.stats().tables, 0);
}

/// A write of the guest: table page, entry, bytes of it, value.
#[derive(Debug, Clone)]
enum Deed {
    Write {
        table: u64,
        offset: u64,
        width: Width,
        value: u64,
    },
    Submit,
    Toggle,
}

/// Tables have fixed levels (1: PML4, 2–3: PDP, 4–6: PD, 7–10: PT, 11–12: PT of 64 KiB), so that there are no clashes.
fn entry_for(table: u64) -> BoxedStrategy<u64> {
    let flags = prop_oneof![4 => Just(3_u64), 1 => Just(1), 1 => Just(0)];
    let page = (0_u64..40).prop_map(|gfn| gfn << 12);
    match table {
        1 => ((2_u64..4), flags)
            .prop_map(|(to, flags)| to << 12 | flags)
            .boxed(),
        2..=3 => ((4_u64..7), flags)
            .prop_map(|(to, flags)| to << 12 | flags)
            .boxed(),
        4..=6 => prop_oneof![
            ((7_u64..11), flags.clone()).prop_map(|(to, flags)| to << 12 | flags),
            ((11_u64..13), flags.clone()).prop_map(|(to, flags)| to << 12 | flags | 0x800),
            flags.prop_map(|flags| flags | 0x80),
        ]
        .boxed(),
        _ => (page, flags).prop_map(|(page, flags)| page | flags).boxed(),
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    let write = (1_u64..13).prop_flat_map(|table| {
        let index = prop_oneof![0_u64..3, Just(16), Just(511)];
        (Just(table), index, entry_for(table), 0..6)
    });
    let write = write.prop_map(|(table, index, value, how)| match how {
        0 => Deed::Write {
            table,
            offset: index * 8,
            width: Width::B4,
            value: value & 0xffff_ffff,
        },
        1 => Deed::Write {
            table,
            offset: index * 8 + 4,
            width: Width::B4,
            value: 0,
        },
        2 => Deed::Write {
            table,
            offset: index * 8,
            width: Width::B2,
            value: value & 0xffff,
        },
        _ => Deed::Write {
            table,
            offset: index * 8,
            width: Width::B8,
            value,
        },
    });
    prop_oneof![20 => write, 2 => Just(Deed::Submit), 1 => Just(Deed::Toggle)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_shadow_is_what_a_naive_walk_finds(deeds in prop::collection::vec(deed(), 1..120), hot in any::<bool>()) {
        let policy = if hot { OutOfSync::after(NonZeroU32::new(3).unwrap()) } else { OutOfSync::off() };
        let world = World::with(1024, |builder| builder.out_of_sync(policy));
        let mut root = None;
        for deed in deeds {
            match deed {
                Deed::Write { table, offset, width, value } => world.write((table << 12) + offset, width, value),
                Deed::Submit => {
                    world.shadow.submit();
                    if let Some(root) = root {
                        world.check(root, 1, Level::Pml4);
                    }
                }
                Deed::Toggle => match root.take() {
                    Some(root) => world.shadow.destroy(root).unwrap(),
                    None => root = Some(world.shadow.create(Root::L4(Gfn(1))).unwrap()),
                },
            }
        }
        world.shadow.submit();
        if let Some(root) = root {
            world.check(root, 1, Level::Pml4);
            let tables = world.shadow.stats().tables;
            prop_assert_eq!(world.tracker.tracked().len() as u64, tables, "tracked is what is a table");
            world.shadow.destroy(root).unwrap();
        }
        prop_assert_eq!(world.shadow.stats().tables, 0);
        prop_assert!(world.tracker.tracked().is_empty());
    }

    /// Arbitrary bytes as tables: nothing is promised of what is shown, but that it ends, and that nothing is left behind.
    #[test]
    fn garbage_leaves_nothing_behind(words in prop::collection::vec((0_u64..16 * 512, any::<u64>(), 0_u64..20), 1..200)) {
        let world = World::new(16);
        let root = world.shadow.create(Root::L4(Gfn(1))).unwrap();
        let l3 = world.shadow.create(Root::L3([Some(Gfn(2)), Some(Gfn(3)), None, None])).unwrap();
        for (word, value, gfn) in words {
            world.write(word * 8, Width::B8, value & !0x3fff_ffff_f000 | gfn << 12 | 1);
        }
        world.shadow.submit();
        let _shown = (world.shadow.mappings(root), world.shadow.mappings(l3));
        world.shadow.destroy(root).unwrap();
        world.shadow.destroy(l3).unwrap();
        prop_assert_eq!(world.shadow.stats().tables, 0);
        prop_assert!(world.tracker.tracked().is_empty());
    }
}
