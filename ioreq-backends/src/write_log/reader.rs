// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The reader's side.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::sync::Parker;

use super::WriteRecord;
use super::ring::Ring;

/// Reads a [`WriteLog`](super::WriteLog). There is one reader a log.
///
/// As an iterator it waits for the next record, and ends when the log is [closed](super::WriteLog::close), or nobody can write
/// any more: the log, its clones and all its handlers are gone.
///
/// ```
/// use ioreq_backends::write_log::WriteLog;
/// let (log, mut reader) = WriteLog::new(64)?;
/// let printer = std::thread::spawn(move || {
///     for record in &mut reader {
///         println!("{record}");
///     }
///     reader.lost()
/// });
/// drop(log);
/// assert_eq!(printer.join().unwrap(), 0);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub struct LogReader {
    ring: Arc<Ring>,
    parker: Parker,
}

impl LogReader {
    pub(super) fn new(ring: Arc<Ring>, parker: Parker) -> Self {
        LogReader { ring, parker }
    }

    /// The next record, if there is one now. Never waits.
    pub fn try_next(&mut self) -> Option<WriteRecord> {
        self.ring.take()
    }

    /// The records that are there now. Bounded by the ring's capacity: it ends however fast the guest writes.
    pub fn drain(&mut self) -> Drain<'_> {
        Drain {
            left: self.ring.len(),
            reader: self,
        }
    }

    /// The next record; waits for it, up to `longest`. `None` when that is over, or the log is closed.
    pub fn next_within(&mut self, longest: Duration) -> Option<WriteRecord> {
        self.wait(Instant::now().checked_add(longest))
    }

    /// Whether the log is closed. Records may be left.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed()
    }

    /// Records lost so far, because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.ring.lost()
    }

    /// Waits until there is a record, the log is closed, or it is `until`; without `until`, as long as it takes.
    fn wait(&mut self, until: Option<Instant>) -> Option<WriteRecord> {
        loop {
            if let Some(record) = self.ring.take() {
                return Some(record);
            }
            self.ring.prepare_to_sleep();
            // Closed first, then the records: those that were put before the closing are seen.
            let closed = self.ring.is_closed();
            let record = self.ring.take();
            if record.is_some() || closed {
                self.ring.awake();
                return record;
            }
            match until {
                None => self.parker.park(),
                Some(until) => {
                    self.parker.park_deadline(until);
                    if Instant::now() >= until {
                        self.ring.awake();
                        return self.ring.take();
                    }
                }
            }
            self.ring.awake();
        }
    }
}

impl Iterator for LogReader {
    type Item = WriteRecord;

    fn next(&mut self) -> Option<WriteRecord> {
        self.wait(None)
    }
}

impl fmt::Debug for LogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

/// The records that were there when it was made. See [`LogReader::drain`].
///
/// ```
/// use ioreq_backends::write_log::WriteLog;
/// let (_log, mut reader) = WriteLog::new(64)?;
/// assert_eq!(reader.drain().count(), 0); // nothing there, and it does not wait
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Drain<'a> {
    reader: &'a mut LogReader,
    left: usize,
}

impl Iterator for Drain<'_> {
    type Item = WriteRecord;

    fn next(&mut self) -> Option<WriteRecord> {
        self.left = self.left.checked_sub(1)?;
        self.reader.try_next()
    }
}
