// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Write log: order and numbers of a page's writes, losses, the reader's ways to wait and to end.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ioreq_backends::write_log::{LogReader, WriteLog, WriteRecord};
use ioreq_core::claim::{MarkError, PageState, PageTracker};
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, Verdict, WriteSource};
use ioreq_core::memory::MappedRegion;
use ioreq_core::{DomId, Error, ErrorKind, Gfn, GfnRange, Op, Result, VcpuId, Width};
use vm_memory::{GuestAddress, GuestRegionCollection};

fn pages(first: u64, count: u64) -> GfnRange {
    GfnRange::sized(first, count).unwrap()
}

/// One write, as a vCPU's.
fn write_as(
    handler: &dyn PageHandler,
    vcpu: u32,
    addr: u64,
    width: Width,
    value: u64,
) -> PageOutcome {
    let ram = GuestRegionCollection::<MappedRegion>::new();
    let cx = Context::detached(DomId(1), VcpuId(vcpu), &ram);
    let source = WriteSource::Trapped;
    let write = PageWrite::new(GuestAddress(addr), width, value, source, &ram).unwrap();
    handler.write(&cx, &write)
}

fn numbers(reader: &mut LogReader) -> Vec<(u64, u64)> {
    let drain = reader.drain();
    drain
        .map(|record| (record.gfn.0, record.sequence))
        .collect()
}

#[test]
fn a_record_says_everything_about_the_write() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let handler = log.handler(pages(5, 1)).unwrap();
    let ram = GuestRegionCollection::<MappedRegion>::new();
    let cx = Context::detached(DomId(1), VcpuId(3), &ram);
    let write = PageWrite::new(
        GuestAddress(0x5ff8),
        Width::B8,
        u64::MAX,
        WriteSource::Dma,
        &ram,
    );
    let outcome = handler.write(&cx, &write.unwrap());
    assert!(matches!(outcome, PageOutcome::Apply), "{outcome:?}");
    assert_eq!(handler.fallback(), Verdict::Apply);
    let expected = WriteRecord {
        gfn: Gfn(5),
        offset: 0xff8,
        width: Width::B8,
        value: u64::MAX,
        vcpu: VcpuId(3),
        source: WriteSource::Dma,
        sequence: 0,
    };
    assert_eq!(reader.try_next(), Some(expected));
    assert_eq!(reader.try_next(), None);
}

#[test]
fn each_page_is_numbered_on_its_own_and_a_loss_leaves_a_gap() {
    let (log, mut reader) = WriteLog::new(3).unwrap();
    let handler = log.handler(pages(8, 2)).unwrap();
    for addr in [0x8000, 0x9000, 0x9008, 0x8008, 0x9010] {
        let _ = write_as(&handler, 0, addr, Width::B1, 1);
    }
    assert_eq!((log.lost(), reader.lost()), (2, 2));
    assert_eq!(numbers(&mut reader), [(8, 0), (9, 0), (9, 1)]);
    let _ = write_as(&handler, 0, 0x8000, Width::B1, 1);
    let _ = write_as(&handler, 0, 0x9000, Width::B1, 1);
    assert_eq!(
        numbers(&mut reader),
        [(8, 2), (9, 3)],
        "8#1 and 9#2 are lost"
    );
    assert_eq!(log.lost(), 2);
}

#[test]
fn a_page_outside_of_the_handlers_range_is_let_through_and_counted() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let handler = log.handler(pages(8, 2)).unwrap();
    for addr in [0x7fff, 0xa000, 0, u64::MAX] {
        let outcome = write_as(&handler, 0, addr, Width::B1, 1);
        assert!(matches!(outcome, PageOutcome::Apply), "{outcome:?}");
    }
    assert_eq!(reader.try_next(), None);
    assert_eq!(log.lost(), 4);
}

#[test]
fn bad_sizes_are_refused() {
    for capacity in [0, WriteLog::MAX_CAPACITY + 1] {
        let err = WriteLog::new(capacity).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument);
        assert!(
            err.to_string().contains(&format!("{capacity} records")),
            "{err}"
        );
    }
    let (log, _reader) = WriteLog::new(1).unwrap();
    let all = GfnRange::new(0, Gfn::MAX.0).unwrap();
    let err = log.handler(all).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::OutOfMemory);
    let err = log.track(&Tracked::default(), all).unwrap_err();
    assert_eq!(
        (err.kind(), err.untouched),
        (ErrorKind::OutOfMemory, vec![all])
    );
}

#[test]
fn a_drain_ends_however_fast_the_guest_writes() {
    let (log, mut reader) = WriteLog::new(8).unwrap();
    let handler = log.handler(pages(0, 1)).unwrap();
    for _ in 0..3 {
        let _ = write_as(&handler, 0, 0, Width::B1, 1);
    }
    let mut seen = 0;
    for _ in reader.drain() {
        seen += 1;
        let _ = write_as(&handler, 0, 0, Width::B1, 1); // one more for each that is read
    }
    assert_eq!(seen, 3);
    assert_eq!(reader.drain().count(), 3);
}

struct Protect;

impl PageHandler for Protect {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Replace(write.value() + 1)
    }
    fn fallback(&self) -> Verdict {
        Verdict::Drop
    }
}

#[test]
fn a_handler_behind_the_log_decides_even_when_the_record_is_lost() {
    let (log, mut reader) = WriteLog::new(1).unwrap();
    let handler = log.handler(pages(0, 1)).unwrap().then(Arc::new(Protect));
    for value in [10, 20] {
        let outcome = write_as(&handler, 0, 0, Width::B4, value);
        assert!(matches!(outcome, PageOutcome::Replace(new) if new == value + 1));
    }
    assert_eq!(handler.fallback(), Verdict::Drop);
    assert_eq!(reader.try_next().map(|record| record.value), Some(10));
    assert_eq!(log.lost(), 1);
}

/// A tracker that keeps what it was given, or fails.
#[derive(Default)]
struct Tracked {
    handlers: Mutex<Vec<(GfnRange, Arc<dyn PageHandler>)>>,
    fails: bool,
}

impl PageTracker for Tracked {
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError> {
        if self.fails {
            return Err(MarkError::new(Error::new(
                Op::Mark,
                ErrorKind::RouteConflict,
            )));
        }
        self.handlers.lock().unwrap().push((pages, handler));
        Ok(())
    }
    fn replace(&self, _: GfnRange, _: Arc<dyn PageHandler>) -> Result<()> {
        Ok(())
    }
    fn untrack(&self, _: GfnRange) -> Result<()> {
        self.handlers.lock().unwrap().clear();
        Ok(())
    }
    fn state(&self, _: Gfn) -> PageState {
        PageState::Untracked
    }
}

#[test]
fn tracking_goes_through_the_tracker_and_keeps_its_error() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let tracker = Tracked::default();
    log.track(&tracker, pages(0x10, 2)).unwrap();
    {
        let handlers = tracker.handlers.lock().unwrap();
        let (range, handler) = &handlers[0];
        assert_eq!(*range, pages(0x10, 2));
        let _ = write_as(&**handler, 0, 0x11_ffc, Width::B4, 9);
    }
    assert_eq!(reader.try_next().map(|record| record.gfn), Some(Gfn(0x11)));
    let failing = Tracked {
        fails: true,
        ..Tracked::default()
    };
    let err = log.track(&failing, pages(1, 1)).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::RouteConflict);
}

#[test]
fn the_reader_ends_when_the_last_writer_goes_and_not_before() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let tracker = Tracked::default();
    log.track(&tracker, pages(1, 1)).unwrap();
    let (told, tell) = mpsc::channel();
    let ended = std::thread::spawn(move || {
        for record in &mut reader {
            told.send(record.value).unwrap();
        }
        reader.is_closed()
    });
    drop(log);
    {
        let handlers = tracker.handlers.lock().unwrap();
        let _ = write_as(&*handlers[0].1, 0, 0x1000, Width::B1, 77);
    }
    assert_eq!(
        tell.recv(),
        Ok(77),
        "the handler of a tracked page still logs"
    );
    tracker.untrack(pages(1, 1)).unwrap();
    assert!(ended.join().unwrap());
    assert!(tell.recv().is_err());
}

#[test]
fn a_closed_log_ends_for_its_reader_while_handlers_still_let_writes_through() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let handler = log.handler(pages(0, 1)).unwrap();
    let _ = write_as(&handler, 0, 0, Width::B1, 1);
    log.close();
    assert!(reader.is_closed());
    assert_eq!(reader.next().map(|record| record.value), Some(1));
    assert_eq!(reader.next(), None);
    let outcome = write_as(&handler, 0, 0, Width::B1, 2);
    assert!(matches!(outcome, PageOutcome::Apply), "{outcome:?}");
    // A reader that sleeps is woken by closing.
    let (log, reader) = WriteLog::new(4).unwrap();
    let sleeper = std::thread::spawn(move || reader.count());
    log.close();
    assert_eq!(sleeper.join().unwrap(), 0);
}

#[test]
fn records_left_are_read_after_the_end() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let handler = log.handler(pages(0, 1)).unwrap();
    let _ = write_as(&handler, 0, 0, Width::B1, 1);
    let _ = write_as(&handler, 0, 0, Width::B1, 2);
    assert!(!reader.is_closed());
    drop((log, handler));
    assert!(reader.is_closed());
    assert_eq!(
        reader
            .by_ref()
            .map(|record| record.value)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(
        reader.next_within(Duration::MAX),
        None,
        "closed: it does not wait"
    );
}

#[test]
fn a_reader_that_waits_some_time_gives_up_and_still_reads_what_comes() {
    let (log, mut reader) = WriteLog::new(4).unwrap();
    let handler = log.handler(pages(0, 1)).unwrap();
    assert_eq!(reader.next_within(Duration::ZERO), None);
    assert_eq!(reader.next_within(Duration::from_millis(1)), None);
    let _ = write_as(&handler, 0, 0, Width::B1, 5);
    assert_eq!(
        reader
            .next_within(Duration::ZERO)
            .map(|record| record.value),
        Some(5)
    );
}

/// Every record wakes a reader that goes to sleep after each: a wake-up that is lost hangs the test.
#[test]
fn no_wake_up_is_lost() {
    let (log, reader) = WriteLog::new(1).unwrap();
    let handler = log.handler(pages(0, 1)).unwrap();
    let (told, tell) = mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        for record in reader {
            told.send(record.sequence).unwrap();
        }
    });
    for turn in 0..20_000 {
        let _ = write_as(&handler, 0, 0, Width::B1, 1);
        assert_eq!(tell.recv(), Ok(turn));
    }
    drop((handler, log));
    sleeper.join().unwrap();
}

/// Writers of the same page take turns as the framework makes them; pages are written in parallel.
#[test]
fn pages_keep_their_order_while_vcpus_write_in_parallel() {
    const VCPUS: u32 = 4;
    const WRITES: u64 = 5_000;
    const PAGES: usize = 3;
    let (log, reader) = WriteLog::new(64).unwrap();
    let handler = Arc::new(log.handler(pages(0, PAGES as u64)).unwrap());
    // Each page's order, and the value last stored to it.
    let order: Arc<[Mutex<u64>; PAGES]> = Arc::new([const { Mutex::new(0) }; PAGES]);
    let writers: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let (handler, order) = (Arc::clone(&handler), Arc::clone(&order));
            std::thread::spawn(move || {
                for turn in 0..WRITES {
                    let page = (turn + u64::from(vcpu)) % PAGES as u64;
                    let mut value = order[usize::try_from(page).unwrap()].lock().unwrap();
                    *value += 1;
                    let _ = write_as(&*handler, vcpu, page << 12, Width::B8, *value);
                }
            })
        })
        .collect();
    let check = std::thread::spawn(move || {
        let mut reader = reader;
        let mut last = [None; PAGES];
        let mut read = 0;
        for record in &mut reader {
            let last = &mut last[usize::try_from(record.gfn.0).unwrap()];
            assert!(last.is_none_or(|last| last < record.sequence), "{record}");
            assert_eq!(
                record.value,
                record.sequence + 1,
                "number and store disagree"
            );
            *last = Some(record.sequence);
            read += 1;
        }
        (read, reader.lost())
    });
    for writer in writers {
        writer.join().unwrap();
    }
    drop((log, handler));
    let (read, lost) = check.join().unwrap();
    assert_eq!(read + lost, u64::from(VCPUS) * WRITES);
}
