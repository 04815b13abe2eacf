// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest's GPU driver, as a program on one vCPU.

use alloc::vec;
use alloc::vec::Vec;

use crate::arena::Arena;
use crate::common::Common;
use crate::context::{Buffer, Context, Kind};
use crate::layout::{ALIVE, APERTURE, LOCK, MOST_ALIVE, PVINFO, SLICE, SLICES};
use crate::pen::Pen;
use crate::roots::{Root, Shape};
use crate::shared::Shared;
use crate::submission::compared;
use crate::task::{Done, Task};
use crate::vcpu::Vcpu;

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

pub(crate) struct Driver<'a, V> {
    pub(crate) cpu: &'a mut V,
    pub(crate) task: Task,
    pub(crate) arena: Arena,
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
    /// What this driver and its neighbour share.
    pub(crate) shared: Option<Shared>,
}

/// Runs the driver to its end.
///
/// # Errors
/// The vCPU's.
///
/// # Panics
/// If the arena is too small for the contexts.
pub fn run<V: Vcpu>(cpu: &mut V, task: Task) -> Result<Done, V::Fault> {
    let started = cpu.ticks();
    let mut arena = Arena::new(task.arena_first, task.arena_frames);
    let fence_frame = arena.data();
    let mut driver = Driver {
        cpu,
        task,
        arena,
        random: fastrand::Rng::with_seed(task.seed),
        contexts: Vec::new(),
        done: Done::default(),
        fence: 0,
        slices: (0..SLICES).collect(),
        fence_frame,
        common: None,
        shared: None,
    };
    if driver.cpu.load64(PVINFO)? != MAGIC {
        driver.wrong("PVINFO has no magic");
    }
    let version = driver.cpu.load32(PVINFO + VERSION)?;
    let caps = driver.cpu.load32(PVINFO + VGT_CAPS)?;
    if version != 1 || caps & FULL_PPGTT == 0 {
        driver.wrong("PVINFO is not of version 1.0, or offers no 48-bit PPGTT");
    }
    driver.drive()?;
    driver.done.tables_freed = driver.arena.tables_freed;
    driver.done.tables_reused = driver.arena.tables_reused;
    driver.done.interrupts = driver.cpu.interrupts()?;
    driver.done.ticks = driver.cpu.ticks().wrapping_sub(started);
    Ok(driver.done)
}

impl<V: Vcpu> Driver<'_, V> {
    fn drive(&mut self) -> Result<(), V::Fault> {
        self.common = Some(self.make_common()?);
        for number in 0..self.task.contexts {
            // Drivers start at different shapes, so that even few contexts are not all alike.
            self.create(Shape::of(number + 3 * self.task.vcpu))?;
        }
        let Task {
            submissions,
            rounds,
            ..
        } = self.task;
        if rounds > 0 {
            self.shared = self.make_shared()?;
        }
        for number in 0..submissions {
            self.change(number)?;
            self.submit()?;
            self.cpu.progress(number + 1);
            self.shared_rounds((number + 1) * rounds / submissions)?;
        }
        self.shared_rounds(rounds)?;
        self.end_shared()?;
        while !self.contexts.is_empty() {
            self.destroy(0)?;
        }
        if let Some(common) = self.common.take() {
            self.arena.free_table(common.table);
            self.free(common.buffer);
        }
        Ok(())
    }

    /// Counts something that is wrong.
    pub(crate) fn wrong(&mut self, what: &str) {
        self.done.wrong += 1;
        self.cpu.complain(what);
    }

    /// Compares bytes that came back with those expected.
    pub(crate) fn compare(&mut self, got: &[u8], expected: &[u8]) {
        let (done, wrong) = compared(got, expected);
        self.done.bytes += done;
        self.done.wrong_bytes += wrong;
    }

    /// Tells the mediator about a root. The registers are one set for all vCPUs, so the guest's driver locks them.
    fn notify(&mut self, root: Root, what: u32) -> Result<(), V::Fault> {
        while self.cpu.xchg32(LOCK, 1)? != 0 {
            self.cpu.relax()?;
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
        let creates = matches!(what, L3_CREATE | L4_CREATE);
        let alive = self.cpu.load64(ALIVE)?;
        let alive = if creates { alive + 1 } else { alive - 1 };
        self.cpu.store64(ALIVE, alive)?;
        let most = self.cpu.load64(MOST_ALIVE)?;
        self.cpu.store64(MOST_ALIVE, most.max(alive))?;
        self.cpu.store32(LOCK, 0)
    }

    pub(crate) fn create_root(&mut self, root: Root) -> Result<(), V::Fault> {
        let create = match root {
            Root::L4(_) => L4_CREATE,
            Root::L3(_) => L3_CREATE,
        };
        self.notify(root, create)?;
        self.done.wide_created += u64::from(create == L4_CREATE);
        self.done.narrow_created += u64::from(create == L3_CREATE);
        Ok(())
    }

    pub(crate) fn destroy_root(&mut self, root: Root) -> Result<(), V::Fault> {
        self.notify(
            root,
            match root {
                Root::L4(_) => L4_DESTROY,
                Root::L3(_) => L3_DESTROY,
            },
        )
    }

    fn create(&mut self, shape: Shape) -> Result<(), V::Fault> {
        let mut pen = Pen::new(self.cpu, &mut self.random);
        let slice = self.slices.pop().expect("a slice for each context");
        let context = Context::new(shape, &mut pen, &mut self.arena, slice)?;
        let root = context.root;
        self.contexts.push(context);
        self.create_root(root)?;
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
        let mut pen = Pen::new(self.cpu, &mut self.random);
        if let Some(common) = &self.common {
            self.contexts[last].link_common(&mut pen, &mut self.arena, common)?;
        }
        Ok(())
    }

    fn destroy(&mut self, at: usize) -> Result<Shape, V::Fault> {
        let context = self.contexts.swap_remove(at);
        self.destroy_root(context.root)?;
        self.slices.push(context.slice);
        let shape = context.shape;
        let buffers = context.release(&mut self.arena).into_iter();
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
                .for_each(|frame| self.arena.free_data(frame)),
            Kind::Medium | Kind::Large => {
                let first = buffer.frames[0];
                self.arena.free_big(first - first % 512);
            }
            Kind::Huge => {}
        }
    }

    fn map_new(&mut self, at: usize, kind: Kind) -> Result<(), V::Fault> {
        let frames: Vec<u64> = match kind {
            Kind::Small => (0..self.random.u64(16..=64))
                .map(|_| self.arena.data())
                .collect(),
            Kind::Window => (0..512).map(|_| self.arena.data()).collect(),
            Kind::Common => unreachable!("made once, and linked"),
            Kind::Medium | Kind::Large => {
                let Some(first) = self.arena.big() else {
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
                let slice = self.task.vcpu * SLICES + self.contexts[at].slice;
                let first = APERTURE + slice * SLICE;
                core::iter::once(APERTURE)
                    .chain(first..first + 32)
                    .collect()
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
        let mut pen = Pen::new(self.cpu, &mut self.random);
        context.map(&mut pen, &mut self.arena, &buffer)?;
        if kind == Kind::Huge {
            let first = buffer.frames.remove(0);
            buffer.at += (buffer.frames[0] - first) << 12;
        }
        context.buffers.push(buffer);
        Ok(())
    }

    /// Puts something into every page, by the vCPU's own stores, and reads what is there then.
    pub(crate) fn scribble(&mut self, frames: &[u64]) -> Result<Vec<u8>, V::Fault> {
        let mut bytes = vec![0; frames.len() * 4096];
        for (frame, page) in frames.iter().zip(bytes.chunks_exact_mut(4096)) {
            for _ in 0..4 {
                let at = (frame << 12) + self.random.u64(..512) * 8;
                let value = self.random.u64(..);
                self.cpu.store64(at, value)?;
                if self.cpu.load64(at)? != value {
                    self.wrong("a store to data was lost");
                }
            }
            self.cpu.read(frame << 12, page)?;
        }
        Ok(bytes)
    }

    /// Changes something about a random context.
    fn change(&mut self, number: u64) -> Result<(), V::Fault> {
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
            let mut pen = Pen::new(self.cpu, &mut self.random);
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
                let mut pen = Pen::new(self.cpu, &mut self.random);
                context.unmap(&mut pen, &mut self.arena, &buffer)?;
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
    fn move_buffer(&mut self, at: usize, which: usize) -> Result<(), V::Fault> {
        let context = &mut self.contexts[at];
        let mut buffer = context.buffers.swap_remove(which);
        let mut pen = Pen::new(self.cpu, &mut self.random);
        context.unmap(&mut pen, &mut self.arena, &buffer)?;
        buffer.at = context.place(buffer.kind);
        context.map(&mut pen, &mut self.arena, &buffer)?;
        context.buffers.push(buffer);
        self.done.moved += 1;
        Ok(())
    }
}
