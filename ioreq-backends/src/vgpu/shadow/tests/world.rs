// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A small guest: memory, a tracker that calls handlers in page order, and a naive walk as the oracle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ioreq_core::claim::{MarkError, PageState, PageTracker};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, WriteSource};
use ioreq_core::memory::RamError;
use ioreq_core::{DomId, Error, ErrorKind, Gfn, GfnRange, GuestRam, Op, VcpuId, Width};
use vm_memory::GuestAddress;

use super::super::*;
use crate::vgpu::{Level, LinearMap};

pub(super) const DISTANCE: u64 = 0x10_0000_0000;

/// Called with the address of an entry that has just been read, before its value is used.
pub(super) type OnLoad = Box<dyn Fn(u64) + Send>;

/// Guest memory of some pages.
pub(super) struct Ram(Box<[AtomicU64]>, pub(super) Mutex<Option<OnLoad>>);

impl Ram {
    pub(super) fn new(pages: usize) -> Arc<Self> {
        let words = (0..pages * 512).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Ram(words, Mutex::new(None)))
    }

    pub(super) fn word(&self, addr: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(addr / 8).ok()?)
    }

    pub(super) fn byte(&self, addr: u64) -> Option<u8> {
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
pub(super) type Hook = Box<dyn Fn(Gfn) + Send>;

pub(super) type Pages = HashMap<u64, (Arc<Mutex<()>>, Option<Arc<dyn PageHandler>>)>;

/// Tracks at once; untracks at once, or leaves pages as `Leaving` for ever.
#[derive(Default)]
pub(super) struct Tracker {
    pub(super) pages: Mutex<Pages>,
    pub(super) never_leaves: AtomicBool,
    /// Untracking fails, as when the claim is gone.
    pub(super) keeps: AtomicBool,
    pub(super) refuse: Mutex<BTreeSet<u64>>,
    /// Run when a page has just been tracked, as a guest's write in that very moment would.
    pub(super) on_track: Mutex<Option<Hook>>,
    /// Pages of each call that tracked several.
    pub(super) batches: Mutex<Vec<usize>>,
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
    /// As the real one: what comes after a page that is refused is not touched.
    fn track_each(&self, pages: Vec<(Gfn, Arc<dyn PageHandler>)>) -> Result<(), MarkError> {
        self.batches.lock().unwrap().push(pages.len());
        let mut pages = pages;
        pages.sort_by_key(|(gfn, _)| *gfn);
        let mut done = Vec::new();
        for (index, (gfn, handler)) in pages.iter().enumerate() {
            if let Err(mut err) = self.track((*gfn).into(), Arc::clone(handler)) {
                err.done = done;
                err.untouched = pages[index..]
                    .iter()
                    .map(|(gfn, _)| (*gfn).into())
                    .collect();
                return Err(err);
            }
            done.push((*gfn).into());
        }
        Ok(())
    }
    fn replace(&self, _: GfnRange, _: Arc<dyn PageHandler>) -> ioreq_core::Result<()> {
        Err(Error::new(Op::Route, ErrorKind::NotSupported))
    }
    fn untrack(&self, pages: GfnRange) -> ioreq_core::Result<()> {
        if self.keeps.load(Ordering::Relaxed) {
            return Err(Error::new(Op::Unmark, ErrorKind::WrongState));
        }
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
    pub(super) fn tracked(&self) -> BTreeSet<u64> {
        let pages = self.pages.lock().unwrap();
        pages
            .iter()
            .filter(|(_, page)| page.1.is_some())
            .map(|(gfn, _)| *gfn)
            .collect()
    }
}

pub(super) struct World {
    pub(super) ram: Arc<Ram>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) shadow: Shadow,
    pub(super) traps: AtomicU64,
}

impl World {
    pub(super) fn with(
        pages: usize,
        configure: impl FnOnce(ShadowBuilder) -> ShadowBuilder,
    ) -> Self {
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

    pub(super) fn new(pages: usize) -> Self {
        Self::with(pages, |builder| builder)
    }

    /// A vCPU's store.
    pub(super) fn write(&self, addr: u64, width: Width, value: u64) {
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

    pub(super) fn entry(&self, table: u64, index: u64, entry: u64) {
        self.write((table << 12) + index * 8, Width::B8, entry);
    }

    /// Compares what the shadow of an address space shows with what a naive walk finds.
    pub(super) fn check(&self, id: RootId, root: Root) {
        let mut expected = BTreeMap::new();
        match root {
            Root::L4(pml4) => naive(&self.ram, pml4.0, Level::Pml4, 0, &mut expected),
            Root::L3(directories) => {
                for (n, directory) in (0..).zip(directories) {
                    if let Some(gfn) = directory {
                        naive(&self.ram, gfn.0, Level::Pd, n << 30, &mut expected);
                    }
                }
            }
        }
        let memory = |to: &Target| match to.scratch {
            true => BAD,
            false => to.host.0 - DISTANCE,
        };
        let shown: BTreeMap<u64, (u64, bool)> = self
            .shadow
            .mappings(id)
            .into_iter()
            .map(|(addr, to)| (addr, (memory(&to), to.writable)))
            .collect();
        assert_eq!(shown, expected);
    }

    pub(super) fn is_tracked(&self, gfn: u64) -> bool {
        self.tracker.tracked().contains(&gfn)
    }

    pub(super) fn traps(&self) -> u64 {
        self.traps.load(Ordering::Relaxed)
    }
}

/// What the oracle says of an entry that cannot be mapped.
pub(super) const BAD: u64 = u64::MAX;

/// A walk that knows nothing of shadows: GPU address → (guest-physical address, writable).
pub(super) fn naive(
    ram: &Ram,
    frame: u64,
    level: Level,
    base: u64,
    found: &mut BTreeMap<u64, (u64, bool)>,
) {
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
