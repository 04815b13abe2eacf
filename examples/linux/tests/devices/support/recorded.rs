// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Records a test's board, and plays it to another one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::{process, thread};

use ioreq::replay::{Tape, checksum};
use linux_dm::replay::{Settings, play};

use super::{MIB, SECTORS};

/// A file that is memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a board of the rig is recorded with.
pub(crate) fn settings() -> Settings {
    let disk = SECTORS * 512;
    Settings {
        vcpus: 1,
        mib: MIB,
        disk,
        sum: checksum(io::repeat(0).take(disk)).unwrap(),
    }
}

/// A recording under way. When it is dropped it is played, and must be the same.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) tape: Tape,
    file: Memory,
    taken: bool,
}

impl Recorded {
    pub(crate) fn new(settings: Settings) -> Self {
        let file = Memory::default();
        let tape = settings.record(file.clone()).unwrap();
        Recorded {
            tape,
            file,
            taken: false,
        }
    }

    /// The recording, when nobody records any more. It is not played.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        self.taken = true;
        self.tape.close();
        self.file.bytes()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.taken || thread::panicking() {
            return;
        }
        self.tape.close();
        // The disk as it was: zeros.
        let name = format!("replay-{}-{:?}", process::id(), thread::current().id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap().set_len(SECTORS * 512).unwrap();
        let replayed = play(&self.file.bytes()[..], Some(&path), Box::new(io::sink()));
        fs::remove_file(path).unwrap();
        let replayed = replayed.unwrap_or_else(|err| panic!("the replay differs: {err}"));
        assert!(replayed.closed && replayed.stores, "{replayed}");
        println!("replayed: {replayed}");
    }
}
