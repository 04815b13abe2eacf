// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device model holds: records, plays, or does nothing.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioreq_core::hypervisor::Interrupts;
use ioreq_core::server::{Builder, Workers};
use ioreq_core::{Hypervisor, Result};
use serde::Serialize;

use crate::act::{Act, Ended, Names};
use crate::effects::Effect;
use crate::file::{Header, Recording, Writer};
use crate::interrupts::{Interrupt, Told};
use crate::player::{Player, Turn};
use crate::recorder::Recorder;
use crate::server::ServerTape;
use crate::step::DeviceThread;

/// Takes part in everything that a device model does, if it is told to: hand it to whatever makes the servers and the devices. The default
/// does nothing, and costs nothing. Clones are the same tape.
///
/// The order in which servers, sources and threads come to the tape is part of a recording, so it must be the same when that is played.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_core::{Interrupts, Result, server::IoreqServer};
/// use ioreq_replay::Tape;
/// use ioreq_sim::{DomainConfig, Machine, SimHypervisor};
///
/// let tape = Tape::default();
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = Arc::new(domain.hypervisor());
/// let server: IoreqServer<SimHypervisor> = tape.attach("devices", IoreqServer::builder(Arc::clone(&hv))).build()?;
/// let line = tape.interrupts(hv); // what devices raise their interrupts by
/// line.set_isa_irq(4, true)?;
/// assert!(!tape.is_on());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Tape(Option<Arc<Inner>>);

impl Tape {
    /// Records into `to`, from now on: one small write for each request's beginning, and one for its end. `model` and `settings` are for
    /// whoever plays it: which device model to make, and how.
    ///
    /// Requests are served one after the other from then on, whatever their vCPUs: the order in which they are is part of the recording.
    ///
    /// # Errors
    /// When the beginning cannot be written. If a later write fails, that is logged, and the recording ends there.
    pub fn record(
        to: impl Write + Send + 'static,
        model: &str,
        settings: &impl Serialize,
    ) -> io::Result<Self> {
        let header = Header {
            model: model.to_owned(),
            settings: postcard::to_allocvec(settings).map_err(io::Error::other)?,
        };
        let writer = Writer::new(Box::new(to), &header)?;
        Ok(Self::of(Mode::Record(Recorder::new(writer))))
    }

    /// Plays a recording: what takes part happens in its order, and is compared with it. Needs somebody who sees to it that it does happen:
    /// `Play` (feature `sim`).
    #[must_use]
    pub fn play(recording: Recording) -> Self {
        Self::of(Mode::Play(Player::new(recording, true)))
    }

    /// The same, and what devices store into guest memory is not compared: for whoever has not got what it comes from, such as a disk's
    /// image.
    #[must_use]
    pub fn play_without_stores(recording: Recording) -> Self {
        Self::of(Mode::Play(Player::new(recording, false)))
    }

    fn of(mode: Mode) -> Self {
        let inner = Inner {
            names: Mutex::default(),
            mode,
        };
        Tape(Some(Arc::new(inner)))
    }

    /// Whether it does anything.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it plays.
    #[must_use]
    pub fn is_playing(&self) -> bool {
        self.inner()
            .is_some_and(|inner| matches!(inner.mode, Mode::Play(_)))
    }

    pub(crate) fn inner(&self) -> Option<&Arc<Inner>> {
        self.0.as_ref()
    }

    /// A server takes part.
    #[must_use]
    pub fn attach<H: Hypervisor>(&self, name: &str, builder: Builder<H>) -> Builder<H> {
        let Some(inner) = &self.0 else {
            return builder;
        };
        let server = inner.number(name, |names| &mut names.servers);
        let builder = builder.journal(Arc::new(ServerTape {
            tape: Arc::clone(inner),
            server,
        }));
        match inner.mode {
            Mode::Record(_) => builder,
            // A request that goes on later waits for its turn, and must not hold up those of other vCPUs.
            Mode::Play(_) => builder.workers(Workers::PerVcpu),
        }
    }

    /// Interrupts by way of the tape.
    #[must_use]
    pub fn interrupts(&self, to: Arc<dyn Interrupts>) -> Arc<dyn Interrupts> {
        match &self.0 {
            Some(tape) => Arc::new(Told {
                to,
                tape: Arc::clone(tape),
            }),
            None => to,
        }
    }

    /// A way by which the host gives a device something: typed text, a packet, the time.
    #[must_use]
    pub fn source(&self, name: &str) -> Source {
        Source(self.0.as_ref().map(|inner| {
            let source = inner.number(name, |names| &mut names.sources);
            (Arc::clone(inner), source)
        }))
    }

    /// A thread of a device's own.
    #[must_use]
    pub fn thread(&self, name: &str) -> DeviceThread {
        DeviceThread::new(self.0.as_ref().map(|inner| {
            let thread = inner.number(name, |names| &mut names.threads);
            (Arc::clone(inner), thread)
        }))
    }

    /// Ends a recording: all of it is there. Without this it counts as one whose device model was killed.
    pub fn close(&self) {
        if let Some(Mode::Record(recorder)) = self.0.as_ref().map(|inner| &inner.mode) {
            recorder.close();
        }
    }
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = match self.0.as_ref().map(|inner| &inner.mode) {
            None => "nothing",
            Some(Mode::Record(_)) => "records",
            Some(Mode::Play(_)) => "plays",
        };
        f.debug_tuple("Tape").field(&does).finish()
    }
}

/// What the host gives a device, beside requests. Made by [`Tape::source`].
///
/// ```
/// use ioreq_replay::Tape;
/// let keyboard = Tape::default().source("keyboard");
/// let mut fifo = Vec::new();
/// let taken = keyboard.offer(b"ls\n", |bytes| {
///     fifo.extend(&bytes[..2]); // there is no more room
///     2
/// });
/// assert_eq!((taken, &fifo[..]), (2, &b"ls"[..]));
/// ```
#[derive(Clone, Default)]
pub struct Source(Option<(Arc<Inner>, u8)>);

impl Source {
    /// Has `take` take in some of `bytes`: as many of the first ones as it returns, which is returned. Requests wait meanwhile, so it must not
    /// wait for one, nor for the server. If it takes none, nothing happened.
    pub fn offer(&self, bytes: &[u8], take: impl FnOnce(&[u8]) -> usize) -> usize {
        let Some((tape, source)) = &self.0 else {
            return take(bytes);
        };
        let source = *source;
        let taken = |count: usize| Act::Input {
            source,
            bytes: bytes.get(..count).unwrap_or(bytes).to_vec(),
        };
        match &tape.mode {
            Mode::Record(recorder) => {
                recorder.enter(taken(0), false);
                let count = take(bytes);
                match count {
                    0 => recorder.forget(),
                    _ => {
                        recorder.act(|act| *act = taken(count));
                        recorder.leave(Ended::Done);
                    }
                }
                count
            }
            Mode::Play(player) => {
                let turn = player.enter(taken(0));
                let count = take(bytes);
                if turn == Turn::Mine {
                    player.leave(&tape.names(), &taken(count), Ended::Done);
                }
                count
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.as_ref().map(|(_, number)| number);
        f.debug_tuple("Source").field(&number).finish()
    }
}

pub(crate) enum Mode {
    Record(Recorder),
    Play(Player),
}

/// A tape that does something.
pub(crate) struct Inner {
    names: Mutex<Names>,
    pub(crate) mode: Mode,
}

impl Inner {
    pub(crate) fn names(&self) -> Names {
        self.locked_names().clone()
    }

    fn locked_names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self, name: &str, list: impl FnOnce(&mut Names) -> &mut Vec<String>) -> u8 {
        let mut names = self.locked_names();
        let list = list(&mut names);
        list.push(name.to_owned());
        u8::try_from(list.len() - 1).unwrap_or(u8::MAX)
    }

    /// Does `what` as an act, in its turn. One that is `early` is written before it is done.
    pub(crate) fn act<T>(&self, act: &Act, what: impl FnOnce() -> T) -> T {
        self.enter(act, false);
        let result = what();
        self.leave(act, Ended::Done);
        result
    }

    pub(crate) fn enter(&self, act: &Act, early: bool) {
        match &self.mode {
            Mode::Record(recorder) => recorder.enter(act.clone(), early),
            Mode::Play(player) => {
                player.enter(act.clone());
            }
        }
    }

    pub(crate) fn leave(&self, act: &Act, ended: Ended) {
        match &self.mode {
            Mode::Record(recorder) => recorder.leave(ended),
            Mode::Play(player) => player.leave(&self.names(), act, ended),
        }
    }

    /// Whether this thread is in an act.
    pub(crate) fn is_mine(&self) -> bool {
        match &self.mode {
            Mode::Record(recorder) => recorder.is_mine(),
            Mode::Play(player) => player.is_mine(),
        }
    }

    /// Adds to the act of this thread.
    pub(crate) fn effect(&self, effect: Effect) {
        match &self.mode {
            Mode::Record(recorder) => recorder.effects(|effects| effects.push(effect)),
            Mode::Play(player) => player.effects(|effects| effects.push(effect)),
        }
    }

    /// An interrupt: of the act that this thread is in, or an act itself.
    pub(crate) fn signal(
        &self,
        interrupt: Interrupt,
        pass_on: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if self.is_mine() {
            self.effect(Effect::Signal(interrupt));
            return pass_on();
        }
        self.act(&Act::Signal(interrupt), pass_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_of_what_takes_nothing() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let file = Shared::default();
        let tape = Tape::record(file.clone(), "test", &()).unwrap();
        let source = tape.source("source");
        let before = file.0.lock().unwrap().len();
        assert_eq!(source.offer(b"abc", |_| 0), 0);
        assert_eq!(file.0.lock().unwrap().len(), before);
        assert_eq!(source.offer(b"abc", <[u8]>::len), 3);
        tape.close();
        tape.close();
        assert_eq!(source.offer(b"abc", <[u8]>::len), 3, "and after the end");
        let bytes = file.0.lock().unwrap().clone();
        let recording = Recording::read(&bytes[..]).unwrap();
        assert!(recording.is_closed());
        assert_eq!(recording.acts.len(), 1);
    }
}
