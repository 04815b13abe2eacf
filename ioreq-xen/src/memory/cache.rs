// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which memory is the current one, and when it is thrown away.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioreq_core::{DomId, Error, ErrorKind, GfnRange, Op, Result};
use vm_memory::GuestMemoryBackend;

use super::foreign::FrameMapper;
use super::{CHUNK_PAGES, ForeignRegion, XenMemory};

/// Counts the chunks of one memory.
pub(super) struct Tally {
    mapped: AtomicUsize,
    limit: usize,
    generation: Arc<AtomicU64>,
}

impl Tally {
    pub(super) fn new(limit: usize, generation: Arc<AtomicU64>) -> Self {
        Tally {
            mapped: AtomicUsize::new(0),
            limit,
            generation,
        }
    }

    /// One chunk more. The one that reaches the limit tells everybody to ask for the memory again.
    pub(super) fn add(&self) {
        // Relaxed: a number of its own.
        if self.mapped.fetch_add(1, Ordering::Relaxed) + 1 == self.limit {
            // Release: pairs with `Cache::generation`.
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    fn is_spent(&self) -> bool {
        // Relaxed: seen a little late, the old memory is used a little longer.
        self.mapped.load(Ordering::Relaxed) >= self.limit
    }
}

struct Current {
    memory: Arc<XenMemory>,
    tally: Arc<Tally>,
    closed: bool,
}

/// See the module.
pub(crate) struct Cache {
    domid: DomId,
    ranges: Vec<GfnRange>,
    mapper: Arc<dyn FrameMapper>,
    limit: usize,
    generation: Arc<AtomicU64>,
    current: Mutex<Current>,
}

impl Cache {
    /// For frames `ranges`. Begins a new memory when one has mapped more than `limit` pages, rounded up to chunks.
    pub(crate) fn new(
        domid: DomId,
        mut ranges: Vec<GfnRange>,
        mapper: Arc<dyn FrameMapper>,
        limit: usize,
    ) -> Result<Self> {
        ranges.sort_unstable();
        let limit = limit.div_ceil(CHUNK_PAGES).max(1);
        let generation = Arc::new(AtomicU64::new(0));
        let fresh = begin(domid, &ranges, &mapper, limit, &generation)?;
        Ok(Cache {
            domid,
            ranges,
            mapper,
            limit,
            generation,
            current: Mutex::new(fresh),
        })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<Current> {
        begin(
            self.domid,
            &self.ranges,
            &self.mapper,
            self.limit,
            &self.generation,
        )
    }

    /// The current memory.
    pub(crate) fn memory(&self) -> Arc<XenMemory> {
        let mut current = self.current();
        if current.tally.is_spent() && !current.closed {
            match self.begin() {
                Ok(fresh) => {
                    let memory = Arc::clone(&fresh.memory);
                    // `Tally::add` has told the workers.
                    let old = std::mem::replace(&mut *current, fresh);
                    drop(current);
                    drop(old);
                    return memory;
                }
                Err(err) => tracing::warn!(%err, "guest memory stays mapped beyond the limit"),
            }
        }
        Arc::clone(&current.memory)
    }

    /// Changes whenever [`memory`](Self::memory) would give another one.
    pub(crate) fn generation(&self) -> u64 {
        // Acquire: pairs with `replace` and `Tally::add`.
        self.generation.load(Ordering::Acquire)
    }

    /// Throws the mappings away, and begins anew.
    pub(crate) fn flush(&self) -> Result<()> {
        let mut current = self.current();
        if current.closed {
            return Ok(());
        }
        let fresh = self.begin()?;
        let old = self.replace(&mut current, fresh);
        drop(current);
        drop(old);
        Ok(())
    }

    /// Throws the mappings away for good: the domain is gone, and must not stay behind as a zombie.
    pub(crate) fn close(&self) {
        let mut current = self.current();
        if !current.closed {
            let nothing = Current {
                memory: Arc::new(XenMemory::new()),
                tally: Arc::clone(&current.tally),
                closed: true,
            };
            let old = self.replace(&mut current, nothing);
            drop(current);
            drop(old);
        }
    }

    /// The caller drops the old one, outside of the lock: unmapping takes time.
    #[must_use]
    fn replace(&self, current: &mut Current, with: Current) -> Current {
        let old = std::mem::replace(current, with);
        // Release: pairs with `generation`: who sees the new number gets the new memory.
        self.generation.fetch_add(1, Ordering::Release);
        old
    }

    /// Maps everything now.
    pub(crate) fn map_all(&self) -> Result<()> {
        let memory = self.memory();
        memory
            .iter()
            .try_for_each(|region| region.map_all(self.domid))
    }
}

fn begin(
    domid: DomId,
    ranges: &[GfnRange],
    mapper: &Arc<dyn FrameMapper>,
    limit: usize,
    generation: &Arc<AtomicU64>,
) -> Result<Current> {
    let tally = Arc::new(Tally::new(limit, Arc::clone(generation)));
    let regions = ranges
        .iter()
        .map(|frames| {
            ForeignRegion::new(*frames, Arc::clone(mapper), Arc::clone(&tally)).map_err(|err| {
                Error::from_io(Op::MapGuestMemory, &err)
                    .domain(domid)
                    .about(*frames)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let memory = if regions.is_empty() {
        XenMemory::new()
    } else {
        XenMemory::from_regions(regions).map_err(|err| {
            Error::new(Op::MapGuestMemory, ErrorKind::InvalidArgument)
                .domain(domid)
                .about(err.to_string())
        })?
    };
    Ok(Current {
        memory: Arc::new(memory),
        tally,
        closed: false,
    })
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("domid", &self.domid)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
