// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The first serial port: rust-vmm's 16550, with the interrupt of an ISA line.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::hypervisor::Interrupts;
use ioreq::replay::Source;
use ioreq::{Error, PortRange, RangeError, Width};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use crate::saved::{Changed, SavedConsole};

/// Its ports.
const FIRST: u16 = 0x3f8;
const PORTS: u64 = 8;
const IRQ: u8 = 4;
/// Line control: the first two registers are the divisor.
const DIVISOR: u8 = 1 << 7;
/// Interrupt enable: when the transmitter is empty.
const WHEN_EMPTY: u8 = 2;
/// Interrupt identification: nothing; the transmitter is empty.
const NOTHING: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 2;

/// An edge on the line: up and down again. What the 16550 of `vm-superio` tells is that there is news, not a level.
struct Edge(Arc<dyn Interrupts>);

impl Trigger for Edge {
    type E = Error;

    fn trigger(&self) -> Result<(), Error> {
        self.0.set_isa_irq(IRQ, true)?;
        self.0.set_isa_irq(IRQ, false)
    }
}

type Uart = Serial<Edge, NoEvents, Box<dyn Write + Send>>;

/// A console on COM1.
pub struct Console {
    uart: Mutex<Uart>,
    /// The guest has read a byte.
    read: Condvar,
    typed: Source,
    changed: Changed,
}

impl Console {
    /// What the guest prints goes to `out`, which must not wait for the guest; what is typed comes by way of `typed`.
    #[must_use]
    pub fn new(
        interrupts: Arc<dyn Interrupts>,
        out: Box<dyn Write + Send>,
        typed: Source,
        changed: Changed,
    ) -> Self {
        Console {
            uart: Mutex::new(Serial::new(Edge(interrupts), out)),
            read: Condvar::new(),
            typed,
            changed,
        }
    }

    pub(crate) fn save(&self) -> SavedConsole {
        let state = self.uart().state();
        SavedConsole {
            divisor: (state.baud_divisor_low, state.baud_divisor_high),
            interrupt_enable: state.interrupt_enable,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
        }
    }

    /// As it was, with an empty transmitter: a guest that has that interrupt enabled may wait for it, so it comes. Where it is not enabled, it
    /// must not be pending: `vm-superio` would take it for told already when the guest enables it.
    pub(crate) fn restore(
        &self,
        saved: SavedConsole,
        interrupts: Arc<dyn Interrupts>,
        out: Box<dyn Write + Send>,
    ) -> Result<(), vm_superio::serial::Error<Error>> {
        let state = SerialState {
            baud_divisor_low: saved.divisor.0,
            baud_divisor_high: saved.divisor.1,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: match saved.interrupt_enable & WHEN_EMPTY {
                0 => NOTHING,
                _ => TRANSMITTER_EMPTY,
            },
            line_control: saved.line_control,
            modem_control: saved.modem_control,
            scratch: saved.scratch,
            ..SerialState::default()
        };
        *self.uart() = Serial::from_state(&state, Edge(interrupts), NoEvents, out)?;
        Ok(())
    }

    /// Its ports.
    ///
    /// # Errors
    /// None: they are ports.
    pub fn ports() -> Result<PortRange, RangeError> {
        PortRange::sized(FIRST, PORTS)
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Types `text`, as fast as the guest reads, for at most `bound`. Returns how many bytes the guest was given.
    pub fn type_in(&self, text: &[u8], bound: Duration) -> usize {
        let until = Instant::now() + bound;
        let mut done = 0;
        while let Some(rest) = text.get(done..).filter(|rest| !rest.is_empty()) {
            match self.typed.offer(rest, |rest| self.take_in(rest)) {
                0 if !self.wait_for_room(until) => return done,
                taken => done += taken,
            }
        }
        done
    }

    /// As many bytes as there is room for; how many.
    fn take_in(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        if uart.fifo_capacity() == 0 {
            return 0;
        }
        uart.enqueue_raw_bytes(bytes).unwrap_or_else(|err| {
            tracing::warn!(?err, "the console's interrupt");
            0
        })
    }

    /// Whether there is room before `until`.
    fn wait_for_room(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let full = |uart: &mut Uart| uart.fifo_capacity() == 0;
        let waited = self.read.wait_timeout_while(self.uart(), left, full);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Handler for Console {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        let (Width::B1, Ok(offset)) = (access.width, u8::try_from(access.offset)) else {
            return ReadOutcome::Refused("a 16550's registers are bytes");
        };
        let value = self.uart().read(offset);
        if offset == 0 {
            self.read.notify_all();
        }
        u64::from(value).into()
    }

    fn write(&self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let (Width::B1, Ok(offset)) = (access.width, u8::try_from(access.offset)) else {
            return WriteOutcome::Refused("a 16550's registers are bytes");
        };
        let [value, ..] = value.to_le_bytes();
        let mut uart = self.uart();
        let is_text = offset == 0 && uart.state().line_control & DIVISOR == 0;
        if let Err(err) = uart.write(offset, value) {
            tracing::warn!(?err, "the console");
        }
        drop(uart);
        if !is_text {
            self.changed.tell();
        }
        WriteOutcome::Done
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}
