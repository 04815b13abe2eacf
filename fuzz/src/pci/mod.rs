// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI function under a guest: every access of configuration space and of its BARs, interrupts raised meanwhile, routes and
//! hypercalls that fail. An oracle has its bytes, what it decodes, and every message. Descriptions that make no sense are refused.

mod fakes;
mod oracle;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ioreq_backends::pci::{
    Bar, Builder, Capability, Delivery, ExtendedCapability, FunctionInterrupts, Header, Msi, Msix,
    PciFunction, Signals,
};
use ioreq_core::handler::{Access, Batch, Handler, Space};
use ioreq_core::hypervisor::Intx;
use ioreq_core::routes::Routes;
use ioreq_core::snapshot::Snapshot;
use ioreq_core::{IoRange, MmioRange, Sbdf, Width};

use crate::script::Script;
use fakes::{Echo, FakeInterrupts, FakeRoutes, read, with_context, write};
use oracle::{Entry, Oracle};

/// Where MSI-X's pending bits are in BAR 0; its table is at 0.
const PENDING: u64 = 0x800;

fn sbdf() -> Sbdf {
    Sbdf::new(0, 0, 5, 0).expect("a device below 32")
}

/// One input.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    if script.take::<u8>().is_multiple_of(8) {
        nonsense(&mut script);
    } else {
        Run::new(&mut script).all(&mut script);
    }
}

/// Whatever a description says, it is a function or an error, and the function bears every access.
fn nonsense(script: &mut Script) {
    let mut signals = Signals::new();
    if script.take() {
        signals = signals.msi(Msi::new(script.take()));
    }
    if script.take() {
        let place = |script: &mut Script| (script.below(8) as u8, script.edgy() as u32 & !3);
        signals = signals.msix(Msix::new(script.take(), place(script), place(script)));
    }
    let hypervisor = Arc::new(FakeInterrupts::default());
    let routes = Arc::new(FakeRoutes::default());
    let Ok(interrupts) = FunctionInterrupts::new(sbdf(), hypervisor, signals) else {
        return;
    };
    let header = Header::new(script.edgy() as u16, script.edgy() as u16);
    let mut builder = PciFunction::builder(header, Arc::clone(&interrupts));
    for _ in 0..script.below(4) {
        let size = script.edgy();
        let bar = match script.below(4) {
            0 => Bar::mem32(size),
            1 => Bar::mem64(size),
            2 => Bar::io(size).prefetchable(),
            _ => Bar::io(size),
        };
        assert!(format!("{bar:?}").contains("size") && bar.size() == size);
        let _kind = bar.kind();
        builder = builder.bar(script.below(8) as u8, bar);
    }
    for _ in 0..script.below(4) {
        let (id, mask, len) = (
            script.take::<u8>(),
            script.take::<u8>(),
            script.index(0x200),
        );
        let body = vec![mask; len];
        let masks = (
            vec![mask; script.index(8)],
            vec![script.take(); script.index(8)],
        );
        builder = match script.below(3) {
            0 => builder.capability(Capability::vendor(&body)),
            1 => {
                let capability = Capability::new(id, body);
                builder.capability(capability.writable(masks.0).clearable(masks.1))
            }
            _ => {
                let capability = ExtendedCapability::new(id.into(), mask >> 3, body);
                builder.extended_capability(capability.writable(masks.0).clearable(masks.1))
            }
        };
    }
    assert!(!format!("{builder:?}").is_empty());
    let Ok(function) = builder.build(routes) else {
        return;
    };
    assert!(!format!("{function:?}").is_empty());
    let again = PciFunction::builder(Header::new(1, 1), interrupts);
    assert!(
        again.build(Arc::new(FakeRoutes::default())).is_err(),
        "interrupts of two functions"
    );
    for _ in 0..16 {
        let (at, width, value) = (script.edgy(), script.width(), script.take());
        let access = config(at, width);
        assert_eq!(
            write(&*function, access, value),
            read(&*function, access).is_some()
        );
        let _found = function.capability(at as u8);
    }
}

fn config(register: u64, width: Width) -> Access {
    Access {
        space: Space::Pci,
        addr: register,
        offset: register,
        width,
    }
}

/// One run of a script.
struct Run {
    oracle: Oracle,
    function: Arc<PciFunction>,
    interrupts: Arc<FunctionInterrupts>,
    routes: Arc<FakeRoutes>,
    guest: Arc<FakeInterrupts>,
    served: [bool; 6],
    /// Bodies of the device's own capabilities.
    owned: Vec<(usize, usize)>,
    heard: Arc<AtomicU32>,
    writes: u32,
    /// Another device's.
    other: IoRange,
}

impl Run {
    fn new(script: &mut Script) -> Self {
        let shape = script.take::<u16>();
        let on = |bit: u32| shape >> bit & 1 != 0;
        let mut oracle = Oracle::new(if on(0) { 0x1000 } else { 0x100 });
        let mut signals = Signals::new();
        if on(1) {
            oracle.pin = true;
            signals = signals.intx(Intx::B);
        }
        let (log2, vectors) = (script.below(6) as u32, 1 + script.below(70) as u16);
        let (long, masks) = (on(2), on(3));
        if on(4) {
            let mut msi = Msi::new(1 << log2);
            if !long {
                msi = msi.address_32();
            }
            if masks {
                msi = msi.per_vector_masking();
            }
            signals = signals.msi(msi);
        }
        if on(5) {
            signals = signals.msix(Msix::new(vectors, (0, 0), (0, PENDING as u32)));
            oracle.table = vec![
                Entry {
                    words: [0, 0, 0, 1],
                    pending: false
                };
                vectors.into()
            ];
        }
        let guest = Arc::new(FakeInterrupts::default());
        let routes = Arc::new(FakeRoutes::default());
        let other = IoRange::from(MmioRange::sized(0xfee0_0000, 0x1000).expect("a page"));
        routes
            .add("other", other, Arc::new(Echo))
            .expect("no other is there");
        let interrupts = FunctionInterrupts::new(sbdf(), Arc::clone(&guest) as _, signals);
        let interrupts = interrupts.expect("signals that are possible");
        let mut header = Header::new(0x1af4, 0x10f0)
            .class(3, 2, 1)
            .revision(7)
            .subsystem(0x1234, 0x5678);
        if on(6) {
            header = header.multi_function();
        }
        let mut builder = PciFunction::builder(header, Arc::clone(&interrupts));
        let mut served = [false; 6];
        let shifts = [12 + script.below(20) as u32, 4 + script.below(59) as u32];
        let io = 2 + script.below(7) as u32;
        for (index, kind, shift, bit) in
            [(0, 0, shifts[0], 16), (2, 1, shifts[1], 7), (4, 2, io, 8)]
        {
            if bit != 16 && !on(bit) {
                continue;
            }
            let (size, mask) = (1_u64 << shift, !((1_u64 << shift) - 1));
            let mut bar = match kind {
                0 => Bar::mem32(size),
                1 => Bar::mem64(size).prefetchable(),
                _ => Bar::io(size),
            };
            served[usize::from(index)] = on(9);
            if on(9) {
                bar = bar.served_by(Echo);
            }
            builder = builder.bar(index, bar);
            let wide = if kind == 1 { 8 } else { 4 };
            let reset = [0_u64, 0xc, 1][usize::from(kind)].to_le_bytes();
            let at = 0x10 + 4 * usize::from(index);
            oracle.define(at, &reset[..wide], &mask.to_le_bytes()[..wide], &[]);
            oracle.bars.push(oracle::Bar { index, kind, shift });
        }
        let heard = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&heard);
        let mut run = Describe {
            oracle: &mut oracle,
            next: 0x40,
            link: None,
            extended: None,
            owned: Vec::new(),
        };
        run.header(on(6), on(1), on(7), on(8));
        builder = run.capabilities(builder, on(10), on(11));
        if on(4) {
            run.msi(log2, long, masks);
        }
        if on(5) {
            run.msix(vectors);
        }
        builder = run.extended(builder, on(0), on(12));
        let owned = run.owned;
        let listener = move |_: &PciFunction, _| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let function = builder.on_write(listener).build(Arc::clone(&routes) as _);
        let function = function.expect("a description that is possible");
        assert_eq!(function.len(), oracle.len() as u64);
        Run {
            oracle,
            function,
            interrupts,
            routes,
            guest,
            served,
            owned,
            heard,
            writes: 0,
            other,
        }
    }

    fn all(mut self, script: &mut Script) {
        self.compare();
        for _ in 0..64 {
            if script.is_over() {
                break;
            }
            self.step(script);
            self.compare();
        }
        self.compare_bytes(0x1000);
        let routes = Arc::clone(&self.routes);
        let guest = Arc::clone(&self.guest);
        guest.refuses.store(false, Ordering::Relaxed);
        drop(self);
        assert_eq!(routes.ranges().len(), 1, "a BAR outlives its function");
    }

    /// A register that is likely to mean something.
    fn register(&self, script: &mut Script) -> u64 {
        let near = script.below(4);
        let known = [
            0x04, 0x04, 0x10, 0x10, 0x18, 0x1c, 0x20, 0x3c, 0x40, 0x50, 0xfc, 0x100,
        ];
        let of = |at: Option<usize>, script: &mut Script| match at {
            Some(at) => at as u64 + script.below(6) * 4,
            None => 0x10,
        };
        match script.below(6) {
            0 => script.edgy(),
            1 => script.below(0x1004),
            2 => of(self.oracle.msi.map(|msi| msi.at), script),
            3 => of(self.oracle.msix, script),
            _ => script.one_of(&known) + if script.take() { near } else { 0 },
        }
    }

    fn step(&mut self, script: &mut Script) {
        match script.below(16) {
            0..=4 => {
                let (at, width) = (self.register(script), script.width());
                let value = match script.below(4) {
                    0 => u64::MAX,
                    1 => 0xffff_fee0_0000 >> script.below(16),
                    2 => u64::from(script.take::<u16>()) << 12,
                    _ => script.take(),
                };
                self.write(at, width, value);
            }
            5 => {
                let (at, width) = (self.register(script), script.width());
                let index = usize::try_from(at).unwrap_or(usize::MAX);
                let expected = self.oracle.read(index, width.size());
                assert_eq!(
                    read(&*self.function, config(at, width)),
                    expected,
                    "{at:#x}"
                );
            }
            6 => match script.below(3) {
                0 => self.write(4, Width::B2, script.take::<u16>().into()),
                1 => self.place(script),
                _ => self.switch_msi_on(script),
            },
            7 | 8 => self.access_bar(script),
            9 => {
                let vector = u16::from(script.take::<u8>()) % 80;
                self.trigger(vector);
            }
            10 => {
                let vector = u16::from(script.take::<u8>()) % 80;
                if self.interrupts.withdraw(vector).is_ok() {
                    self.oracle.withdraw(vector);
                }
            }
            11 => {
                let asserted = script.take();
                let result = self.interrupts.set_intx(asserted);
                if self.oracle.pin {
                    self.oracle.asserted = asserted;
                    self.oracle.drive();
                } else {
                    assert!(result.is_err());
                }
            }
            12 => {
                let what = script.take::<u8>();
                self.routes.full.store(what & 3 == 1, Ordering::Relaxed);
                self.routes
                    .complains
                    .store(what & 3 == 2, Ordering::Relaxed);
                self.guest.refuses.store(what & 4 != 0, Ordering::Relaxed);
                self.oracle.refuses = what & 4 != 0;
            }
            13 => {
                let (at, width, value) = (script.below(0x140), script.width(), script.take());
                let (at, bytes) = (at as usize, width.size());
                let own = self
                    .owned
                    .iter()
                    .any(|(from, to)| *from <= at && at + bytes <= *to);
                let result = self.function.set_register(at as u16, width, value);
                assert_eq!(result.is_ok(), own);
                if own {
                    self.oracle.set(at, bytes, value);
                }
            }
            14 => {
                let errors = script.take();
                self.function.raise_status(errors);
                self.oracle.raise_status(errors);
            }
            _ => match script.below(3) {
                0 => {
                    self.function.reset();
                    self.oracle.reset();
                }
                1 => {
                    let saved = self.function.save();
                    self.function.restore(saved).expect("its own state fits");
                    self.oracle.restored();
                }
                _ => self.function.refresh(),
            },
        }
    }

    /// As a guest places a BAR: its address, then the command register.
    fn place(&mut self, script: &mut Script) {
        let bar = self.oracle.bars[script.index(self.oracle.bars.len())];
        let at = 0x10 + 4 * u64::from(bar.index);
        let width = if bar.kind == 1 { Width::B8 } else { Width::B4 };
        let addr = (1 + script.below(16)) << bar.shift.max(4);
        self.write(at, width, addr);
        self.write(4, Width::B2, 7);
    }

    /// As a guest sets MSI up: the message, several of them if there are, and the command register; then one is sent.
    fn switch_msi_on(&mut self, script: &mut Script) {
        let Some(msi) = self.oracle.msi else {
            return;
        };
        let (at, data) = (msi.at as u64, if msi.long { 12 } else { 8 });
        self.write(at + 4, Width::B4, 0xfee0_0000);
        self.write(at + data, Width::B2, script.take::<u16>().into());
        self.write(at + 2, Width::B2, script.below(8) << 4 | 1);
        self.write(4, Width::B2, 4);
        self.trigger(script.below(32) as u16);
    }

    fn write(&mut self, at: u64, width: Width, value: u64) {
        let index = usize::try_from(at).unwrap_or(usize::MAX);
        let taken = self.oracle.write(index, width.size(), width.cut(value));
        assert_eq!(
            write(&*self.function, config(at, width), value),
            taken,
            "{at:#x}"
        );
        self.writes += u32::from(taken);
    }

    fn trigger(&mut self, vector: u16) {
        let result = self.interrupts.trigger(vector);
        let msix = self.oracle.table.len();
        let msi = self.oracle.msi.map_or(0, |msi| 1 << msi.log2);
        if usize::from(vector) >= msix.max(msi) {
            assert!(result.is_err(), "there is no vector {vector}");
            return;
        }
        match (self.oracle.trigger(vector), result) {
            (Some(true), Ok(Delivery::Sent)) | (Some(false), Ok(Delivery::Pending)) => {}
            (None, Ok(Delivery::Disabled)) => {}
            (Some(false), Err(_)) if self.oracle.refuses => {}
            (None, Err(_)) if self.oracle.msix_enabled() => {}
            (expected, result) => panic!("vector {vector}: {expected:?}, and {result:?}"),
        }
    }

    fn access_bar(&mut self, script: &mut Script) {
        let ranges = self.routes.ranges();
        let (first, last, ports) = fakes::ends(script.one_of(&ranges));
        let offset = match script.below(4) {
            0 => script.edgy(),
            1 => PENDING + script.below(24) - 4,
            _ => script.below(0x480),
        };
        let (addr, width) = (first.saturating_add(offset), script.width());
        let space = if ports { Space::Port } else { Space::Mmio };
        let found = self.routes.find(space, addr, width);
        let Some((handler, access)) = found.filter(|_| fakes::ends(self.other).0 != first) else {
            return;
        };
        let msix = first == self.start(0) && !ports && !self.oracle.table.is_empty();
        let index = match ports {
            true => 4,
            false if first == self.start(0) => 0,
            false => 2,
        };
        let bytes = width.bytes();
        let table = 16 * self.oracle.table.len() as u64;
        let pending = 8 * (self.oracle.table.len() as u64).div_ceil(64);
        let value = script.take::<u64>();
        let aligned = offset.is_multiple_of(bytes) && bytes >= 4;
        assert_eq!(access.addr, addr);
        if addr > last {
            // Past this range: what is there is another's, which comes right behind it.
            return;
        }
        assert!(bytes - 1 <= last - addr, "half inside");
        if msix && offset < table {
            let inside = aligned && offset + bytes <= table;
            let (nth, word) = ((offset / 16) as usize, (offset % 16 / 4) as usize);
            if script.take() {
                assert_eq!(write(&*handler, access, value), inside);
                if inside {
                    self.write_entry(nth, word, width, value);
                }
                return;
            }
            let expected = inside.then(|| {
                let words = &self.oracle.table[nth].words;
                let upper = if bytes == 8 {
                    u64::from(words[word + 1]) << 32
                } else {
                    0
                };
                u64::from(words[word]) | upper
            });
            assert_eq!(read(&*handler, access), expected);
        } else if msix && offset + bytes > PENDING && offset < PENDING + pending {
            assert!(
                !write(&*handler, access, value),
                "pending bits are read-only"
            );
            let inside = aligned && offset >= PENDING && offset + bytes <= PENDING + pending;
            let expected = inside.then(|| {
                let from = ((offset - PENDING) * 8) as usize;
                let bits = self.oracle.table.iter().skip(from).take(8 * width.size());
                bits.enumerate().fold(0, |word, (bit, entry)| {
                    word | u64::from(entry.pending) << bit
                })
            });
            assert_eq!(read(&*handler, access), expected);
        } else {
            let served = self.served[index];
            assert_eq!(read(&*handler, access), served.then(|| width.cut(offset)));
            assert_eq!(write(&*handler, access, value), served);
            self.batch(&*handler, access);
        }
    }

    /// A batch goes to the device's own handler, or is done one by one.
    fn batch(&self, handler: &dyn Handler, first: Access) {
        let batch = Batch {
            first,
            stride: first.width.bytes() as i64,
            len: 3,
        };
        let mut values = [0; 3];
        let outcome = with_context(|cx| {
            let _written = handler.write_batch(cx, &batch, &values);
            handler.read_batch(cx, &batch, &mut values)
        });
        if outcome == ioreq_core::handler::BatchOutcome::Done {
            assert_eq!(values, [0, 1, 2].map(|at| batch.get(at).offset));
        }
    }

    fn write_entry(&mut self, nth: usize, word: usize, width: Width, value: u64) {
        let entry = &mut self.oracle.table[nth];
        for (at, value) in [(word, value as u32), (word + 1, (value >> 32) as u32)] {
            if at == word || width == Width::B8 {
                entry.words[at] = match at {
                    0 => value & !3,
                    3 => value & 1,
                    _ => value,
                };
            }
        }
        self.oracle.deliver_entry(nth);
    }

    /// Where a BAR is routed, or where nothing is.
    fn start(&self, index: u8) -> u64 {
        let bars = self.function.bars();
        let bar = bars
            .iter()
            .find(|bar| bar.index == index && bar.is_decoded());
        bar.and_then(|bar| bar.range)
            .map_or(u64::MAX, |range| fakes::ends(range).0)
    }

    fn compare(&mut self) {
        assert_eq!(self.guest.take(), std::mem::take(&mut self.oracle.sent));
        assert_eq!(self.guest.line(), self.oracle.line, "the pin");
        assert_eq!(
            self.heard.load(Ordering::Relaxed),
            self.writes,
            "the listener"
        );
        let mut live = vec![self.other];
        for (status, (index, range)) in self.function.bars().iter().zip(self.oracle.decoded()) {
            assert_eq!((status.index, status.range), (index, range));
            if status.is_decoded() {
                live.extend(status.range);
            }
            if let (Some(range), Some(_)) = (status.range, &status.error) {
                let full = self.routes.full.load(Ordering::Relaxed);
                let there = self.routes.ranges();
                let taken = there.iter().any(|there| fakes::overlap(*there, range));
                // What was in the way may have gone since; the function is not told.
                let _why = full || taken;
            }
        }
        live.sort_by_key(|range| fakes::ends(*range));
        assert_eq!(self.routes.ranges(), live);
        self.compare_bytes(0x120);
    }

    fn compare_bytes(&self, end: usize) {
        for at in (0..end.min(self.oracle.len())).step_by(8) {
            let shown = self.function.register(at as u16, Width::B8);
            assert_eq!(shown, self.oracle.read(at, 8), "register {at:#x}");
        }
    }
}

/// Puts the same description into the oracle as into the builder.
struct Describe<'a> {
    oracle: &'a mut Oracle,
    next: usize,
    link: Option<usize>,
    extended: Option<usize>,
    owned: Vec<(usize, usize)>,
}

impl Describe<'_> {
    fn header(&mut self, multi: bool, pin: bool, memory_64: bool, ports: bool) {
        let oracle = &mut *self.oracle;
        let _ = memory_64; // BAR 0 is memory in any case
        let command = 0x140 | 4 | 2 | u16::from(ports) | if pin { 0x400 } else { 0 };
        oracle.define(0, &[0xf4, 0x1a, 0xf0, 0x10], &[], &[]);
        oracle.define(4, &[0; 2], &command.to_le_bytes(), &[]);
        oracle.define(6, &[0; 2], &[], &0xf900_u16.to_le_bytes());
        oracle.define(8, &[7, 1, 2, 3], &[], &[]);
        oracle.define(0xc, &[0; 2], &[0xff; 2], &[]);
        oracle.define(0xe, &[if multi { 0x80 } else { 0 }], &[], &[]);
        oracle.define(0x2c, &[0x34, 0x12, 0x78, 0x56], &[], &[]);
        oracle.define(0x3c, &[0, if pin { 2 } else { 0 }], &[0xff], &[]);
    }

    fn place(&mut self, id: u8, body: &[u8], writable: &[u8], clearable: &[u8]) -> usize {
        let at = self.next;
        self.oracle.define(at, &[id, 0], &[], &[]);
        self.oracle.define(at + 2, body, writable, clearable);
        match self.link {
            Some(link) => self.oracle.define(link, &[at as u8], &[], &[]),
            None => {
                let errors = 0xf900_u16.to_le_bytes();
                self.oracle.define(6, &[0x10, 0], &[], &errors);
                self.oracle.define(0x34, &[at as u8], &[], &[]);
            }
        }
        self.link = Some(at + 1);
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    fn capabilities(&mut self, mut builder: Builder, vendor: bool, own: bool) -> Builder {
        if vendor {
            builder = builder.capability(Capability::vendor([1, 2, 3]));
            let at = self.place(9, &[6, 1, 2, 3], &[], &[]);
            self.owned.push((at + 2, at + 6));
        }
        if own {
            let (body, writable, clearable) = ([1, 2, 3, 4, 5], [0xf0, 0, 0xff], [0x0f, 0xff]);
            let capability = Capability::new(0x42, body);
            let capability = capability.writable(writable).clearable(clearable);
            builder = builder.capability(capability);
            let at = self.place(0x42, &body, &writable, &clearable);
            self.owned.push((at + 2, at + 7));
        }
        builder
    }

    fn msi(&mut self, log2: u32, long: bool, masks: bool) {
        let control = log2 << 1 | u32::from(long) << 7 | u32::from(masks) << 8;
        let mut body = (control as u16).to_le_bytes().to_vec();
        let mut writable = vec![0x71, 0, 0xfc, 0xff, 0xff, 0xff];
        if long {
            writable.extend([0xff; 4]);
        }
        writable.extend([0xff; 2]);
        if masks {
            let all = ((1_u64 << (1 << log2)) - 1) as u32;
            writable.extend([0; 2]);
            writable.extend(all.to_le_bytes());
            writable.extend([0; 4]);
        }
        body.resize(writable.len(), 0);
        let at = self.place(5, &body, &writable, &[]);
        self.oracle.msi = Some(oracle::Msi {
            at,
            log2,
            long,
            masks,
        });
    }

    fn msix(&mut self, vectors: u16) {
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend(0_u32.to_le_bytes());
        body.extend((PENDING as u32).to_le_bytes());
        let at = self.place(0x11, &body, &[0, 0xc0], &[]);
        self.oracle.msix = Some(at);
    }

    fn extended(&mut self, mut builder: Builder, long: bool, some: bool) -> Builder {
        if !long {
            return builder;
        }
        builder = builder.extended();
        for (nth, id) in [0x23_u16, 0xb].into_iter().enumerate() {
            if !some {
                break;
            }
            let body = [id as u8; 9];
            let capability = ExtendedCapability::new(id, 1, body).writable([0xff, 0x0f]);
            builder = builder.extended_capability(capability);
            let at = 0x100 + 16 * nth;
            let head = u32::from(id) | 1 << 16;
            self.oracle.define(at, &head.to_le_bytes(), &[], &[]);
            self.oracle.define(at + 4, &body, &[0xff, 0x0f], &[]);
            if let Some(last) = self.extended {
                let head = 0x23 | 1 << 16 | (at as u32) << 20;
                self.oracle.define(last, &head.to_le_bytes(), &[], &[]);
            }
            self.extended = Some(at);
            self.owned.push((at + 4, at + 13));
        }
        builder
    }
}
