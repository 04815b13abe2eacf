// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest's GPU driver, as a program on one vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ioreq::sim::{Cpu, CpuFault};
use ioreq::{GuestRam, VcpuId, Width};
use vm_memory::GuestAddress;

use crate::checker::SharedTally;
use crate::common::Common;
use crate::context::{Buffer, Context, Kind, Pen};
use crate::frames::Arena;
use crate::roots::{Root, Shape};

/// Guest-physical address of the PVINFO page: offset 0x78000 of a BAR at 0xe000_0000.
pub(crate) const PVINFO: u64 = 0xe007_8000;
/// Guest-physical address of the engine's page.
pub(crate) const ENGINE: u64 = 0xe008_0000;
/// First frame of the 1 GiB aperture.
pub(crate) const APERTURE: u64 = 1 << 20;
/// Frames of a context's slice of the aperture.
const SLICE: u64 = 64;
/// Slices of one driver: 16 drivers with 256 fill the 1 GiB.
const SLICES: u64 = 256;

/// The guest's lock around PVINFO's registers.
const LOCK: u64 = 0x8_0000;

/// Registers of PVINFO, by the driver's names. The version is two halves: major 1, minor 0.
const VERSION: u64 = 0x008;
const VGT_CAPS: u64 = 0x010;
const FULL_PPGTT: u32 = 1 << 2;
const PDP0: u64 = 0x838;
const G2V_NOTIFY: u64 = 0x818;
const L3_CREATE: u32 = 2;
const L3_DESTROY: u32 = 3;
const L4_CREATE: u32 = 4;
const L4_DESTROY: u32 = 5;
const MAGIC: u64 = 0x4776_5447_7654_4776;

/// What a driver is given.
pub(crate) struct Task {
    pub(crate) vcpu: VcpuId,
    pub(crate) contexts: u32,
    pub(crate) submissions: u64,
    pub(crate) seed: u64,
    pub(crate) arena: Arena,
    pub(crate) ram: Arc<dyn GuestRam>,
    pub(crate) tally: SharedTally,
    pub(crate) progress: Arc<AtomicU64>,
    /// Contexts alive now, over all drivers, and the most there were.
    pub(crate) alive: Arc<(AtomicU64, AtomicU64)>,
}

/// What it did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Done {
    /// 48-bit contexts.
    pub(crate) wide_created: u64,
    /// 32-bit contexts.
    pub(crate) narrow_created: u64,
    /// Those of either kind that stream.
    pub(crate) streams_created: u64,
    pub(crate) tables_freed: u64,
    pub(crate) tables_reused: u64,
    pub(crate) moved: u64,
    /// Entries of windows that were led elsewhere.
    pub(crate) window_writes: u64,
    /// Times a page table that contexts share was written.
    pub(crate) common_turns: u64,
    /// How long the windows' writes took the vCPU.
    pub(crate) window_time: Duration,
}

pub(crate) struct Driver<'a> {
    pub(crate) cpu: &'a mut Cpu,
    pub(crate) task: Task,
    pub(crate) random: fastrand::Rng,
    pub(crate) contexts: Vec<Context>,
    pub(crate) done: Done,
    pub(crate) fence: u64,
    /// Slices of the aperture that no context has.
    slices: Vec<u64>,
    /// A page that fences are written to.
    pub(crate) fence_frame: u64,
    /// What the contexts share; there from the first one on.
    pub(crate) common: Option<Common>,
}

/// Runs the driver to its end.
pub(crate) fn run(cpu: &mut Cpu, mut task: Task) -> Result<Done, CpuFault> {
    let random = fastrand::Rng::with_seed(task.seed);
    let fence_frame = task.arena.data();
    let mut driver = Driver {
        cpu,
        task,
        random,
        contexts: Vec::new(),
        done: Done::default(),
        fence: 0,
        slices: (0..SLICES).collect(),
        fence_frame,
        common: None,
    };
    if driver.cpu.load64(PVINFO)? != MAGIC {
        driver.task.tally.wrong("PVINFO has no magic");
    }
    let version = driver.cpu.load32(PVINFO + VERSION)?;
    let caps = driver.cpu.load32(PVINFO + VGT_CAPS)?;
    if version != 1 || caps & FULL_PPGTT == 0 {
        driver
            .task
            .tally
            .wrong("PVINFO is not of version 1.0, or offers no 48-bit PPGTT");
    }
    driver.common = Some(driver.make_common()?);
    for number in 0..driver.task.contexts {
        // Drivers start at different shapes, so that even few contexts are not all alike.
        driver.create(Shape::of(
            u64::from(number) + 3 * u64::from(driver.task.vcpu.0),
        ))?;
    }
    for number in 0..driver.task.submissions {
        driver.change(number)?;
        driver.submit()?;
        driver.task.progress.fetch_add(1, Ordering::Relaxed);
    }
    while !driver.contexts.is_empty() {
        driver.destroy(0)?;
    }
    if let Some(common) = driver.common.take() {
        driver.task.arena.free_table(common.table);
        driver.free(common.buffer);
    }
    driver.done.tables_freed = driver.task.arena.tables_freed;
    driver.done.tables_reused = driver.task.arena.tables_reused;
    Ok(driver.done)
}

impl Driver<'_> {
    /// Tells the mediator about a root. The registers are one set for all vCPUs, so the guest's driver locks them.
    fn notify(&mut self, root: Root, what: u32) -> Result<(), CpuFault> {
        while self.cpu.xchg(LOCK, Width::B4, 1)? != 0 {
            std::thread::yield_now();
        }
        for (number, pointer) in (0..).zip(root.pointers()) {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "the two halves of the register"
            )]
            let (low, high) = (pointer as u32, (pointer >> 32) as u32);
            self.cpu.store32(PVINFO + PDP0 + 8 * number, low)?;
            self.cpu.store32(PVINFO + PDP0 + 8 * number + 4, high)?;
        }
        self.cpu.store32(PVINFO + G2V_NOTIFY, what)?;
        self.cpu.store32(LOCK, 0)
    }

    fn create(&mut self, shape: Shape) -> Result<(), CpuFault> {
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        let slice = self.slices.pop().expect("a slice for each context");
        let context = Context::new(shape, &mut pen, &mut self.task.arena, slice)?;
        let root = context.root;
        self.contexts.push(context);
        let create = match root {
            Root::L4(_) => L4_CREATE,
            Root::L3(_) => L3_CREATE,
        };
        self.notify(root, create)?;
        let (now, most) = &*self.task.alive;
        most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.done.wide_created += u64::from(!shape.narrow);
        self.done.narrow_created += u64::from(shape.narrow);
        self.done.streams_created += u64::from(shape.streams);
        let last = self.contexts.len() - 1;
        for kind in [Kind::Small, Kind::Medium, Kind::Large] {
            self.map_new(last, kind)?;
        }
        if !shape.narrow {
            self.map_new(last, Kind::Huge)?;
        }
        if shape.streams {
            self.map_new(last, Kind::Window)?;
        }
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        if let Some(common) = &self.common {
            self.contexts[last].link_common(&mut pen, &mut self.task.arena, common)?;
        }
        Ok(())
    }

    fn destroy(&mut self, at: usize) -> Result<Shape, CpuFault> {
        let context = self.contexts.swap_remove(at);
        let destroy = match context.root {
            Root::L4(_) => L4_DESTROY,
            Root::L3(_) => L3_DESTROY,
        };
        self.notify(context.root, destroy)?;
        self.task.alive.0.fetch_sub(1, Ordering::Relaxed);
        self.slices.push(context.slice);
        let shape = context.shape;
        let buffers = context.release(&mut self.task.arena).into_iter();
        for buffer in buffers.filter(|buffer| buffer.kind != Kind::Common) {
            self.free(buffer);
        }
        Ok(shape)
    }

    fn free(&mut self, buffer: Buffer) {
        match buffer.kind {
            Kind::Small | Kind::Window | Kind::Common => buffer
                .frames
                .into_iter()
                .for_each(|frame| self.task.arena.free_data(frame)),
            Kind::Medium | Kind::Large => {
                let first = buffer.frames[0];
                self.task.arena.free_big(first - first % 512);
            }
            Kind::Huge => {}
        }
    }

    fn map_new(&mut self, at: usize, kind: Kind) -> Result<(), CpuFault> {
        let frames: Vec<u64> = match kind {
            Kind::Small => (0..self.random.u64(16..=64))
                .map(|_| self.task.arena.data())
                .collect(),
            Kind::Window => (0..512).map(|_| self.task.arena.data()).collect(),
            Kind::Common => unreachable!("made once, and linked"),
            Kind::Medium | Kind::Large => {
                let Some(first) = self.task.arena.big() else {
                    return Ok(());
                };
                let frames = if kind == Kind::Medium {
                    16 * self.random.u64(2..=8)
                } else {
                    128
                };
                (first..first + frames).collect()
            }
            Kind::Huge => {
                // The page is everybody's; of the memory behind it each context has a slice.
                let slice = u64::from(self.task.vcpu.0) * SLICES + self.contexts[at].slice;
                let first = APERTURE + slice * SLICE;
                std::iter::once(APERTURE).chain(first..first + 32).collect()
            }
        };
        let data = if kind == Kind::Huge {
            &frames[1..]
        } else {
            &frames[..]
        };
        let bytes = self.scribble(data)?;
        let context = &mut self.contexts[at];
        let mut buffer = Buffer {
            kind,
            at: context.place(kind),
            frames,
            bytes,
        };
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        context.map(&mut pen, &mut self.task.arena, &buffer)?;
        if kind == Kind::Huge {
            let first = buffer.frames.remove(0);
            buffer.at += (buffer.frames[0] - first) << 12;
        }
        context.buffers.push(buffer);
        Ok(())
    }

    /// Puts something into every page, by the vCPU's own stores, and reads what is there then.
    pub(crate) fn scribble(&mut self, frames: &[u64]) -> Result<Vec<u8>, CpuFault> {
        let mut bytes = vec![0; frames.len() * 4096];
        for (frame, page) in frames.iter().zip(bytes.chunks_exact_mut(4096)) {
            for _ in 0..4 {
                let at = (frame << 12) + self.random.u64(..512) * 8;
                let value = self.random.u64(..);
                self.cpu.store64(at, value)?;
                if self.cpu.load64(at)? != value {
                    self.task.tally.wrong("a store to data was lost");
                }
            }
            if self.task.ram.read(GuestAddress(frame << 12), page).is_err() {
                self.task.tally.wrong("data outside memory");
            }
        }
        Ok(bytes)
    }

    /// Changes something about a random context.
    fn change(&mut self, number: u64) -> Result<(), CpuFault> {
        let at = self.random.usize(..self.contexts.len());
        if number % 200 == 199 {
            let shape = self.destroy(at)?;
            return self.create(shape);
        }
        if number % 32 == 13 {
            self.turn_common()?;
        }
        let stays =
            |buffer: &Buffer| matches!(buffer.kind, Kind::Huge | Kind::Window | Kind::Common);
        let movable: Vec<usize> = (0..self.contexts[at].buffers.len())
            .filter(|buffer| !stays(&self.contexts[at].buffers[*buffer]))
            .collect();
        if number % 16 == 7
            && let Some(which) = movable
                .iter()
                .find(|which| self.contexts[at].buffers[**which].kind == Kind::Small)
        {
            let buffer = self.contexts[at].buffers[*which].clone();
            let mut pen = Pen {
                cpu: self.cpu,
                random: &mut self.random,
            };
            self.contexts[at].storm(&mut pen, &buffer)?;
        }
        let full = movable.len() >= 6;
        match self.random.u8(..10) {
            0..4 if !full => {
                let kind =
                    [Kind::Small, Kind::Small, Kind::Medium, Kind::Large][self.random.usize(..4)];
                self.map_new(at, kind)
            }
            4..7 if movable.len() > 2 => {
                let which = movable[self.random.usize(..movable.len())];
                let context = &mut self.contexts[at];
                let buffer = context.buffers.swap_remove(which);
                let mut pen = Pen {
                    cpu: self.cpu,
                    random: &mut self.random,
                };
                context.unmap(&mut pen, &mut self.task.arena, &buffer)?;
                self.free(buffer);
                Ok(())
            }
            _ if !movable.is_empty() => {
                let which = movable[self.random.usize(..movable.len())];
                self.move_buffer(at, which)
            }
            _ => Ok(()),
        }
    }

    /// Maps a buffer elsewhere, then unmaps it where it was.
    fn move_buffer(&mut self, at: usize, which: usize) -> Result<(), CpuFault> {
        let context = &mut self.contexts[at];
        let mut buffer = context.buffers.swap_remove(which);
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        context.unmap(&mut pen, &mut self.task.arena, &buffer)?;
        buffer.at = context.place(buffer.kind);
        context.map(&mut pen, &mut self.task.arena, &buffer)?;
        context.buffers.push(buffer);
        self.done.moved += 1;
        Ok(())
    }
}
