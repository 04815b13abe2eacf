// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Files that somebody made up: whatever they say, they are read or refused, and played or found to differ.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq_core::abi::{IOREQ_DIR_READ, Ioreq};
use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::hypervisor::Interrupts;
use ioreq_core::{PortRange, server::IoreqServer};
use ioreq_sim::{DomainConfig, Machine, SimHypervisor};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::act::{Act, Ended, Raw};
use crate::effects::Effect;
use crate::file::{Frame, Header, Recorded, Writer};
use crate::interrupts::Interrupt;
use crate::{Mismatch, Play, Played, Recording, RecordingError, Stimulus, Tape};

#[derive(Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl File {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file of these frames.
fn file(frames: &[Frame]) -> Vec<u8> {
    let file = File::default();
    let header = Header {
        model: "test".into(),
        settings: Vec::new(),
    };
    let mut writer = Writer::new(Box::new(file.clone()), &header).unwrap();
    frames.iter().for_each(|frame| writer.put(frame));
    file.bytes()
}

fn raw(flags: u8) -> Raw {
    Raw::of(&Ioreq {
        addr: 0x500,
        count: 1,
        size: 4,
        flags,
        ..Ioreq::default()
    })
}

fn request(server: u8, vcpu: u32, raw: Raw) -> Frame {
    Frame::Begin(Act::Request { server, vcpu, raw })
}

fn end(effects: Vec<Effect>, ended: Ended) -> Frame {
    Frame::End { effects, ended }
}

fn whole(act: Act) -> Frame {
    Frame::Whole {
        act,
        effects: Vec::new(),
    }
}

/// Reads 7, tells a line, and looks into memory when it is written to.
struct Seven(Arc<dyn Interrupts>);

impl Handler for Seven {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        7.into()
    }
    fn write(&self, cx: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        let mut bytes = [0; 4];
        let _no_memory_is_fine = cx.ram().read(GuestAddress(0x1000), &mut bytes);
        let _it_is_the_models = self.0.set_isa_irq(4, bytes[0] != 0);
        WriteOutcome::Done
    }
}

/// Plays it to a device model with a server, a source and a thread.
fn play(bytes: &[u8], patience: u64) -> Result<Played, Mismatch> {
    let tape = Tape::play(Recording::read(bytes).unwrap());
    let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
    let hv = Arc::new(domain.hypervisor());
    let builder = IoreqServer::<SimHypervisor>::builder(Arc::clone(&hv));
    let server = tape.attach("server", builder).build().unwrap();
    let line = tape.interrupts(hv);
    let ports = PortRange::sized(0x500, 4).unwrap();
    server.route("seven", ports, Seven(line)).unwrap();
    let (source, thread) = (tape.source("source"), tape.thread("thread"));
    let running = server.start().unwrap();
    let memory = domain.memory();
    let played = Play::new(&domain, &[server.id()])
        .patience(Duration::from_millis(patience))
        .run(&tape, |stimulus| match stimulus {
            Stimulus::Input { bytes, .. } => {
                source.offer(bytes, |bytes| bytes.len().min(3));
            }
            Stimulus::Wake { .. } => {
                let look = |memory: &Arc<_>| memory_at(memory).then_some(());
                if let Some((step, ())) = thread.take(&memory, look) {
                    step.finish(|| ());
                }
            }
        });
    running.stop().unwrap();
    played
}

/// Whether there is something to do.
fn memory_at<M: vm_memory::GuestMemory>(memory: &Arc<M>) -> bool {
    matches!(memory.read_obj::<u16>(GuestAddress(0x2000)), Ok(word) if word != 0)
}

fn read(bytes: Vec<u8>) -> Effect {
    let addr = 0x1000;
    Effect::Read { addr, bytes }
}

#[test]
fn a_device_does_what_was_recorded_or_that_is_told() {
    let up = Effect::Signal(Interrupt::Isa {
        irq: 4,
        asserted: true,
    });
    let answered = Ended::Answered(None);
    let write = || request(0, 0, raw(0));
    let played = play(
        &file(&[
            request(0, 1, raw(IOREQ_DIR_READ)),
            end(vec![], Ended::Answered(Some(7))),
            write(),
            end(vec![read(vec![1, 0, 0, 0]), up.clone()], answered),
        ]),
        10_000,
    );
    let expected = Played {
        requests: 2,
        answers: 2,
        values: 1,
        interrupts: 1,
        ..Played::default()
    };
    assert_eq!(played.unwrap(), expected);
    for (effects, ended) in [
        // Another level, of no interrupt, no read, another read, one too short.
        (vec![read(vec![0, 0, 0, 0]), up.clone()], answered),
        (vec![read(vec![1, 0, 0, 0])], answered),
        (vec![up.clone()], answered),
        (vec![], answered),
        (vec![read(vec![1, 0])], answered),
        (
            vec![
                Effect::NoMemory {
                    addr: 0x1000,
                    len: 4,
                },
                up.clone(),
            ],
            answered,
        ),
        // Another answer, none, and one that is late.
        (
            vec![read(vec![1, 0, 0, 0]), up.clone()],
            Ended::Answered(Some(0)),
        ),
        (vec![read(vec![1, 0, 0, 0]), up.clone()], Ended::Refused),
        (vec![read(vec![1, 0, 0, 0]), up], Ended::Waits),
    ] {
        let mismatch = play(&file(&[write(), end(effects.clone(), ended)]), 200);
        let mismatch = mismatch.expect_err(&format!("{effects:?} {ended:?}"));
        assert_eq!(mismatch.request, 0);
        assert!(
            mismatch.asked.contains("server, v0: write of 4 bytes"),
            "{mismatch}"
        );
        assert_ne!(mismatch.recorded, mismatch.replayed);
    }
}

#[test]
fn what_can_never_happen_is_told_after_a_while() {
    let signal = Interrupt::Level {
        irq: 1,
        asserted: true,
    };
    for act in [
        Act::Request {
            server: 9,
            vcpu: 0,
            raw: raw(0),
        },
        Act::Request {
            server: 0,
            vcpu: 2,
            raw: raw(0),
        },
        Act::Request {
            server: 0,
            vcpu: u32::MAX,
            raw: raw(0),
        },
        Act::Posted {
            server: 0,
            raw: raw(0),
        },
        Act::Again { server: 0, vcpu: 0 },
        Act::Answer {
            server: 0,
            vcpu: 0,
            value: None,
        },
        Act::Input {
            source: 0,
            bytes: vec![1, 2, 3, 4],
        },
        Act::Input {
            source: 9,
            bytes: vec![1],
        },
        Act::Take { thread: 9 },
        Act::Finish {
            thread: 0,
            log: vec![],
        },
        Act::Signal(signal),
    ] {
        // An input of another source blocks: the device offers what it has to the one that it knows.
        if matches!(act, Act::Input { source: 9, .. }) {
            continue;
        }
        let frames = [whole(act.clone()), Frame::Closed];
        assert!(play(&file(&frames), 100).is_err(), "{act:?}");
    }
}

#[test]
fn a_step_is_played_by_what_it_read_whole_or_not_at_all() {
    let log = |bytes| {
        vec![Effect::Read {
            addr: 0x2000,
            bytes,
        }]
    };
    let step = |log| {
        [
            whole(Act::Take { thread: 0 }),
            whole(Act::Finish { thread: 0, log }),
        ]
    };
    let played = play(&file(&step(log(vec![1, 0]))), 10_000).unwrap();
    assert_eq!(played.steps, 1);
    // There was nothing to do; it read more, and elsewhere.
    assert!(play(&file(&step(log(vec![0, 0]))), 200).is_err());
    assert!(play(&file(&step(log(vec![1, 0, 0]))), 200).is_err());
    assert!(play(&file(&step(vec![])), 200).is_err());
    // The recorder was killed before its end.
    let begun = [whole(Act::Take { thread: 0 })];
    assert_eq!(play(&file(&begun), 10_000).unwrap().steps, 0);
}

#[test]
fn a_look_that_finds_nothing_is_not_recorded() {
    let to = File::default();
    let tape = Tape::record(to.clone(), "test", &()).unwrap();
    let memory = Machine::new()
        .create_domain(DomainConfig::new(1))
        .unwrap()
        .memory();
    let thread = tape.thread("thread");
    assert!(thread.take(&memory, |_| None::<()>).is_none());
    let (step, ()) = thread.take(&memory, |_| Some(())).unwrap();
    drop(step);
    tape.close();
    let acts = Recording::read(&to.bytes()[..]).unwrap().acts;
    let is_step = matches!(
        &acts[..],
        [
            Recorded {
                act: Act::Take { .. },
                ..
            },
            Recorded {
                act: Act::Finish { .. },
                ..
            }
        ]
    );
    assert!(is_step, "{acts:?}");
}

#[test]
fn frames_out_of_order_are_damage() {
    let good = [request(0, 0, raw(0)), end(vec![], Ended::Refused)];
    let [begin, end] = good;
    for frames in [
        vec![end.clone()],
        vec![begin.clone(), begin.clone()],
        vec![begin.clone(), whole(Act::Take { thread: 0 })],
        vec![begin.clone(), Frame::Closed],
        vec![begin.clone(), end.clone(), end],
        vec![Frame::Closed, Frame::Closed],
    ] {
        let err = Recording::read(&file(&frames)[..]).unwrap_err();
        assert!(
            matches!(err, RecordingError::Damaged { .. }),
            "{frames:?}: {err}"
        );
    }
}

fn sample() -> Vec<u8> {
    file(&[
        request(0, 0, raw(IOREQ_DIR_READ)),
        end(vec![read(vec![1, 2, 3])], Ended::Answered(Some(7))),
        whole(Act::Finish {
            thread: 3,
            log: vec![read(vec![9; 200])],
        }),
        Frame::Closed,
    ])
}

#[test]
fn every_change_of_a_bit_is_found() {
    let bytes = sample();
    let good = Recording::read(&bytes[..]).unwrap();
    for bit in 0..8 * bytes.len() {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        match Recording::read(&changed[..]) {
            Err(_) => {}
            // A frame that claims to be longer than the file looks like one that was not written to its end.
            Ok(read) => assert!(
                !read.is_closed() && read.acts.len() <= good.acts.len(),
                "bit {bit}"
            ),
        }
    }
}

#[test]
fn every_beginning_is_a_recording_that_is_not_closed() {
    let bytes = sample();
    let mut acts = 0;
    for len in 0..bytes.len() {
        match Recording::read(&bytes[..len]) {
            Err(RecordingError::NotARecording) => assert_eq!(acts, 0, "{len}"),
            Err(err) => panic!("{len}: {err}"),
            Ok(read) => {
                assert!(!read.is_closed() && read.acts.len() >= acts);
                acts = read.acts.len();
            }
        }
    }
    assert_eq!(acts, 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes that mean anything, with the checksum that belongs to them: as far as they are a recording they say what they said.
    #[test]
    fn anything_is_read_or_refused(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)) {
        let mut bytes = b"ioreqrec\x01\x00".to_vec();
        let mut sum = 0;
        for body in bodies {
            sum = crate::effects::continued(sum, &body);
            bytes.push(u8::try_from(body.len()).unwrap());
            bytes.extend(&body);
            bytes.extend(&sum.to_le_bytes()[..2]);
        }
        let _ = Recording::read(&bytes[..]);
    }
}

proptest! {
    // Each makes a machine.
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_request_is_played(addr: u64, data: u64, count: u32, size: u32, flags: u8, kind in 0..12_u8) {
        let raw = Raw::of(&Ioreq { addr, data, count: count % 5000, size: size % 10, flags, kind, ..Ioreq::default() });
        // It is answered somehow, and that differs or not.
        let _ = play(&file(&[request(0, 0, raw), end(vec![], Ended::Refused)]), 5000);
    }
}
