// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadow tables under a guest that writes its tables as it likes: after a submission each address leads where the guest's own tables
//! lead. Tables of one level each are shadowed exactly; garbage (loops, aliases, tables of two levels, too many) shows the scratch page
//! where it cannot be, and nothing that is not there.

mod world;

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use ioreq_backends::vgpu::{OutOfSync, Root, RootId};
use ioreq_core::{ErrorKind, Gfn, Width};

use crate::script::Script;
use world::{DISTANCE, Walked, World};

/// The address spaces that come and go; they share tables below their roots.
const SPACES: [Root; 4] = [
    Root::L4(Gfn(1)),
    Root::L4(Gfn(13)),
    Root::L3([Some(Gfn(4)), None, Some(Gfn(5)), Some(Gfn(6))]),
    Root::L4(Gfn(1 << 30)),
];
/// Pages that hold tables.
const TABLES: u64 = 16;
/// Pages of the guest: so many that some large ones are mapped.
const PAGES: u64 = 1024;

/// One input.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let shape = script.take::<u8>();
    let (ordered, scarce) = (shape & 1 == 0, shape & 6 == 6);
    let policy = match NonZeroU32::new(u32::from(shape >> 4 & 3)) {
        Some(after) => OutOfSync::after(after),
        None => OutOfSync::off(),
    };
    let world = World::new((TABLES, PAGES), |builder| {
        let builder = match scarce {
            true => builder.most_tables(5).most_roots(2),
            false => builder,
        };
        assert!(!format!("{builder:?}").is_empty());
        builder.out_of_sync(policy)
    });
    let mut run = Run {
        world,
        open: [None; 4],
        ordered,
        scarce,
        half: 0,
        mixed: false,
    };
    if shape & 8 != 0 {
        for (table, entry) in [(1, 0x2003), (13, 0x3003), (2, 0x4003), (4, 0x7003)] {
            run.world.entry(table, 0, entry);
        }
        run.toggle(0);
        run.toggle(2);
    }
    for _ in 0..160 {
        if script.is_over() {
            break;
        }
        run.step(&mut script);
    }
    run.end();
}

struct Run {
    world: World,
    open: [Option<RootId>; 4],
    /// Each table has one level.
    ordered: bool,
    /// Few tables, few address spaces.
    scarce: bool,
    half: u64,
    /// Some entry led to a table of another level than its page has: bytes of two entries in one.
    mixed: bool,
}

/// The level of a page that is a table, and whether it is one of 64 KiB pages.
fn level(table: u64) -> Option<(u8, bool)> {
    match table {
        1 | 13 => Some((4, false)),
        2 | 3 => Some((3, false)),
        4..=6 => Some((2, false)),
        7..=10 => Some((1, false)),
        11 | 12 => Some((1, true)),
        _ => None,
    }
}

/// Whether `entry` of `table` leads to a table of another level than its page has.
fn is_mixed(table: u64, entry: u64) -> bool {
    let Some((above, _)) = level(table) else {
        return false;
    };
    let is_page = above == 1 || (above < 4 && entry & 0x80 != 0);
    if entry & 1 == 0 || is_page {
        return false;
    }
    let meant = (above - 1, above == 2 && entry & 0x800 != 0);
    level(entry >> 12 & 0x3_ffff_ffff).is_some_and(|level| level != meant)
}

/// An entry as it is meant: see [`level`].
fn entry(script: &mut Script, table: u64) -> u64 {
    let flags = script.one_of(&[3, 3, 3, 1, 0, 3]);
    let to = script.take::<u8>();
    let pick = |first: u64, n: u64| (first + u64::from(to) % n) << 12;
    match table {
        1 | 13 => pick(2, 2) | flags,
        2 | 3 => match to >> 6 {
            3 => 0x80 | flags | pick(0, 4) << 18,
            _ => pick(4, 3) | flags,
        },
        4..=6 => match to >> 6 {
            0 => flags | 0x80 | u64::from(to & 3) << 21,
            1 => pick(11, 2) | 0x800 | flags,
            _ => pick(7, 4) | flags,
        },
        _ => {
            let frame = [u64::from(to), PAGES - 8 + u64::from(to & 15), 1 << 33];
            frame[usize::from(to % 3)] << 12 | flags
        }
    }
}

fn index(script: &mut Script) -> u64 {
    script.one_of(&[0, 1, 2, 16, 511, 0])
}

impl Run {
    fn step(&mut self, script: &mut Script) {
        let what = script.take::<u8>();
        let table = 1 + u64::from(what >> 4) % 13;
        match what & 15 {
            0..=5 => {
                let value = match self.ordered {
                    true => entry(script, table),
                    false => match script.take::<u8>() {
                        to @ 0..0x80 => u64::from(to & 31) << 12 | u64::from(to >> 5) | 1,
                        // A table of 64 KiB pages, which is another level to the shadow.
                        to @ 0x80..0xc0 => u64::from(to & 31) << 12 | 0x803,
                        _ => script.take(),
                    },
                };
                let at = (table << 12) + index(script) * 8;
                match script.below(8) {
                    0 => self.write(at, Width::B4, value & 0xffff_ffff),
                    1 => self.write(at + 4, Width::B4, value >> 32),
                    2 => self.write(at + script.below(7), Width::B2, value & 0xffff),
                    3 => {
                        self.write(at + 4, Width::B4, value >> 32);
                        self.write(at, Width::B4, value & 0xffff_ffff);
                    }
                    4 => self.write(at + script.below(8), Width::B1, value & 0xff),
                    5 if at % 4096 < 4088 => {
                        self.half += 1;
                        self.write(at + 4, Width::B8, value);
                    }
                    _ => self.write(at, Width::B8, value),
                }
            }
            6 | 7 => {
                let table = if self.ordered { 7 + table % 6 } else { table };
                let frame = script.below(PAGES);
                for index in 0..4 {
                    self.world
                        .entry(table, index * 16, (frame + index) << 12 | 3);
                }
            }
            8..=10 => self.submit(usize::from(what >> 4 & 3), script),
            11 => self.toggle(usize::from(what >> 4 & 3)),
            12 => {
                let mut refuse = self.world.tracker.refuse.lock().expect("nobody panicked");
                refuse.insert(table);
            }
            13 => {
                let stick = what & 16 != 0;
                let tracker = &self.world.tracker;
                tracker.never_leaves.store(stick, Ordering::Relaxed);
            }
            14 => self.change_grain(4 + table % 3, index(script)),
            _ => self.relent(),
        }
    }

    /// A vCPU's store to a table.
    fn write(&mut self, at: u64, width: Width, value: u64) {
        self.world.write(at, width, value);
        let (table, last) = (at >> 12, at + width.size() as u64 - 1);
        self.mixed |= (at % 4096 / 8..=last % 4096 / 8).any(|index| {
            let entry = self.world.ram.entry(table, index);
            entry.is_some_and(|entry| is_mixed(table, entry))
        });
    }

    /// What an entry leads to becomes a table of 64 KiB pages, or one of 4 KiB pages again: another level to the shadow.
    fn change_grain(&self, table: u64, index: u64) {
        let Some(entry) = self.world.ram.entry(table, index) else {
            return;
        };
        if !self.ordered && entry & 0x81 == 1 {
            self.world.entry(table, index, entry ^ 0x800);
        }
    }

    fn relent(&self) {
        let mut refuse = self.world.tracker.refuse.lock().expect("nobody panicked");
        refuse.clear();
    }

    fn toggle(&mut self, number: usize) {
        if let Some(id) = self.open[number].take() {
            self.world.shadow.destroy(id).expect("it is there");
            assert!(self.world.shadow.destroy(id).is_err(), "it is gone");
            return;
        }
        let root = SPACES[number];
        let created = self.world.shadow.create(root);
        let bears = self.ordered && !self.scarce && !self.world.tracker.refuses();
        match created {
            Ok(id) => {
                assert_ne!(number, 3, "a root outside of memory");
                assert_eq!(self.world.shadow.find(root), Some(id));
                self.open[number] = Some(id);
            }
            // A table of one address space is refused as the root of another, if bytes of two entries made it one.
            Err(err) if self.mixed => {
                assert!(!bears || err.kind() == ErrorKind::InvalidArgument, "{err}");
            }
            Err(err) => assert!(!bears || number == 3, "{err}"),
        }
        if let Root::L3([Some(gfn), ..]) = root {
            let found = self.world.shadow.find_l3(gfn).map(|(id, _)| id);
            assert_eq!(found, self.open[number]);
        }
        let open = self.open.iter().flatten().count();
        assert_eq!(self.world.shadow.roots().len(), open);
    }

    fn submit(&mut self, number: usize, script: &mut Script) {
        let Some(id) = self.open[number] else { return };
        self.world.shadow.submit(id);
        for _ in 0..4 {
            let at = [index(script), index(script), index(script), index(script)];
            self.check(number, id, address(number, at));
        }
    }

    /// What an address leads to, after a submission.
    fn check(&self, number: usize, id: RootId, addr: u64) {
        let expected = self.world.walk(SPACES[number], addr);
        // Bytes of two entries may have made a page a table of two levels after all.
        let clashes = self.world.shadow.stats().clashes;
        let exact = clashes == 0
            && self.ordered
            && !self.scarce
            && !self.world.tracker.refuses()
            && self.half == 0;
        let found = self.world.shadow.lookup(id, addr);
        match found {
            // Else it stands for what is there and cannot be shown, or leads nowhere.
            Ok(target) if target.scratch => {
                assert!(!exact || expected == Walked::Bad, "{addr:#x}: {expected:?}");
            }
            Ok(target) => {
                let page = Walked::Page {
                    addr: target.host.0 - DISTANCE,
                    writable: target.writable,
                };
                assert_eq!(page, expected, "{addr:#x}");
            }
            Err(fault) => {
                assert!(!fault.to_string().is_empty());
                assert_eq!(expected, Walked::Nothing, "{addr:#x}: {fault}");
            }
        }
    }

    fn end(mut self) {
        self.relent();
        for number in 0..3 {
            let Some(id) = self.open[number] else {
                continue;
            };
            self.world.shadow.submit(id);
            // All that is mapped; at most some, of those that a guest can map a million times.
            for (addr, _) in self.world.shadow.mappings(id).into_iter().take(2048) {
                self.check(number, id, addr);
            }
        }
        let stats = self.world.shadow.stats();
        assert!(!format!("{:?}", self.world.shadow).is_empty());
        let tracked = self.world.tracker.tracked();
        assert_eq!(
            tracked,
            stats.tables - stats.out_of_sync_now,
            "tracked is what is in sync"
        );
        if self.scarce {
            assert!(stats.tables <= 5);
        }
        for number in 0..3 {
            if self.open[number].is_some() {
                self.toggle(number);
            }
        }
        let stats = self.world.shadow.stats();
        assert_eq!((stats.tables, stats.out_of_sync_now), (0, 0));
        assert_eq!(self.world.tracker.tracked(), 0, "left behind");
    }
}

/// From an index of each level.
fn address(number: usize, [top, second, third, last]: [u64; 4]) -> u64 {
    match SPACES[number] {
        Root::L4(_) => top << 39 | second << 30 | third << 21 | last << 12,
        Root::L3(_) => (second & 3) << 30 | third << 21 | last << 12,
    }
}
