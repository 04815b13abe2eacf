// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Plays a recording on the hypervisor model: its vCPUs ask what was asked.

mod vcpus;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ioreq_core::ServerId;
use ioreq_sim::Domain;

use crate::act::{Act, Ended};
use crate::effects::Effect;
use crate::player::{Mismatch, Player};
use crate::tape::{Inner, Mode, Tape};
use vcpus::{Answer, Question, Vcpus};

/// What only the device model can do.
///
/// ```
/// use ioreq_replay::Stimulus;
/// fn on(stimulus: Stimulus<'_>) {
///     match stimulus {
///         Stimulus::Input { source, bytes } => println!("type {bytes:?} at the {source}"),
///         Stimulus::Wake { thread } => println!("the {thread} is to look whether there is something to do"),
///     }
/// }
/// on(Stimulus::Wake { thread: "disk" });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stimulus<'a> {
    /// Give these bytes to the device that is behind this source: it takes them by [`Source::offer`](crate::Source::offer).
    Input {
        /// As the tape knows it.
        source: &'a str,
        /// What it took in.
        bytes: &'a [u8],
    },
    /// Have the device's thread look whether there is something to do: it calls [`DeviceThread::take`](crate::DeviceThread::take).
    Wake {
        /// As the tape knows it.
        thread: &'a str,
    },
}

/// A recording that was played to its end, and nothing differed.
///
/// ```
/// use ioreq_replay::Played;
/// fn tell(played: &Played) -> String {
///     format!("{played}") // "232 requests: 232 answers are equal, …"
/// }
/// # let _ = tell;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Played {
    /// Requests of vCPUs and of buffered rings.
    pub requests: u64,
    /// Answers that were compared.
    pub answers: u64,
    /// Of these, values that vCPUs found in their slots.
    pub values: u64,
    /// Steps of devices' threads.
    pub steps: u64,
    /// Interrupts, lowered ones included.
    pub interrupts: u64,
    /// Times that the host gave a device something.
    pub inputs: u64,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Played {
            requests,
            answers,
            values,
            steps,
            interrupts,
            inputs,
        } = self;
        write!(
            f,
            "{requests} requests: {answers} answers are equal, {values} of them values in slots, and so are {steps} steps of devices' \
             threads, {interrupts} interrupts, {inputs} inputs"
        )
    }
}

/// Plays what is on a tape.
///
/// The device model is made first, as it was made when it was recorded, with the tape, on a domain of the model with as many vCPUs and as much
/// memory; its servers serve.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
/// use ioreq_replay::{Play, Recording, Tape};
/// use ioreq_sim::{Domain, DomainConfig, Machine, SimHypervisor};
/// # #[derive(Clone, Default)] struct Shared(Arc<Mutex<Vec<u8>>>);
/// # impl std::io::Write for Shared {
/// #     fn write(&mut self, b: &[u8]) -> std::io::Result<usize> { self.0.lock().unwrap().write(b) }
/// #     fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
/// # }
///
/// /// Adds up; the step is part of the device model.
/// struct Adder(Mutex<u64>, u64);
/// impl Handler for Adder {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         (*self.0.lock().unwrap()).into()
///     }
///     fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
///         *self.0.lock().unwrap() += value * self.1;
///         WriteOutcome::Done
///     }
/// }
///
/// fn device_model(tape: &Tape, step: u64) -> ioreq_core::Result<(Domain, IoreqServer<SimHypervisor>)> {
///     let domain = Machine::new().create_domain(DomainConfig::new(1))?;
///     let server = tape.attach("devices", IoreqServer::builder(domain.hypervisor())).build()?;
///     server.route("adder", PortRange::new(0x500, 0x503)?, Adder(Mutex::new(0), step))?;
///     Ok((domain, server))
/// }
///
/// let file = Shared::default();
/// let tape = Tape::record(file.clone(), "adder", &())?;
/// let (domain, server) = device_model(&tape, 1)?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| {
///     cpu.outl(0x500, 2)?;
///     cpu.outl(0x500, 3)?;
///     cpu.inl(0x500)
/// })?;
/// assert_eq!(guest.join()?, 5);
/// running.stop()?;
/// tape.close();
///
/// let play = |step| -> Result<_, Box<dyn std::error::Error>> {
///     let bytes = file.0.lock().unwrap().clone();
///     let tape = Tape::play(Recording::read(&bytes[..])?);
///     let (domain, server) = device_model(&tape, step)?;
///     let running = server.start()?;
///     let played = Play::new(&domain, &[server.id()]).run(&tape, |_| ());
///     running.stop()?;
///     Ok(played)
/// };
/// let played = play(1)?.unwrap();
/// assert_eq!((played.requests, played.answers, played.values), (3, 3, 1));
/// let mismatch = play(10)?.unwrap_err();
/// assert_eq!(mismatch.request, 2);
/// assert_eq!(mismatch.asked, "devices, v0: read of 4 bytes from port 0x500");
/// assert_eq!((&*mismatch.recorded, &*mismatch.replayed), ("answered with 0x5", "answered with 0x32"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Play<'a> {
    domain: &'a Domain,
    servers: &'a [ServerId],
    patience: Duration,
}

impl<'a> Play<'a> {
    /// On that domain; `servers` in the order in which they came to the tape.
    #[must_use]
    pub fn new(domain: &'a Domain, servers: &'a [ServerId]) -> Self {
        Play {
            domain,
            servers,
            patience: Duration::from_secs(30),
        }
    }

    /// How long nothing may happen before that counts as a difference; 30 seconds by default.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Plays all of it; `on` is called for what only the device model can do. Nothing of the tape's is compared or held back afterwards.
    ///
    /// # Errors
    /// The first difference. (A tape that does not play has nothing to differ from.)
    pub fn run(self, tape: &Tape, mut on: impl FnMut(Stimulus<'_>)) -> Result<Played, Mismatch> {
        let Some(inner) = tape.inner() else {
            return Ok(Played::default());
        };
        let Mode::Play(player) = &inner.mode else {
            return Ok(Played::default());
        };
        let mut vcpus = Vcpus::new(self.domain, inner, self.patience);
        let result = self.play(inner, player, &mut vcpus, &mut on);
        if result.is_ok() {
            vcpus.end();
        }
        match player.end() {
            Some(mismatch) => Err(mismatch),
            None => result.map(|()| count(player)),
        }
    }

    fn play(
        &self,
        inner: &Arc<Inner>,
        player: &Player,
        vcpus: &mut Vcpus<'_>,
        on: &mut dyn FnMut(Stimulus<'_>),
    ) -> Result<(), Mismatch> {
        let names = inner.names();
        for at in 0..player.len() {
            let Some(recorded) = player.recorded(at) else {
                break;
            };
            let server = |number: &u8| self.servers.get(usize::from(*number)).copied();
            match &recorded.act {
                Act::Request {
                    server: of,
                    vcpu,
                    raw,
                } => {
                    if let Some(server) = server(of) {
                        let question = Question {
                            at,
                            server,
                            request: raw.request(),
                            answer: Some(answer(player, at)),
                        };
                        vcpus.ask(*vcpu, question, recorded.ended == Some(Ended::Waits));
                    }
                }
                Act::Posted { server: of, raw } => {
                    if let Some(server) = server(of) {
                        let question = Question {
                            at,
                            server,
                            request: raw.request(),
                            answer: None,
                        };
                        vcpus.ask(vcpus.idle(), question, false);
                    }
                }
                Act::Input { source, bytes } => on(Stimulus::Input {
                    source: &names.source(*source),
                    bytes,
                }),
                Act::Take { thread } => on(Stimulus::Wake {
                    thread: &names.thread(*thread),
                }),
                // These come by themselves.
                Act::Again { .. } | Act::Answer { .. } | Act::Finish { .. } | Act::Signal(_) => {}
            }
            player.wait_for(at, &names, self.patience)?;
        }
        Ok(())
    }
}

/// The answer to the request at `at`.
fn answer(player: &Player, at: usize) -> Answer {
    let Some(Act::Request { server, vcpu, .. }) = player.recorded(at).map(|it| &it.act) else {
        return Answer::None;
    };
    let mine = |s: &u8, v: &u32| (s, v) == (server, vcpu);
    for recorded in (at..player.len()).filter_map(|at| player.recorded(at)) {
        match &recorded.act {
            Act::Request {
                server: s, vcpu: v, ..
            }
            | Act::Again { server: s, vcpu: v }
                if mine(s, v) =>
            {
                match recorded.ended {
                    Some(Ended::Answered(value)) => return value.into(),
                    Some(Ended::Refused | Ended::Done) => return Answer::Other,
                    Some(Ended::Waits) => {}
                    None => return Answer::None,
                }
            }
            Act::Answer {
                server: s,
                vcpu: v,
                value,
            } if mine(s, v) => return (*value).into(),
            _ => {}
        }
        let within = recorded.effects.iter().find_map(|effect| match effect {
            Effect::Answer {
                server: s,
                vcpu: v,
                value,
            } if mine(s, v) => Some(*value),
            _ => None,
        });
        if let Some(value) = within {
            return value.into();
        }
    }
    Answer::None
}

fn count(player: &Player) -> Played {
    let mut played = Played::default();
    for (at, recorded) in (0..player.len()).filter_map(|at| Some((at, player.recorded(at)?))) {
        match &recorded.act {
            Act::Request { .. } => {
                played.requests += 1;
                let value = matches!(answer(player, at), Answer::Value(_));
                played.values += u64::from(value);
            }
            Act::Posted { .. } => played.requests += 1,
            Act::Answer { .. } => played.answers += 1,
            Act::Input { .. } => played.inputs += 1,
            Act::Finish { .. } => played.steps += 1,
            Act::Signal(_) => played.interrupts += 1,
            Act::Again { .. } | Act::Take { .. } => {}
        }
        let is_answer = matches!(recorded.ended, Some(Ended::Answered(_) | Ended::Refused));
        played.answers += u64::from(is_answer && !matches!(recorded.act, Act::Posted { .. }));
        for effect in &recorded.effects {
            match effect {
                Effect::Signal(_) => played.interrupts += 1,
                Effect::Answer { .. } => played.answers += 1,
                _ => {}
            }
        }
    }
    played
}
