// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Recordings of the board, and what differs from them. (That equal boards do the same every test of this folder shows: see
//! `support::recorded`.)

use std::io;

use ioreq::replay::{Mismatch, Recording, RecordingError, Tape};
use linux_dm::board::Failure;
use linux_dm::replay::{Replayed, Settings, play};

use crate::support::disk::{DATA, Disk, IN, OUT, fill};
use crate::support::{Memory, Rig, settings};

/// A recording of a driver that finds the disk and uses it.
fn recording(settings: Settings) -> Vec<u8> {
    let rig = Rig::recorded_as(settings);
    rig.run(|cpu| {
        let mut disk = Disk::start(cpu)?;
        fill(cpu, DATA, 1024, 5)?;
        disk.request(cpu, OUT, 3, &[(DATA, 1024, false)])?;
        disk.request(cpu, IN, 2, &[(DATA, 2048, true)])?;
        for byte in *b"done" {
            cpu.outb(0x3f8, byte)?;
        }
        // The capacity, in sectors.
        cpu.load32(disk.bar + 0x2000)
    });
    rig.recording()
}

fn replay(bytes: &[u8]) -> Result<Replayed, Failure> {
    play(bytes, None, Box::new(io::sink()))
}

/// Debian's kernel on Xen 4.20: a boot, a file system, random numbers, a shell that is typed at, power-off. A device that answers otherwise on
/// purpose needs it made anew: `target/xen/linux.recording`, after `cargo xtask xen run --example linux`.
#[test]
fn a_real_guests_boot_is_answered_as_it_was() {
    let boot = include_bytes!("../boot.recording");
    let replayed = replay(boot).unwrap();
    assert!(replayed.closed && replayed.bytes == boot.len() as u64);
    let played = &replayed.played;
    assert_eq!((played.requests, played.answers), (4539, 4539));
    assert_eq!(
        (played.steps, played.interrupts, played.inputs),
        (108, 1172, 30)
    );
}

#[test]
fn a_disk_of_another_size_is_found_by_the_first_answer_that_tells() {
    let wrong = Settings {
        disk: 4 * settings().disk,
        ..settings()
    };
    let mismatch = replay(&recording(wrong)).unwrap_err();
    let mismatch = mismatch.downcast::<Mismatch>().unwrap();
    assert!(mismatch.asked.contains("read of 4 bytes"), "{mismatch}");
    assert_eq!(mismatch.recorded, "answered with 0x800");
    assert_eq!(mismatch.replayed, "answered with 0x2000");
    // It is the last request.
    let all = Recording::read(&recording(settings())[..])
        .unwrap()
        .requests();
    assert_eq!(mismatch.request, all - 1);
}

#[test]
fn a_recording_that_ends_anywhere_is_played_up_to_there() {
    let bytes = recording(settings());
    let all = replay(&bytes).unwrap();
    assert!(all.closed);
    let mut before = 0;
    for len in (0..bytes.len()).step_by(1 + bytes.len() / 20) {
        match replay(&bytes[..len]) {
            Ok(replayed) => {
                assert!(!replayed.closed, "{len}");
                assert!(
                    replayed
                        .to_string()
                        .ends_with("its device model was killed")
                );
                assert!(replayed.played.requests >= before, "{len}");
                before = replayed.played.requests;
            }
            // Not even the header is there.
            Err(err) => assert!(before == 0 && err.is::<RecordingError>(), "{len}: {err}"),
        }
    }
    assert!(before > 0 && before <= all.played.requests);
}

#[test]
fn a_recording_of_something_else_is_refused() {
    let file = Memory::default();
    Tape::record(file.clone(), "toaster", &()).unwrap();
    let err = replay(&file.bytes()).unwrap_err();
    assert!(err.to_string().contains("toaster"), "{err}");
    for mib in [0, 15, 1 << 20, u64::MAX] {
        let absurd = Settings { mib, ..settings() };
        let file = Memory::default();
        drop(absurd.record(file.clone()).unwrap());
        assert!(replay(&file.bytes()).is_err(), "{mib} MiB");
    }
    for vcpus in [0, 1 << 20] {
        let absurd = Settings {
            vcpus,
            ..settings()
        };
        let file = Memory::default();
        drop(absurd.record(file.clone()).unwrap());
        assert!(replay(&file.bytes()).is_err(), "{vcpus} vCPUs");
    }
}
