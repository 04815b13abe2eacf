// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lets things happen in the order in which they were recorded, and compares.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
#[cfg(feature = "sim")]
use std::time::{Duration, Instant};

use crate::act::{Act, Ended, Names};
use crate::effects::{Effect, Effects, NotRecorded, Reads, difference};
use crate::file::{Recorded, Recording};

/// Where a device model does not do what it was recorded to do.
///
/// ```
/// fn tell(mismatch: &ioreq_replay::Mismatch) -> String {
///     format!("{mismatch}; it was request {}", mismatch.request)
/// }
/// # let _ = tell;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// The number of the request: so many came before it.
    pub request: u64,
    /// What was asked, or happened.
    pub asked: String,
    /// What came of it when it was recorded.
    pub recorded: String,
    /// What comes of it now.
    pub replayed: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch {
            request,
            asked,
            recorded,
            replayed,
        } = self;
        write!(
            f,
            "request {request}: {asked}\n  recorded: {recorded}\n  replayed: {replayed}"
        )
    }
}

impl std::error::Error for Mismatch {}

/// Whether an act takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Mine,
    /// The recording is over, or differs already: nothing is compared any more.
    Free,
}

#[derive(Default)]
struct State {
    /// The act that is next, or under way.
    at: usize,
    owner: Option<ThreadId>,
    effects: Effects,
    reads: Reads,
    failure: Option<Mismatch>,
    over: bool,
    /// Acts that wait for their turn.
    waiting: Vec<(ThreadId, Act)>,
    /// Which of [`Player::answers`] were given, and which each server's vCPUs are to be given next.
    given: Vec<bool>,
    next: HashMap<(u8, u32), VecDeque<usize>>,
}

/// A late answer. It has no turn: it changes no device, and lets nothing go on but a vCPU, which asks when it is told to.
struct Late {
    /// The act that it is, or in which it is given.
    at: usize,
    of: (u8, u32),
    value: Option<u64>,
}

pub(crate) struct Player {
    acts: Vec<Recorded>,
    answers: Vec<Late>,
    stores: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Player {
    pub(crate) fn new(recording: Recording, stores: bool) -> Self {
        let acts = recording.acts;
        let answers: Vec<Late> = (0..)
            .zip(&acts)
            .flat_map(|(at, act)| late(at, act))
            .collect();
        let mut state = State {
            given: vec![false; answers.len()],
            ..State::default()
        };
        for (number, late) in (0..).zip(&answers) {
            state.next.entry(late.of).or_default().push_back(number);
        }
        Player {
            acts,
            answers,
            stores,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_free(&self, state: &State) -> bool {
        state.over || state.failure.is_some() || state.at >= self.acts.len()
    }

    fn is_turn(&self, state: &State, act: &Act) -> bool {
        let next = self.acts.get(state.at);
        state.owner.is_none() && next.is_some_and(|next| next.act.is_turn_of(act))
    }

    /// Waits until the recording has such an act next.
    pub(crate) fn enter(&self, act: Act) -> Turn {
        let me = thread::current().id();
        let mut state = self.state();
        state.waiting.push((me, act.clone()));
        self.changed.notify_all();
        let state = self.changed.wait_while(state, |state| {
            !self.is_free(state) && !self.is_turn(state, &act)
        });
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.waiting.retain(|(thread, _)| *thread != me);
        if self.is_free(&state) {
            return Turn::Free;
        }
        self.begin(&mut state);
        Turn::Mine
    }

    /// The same without waiting; whether it is so.
    pub(crate) fn try_enter(&self, act: &Act) -> bool {
        let mut state = self.state();
        let is = !self.is_free(&state) && self.is_turn(&state, act);
        if is {
            self.begin(&mut state);
        }
        is
    }

    fn begin(&self, state: &mut State) {
        state.owner = Some(thread::current().id());
        state.effects = Effects::default();
        state.reads = Reads::default();
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.state().owner == Some(thread::current().id())
    }

    pub(crate) fn effects(&self, add: impl FnOnce(&mut Effects)) {
        add(&mut self.state().effects);
    }

    /// Guest memory as this act found it; whether it was memory. An error if it did not look there.
    pub(crate) fn read(&self, addr: u64, buf: &mut [u8]) -> Result<bool, NotRecorded> {
        let mut state = self.state();
        let recorded = self.acts.get(state.at);
        let recorded = recorded.map_or(&[][..], |recorded| &recorded.effects);
        let read = state.reads.next(recorded, addr, buf);
        match &read {
            Ok(true) => state.effects.read(addr, buf),
            _ => state.effects.no_memory(addr, buf.len()),
        }
        read
    }

    /// A request that waited is answered.
    pub(crate) fn answer(&self, names: &Names, server: u8, vcpu: u32, value: Option<u64>) {
        let mut state = self.state();
        let next = state.next.get_mut(&(server, vcpu));
        if let Some(number) = next.and_then(VecDeque::pop_front)
            && let Some(late) = self.answers.get(number)
        {
            if late.value != value && state.failure.is_none() && !state.over {
                let text = |value| Ended::Answered(value).to_string();
                let (was, is) = (text(late.value), text(value));
                state.failure = Some(self.mismatch(late.at, names, was, is));
            }
            if let Some(given) = state.given.get_mut(number) {
                *given = true;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What the step that begins now is going to read and write; none if the recording ends before its end.
    pub(crate) fn log(&self, thread: u8) -> Option<Vec<Effect>> {
        let at = self.state().at;
        let later = self.acts.get(at..).unwrap_or_default();
        later.iter().find_map(|recorded| match &recorded.act {
            Act::Finish { thread: of, log } if *of == thread => Some(log.clone()),
            _ => None,
        })
    }

    /// The act is done.
    pub(crate) fn leave(&self, names: &Names, act: &Act, ended: Ended) {
        let mut state = self.state();
        if state.owner != Some(thread::current().id()) {
            return;
        }
        state.owner = None;
        let effects = std::mem::take(&mut state.effects);
        if let Some(recorded) = self.acts.get(state.at)
            && let Some((was, is)) = self.differs(recorded, act, &effects.0, ended)
            && state.failure.is_none()
        {
            state.failure = Some(self.mismatch(state.at, names, was, is));
        }
        state.at += 1;
        drop(state);
        self.changed.notify_all();
    }

    fn differs(
        &self,
        recorded: &Recorded,
        act: &Act,
        effects: &[Effect],
        ended: Ended,
    ) -> Option<(String, String)> {
        // The recording ends within it: nobody knows what came of it.
        let was_ended = recorded.ended?;
        match (&recorded.act, act) {
            (Act::Input { bytes: was, .. }, Act::Input { bytes: is, .. }) if was != is => {
                let text = |bytes: &Vec<u8>| format!("{} bytes were taken", bytes.len());
                return Some((text(was), text(is)));
            }
            (Act::Finish { log: was, .. }, Act::Finish { log: is, .. }) => {
                if let Some(difference) = difference(was, is, self.stores) {
                    return Some(difference);
                }
            }
            _ => {}
        }
        if was_ended != ended {
            return Some((was_ended.to_string(), ended.to_string()));
        }
        difference(&recorded.effects, effects, self.stores)
    }

    fn mismatch(&self, at: usize, names: &Names, recorded: String, replayed: String) -> Mismatch {
        let before = self.acts.get(..at).unwrap_or_default();
        let is_request =
            |it: &&Recorded| matches!(it.act, Act::Request { .. } | Act::Posted { .. });
        let asked = self.acts.get(at).map(|it| it.act.describe(names));
        Mismatch {
            request: before.iter().filter(is_request).count() as u64,
            asked: asked.unwrap_or_else(|| "the end".into()),
            recorded,
            replayed,
        }
    }
}

/// The late answers of an act.
fn late(at: usize, recorded: &Recorded) -> impl Iterator<Item = Late> {
    let own = match recorded.act {
        Act::Answer {
            server,
            vcpu,
            value,
        } => Some(Late {
            at,
            of: (server, vcpu),
            value,
        }),
        _ => None,
    };
    let given = recorded
        .effects
        .iter()
        .filter_map(move |effect| match effect {
            Effect::Answer {
                server,
                vcpu,
                value,
            } => Some(Late {
                at,
                of: (*server, *vcpu),
                value: *value,
            }),
            _ => None,
        });
    own.into_iter().chain(given)
}

/// For whoever sees that what is to come comes.
#[cfg(feature = "sim")]
impl Player {
    pub(crate) fn len(&self) -> usize {
        self.acts.len()
    }

    pub(crate) fn recorded(&self, at: usize) -> Option<&Recorded> {
        self.acts.get(at)
    }

    /// Whether act `at` is done, and what was answered in it.
    fn is_done(&self, state: &mut State, at: usize) -> bool {
        // They are in the order of their acts.
        let first = self.answers.partition_point(|late| late.at < at);
        let given = state.given.get(first..).unwrap_or_default();
        let late = self.answers.iter().skip(first).zip(given);
        let mut of_it = late.take_while(|(late, _)| late.at == at);
        let is_answered = of_it.all(|(_, given)| *given);
        let is_answer = matches!(
            self.acts.get(at),
            Some(Recorded {
                act: Act::Answer { .. },
                ..
            })
        );
        if is_answered && is_answer && state.at == at {
            state.at += 1;
            self.changed.notify_all();
        }
        is_answered && state.at > at
    }

    /// Waits until act `at` is done, for at most `patience`.
    pub(crate) fn wait_for(
        &self,
        at: usize,
        names: &Names,
        patience: Duration,
    ) -> Result<(), Mismatch> {
        let until = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(mismatch) = &state.failure {
                return Err(mismatch.clone());
            }
            if self.is_done(&mut state, at) {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waiting: Vec<String> = state
                    .waiting
                    .iter()
                    .map(|(_, act)| act.describe(names))
                    .collect();
                let replayed = match &waiting[..] {
                    [] => format!("nothing for {patience:?}"),
                    waiting => format!(
                        "nothing for {patience:?}; what it wants to do instead: {}",
                        waiting.join("; ")
                    ),
                };
                let mismatch = self.mismatch(state.at, names, "it happened".into(), replayed);
                state.failure = Some(mismatch.clone());
                self.changed.notify_all();
                return Err(mismatch);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A vCPU did not get the answer that its request's act has.
    pub(crate) fn wrong_slot(&self, at: usize, names: &Names, was: u64, is: u64) {
        let mut state = self.state();
        if state.failure.is_none() {
            let text = |value| format!("{value:#x} in the slot");
            state.failure = Some(self.mismatch(at, names, text(was), text(is)));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Lets go of whoever waits: nothing is compared any more.
    pub(crate) fn end(&self) -> Option<Mismatch> {
        let mut state = self.state();
        state.over = true;
        self.changed.notify_all();
        state.failure.clone()
    }
}
