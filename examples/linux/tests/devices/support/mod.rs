// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The board on the model, and a guest's drivers for it.

pub(crate) mod disk;
mod recorded;
pub(crate) mod ring;

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use ioreq::replay::Tape;
use ioreq::sim::{Cpu, CpuFault, Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{GfnRange, VcpuId};
use linux_dm::board::{Board, Parts, Servers, Serving};
use linux_dm::replay::Settings;
use linux_dm::saved::SavedBoard;
use linux_dm::virtio::Fuse;
use recorded::Recorded;
pub(crate) use recorded::{Memory, settings};

pub(crate) const MIB: u64 = 64;
/// Length of the disk in sectors.
pub(crate) const SECTORS: u64 = 2048;

/// What a console printed.
#[derive(Clone, Default)]
pub(crate) struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A board at work for a domain of the model.
pub(crate) struct Rig {
    pub(crate) domain: Domain,
    pub(crate) board: Board<SimHypervisor>,
    pub(crate) printed: Printed,
    /// The disk's image.
    pub(crate) image: File,
    serving: Option<Serving<SimHypervisor>>,
    /// Played when the rest is gone.
    recorded: Option<Recorded>,
}

/// A board for the domain, that prints to `printed`.
fn build(
    domain: &Domain,
    image: &File,
    printed: &Printed,
    fuse: Fuse,
    tape: Tape,
) -> Board<SimHypervisor> {
    let ended = domain.clone();
    let parts = Parts {
        disk: image.try_clone().unwrap(),
        mib: MIB,
        out: Box::new(printed.clone()),
        fuse,
        end: Box::new(move |reason| ended.shutdown(reason)),
        servers: Servers::Unrecorded,
        tape,
    };
    Board::new(&Arc::new(domain.hypervisor()), parts).unwrap()
}

impl Rig {
    /// What its devices take in is recorded, and played to others at the end: they must do the same.
    pub(crate) fn new() -> Self {
        Self::of(Fuse::never(), Some(Recorded::new(settings())))
    }

    /// The recording says that it is of a board like this.
    pub(crate) fn recorded_as(settings: Settings) -> Self {
        Self::of(Fuse::never(), Some(Recorded::new(settings)))
    }

    /// Ends it, and the recording, which is not played.
    pub(crate) fn recording(mut self) -> Vec<u8> {
        let recorded = self.recorded.take().unwrap();
        drop(self);
        recorded.bytes()
    }

    /// Not recorded.
    pub(crate) fn alone() -> Self {
        Self::with_fuse(Fuse::never())
    }

    /// With a disk whose thread dies.
    pub(crate) fn with_fuse(fuse: Fuse) -> Self {
        Self::of(fuse, None)
    }

    fn of(fuse: Fuse, recorded: Option<Recorded>) -> Self {
        let tape = recorded.as_ref().map(|it| it.tape.clone());
        let config = DomainConfig::new(1)
            .memory(GfnRange::new(0, 0x9f).unwrap())
            .memory(GfnRange::new(0xc0, (MIB << 8) - 1).unwrap());
        let domain = Machine::new().create_domain(config).unwrap();
        let (image, printed) = (image(), Printed::default());
        let board = build(&domain, &image, &printed, fuse, tape.unwrap_or_default());
        let serving = Some(board.start().unwrap());
        Rig {
            domain,
            board,
            printed,
            image,
            serving,
            recorded,
        }
    }

    /// Another board in the place of this one, with what was kept of it.
    pub(crate) fn replaced(mut self, kept: SavedBoard) -> Self {
        self.serving.take().unwrap().stop().unwrap();
        let Rig {
            domain,
            board,
            image,
            ..
        } = self;
        drop(board);
        let printed = Printed::default();
        let (fuse, tape) = (Fuse::never(), Tape::default());
        let board = build(&domain, &image, &Printed::default(), fuse, tape);
        board.restore(kept, Box::new(printed.clone())).unwrap();
        let serving = Some(board.start().unwrap());
        Rig {
            domain,
            board,
            printed,
            image,
            serving,
            recorded: None,
        }
    }

    /// Runs a guest's program to its end.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        program: impl FnOnce(&mut Cpu) -> Result<T, CpuFault> + Send + 'static,
    ) -> T {
        let vcpu = self.domain.spawn(VcpuId(0), program).unwrap();
        vcpu.join().unwrap()
    }

    /// Waits for the domain's end.
    pub(crate) fn wait(&mut self) -> ioreq::server::Exit {
        self.serving.take().unwrap().wait().unwrap()
    }
}

/// A file without a name, of the disk's length.
fn image() -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("linux-dm-{}-{number}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(SECTORS * 512).unwrap();
    file
}
