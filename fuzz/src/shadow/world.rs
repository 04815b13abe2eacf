// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A small guest: memory, a tracker that calls handlers at once, and a walk of the guest's own tables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioreq_backends::vgpu::{LinearMap, Root, Shadow, ShadowBuilder};
use ioreq_core::claim::{MarkError, PageState, PageTracker};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, WriteSource};
use ioreq_core::memory::RamError;
use ioreq_core::{DomId, Error, ErrorKind, Gfn, GfnRange, GuestRam, Op, VcpuId, Width};
use vm_memory::GuestAddress;

/// From a guest-physical address to the host's.
pub(super) const DISTANCE: u64 = 0x10_0000_0000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Guest memory. That pages of tables are few and pages that they map are many costs nothing: what lies above the tables holds
/// zeros, and nobody writes there.
pub(super) struct Ram {
    bytes: Mutex<Vec<u8>>,
    pages: u64,
}

impl Ram {
    fn new(tables: u64, pages: u64) -> Arc<Self> {
        let bytes = Mutex::new(vec![0; tables as usize * 4096]);
        Arc::new(Ram { bytes, pages })
    }

    fn inside(&self, addr: GuestAddress, len: usize) -> Result<usize, RamError> {
        let end = addr.0.checked_add(len as u64);
        let inside = end.is_some_and(|end| end <= self.pages << 12);
        inside
            .then_some(addr.0 as usize)
            .ok_or(RamError { addr, len })
    }

    /// An entry of a table, as it is in memory.
    pub(super) fn entry(&self, frame: u64, index: u64) -> Option<u64> {
        self.load(GuestAddress((frame << 12) + index * 8), Width::B8)
            .ok()
    }
}

impl GuestRam for Ram {
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), RamError> {
        let from = self.inside(addr, buf.len())?;
        let bytes = lock(&self.bytes);
        buf.fill(0);
        if let Some(there) = bytes.get(from..bytes.len().min(from + buf.len())) {
            buf[..there.len()].copy_from_slice(there);
        }
        Ok(())
    }
    fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), RamError> {
        let from = self.inside(addr, buf.len())?;
        lock(&self.bytes)[from..from + buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes[..width.size()])?;
        Ok(u64::from_le_bytes(bytes))
    }
    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError> {
        self.write(addr, &value.to_le_bytes()[..width.size()])
    }
}

/// Tracks at once; untracks at once, or leaves pages on their way for ever.
#[derive(Default)]
pub(super) struct Tracker {
    pages: Mutex<BTreeMap<u64, Option<Arc<dyn PageHandler>>>>,
    pub(super) never_leaves: AtomicBool,
    pub(super) refuse: Mutex<BTreeSet<u64>>,
}

impl PageTracker for Tracker {
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError> {
        for gfn in pages.iter() {
            if lock(&self.refuse).contains(&gfn.0) {
                return Err(MarkError::new(Error::new(Op::Mark, ErrorKind::WrongState)));
            }
            let before = lock(&self.pages).insert(gfn.0, Some(Arc::clone(&handler)));
            assert!(before.flatten().is_none(), "{gfn} tracked twice");
        }
        Ok(())
    }
    fn track_each(&self, mut pages: Vec<(Gfn, Arc<dyn PageHandler>)>) -> Result<(), MarkError> {
        pages.sort_by_key(|(gfn, _)| *gfn);
        let mut done = Vec::new();
        for (index, (gfn, handler)) in pages.iter().enumerate() {
            if let Err(mut err) = self.track((*gfn).into(), Arc::clone(handler)) {
                err.done = done;
                let rest = pages[index..].iter();
                err.untouched = rest.map(|(gfn, _)| (*gfn).into()).collect();
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
        for gfn in pages.iter() {
            if let Some(page) = lock(&self.pages).get_mut(&gfn.0) {
                *page = None;
            }
        }
        Ok(())
    }
    fn state(&self, gfn: Gfn) -> PageState {
        match lock(&self.pages).get(&gfn.0) {
            Some(Some(_)) => PageState::Tracked,
            Some(None) if self.never_leaves.load(Ordering::Relaxed) => PageState::Leaving,
            _ => PageState::Untracked,
        }
    }
}

impl Tracker {
    pub(super) fn tracked(&self) -> u64 {
        lock(&self.pages).values().flatten().count() as u64
    }

    pub(super) fn refuses(&self) -> bool {
        !lock(&self.refuse).is_empty()
    }
}

/// A guest and the shadow of its tables.
pub(super) struct World {
    pub(super) ram: Arc<Ram>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) shadow: Shadow,
    pub(super) pages: u64,
}

impl World {
    pub(super) fn new(
        (tables, pages): (u64, u64),
        configure: impl FnOnce(ShadowBuilder) -> ShadowBuilder,
    ) -> Self {
        let (ram, tracker) = (Ram::new(tables, pages), Arc::new(Tracker::default()));
        let frames = Arc::new(LinearMap::new(ram.clone(), DISTANCE));
        let builder = Shadow::builder(tracker.clone(), ram.clone(), frames);
        let shadow = configure(builder).build().expect("bounds above 0");
        World {
            ram,
            tracker,
            shadow,
            pages,
        }
    }

    /// A vCPU's store.
    pub(super) fn write(&self, addr: u64, width: Width, value: u64) {
        let handler = lock(&self.tracker.pages).get(&(addr >> 12)).cloned();
        let Some(handler) = handler.flatten() else {
            let stored = self.ram.store(GuestAddress(addr), width, value);
            return stored.expect("it writes its own memory");
        };
        let cx = Context::detached(DomId(1), VcpuId(0), &*self.ram);
        let at = GuestAddress(addr);
        let write = PageWrite::new(at, width, value, WriteSource::Trapped, &*self.ram);
        let outcome = handler.write(&cx, &write.expect("within a page"));
        assert!(matches!(outcome, PageOutcome::Done));
        let stored = self.ram.load(at, width);
        assert_eq!(
            stored.ok(),
            Some(width.cut(value)),
            "the guest's own memory"
        );
    }

    pub(super) fn entry(&self, table: u64, index: u64, entry: u64) {
        self.write((table << 12) + index * 8, Width::B8, entry);
    }

    /// Where the guest's own tables lead, one address at a time.
    pub(super) fn walk(&self, root: Root, addr: u64) -> Walked {
        let (mut frame, mut level) = match root {
            Root::L4(gfn) if addr >> 48 == 0 => (gfn.0, 4),
            Root::L3(directories) if addr >> 32 == 0 => match directories[(addr >> 30) as usize] {
                Some(gfn) => (gfn.0, 2),
                None => return Walked::Nothing,
            },
            _ => return Walked::Nothing,
        };
        let mut coarse = false;
        loop {
            let shift = 12 + 9 * (level - 1);
            let mut index = addr >> shift & 511;
            if coarse {
                index &= !15;
            }
            let Some(entry) = self.ram.entry(frame, index) else {
                return Walked::Bad;
            };
            if entry & 1 == 0 {
                return Walked::Nothing;
            }
            let target = entry >> 12 & 0x3_ffff_ffff;
            let page = level == 1 || (level < 4 && entry & 0x80 != 0);
            if !page {
                coarse = level == 2 && entry & 0x800 != 0;
                (frame, level) = (target, level - 1);
                continue;
            }
            let frames = if coarse { 16 } else { 1 << (shift - 12) };
            let first = target / frames * frames;
            if first + frames > self.pages {
                return Walked::Bad;
            }
            return Walked::Page {
                addr: (first << 12) + (addr & ((frames << 12) - 1)),
                writable: entry & 2 != 0,
            };
        }
    }
}

/// What a walk comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Walked {
    Nothing,
    /// Something that is not guest memory.
    Bad,
    Page {
        addr: u64,
        writable: bool,
    },
}
