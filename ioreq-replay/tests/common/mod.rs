// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device model that is recorded, and one that it is played to.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use ioreq_core::ServerId;
use ioreq_core::server::IoreqServer;
use ioreq_replay::{Mismatch, Play, Played, Recording, Tape};
use ioreq_sim::{Domain, SimHypervisor};

/// A file that is memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct File(Arc<Mutex<Vec<u8>>>);

impl File {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A domain, and what serves it.
pub(crate) type Made = (Domain, Vec<IoreqServer<SimHypervisor>>);

/// Records what a device model is asked by `guest`.
pub(crate) fn recorded(make: impl FnOnce(&Tape) -> Made, guest: impl FnOnce(&Domain)) -> Vec<u8> {
    let file = File::default();
    let tape = Tape::record(file.clone(), "test", &()).unwrap();
    let (domain, servers) = make(&tape);
    let running: Vec<_> = servers
        .iter()
        .map(|server| server.start().unwrap())
        .collect();
    guest(&domain);
    drop(running);
    tape.close();
    file.bytes()
}

/// Plays it.
pub(crate) fn play(make: impl FnOnce(&Tape) -> Made, bytes: &[u8]) -> Result<Played, Mismatch> {
    let tape = Tape::play(Recording::read(bytes).unwrap());
    let (domain, servers) = make(&tape);
    let running: Vec<_> = servers
        .iter()
        .map(|server| server.start().unwrap())
        .collect();
    let ids: Vec<ServerId> = servers.iter().map(IoreqServer::id).collect();
    let played = Play::new(&domain, &ids).run(&tape, |_| ());
    drop(running);
    played
}
