// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tables that two vCPUs write: an address space that a pair of drivers owns together.
//!
//! Both write entries of one page table in the same moment, each its own; while one goes on writing, the other takes the table
//! away from under it, by clearing the directory's entry or by ending the whole address space. So the page is to be unmarked
//! while a vCPU writes to it. Some rounds later the table is linked again, as it is by now, and what the GPU reads through it is
//! compared.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use crate::driver::Driver;
use crate::meeting::Meeting;
use crate::pen::{PRESENT, Pen, WRITABLE};
use crate::roots::Root;
use crate::submission::Command;
use crate::vcpu::Vcpu;

/// Tables that are written in turn; each is 2 MiB of GPU addresses. An odd number, so that each side takes each of them.
const TABLES: usize = 7;
/// Rounds until a table that was taken away is linked again: by then its page has come to rest, and is unmarked. Fewer than
/// tables.
const AWAY: u64 = 3;
/// Entries in use of each, those of one side the even ones, of the other the odd ones.
const ENTRIES: usize = 64;
/// Pages that the tables lead to, and pages that the GPU writes.
const SOURCES: usize = 32;
const TARGETS: usize = 32;
/// GPU address of the latter.
const TARGETS_AT: u64 = (TABLES as u64) << 21;
/// Root, PDP, PD, the targets' table, then the tables, sources and targets.
const FRAMES: usize = 4 + TABLES + SOURCES + TARGETS;
/// Entries that each side writes while both do.
const TOGETHER: u64 = 8;
/// Entries that the writer writes at most until the table is taken away.
const BEFORE: u64 = 512;
/// A round in so many ends the address space; another has the GPU read the table.
const ENDING: u64 = 16;
const READING: u64 = 4;

/// What a pair shares.
#[derive(Debug)]
struct Frames {
    root: u64,
    directory: u64,
    tables: Vec<u64>,
    sources: Vec<u64>,
    targets: Vec<u64>,
}

/// One side of it.
#[derive(Debug)]
pub(crate) struct Shared {
    meeting: Meeting,
    all: Vec<u64>,
    frames: Frames,
    /// What the entries of this side hold, by table and entry; 0 for the other side's.
    written: Vec<[u64; ENTRIES]>,
    round: u64,
    /// Rounds whose tables this side has taken away.
    away: VecDeque<u64>,
}

impl Shared {
    /// For frames in the order of [`FRAMES`].
    fn new(meeting: Meeting, all: Vec<u64>) -> Self {
        let (tables, data) = all[4..].split_at(TABLES);
        let (sources, targets) = data.split_at(SOURCES);
        let mut written = [0; ENTRIES];
        for index in (meeting.side..ENTRIES).step_by(2) {
            written[index] = first_entry(index, sources);
        }
        let frames = Frames {
            root: all[0],
            directory: all[2],
            tables: tables.to_vec(),
            sources: sources.to_vec(),
            targets: targets.to_vec(),
        };
        Shared {
            meeting,
            all,
            frames,
            written: vec![written; TABLES],
            round: 0,
            away: VecDeque::new(),
        }
    }

    fn root(&self) -> Root {
        Root::L4(self.frames.root)
    }

    /// A table that has been away for long enough.
    fn due(&mut self) -> Option<usize> {
        let round = self.round;
        let since = self.away.pop_front_if(|since| *since + AWAY <= round)?;
        Some(number(since))
    }
}

/// Which table a round is about.
fn number(round: u64) -> usize {
    usize::try_from(round).unwrap_or(0) % TABLES
}

/// The entry of `table` in the directory.
fn link(table: u64) -> u64 {
    table << 12 | PRESENT | WRITABLE
}

impl<V: Vcpu> Driver<'_, V> {
    /// Makes the address space with the neighbour, if there is one.
    pub(crate) fn make_shared(&mut self) -> Result<Option<Shared>, V::Fault> {
        let Some(mut meeting) = Meeting::of(self.task.vcpu, self.task.vcpus) else {
            return Ok(None);
        };
        if meeting.side == 0 {
            let frames = self.make_tables()?;
            meeting.tell(self.cpu, &frames)?;
            self.create_root(Root::L4(frames[0]))?;
        }
        meeting.meet(self.cpu)?;
        let frames = meeting.told(self.cpu, FRAMES)?;
        Ok(Some(Shared::new(meeting, frames)))
    }

    /// The tables, filled while nobody looks.
    fn make_tables(&mut self) -> Result<Vec<u64>, V::Fault> {
        let mut frames: Vec<u64> = (0..4 + TABLES).map(|_| self.arena.table()).collect();
        frames.extend((0..SOURCES + TARGETS).map(|_| self.arena.data()));
        let (tables, data) = frames.split_at(4 + TABLES);
        let (sources, targets) = data.split_at(SOURCES);
        self.scribble(sources)?;
        let mut pen = Pen::new(self.cpu, &mut self.random);
        for table in tables {
            pen.clear(*table)?;
        }
        pen.entry(tables[0], 0, link(tables[1]))?;
        pen.entry(tables[1], 0, link(tables[2]))?;
        for (number, table) in (0..).zip(&tables[4..]) {
            pen.entry(tables[2], number, link(*table))?;
            for index in 0..ENTRIES {
                pen.entry(*table, index as u64, first_entry(index, sources))?;
            }
        }
        pen.entry(tables[2], TABLES as u64, link(tables[3]))?;
        for (index, frame) in (0..).zip(targets) {
            pen.entry(tables[3], index, link(*frame))?;
        }
        Ok(frames)
    }

    /// Has as many rounds behind it in the end as the share of submissions that is done.
    pub(crate) fn shared_rounds(&mut self, due: u64) -> Result<(), V::Fault> {
        let Some(mut shared) = self.shared.take() else {
            return Ok(());
        };
        while shared.round < due {
            self.shared_round(&mut shared)?;
            shared.round += 1;
            self.done.rounds += 1;
        }
        self.shared = Some(shared);
        Ok(())
    }

    fn shared_round(&mut self, shared: &mut Shared) -> Result<(), V::Fault> {
        let round = shared.round;
        let number = number(round);
        let ends = round % ENDING == ENDING - 1;
        let writes = round % 2 == shared.meeting.side as u64;
        shared.meeting.meet(self.cpu)?;
        for _ in 0..TOGETHER {
            self.write_shared(shared, number)?;
        }
        let root = shared.root();
        let directory = shared.frames.directory << 12;
        let at = |number: usize| directory + 8 * number as u64;
        if writes {
            shared.meeting.begun(self.cpu, round)?;
            let mut after = 0;
            for _ in 0..BEFORE + self.task.after {
                self.write_shared(shared, number)?;
                after += u64::from(shared.meeting.is_taken(self.cpu, round)?);
                if after >= self.task.after {
                    break;
                }
            }
        } else {
            shared.meeting.await_begun(self.cpu, round)?;
            match ends {
                true => self.destroy_root(root)?,
                false => self.cpu.store64(at(number), 0)?,
            }
            shared.meeting.taken(self.cpu, round)?;
        }
        shared.meeting.meet(self.cpu)?;
        self.check_shared(shared, number)?;
        match (writes, ends) {
            (true, _) => {}
            (false, true) => self.create_root(root)?,
            (false, false) => shared.away.push_back(round),
        }
        if let Some(number) = shared.due() {
            self.cpu
                .store64(at(number), link(shared.frames.tables[number]))?;
            if round % READING < 2 {
                self.read_shared(shared, number)?;
            }
        }
        Ok(())
    }

    /// Leads one entry of this side's elsewhere.
    fn write_shared(&mut self, shared: &mut Shared, number: usize) -> Result<(), V::Fault> {
        let index = 2 * self.random.usize(..ENTRIES / 2) + shared.meeting.side;
        let frame = shared.frames.sources[self.random.usize(..SOURCES)];
        let entry = frame << 12 | PRESENT;
        let table = shared.frames.tables[number];
        Pen::new(self.cpu, &mut self.random).entry(table, index as u64, entry)?;
        shared.written[number][index] = entry;
        self.done.shared_writes += 1;
        Ok(())
    }

    /// Whether this side's entries are in memory as they were written, whatever became of the page's type meanwhile.
    fn check_shared(&mut self, shared: &Shared, number: usize) -> Result<(), V::Fault> {
        for index in (shared.meeting.side..ENTRIES).step_by(2) {
            let at = (shared.frames.tables[number] << 12) + 8 * index as u64;
            if self.cpu.load64(at)? != shared.written[number][index] {
                self.wrong("an entry of a shared table is not what was written last");
            }
        }
        Ok(())
    }

    /// Has the GPU copy what the table leads to, and compares page by page. The other side waits to meet, or is at something else.
    fn read_shared(&mut self, shared: &Shared, number: usize) -> Result<(), V::Fault> {
        let pages = self.random.usize(1..=TARGETS);
        let first = self.random.usize(..=ENTRIES - pages);
        self.command(&Command {
            root: shared.root(),
            from: ((number as u64) << 21) + ((first as u64) << 12),
            to: TARGETS_AT,
            length: (pages as u64) << 12,
            fill: None,
        })?;
        let table = shared.frames.tables[number] << 12;
        let (mut got, mut expected) = (vec![0; 4096], vec![0; 4096]);
        for (index, target) in (first as u64..).take(pages).zip(&shared.frames.targets) {
            let entry = self.cpu.load64(table + 8 * index)?;
            self.cpu.read(entry & !0xfff, &mut expected)?;
            self.cpu.read(target << 12, &mut got)?;
            self.compare(&got, &expected);
        }
        Ok(())
    }

    /// Ends it.
    pub(crate) fn end_shared(&mut self) -> Result<(), V::Fault> {
        let Some(mut shared) = self.shared.take() else {
            return Ok(());
        };
        shared.meeting.meet(self.cpu)?;
        if shared.meeting.side == 0 {
            self.destroy_root(shared.root())?;
            let (tables, data) = shared.all.split_at(4 + TABLES);
            tables
                .iter()
                .for_each(|frame| self.arena.free_table(*frame));
            data.iter().for_each(|frame| self.arena.free_data(*frame));
        }
        Ok(())
    }
}

/// What an entry holds at first.
fn first_entry(index: usize, sources: &[u64]) -> u64 {
    sources[index % SOURCES] << 12 | PRESENT
}
