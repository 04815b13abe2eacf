// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The devices, put together on a domain of some hypervisor.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ioreq::backends::pci::PciFunction;
use ioreq::hypervisor::Interrupts;
use ioreq::replay::Tape;
use ioreq::routes::Routes;
use ioreq::server::{Exit, IoreqServer, Running};
use ioreq::snapshot::Snapshot;
use ioreq::stats::Report;
use ioreq::{Hypervisor, MmioRange, PortRange, Sbdf, ServerId, ShutdownReason};

use crate::console::Console;
use crate::host_bridge::HostBridge;
use crate::nobody::Nobody;
use crate::power::Power;
use crate::saved::{Changed, SavedBoard};
use crate::virtio::{Block, Entropy, Fuse, MmioTransport, PciTransport};
use crate::watcher::Watcher;

/// Why a board could not be made.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The slot of the disk.
pub const DISK_SLOT: u8 = 3;
/// The slot whose interrupt line the random numbers have. Nothing else is in it.
pub const ENTROPY_SLOT: u8 = 1;
/// The page of registers of the random numbers.
pub const ENTROPY: u32 = 0xd000_0000;
/// Mass storage, of another kind than all kinds that have a number.
const STORAGE: (u8, u8) = (0x01, 0x80);

/// The names on a tape of what is typed, and of the devices' threads.
pub(crate) const CONSOLE: &str = "console";
pub(crate) const DISK: &str = "disk";
pub(crate) const RANDOM: &str = "entropy";

/// Where Xen has no memory of the guest, below and above it.
const VGA: (u64, u64) = (0xa_0000, 0xb_ffff);
const LAST_ADDRESS: u64 = (1 << 40) - 1;

/// What a board is made of.
pub struct Parts {
    /// The disk's image.
    pub disk: File,
    /// Memory of the guest in MiB: what is above belongs to devices.
    pub mib: u64,
    /// Where the console prints.
    pub out: Box<dyn Write + Send>,
    /// What kills the disk's thread, in tests.
    pub fuse: Fuse,
    /// Ends the domain: the guest powered off, or reset.
    pub end: Box<dyn Fn(ShutdownReason) + Send + Sync>,
    /// What becomes of the servers when this process dies.
    pub servers: Servers,
    /// Records what the devices take in, or plays it.
    pub tape: Tape,
}

/// What becomes of a board's servers when their process dies, and where they come from.
#[derive(Debug, Clone)]
pub enum Servers {
    /// They are new, and stay behind without anybody who knows them.
    Unrecorded,
    /// They are new, and recorded in files whose names begin with this; the string is the domain's identity.
    Recorded(PathBuf, String),
    /// They are those of a process that died, by its records.
    TakenOver(PathBuf, String),
}

impl Servers {
    fn build<H: Hypervisor>(
        &self,
        hypervisor: &Arc<H>,
        which: &str,
        tape: &Tape,
    ) -> ioreq::Result<IoreqServer<H>> {
        let builder = tape.attach(which, IoreqServer::builder(Arc::clone(hypervisor)));
        let file = |path: &PathBuf| path.with_extension(which);
        match self {
            Servers::Unrecorded => builder,
            Servers::Recorded(path, identity) => builder.record(file(path)).identity(identity),
            Servers::TakenOver(path, identity) => builder.take_over(file(path)).identity(identity),
        }
        .build()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("disk", &self.disk)
            .field("mib", &self.mib)
            .finish_non_exhaustive()
    }
}

/// A device model for one domain.
#[derive(Debug)]
pub struct Board<H: Hypervisor> {
    /// Older than the server of the devices, so that it gets what they do not have.
    left_over: Arc<IoreqServer<H>>,
    server: Arc<IoreqServer<H>>,
    nobody: Arc<Nobody>,
    disk: Arc<Block<H>>,
    entropy: Arc<Entropy<H>>,
    watcher: Arc<Watcher>,
    registers: Arc<Registers>,
    changed: Changed,
}

/// The devices whose registers the guest sets.
#[derive(Debug)]
struct Registers {
    console: Arc<Console>,
    bridge: Arc<PciFunction>,
    disk: PciTransport,
    entropy: Arc<MmioTransport>,
}

impl Registers {
    fn save(&self) -> SavedBoard {
        SavedBoard {
            console: self.console.save(),
            bridge: self.bridge.save(),
            disk: self.disk.save(),
            entropy: self.entropy.save(),
        }
    }
}

impl<H: Hypervisor> Board<H> {
    /// Puts it together. The domain must not run yet: what it asks for before this is done, nobody has.
    ///
    /// # Errors
    /// The hypervisor's, and those of the disk's image.
    pub fn new(hypervisor: &Arc<H>, parts: Parts) -> Result<Self, Failure> {
        let tape = parts.tape;
        let left_over = Arc::new(parts.servers.build(hypervisor, "left-over", &tape)?);
        let nobody = Arc::new(Nobody::default());
        left_over.route("ports", PortRange::new(0, u16::MAX)?, Arc::clone(&nobody))?;
        for (first, last) in [VGA, (parts.mib << 20, LAST_ADDRESS)] {
            left_over.route("mmio", MmioRange::new(first, last)?, Arc::clone(&nobody))?;
        }

        let changed = Changed::default();
        let server = Arc::new(parts.servers.build(hypervisor, "devices", &tape)?);
        let interrupts = || tape.interrupts(Arc::clone(hypervisor) as _);
        let routes = || Arc::new(server.control()) as Arc<dyn Routes>;
        let typed = tape.source(CONSOLE);
        let console = Console::new(interrupts(), parts.out, typed, changed.clone());
        let console = Arc::new(console);
        server.route("console", Console::ports()?, Arc::clone(&console))?;
        let power = Arc::new(Power::new(parts.end));
        server.route("power", Power::ports()?, Arc::clone(&power))?;
        server.route("pci address", HostBridge::ports()?, HostBridge::new(power))?;
        let bridge = HostBridge::function(slot(0)?, interrupts(), routes())?;
        server.route("host bridge", bridge.sbdf(), Arc::clone(&bridge))?;

        let hv = || Arc::clone(hypervisor);
        let disk = Block::new(
            "ioreq-disk",
            parts.disk,
            hv(),
            server.dma(),
            tape.thread(DISK),
            parts.fuse,
        )?;
        let disk = Arc::new(disk);
        let disk_function = PciTransport::new(
            Arc::clone(&disk) as _,
            slot(DISK_SLOT)?,
            STORAGE,
            interrupts(),
            routes(),
            changed.clone(),
        )?;
        let function = Arc::clone(disk_function.function());
        server.route("disk", function.sbdf(), function)?;

        let entropy = Arc::new(Entropy::new(hv(), server.dma(), tape.thread(RANDOM))?);
        let line = slot(ENTROPY_SLOT)?;
        let registers = MmioTransport::new(
            Arc::clone(&entropy) as _,
            line,
            interrupts(),
            changed.clone(),
        );
        let registers = Arc::new(registers);
        let page = MmioRange::sized(ENTROPY.into(), 0x1000)?;
        server.route("entropy", page, Arc::clone(&registers))?;

        let watcher = Arc::new(Watcher::new(&server)?);
        server.route("watcher", Watcher::ports()?, Arc::clone(&watcher))?;
        Ok(Board {
            left_over,
            server,
            watcher,
            nobody,
            disk,
            entropy,
            registers: Arc::new(Registers {
                console,
                bridge,
                disk: disk_function,
                entropy: registers,
            }),
            changed,
        })
    }

    /// Calls `keep` with the devices' registers now and after each change of them, before the access that made it is answered: for
    /// [`restore`](Self::restore) in a process that takes over.
    pub fn keep(&self, keep: impl Fn(&SavedBoard) + Send + Sync + 'static) {
        // Weak: the devices hold what tells of their changes.
        let registers = Arc::downgrade(&self.registers);
        let turn = Mutex::new(());
        self.changed.set(move || {
            // One after the other, so that what is kept last is the last.
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(registers) = registers.upgrade() {
                keep(&registers.save());
            }
        });
        self.changed.tell();
    }

    /// The devices' registers as the guest had them, and what was running goes on. `out` is where the console prints.
    ///
    /// # Errors
    /// When the state is another board's.
    pub fn restore(&self, saved: SavedBoard, out: Box<dyn Write + Send>) -> Result<(), Failure> {
        let Registers {
            console,
            bridge,
            disk,
            entropy,
        } = &*self.registers;
        let interrupts = Arc::clone(self.server.hypervisor()) as Arc<dyn Interrupts>;
        console
            .restore(saved.console, interrupts, out)
            .map_err(|err| format!("the console: {err}"))?;
        bridge.restore(saved.bridge)?;
        disk.restore(saved.disk)?;
        entropy.restore(saved.entropy);
        Ok(())
    }

    /// Serves from now on.
    ///
    /// # Errors
    /// When there are no threads.
    pub fn start(&self) -> ioreq::Result<Serving<H>> {
        Ok(Serving {
            left_over: self.left_over.start()?,
            devices: self.server.start()?,
        })
    }

    /// The console.
    #[must_use]
    pub fn console(&self) -> &Arc<Console> {
        &self.registers.console
    }

    /// The server of the devices.
    #[must_use]
    pub fn server(&self) -> &IoreqServer<H> {
        &self.server
    }

    /// Tells, from any thread, how the servers are; none when the board is gone, which it does not keep.
    pub fn reporter(&self) -> impl Fn() -> Vec<(&'static str, Report)> + Send + 'static {
        let servers = [("devices", &self.server), ("left-over", &self.left_over)];
        let servers = servers.map(|(name, server)| (name, Arc::downgrade(server)));
        move || {
            let live = servers
                .iter()
                .filter_map(|(name, server)| Some((*name, server.upgrade()?)));
            live.map(|(name, server)| (name, server.report())).collect()
        }
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Block<H> {
        &self.disk
    }

    /// The random numbers.
    #[must_use]
    pub fn entropy(&self) -> &Entropy<H> {
        &self.entropy
    }

    /// The servers' ids, in the order in which they came to the tape.
    #[must_use]
    pub fn servers(&self) -> [ServerId; 2] {
        [self.left_over.id(), self.server.id()]
    }

    /// The watcher.
    #[must_use]
    pub fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// What no device has.
    #[must_use]
    pub fn nobody(&self) -> &Nobody {
        &self.nobody
    }
}

impl<H: Hypervisor> Drop for Board<H> {
    fn drop(&mut self) {
        self.watcher.end();
    }
}

/// Function 0 of a slot.
fn slot(slot: u8) -> Result<Sbdf, Failure> {
    let function = Sbdf::new(0, 0, slot, 0);
    function.ok_or_else(|| format!("no slot {slot}").into())
}

/// A board at work. Dropping it stops it.
#[derive(Debug)]
pub struct Serving<H: Hypervisor> {
    left_over: Running<H>,
    devices: Running<H>,
}

impl<H: Hypervisor> Serving<H> {
    /// Waits for the domain's end.
    ///
    /// # Errors
    /// As [`Running::wait`].
    pub fn wait(self) -> ioreq::Result<Exit> {
        let exit = self.devices.wait()?;
        self.left_over.stop()?;
        Ok(exit)
    }

    /// Stops serving.
    ///
    /// # Errors
    /// As [`Running::stop`].
    pub fn stop(self) -> ioreq::Result<Exit> {
        let exit = self.devices.stop()?;
        self.left_over.stop()?;
        Ok(exit)
    }
}
