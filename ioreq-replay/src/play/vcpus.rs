// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vCPUs of the model, which ask.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ioreq_core::abi::Ioreq;
use ioreq_core::{ServerId, VcpuId};
use ioreq_sim::{CpuFault, Domain, VcpuThread};

use crate::tape::{Inner, Mode};

/// What a vCPU is to ask.
pub(super) struct Question {
    pub(super) at: usize,
    pub(super) server: ServerId,
    pub(super) request: Ioreq,
    /// `None`: it is posted, and nobody waits for an answer.
    pub(super) answer: Option<Answer>,
}

/// What a request was answered with in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// This is in the slot.
    Value(u64),
    /// There is no value in it, or none that is known.
    Other,
    /// The recording ends before it.
    None,
}

impl From<Option<u64>> for Answer {
    fn from(value: Option<u64>) -> Self {
        value.map_or(Answer::Other, Answer::Value)
    }
}

/// The domain's vCPUs, each with a thread that asks one question after the other.
pub(super) struct Vcpus<'a> {
    domain: &'a Domain,
    tape: &'a Arc<Inner>,
    patience: Duration,
    asking: Vec<Option<Asking>>,
}

struct Asking {
    questions: Sender<Question>,
    thread: VcpuThread<()>,
    /// Whether the last question has an answer, and not at once.
    is_answered: bool,
    waits: bool,
}

impl<'a> Vcpus<'a> {
    pub(super) fn new(domain: &'a Domain, tape: &'a Arc<Inner>, patience: Duration) -> Self {
        Vcpus {
            domain,
            tape,
            patience,
            asking: Vec::new(),
        }
    }

    pub(super) fn ask(&mut self, vcpu: u32, question: Question, waits: bool) {
        // A vCPU that the domain has not got asks nothing, and that is missed.
        if vcpu >= self.domain.vcpus() {
            return;
        }
        let at = vcpu as usize;
        if self.asking.len() <= at {
            self.asking.resize_with(at + 1, || None);
        }
        let Some(place) = self.asking.get_mut(at) else {
            return;
        };
        if place.is_none() {
            let (send, questions) = channel::<Question>();
            let tape = Arc::clone(self.tape);
            let thread = self.domain.spawn(VcpuId(vcpu), move |cpu| {
                for question in questions {
                    let Some(answer) = question.answer else {
                        let _it_is_missed_if_it_fails =
                            cpu.post(question.server, &question.request);
                        continue;
                    };
                    let data = cpu.request(question.server, &question.request)?;
                    if let (Answer::Value(was), Mode::Play(player)) = (answer, &tape.mode)
                        && was != data
                    {
                        player.wrong_slot(question.at, &tape.names(), was, data);
                    }
                }
                Ok::<(), CpuFault>(())
            });
            *place = thread.ok().map(|thread| Asking {
                questions: send,
                thread,
                is_answered: true,
                waits,
            });
        }
        if let Some(asking) = place {
            asking.is_answered = question.answer != Some(Answer::None);
            asking.waits = waits;
            let _it_may_have_stopped = asking.questions.send(question);
        }
    }

    /// One that does not wait for an answer: the buffered ring does not say whose a request was.
    pub(super) fn idle(&self) -> u32 {
        let waits = |place: &Option<Asking>| place.as_ref().is_some_and(|asking| asking.waits);
        let idle = self.asking.iter().position(|place| !waits(place));
        let next = u32::try_from(idle.unwrap_or(self.asking.len())).unwrap_or(0);
        if next < self.domain.vcpus() { next } else { 0 }
    }

    /// Waits for the last answers.
    pub(super) fn end(self) {
        let until = Instant::now() + self.patience;
        for asking in self.asking.into_iter().flatten() {
            drop(asking.questions);
            while asking.is_answered && !asking.thread.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
