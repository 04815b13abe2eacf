// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The writers' side: handlers that log.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::sync::Parker;
use ioreq_core::claim::{MarkError, PageTracker};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, Verdict};
use ioreq_core::{Error, ErrorKind, GfnRange, Op, Result};

use super::ring::Ring;
use super::{LogReader, WriteRecord};

/// Closes the ring when the last log and the last handler are gone.
#[derive(Debug)]
struct Writers(Arc<Ring>);

impl Drop for Writers {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A log of writes to tracked pages; makes the handlers that write it. Clones write the same log.
///
/// ```
/// use ioreq_backends::write_log::WriteLog;
/// use ioreq_core::handler::{Context, PageHandler, PageWrite, WriteSource};
/// use ioreq_core::{DomId, GfnRange, VcpuId, Width};
/// use vm_memory::GuestAddress;
///
/// let (log, mut reader) = WriteLog::new(1024)?;
/// // On a server: log.track(&claim.tracker("watch"), GfnRange::sized(0x100, 16)?)?;
/// let handler = log.handler(GfnRange::sized(0x100, 16)?)?;
/// # let ram = vm_memory::GuestRegionCollection::<ioreq_core::memory::MappedRegion>::new();
/// # let cx = Context::detached(DomId(1), VcpuId(2), &ram);
/// # let write = PageWrite::new(GuestAddress(0x10_1008), Width::B4, 7, WriteSource::Trapped, &ram).unwrap();
/// let _ = handler.write(&cx, &write);
///
/// drop((log, handler)); // nobody can write any more, so the reader's loop ends
/// for record in &mut reader {
///     assert_eq!(record.to_string(), "v2 Trapped gfn 0x101+0x008 #0: 4 bytes 0x00000007");
/// }
/// assert_eq!(reader.lost(), 0);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct WriteLog {
    writers: Arc<Writers>,
}

impl WriteLog {
    /// The most records a log can hold.
    pub const MAX_CAPACITY: usize = 1 << 26;

    /// A log that holds up to `capacity` records until they are read (40 bytes each), and its reader.
    ///
    /// # Errors
    /// `InvalidArgument` for a capacity of 0 or above [`MAX_CAPACITY`](Self::MAX_CAPACITY).
    pub fn new(capacity: usize) -> Result<(WriteLog, LogReader)> {
        if capacity == 0 || capacity > Self::MAX_CAPACITY {
            let what = format!(
                "a write log of {capacity} records: 1 to {} are possible",
                Self::MAX_CAPACITY
            );
            return Err(Error::new(Op::Configure, ErrorKind::InvalidArgument).about(what));
        }
        let parker = Parker::new();
        let ring = Arc::new(Ring::new(capacity, parker.unparker().clone()));
        let writers = Arc::new(Writers(Arc::clone(&ring)));
        Ok((WriteLog { writers }, LogReader::new(ring, parker)))
    }

    /// A handler that logs writes to `pages` and lets them through. It keeps 8 bytes a page, for the numbers.
    ///
    /// # Errors
    /// `OutOfMemory` if those cannot be had.
    pub fn handler(&self, pages: GfnRange) -> Result<PageLog> {
        PageLog::new(Arc::clone(&self.writers), pages)
    }

    /// Tracks `pages` and logs the writes to them. To stop, [`untrack`](PageTracker::untrack) them.
    ///
    /// # Errors
    /// As [`PageTracker::track`], and `OutOfMemory` if a handler cannot be had.
    pub fn track(&self, tracker: &dyn PageTracker, pages: GfnRange) -> Result<(), MarkError> {
        let handler = self.handler(pages).map_err(|err| {
            let mut err = MarkError::new(err);
            err.untouched.push(pages);
            err
        })?;
        tracker.track(pages, Arc::new(handler))
    }

    /// Ends the log for its reader, once that has read what is there. Handlers go on letting writes through; their records are not
    /// waited for any more. Without this the log ends when the last handler is freed, which is some time after its pages
    /// are untracked.
    pub fn close(&self) {
        self.writers.0.close();
    }

    /// Records lost so far, because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.writers.0.lost()
    }
}

/// A handler that logs the writes to some pages, then lets them through or hands them on. Made by [`WriteLog::handler`].
///
/// ```
/// use ioreq_backends::write_log::WriteLog;
/// use ioreq_core::claim::PageTracker;
/// use ioreq_core::{GfnRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
/// use std::sync::Arc;
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// let (log, mut reader) = WriteLog::new(64)?;
/// let pages = GfnRange::sized(0x10, 2)?;
/// claim.tracker("log").track(pages, Arc::new(log.handler(pages)?))?;
/// let running = server.start()?;
/// domain.spawn(VcpuId(0), |cpu| cpu.store16(0x1_1002, 5))?.join()?;
/// running.stop()?;
/// log.close();
/// let records: Vec<String> = reader.by_ref().map(|record| record.to_string()).collect();
/// assert_eq!(records, ["v0 Trapped gfn 0x11+0x002 #0: 2 bytes 0x0005"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PageLog {
    writers: Arc<Writers>,
    pages: GfnRange,
    /// The number of the next write, for each page. Written by whoever holds the page's order, so without a read-modify-write.
    next: Vec<AtomicU64>,
    inner: Option<Arc<dyn PageHandler>>,
}

impl PageLog {
    fn new(writers: Arc<Writers>, pages: GfnRange) -> Result<Self> {
        let none = || {
            let what = format!("a counter for each of {pages}");
            Error::new(Op::Configure, ErrorKind::OutOfMemory).about(what)
        };
        let count = usize::try_from(pages.pages()).map_err(|_| none())?;
        let mut next = Vec::new();
        next.try_reserve_exact(count).map_err(|_| none())?;
        next.resize_with(count, || AtomicU64::new(0));
        Ok(PageLog {
            writers,
            pages,
            next,
            inner: None,
        })
    }

    /// Hands each write on to `handler`, which decides what becomes of it, once it is logged.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use ioreq_backends::write_log::WriteLog;
    /// use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
    /// use ioreq_core::GfnRange;
    ///
    /// /// Keeps pages as they are.
    /// struct Protect;
    /// impl PageHandler for Protect {
    ///     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
    ///         PageOutcome::Drop
    ///     }
    /// }
    ///
    /// let (log, _reader) = WriteLog::new(64)?;
    /// let handler = log.handler(GfnRange::sized(0x100, 1)?)?.then(Arc::new(Protect));
    /// # Ok::<(), ioreq_core::Error>(())
    /// ```
    #[must_use]
    pub fn then(mut self, handler: Arc<dyn PageHandler>) -> Self {
        self.inner = Some(handler);
        self
    }

    pub(super) fn pages(&self) -> GfnRange {
        self.pages
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        // Relaxed: at rest nobody counts.
        let next = self.next.iter();
        next.map(|next| next.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn set_numbers(&self, numbers: &[u64]) {
        for (next, number) in self.next.iter().zip(numbers) {
            // Relaxed: as in `numbers`.
            next.store(*number, Ordering::Relaxed);
        }
    }

    fn log(&self, cx: &Context<'_>, write: &PageWrite<'_>) {
        let ring = &self.writers.0;
        let index = write.gfn().0.checked_sub(self.pages.first());
        let next = index
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.next.get(index));
        let Some(next) = next else {
            // Routed here by mistake: there is no number for it.
            ring.lose();
            return;
        };
        // Relaxed, and not one step: the page's order is held, so nobody else counts this page, and taking the order has
        // made the last holder's store visible.
        let sequence = next.load(Ordering::Relaxed);
        next.store(sequence.wrapping_add(1), Ordering::Relaxed);
        ring.put(WriteRecord::new(cx, write, sequence));
    }
}

impl PageHandler for PageLog {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        self.log(cx, write);
        match &self.inner {
            Some(handler) => handler.write(cx, write),
            None => PageOutcome::Apply,
        }
    }

    fn fallback(&self) -> Verdict {
        match &self.inner {
            Some(handler) => handler.fallback(),
            None => Verdict::Apply,
        }
    }
}

impl fmt::Debug for PageLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageLog")
            .field("pages", &self.pages)
            .field("forwards", &self.inner.is_some())
            .field("ring", &self.writers.0)
            .finish_non_exhaustive()
    }
}
