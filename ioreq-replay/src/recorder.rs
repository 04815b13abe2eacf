// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Writes down what happens, one act after the other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::act::{Act, Ended};
use crate::effects::{Effect, Effects};
use crate::file::{Frame, Writer};

/// Whose turn it is, and what came of it so far.
struct State {
    owner: Option<ThreadId>,
    effects: Effects,
    /// What is not written yet.
    act: Option<Act>,
    writer: Option<Writer>,
}

pub(crate) struct Recorder {
    state: Mutex<State>,
    over: Condvar,
}

impl Recorder {
    pub(crate) fn new(writer: Writer) -> Self {
        let state = State {
            owner: None,
            effects: Effects::default(),
            act: None,
            writer: Some(writer),
        };
        Recorder {
            state: Mutex::new(state),
            over: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn. An act that is `early` is written before it is done.
    pub(crate) fn enter(&self, act: Act, early: bool) {
        let me = thread::current().id();
        let state = self
            .over
            .wait_while(self.state(), |state| state.owner.is_some());
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.owner = Some(me);
        state.effects = Effects::default();
        state.act = match (early, &mut state.writer) {
            (true, Some(writer)) => {
                writer.put(&Frame::Begin(act));
                None
            }
            _ => Some(act),
        };
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.state().owner == Some(thread::current().id())
    }

    /// Adds to what the act of this thread does.
    pub(crate) fn effects(&self, add: impl FnOnce(&mut Effects)) {
        add(&mut self.state().effects);
    }

    /// Changes the act before it is written.
    pub(crate) fn act(&self, change: impl FnOnce(&mut Act)) {
        if let Some(act) = &mut self.state().act {
            change(act);
        }
    }

    pub(crate) fn leave(&self, ended: Ended) {
        self.finish(|act, effects| match act {
            Some(act) => Some(Frame::Whole { act, effects }),
            None => Some(Frame::End { effects, ended }),
        });
    }

    /// There was nothing, and nothing is written.
    pub(crate) fn forget(&self) {
        self.finish(|_, _| None);
    }

    fn finish(&self, frame: impl FnOnce(Option<Act>, Vec<Effect>) -> Option<Frame>) {
        let mut state = self.state();
        let effects = std::mem::take(&mut state.effects);
        let frame = frame(state.act.take(), effects.0);
        if let (Some(frame), Some(writer)) = (frame, &mut state.writer) {
            writer.put(&frame);
        }
        state.owner = None;
        drop(state);
        self.over.notify_one();
    }

    /// Nothing is written any more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if state.owner.is_none()
            && let Some(mut writer) = state.writer.take()
        {
            writer.put(&Frame::Closed);
        }
    }
}
