// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device by which a guest has its own pages write-tracked while it uses them, and hears whether what was seen of its writes is true.
//!
//! Every write to a tracked page is logged, and the watcher keeps a copy of each page that it changes by the log alone. When the guest
//! asks, the copies are compared with the guest's memory: a write that was lost, seen twice, seen in another order or not seen at all
//! is a difference. (Not seen: whoever stores without the framework. The disk of this board stores by [`Dma`](ioreq::server::Dma), so it
//! is.)
//!
//! | register | write | read |
//! | --- | --- | --- |
//! | +0 (4 bytes) | a [`Command`] | its result |
//! | +4 (4 bytes) | the first frame | |
//! | +8 (4 bytes) | the number of frames | |
//!
//! A command is carried out by the watcher's thread, and answered when it is done: untracking has to wait for handlers that still run,
//! which no handler may.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ioreq::backends::write_log::{LogReader, WriteLog, WriteRecord};
use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::handler::{Access, Completion, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::hypervisor::Hypervisor;
use ioreq::server::IoreqServer;
use ioreq::{Gfn, GfnRange, GuestRam, PortRange, RangeError, Width};
use vm_memory::GuestAddress;

const FIRST: u16 = 0x520;
const PORTS: u64 = 12;
const PAGE: usize = 4096;
/// Records that the log holds until they are read.
const RECORDS: usize = 1 << 16;
/// How often it is read without a command.
const LOOK: Duration = Duration::from_millis(20);
/// The most frames of a command.
const MOST: u32 = 1024;
/// How long a command may take before the framework tells of it.
const OVERRUN: Duration = Duration::from_secs(10);
/// The result of a command that failed.
pub const FAILED: u32 = u32::MAX;

/// What the guest can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// Tracks the frames.
    Track = 1,
    /// Ends tracking of the frames.
    Untrack = 2,
    /// The number of writes seen so far.
    Count = 3,
    /// The number of bytes in which the copies differ from memory.
    Compare = 4,
}

impl Command {
    fn of(value: u64) -> Option<Self> {
        Some(match value {
            1 => Command::Track,
            2 => Command::Untrack,
            3 => Command::Count,
            4 => Command::Compare,
            _ => return None,
        })
    }
}

/// What the watcher has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatcherStats {
    /// Writes seen.
    pub writes: u64,
    /// Pages that were marked, and that were to be unmarked.
    pub marked: u64,
    /// See `marked`.
    pub unmarked: u64,
}

/// What the thread is to do.
enum Job {
    /// A guest's command, with the frames.
    Command(Command, u32, u32, Completion<()>),
    /// A frame is to be given back, and the answer is whether it was tracked.
    GiveBack(Gfn, Sender<bool>),
}

/// The device. Its thread holds the server, which holds the device: [`end`](Self::end) it.
pub struct Watcher {
    first: AtomicU32,
    count: AtomicU32,
    result: Arc<AtomicU32>,
    /// Taken to end the thread.
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stats: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    marked: AtomicU64,
    unmarked: AtomicU64,
}

impl Watcher {
    /// The device, on its server.
    ///
    /// # Errors
    /// When another has the claim, or there is no thread.
    pub fn new<H: Hypervisor>(server: &Arc<IoreqServer<H>>) -> ioreq::Result<Self> {
        let claim = server.claim_mem_type()?;
        let tracker = claim.tracker("watched");
        let (log, reader) = WriteLog::new(RECORDS)?;
        let (jobs, work) = channel();
        let (stats, result) = (Arc::new(Counts::default()), Arc::new(AtomicU32::new(0)));
        let mirror = Mirror {
            server: Arc::clone(server),
            _claim: claim,
            tracker,
            log,
            reader,
            pages: BTreeMap::new(),
            wrong: 0,
            stats: Arc::clone(&stats),
        };
        let told = Arc::clone(&result);
        let thread = thread::Builder::new().name("watcher".into());
        let thread = thread.spawn(move || mirror.work(&work, &told));
        let thread = thread.map_err(|err| {
            ioreq::Error::from_io(ioreq::Op::Configure, &err).about("the watcher's thread")
        })?;
        Ok(Watcher {
            first: AtomicU32::new(0),
            count: AtomicU32::new(0),
            result,
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            stats,
        })
    }

    /// Its ports.
    ///
    /// # Errors
    /// None: they are ports.
    pub fn ports() -> Result<PortRange, RangeError> {
        PortRange::sized(FIRST, PORTS)
    }

    /// Gives a frame back to the guest, because tracking it would hurt; whether it was tracked. Not from a handler.
    pub fn give_back(&self, gfn: Gfn) -> bool {
        let (send, answer) = channel();
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(Job::GiveBack(gfn, send)).is_ok());
        drop(jobs);
        asked && answer.recv().unwrap_or(false)
    }

    /// Ends tracking and the thread; commands are refused from now on.
    pub fn end(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(jobs.take());
        drop(jobs);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _a_panic_has_been_printed = thread.join();
        }
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> WatcherStats {
        // Relaxed: numbers.
        WatcherStats {
            writes: self.stats.writes.load(Ordering::Relaxed),
            marked: self.stats.marked.load(Ordering::Relaxed),
            unmarked: self.stats.unmarked.load(Ordering::Relaxed),
        }
    }
}

impl Handler for Watcher {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        match (access.offset, access.width) {
            // Acquire: pairs with the Release of the thread.
            (0, Width::B4) => u64::from(self.result.load(Ordering::Acquire)).into(),
            _ => ReadOutcome::Refused("the watcher's result is 4 bytes"),
        }
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let word = u32::try_from(value).unwrap_or(u32::MAX);
        match (access.offset, access.width, Command::of(value)) {
            (0, Width::B4, Some(command)) => {
                // Relaxed: registers; a guest that writes them by several vCPUs at once gets what it asks for.
                let first = self.first.load(Ordering::Relaxed);
                let count = self.count.load(Ordering::Relaxed);
                let (deferred, completion) = cx.defer_write(OVERRUN);
                let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let job = Job::Command(command, first, count, completion);
                match jobs.as_ref().map(|jobs| jobs.send(job)) {
                    Some(Ok(())) => WriteOutcome::Defer(deferred),
                    _ => WriteOutcome::Refused("the watcher has ended"),
                }
            }
            (4, Width::B4, _) => {
                self.first.store(word, Ordering::Relaxed);
                WriteOutcome::Done
            }
            (8, Width::B4, _) => {
                self.count.store(word, Ordering::Relaxed);
                WriteOutcome::Done
            }
            _ => WriteOutcome::Refused("no such register or command of the watcher"),
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// A page as the log has it.
struct Copy {
    bytes: Box<[u8; PAGE]>,
    /// The number of the next write.
    next: u64,
}

/// The thread's side.
struct Mirror<H: Hypervisor> {
    server: Arc<IoreqServer<H>>,
    _claim: MemTypeClaim<H>,
    tracker: Tracker<H>,
    log: WriteLog,
    reader: LogReader,
    pages: BTreeMap<u64, Copy>,
    /// Records that were lost, or came in a wrong order.
    wrong: u64,
    stats: Arc<Counts>,
}

impl<H: Hypervisor> Mirror<H> {
    fn work(mut self, jobs: &Receiver<Job>, result: &AtomicU32) {
        loop {
            match jobs.recv_timeout(LOOK) {
                Ok(Job::GiveBack(gfn, answer)) => {
                    let is = self.tracker.state(gfn) == PageState::Tracked;
                    let given = is && self.untrack(gfn.into()).is_some();
                    let _nobody_may_wait_any_more = answer.send(given);
                }
                Ok(Job::Command(command, first, count, completion)) => {
                    let answer = self.carry_out(command, first, count);
                    // Release: pairs with the Acquire of a read that comes after the write is answered.
                    result.store(answer.unwrap_or(FAILED), Ordering::Release);
                    let _the_server_may_be_gone = completion.complete(());
                }
                Err(RecvTimeoutError::Timeout) => self.take_records(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn carry_out(&mut self, command: Command, first: u32, count: u32) -> Option<u32> {
        let frames = || {
            let count = (1..=MOST).contains(&count).then_some(count)?;
            GfnRange::sized(first.into(), count.into()).ok()
        };
        match command {
            Command::Track => self.track(frames()?),
            Command::Untrack => self.untrack(frames()?),
            Command::Count => {
                self.take_records();
                // Relaxed: a number. Beyond 32 bits it begins anew.
                Some((self.stats.writes.load(Ordering::Relaxed) & 0xffff_ffff) as u32)
            }
            Command::Compare => {
                self.take_records();
                Some(self.compare())
            }
        }
    }

    fn track(&mut self, frames: GfnRange) -> Option<u32> {
        if let Err(err) = self.log.track(&self.tracker, frames) {
            tracing::debug!(%err, "a guest's frames cannot be tracked");
            // Those that were done: what was tracked before stays.
            for done in err.done {
                self.tracker.untrack(done).ok()?;
            }
            return None;
        }
        // Read after tracking: what comes later is in the log.
        let memory = self.server.hypervisor().memory();
        for gfn in frames.iter() {
            let mut bytes = Box::new([0; PAGE]);
            let at = GuestAddress(gfn.0 << 12);
            GuestRam::read(&*memory, at, &mut bytes[..]).ok()?;
            self.pages.insert(gfn.0, Copy { bytes, next: 0 });
        }
        self.stats
            .marked
            .fetch_add(frames.pages(), Ordering::Relaxed);
        Some(0)
    }

    fn untrack(&mut self, frames: GfnRange) -> Option<u32> {
        self.tracker.untrack(frames).ok()?;
        // Handlers that still run may log; then all that there is of these pages is in the log.
        self.server.synchronize().ok()?;
        self.take_records();
        for gfn in frames.iter() {
            self.pages.remove(&gfn.0);
        }
        self.stats
            .unmarked
            .fetch_add(frames.pages(), Ordering::Relaxed);
        Some(0)
    }

    /// Changes the copies by what has been logged.
    fn take_records(&mut self) {
        while let Some(record) = self.reader.try_next() {
            self.stats.writes.fetch_add(1, Ordering::Relaxed);
            self.apply(&record);
        }
    }

    fn apply(&mut self, record: &WriteRecord) {
        let Some(page) = self.pages.get_mut(&record.gfn.0) else {
            self.wrong += 1;
            return;
        };
        self.wrong += u64::from(record.sequence != page.next);
        page.next = record.sequence + 1;
        let at = usize::from(record.offset);
        let value = record.value.to_le_bytes();
        let place = page.bytes.get_mut(at..at + record.width.size());
        match (place, value.get(..record.width.size())) {
            (Some(place), Some(value)) => place.copy_from_slice(value),
            _ => self.wrong += 1,
        }
    }

    /// Bytes that differ, and records that are not as they should be.
    fn compare(&self) -> u32 {
        let memory = self.server.hypervisor().memory();
        let mut bytes = [0; PAGE];
        let mut differ = self.wrong + self.reader.lost();
        for (gfn, page) in &self.pages {
            let at = GuestAddress(Gfn(*gfn).0 << 12);
            if GuestRam::read(&*memory, at, &mut bytes).is_err() {
                differ += PAGE as u64;
                continue;
            }
            let pairs = bytes.iter().zip(&page.bytes[..]);
            differ += pairs.filter(|(is, was)| is != was).count() as u64;
        }
        u32::try_from(differ).unwrap_or(FAILED - 1)
    }
}
