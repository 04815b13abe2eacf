// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Judges the device of `docs/guide.md` on a real Xen: beside another device model that has its slot and its place in memory, too;
//! killed again and again while a guest uses it; without rights.
//!
//! Runs in dom0, as root, with the device model's path as its argument.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::server::IoreqServer;
use ioreq_core::{DomId, MmioRange, Sbdf, ShutdownReason};
use ioreq_xen::XenHypervisor;
use xen_rig::checks::{BOUND, Failure, guest, holds, is, runs, store};
use xen_rig::{Done, Guest, Instr, Privcmd};

const FOLDER: &str = "/tmp/pagesum";
const SLOT: u32 = 4;
const BASE: u64 = 0xfe00_0000;
/// Registers.
const PAGE: u64 = BASE + 0x4;
const SUM: u64 = BASE + 0x8;
const LIMIT: u64 = BASE + 0xc;
/// Where the device has MSI in its configuration space.
const MSI: u32 = 0x40;
/// The guest's vector, and where its local APIC says that it waits to be taken.
const VECTOR: u32 = 0x51;
const REQUESTED: u64 = 0xfee0_0200 + 0x10 * (VECTOR / 32) as u64;
/// What the other device model's reads give.
const OTHER: u64 = 0x0b5e_55ed;
/// The guest chooses another of its pages so often, and writes it twice.
const ROUNDS: u64 = 100;
const PAGES: u64 = 16;
/// The device model is killed so often, or half as often at least if the guest is quick.
const KILLS: u32 = 16;

fn main() -> Result<(), Failure> {
    let program = std::env::args().nth(1).ok_or("whose path?")?;
    let xen = Arc::new(Privcmd::open()?);
    let (guest, domid) = guest(&xen, 1)?;
    guest.set_handle(*b"the guide's test")?;
    let hv = Arc::new(XenHypervisor::open(domid)?);
    let older = IoreqServer::<XenHypervisor>::builder(Arc::clone(&hv)).build()?;
    for slot in 0..32 {
        let function = Sbdf::new(0, 0, slot, 0).ok_or("a bus has 32 slots")?;
        older.route("other slot", function, Other)?;
    }
    older.route("other memory", MmioRange::sized(BASE, 0x1000)?, Other)?;
    let serving = older.start()?;
    is(
        "slot and memory before",
        values(&guest, &[pci(0), load(BASE)])?,
        vec![OTHER, OTHER],
    )?;

    let device = DeviceModel::start(&program, domid)?.ready()?;
    found(&guest)?;
    println!("guide: found, beside an older device model");
    interrupts(&guest)?;
    println!("guide: interrupts");
    let device = killed(&guest, device, || DeviceModel::start(&program, domid))?;
    unprivileged(&device)?;

    hv.device_model()
        .remote_shutdown(ShutdownReason::PowerOff)?;
    thread::sleep(Duration::from_millis(500));
    let mut device = device;
    holds("no shutdown is told", device.0.try_wait()?.is_none())?;
    drop(serving);
    drop(older);
    drop(hv);
    drop(guest);
    let said = device.ended()?;
    holds(
        &format!("its last words: {said}"),
        said.contains("DomainGone"),
    )?;
    holds(
        "no record is left",
        !Path::new(FOLDER).join("record").exists(),
    )?;
    println!("guide: ended with its domain");
    Ok(())
}

/// The function's registers are where the driver puts them, and only they.
fn found(guest: &Guest) -> Result<(), Failure> {
    let not_yet = values(guest, &[pci(0), load(BASE)])?;
    is(
        "slot, and memory that is not decoded",
        not_yet,
        vec![0x10f2_1af4, OTHER],
    )?;
    let probe = [
        set_pci(0x10, 4, u32::MAX),
        pci(0x10),
        set_pci(0x10, 4, u32::try_from(BASE)?),
        set_pci(0x04, 2, 0x6),
        load(BASE),
        load(SUM),
        pci_of(SLOT + 1, 0),
    ];
    let expected = vec![0xffff_f000, 0x4d55_5350, 0, OTHER];
    is("the driver", values(guest, &probe)?, expected)
}

/// At the limit an MSI comes, and not before.
fn interrupts(guest: &Guest) -> Result<(), Failure> {
    let bit = 1 << (VECTOR % 32);
    let program = [
        set_pci(MSI + 0x4, 4, 0xfee0_0000),
        set_pci(MSI + 0xc, 2, VECTOR),
        set_pci(MSI + 0x2, 2, 1),
        store(PAGE, 0x300),
        store(LIMIT, 10),
        store(0x30_0000, 9),
        load(REQUESTED),
        store(0x30_0004, 1),
        load(REQUESTED),
        store(0x30_0000, 0),
        store(0x30_0004, 0),
        store(LIMIT, 0),
        load(SUM),
    ];
    let [before, after, sum] = values(guest, &program)?[..] else {
        return Err("three loads give three values".into());
    };
    is(
        "requested before, after",
        (before & bit, after & bit),
        (0, bit),
    )?;
    is("the sum", sum, 0)
}

/// Kills the device model at any moment while the guest uses it, and starts it again. Gives the last one.
fn killed(
    guest: &Guest,
    mut device: DeviceModel,
    start: impl Fn() -> Result<DeviceModel, Failure>,
) -> Result<DeviceModel, Failure> {
    let pages = (0..ROUNDS).map(|round| 0x300 + round % PAGES);
    let round = |page: u64| {
        [
            store(PAGE, page),
            load(PAGE),
            store(page << 12, 0x0101_0101),
            load(SUM),
            store(page << 12, 0),
            load(SUM),
        ]
    };
    let instructions: Vec<Instr> = pages.clone().flat_map(round).collect();
    let expected: Vec<u64> = pages.flat_map(|page| [page, 4, 0]).collect();
    let program = guest.start(0, &instructions)?;
    let (mut kills, mut early, mut moment) = (0, 0, 7);
    while kills < KILLS && !program.is_finished() {
        moment = moment * 29 % 47;
        thread::sleep(Duration::from_millis(moment));
        device.kill()?;
        kills += 1;
        device = start()?;
        // Each third one is killed before it serves, or about then.
        if kills % 3 == 0 {
            early += 1;
        } else {
            device = device.ready()?;
        }
    }
    holds("the guest's program ends", program.wait(BOUND)?)?;
    let got = read(&program.results())?;
    is("values that the guest read", got.len(), expected.len())?;
    for (at, (got, expected)) in got.into_iter().zip(expected).enumerate() {
        is(&format!("what the guest read, value {at}"), got, expected)?;
    }
    holds(&format!("{kills} kills are enough"), kills >= KILLS / 2)?;
    println!(
        "guide: killed {kills} times, {early} of them as it started, under {ROUNDS} rounds of a guest that read all as it should"
    );
    Ok(device)
}

/// The process is nobody's.
fn unprivileged(device: &DeviceModel) -> Result<(), Failure> {
    let status = fs::read_to_string(format!("/proc/{}/status", device.0.id()))?;
    for key in ["Uid:", "Gid:"] {
        let ids = status.lines().find_map(|line| line.strip_prefix(key));
        let ids: Vec<&str> = ids.ok_or("no such line")?.split_whitespace().collect();
        is(key, ids, vec!["65534"; 4])?;
    }
    println!("guide: serves as nobody");
    Ok(())
}

/// The device model's process, and what it says.
struct DeviceModel(Child, BufReader<ChildStdout>);

impl DeviceModel {
    fn start(program: &str, domid: DomId) -> Result<Self, Failure> {
        let mut child = Command::new(program)
            .args([domid.0.to_string(), SLOT.to_string(), FOLDER.to_owned()])
            .stdout(Stdio::piped())
            .spawn()?;
        let said = child.stdout.take().ok_or("no output")?;
        Ok(DeviceModel(child, BufReader::new(said)))
    }

    /// Waits until it serves.
    fn ready(mut self) -> Result<Self, Failure> {
        let mut line = String::new();
        self.1.read_line(&mut line)?;
        holds(&format!("it said {line:?}"), line.contains("serves"))?;
        Ok(self)
    }

    fn kill(&mut self) -> Result<(), Failure> {
        self.0.kill()?;
        let status = self.0.wait()?;
        is("how it ended", status.signal(), Some(9))
    }

    /// Waits until it ends well; what it said.
    fn ended(&mut self) -> Result<String, Failure> {
        let mut said = String::new();
        self.1.read_to_string(&mut said)?;
        holds("it ends well", self.0.wait()?.success())?;
        Ok(said)
    }
}

impl Drop for DeviceModel {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// The other device model.
struct Other;

impl Handler for Other {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        OTHER.into()
    }

    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

fn pci_of(slot: u32, register: u32) -> Instr {
    Instr::PciRead {
        address: 1 << 31 | slot << 11 | register,
        port: 0xcfc,
        width: 4,
    }
}

fn pci(register: u32) -> Instr {
    pci_of(SLOT, register)
}

fn set_pci(register: u32, width: u8, value: u32) -> Instr {
    Instr::PciWrite {
        address: 1 << 31 | SLOT << 11 | register & !3,
        port: if register & 2 == 0 { 0xcfc } else { 0xcfe },
        width,
        value,
    }
}

fn load(addr: u64) -> Instr {
    Instr::Load { addr, width: 4 }
}

/// Runs a program; what it read.
fn values(guest: &Guest, program: &[Instr]) -> Result<Vec<u64>, Failure> {
    read(&runs(guest, program)?)
}

fn read(results: &[Done]) -> Result<Vec<u64>, Failure> {
    holds("no fault", !results.contains(&Done::Fault))?;
    let value = |done: &Done| match done {
        Done::Value(value) => Some(*value),
        _ => None,
    };
    Ok(results.iter().filter_map(value).collect())
}
