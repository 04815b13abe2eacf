// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask xen run --example linux`: Debian's kernel boots as a guest of the real Xen, with our device model as its only one, to a
//! shell at our console. Somebody who types there mounts the disk, compares sums, writes a file and powers off; dom0 then reads the
//! disk's image by its own kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::boot::{Boot, Log};
use super::cpio::Archive;
use super::job;
use super::modules::Modules;
use super::parts::Parts;
use super::program;
use super::recording;

/// Of the machine, if nobody says otherwise.
pub(super) const PROCESSORS: u8 = 1;
/// The package of the device model.
const PACKAGE: &str = "linux-dm";
/// How long nothing may be said.
const PATIENCE: Duration = Duration::from_secs(240);
/// Memory of the machine in MiB.
const MEMORY: u32 = 1536;
/// QEMU 7.2 has the instruction and does not let a guest's guest use it.
const FEATURES: &str = ",-rdtscp";

/// How much the guest does, and how much of it must be seen at least.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Writes to the disk, each followed by fsync.
    blocks: u64,
    /// Threads of the disk that died meanwhile.
    deaths: u64,
    /// Writes to tracked pages that trap.
    writes: u64,
    /// Changes of what is tracked meanwhile.
    marks: u64,
    /// Whether the guest reboots under load first, and the device model of another one is killed under load.
    lives: bool,
}

impl Effort {
    /// What is promised of the example.
    pub(super) const FULL: Self = Effort {
        blocks: 1000,
        deaths: 50,
        writes: 10_000,
        marks: 500,
        lives: true,
    };
    /// Less of it, that every check of the whole can afford.
    pub(super) const SHORT: Self = Effort {
        blocks: 100,
        deaths: 5,
        writes: 1000,
        marks: 50,
        lives: false,
    };

    /// A script with its numbers.
    fn fill(self, text: &str) -> String {
        let numbers = [
            ("BLOCKS", self.blocks),
            ("WRITES", self.writes),
            ("MARKS", self.marks),
        ];
        numbers
            .iter()
            .fold(text.to_owned(), |text, (name, number)| {
                text.replace(name, &number.to_string())
            })
    }
}

/// Modules of the guest: the disk, random numbers, the file system (and what that asks the kernel for by a name).
const GUEST_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_rng",
    "crc32c_generic",
    "ext4",
];
/// Modules of dom0, which makes the disk's file system and reads it.
const DOM0_MODULES: &[&str] = &["loop", "crc32c_generic", "ext4"];

/// The guest's first process: a shell at the console.
const GUEST_INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /lib/*.ko; do insmod $module; done
while [ ! -b /dev/vda ]; do usleep 10000; done
exec setsid cttyhack sh
";

/// What is typed: the text that is waited for is the shell's prompt. What follows it is judged in [`check`].
const SCRIPT: &[&str] = &[
    "uname -sr; mount -t ext2 /dev/vda /mnt; cd /mnt",
    "sha256sum -c given.sums",
    "head -c 64 /dev/hwrng >made; head -c 256k /dev/urandom >>made",
    "sha256sum made >made.sums; cd /; umount /mnt && echo written",
    "grep virtio /proc/interrupts",
    "linux-guest write /dev/vda BLOCKS",
    "linux-guest track /dev/vda WRITES MARKS",
    "linux-guest execute",
    "poweroff -f",
];
const PROMPT: &str = "# ";
/// Typed before all that, where a guest has several lives.
const REBOOT: &str = "linux-guest write /dev/vda 1000000 & usleep 500000; reboot -f";
/// Typed at another guest, whose device model is killed twice while this runs; the third process types the second.
const BEFORE: &str = "linux-guest write /dev/vda 200";
const AFTER: &str = "poweroff -f";

/// What dom0 does around it.
const JOB: &str = "set -e
for module in /lib/dom0/*.ko; do insmod $module; done
truncate -s 16M /disk.img; mke2fs -F /disk.img 8192 >/dev/null
mount -o loop -t ext2 /disk.img /mnt
dd if=/dev/urandom of=/mnt/given bs=64k count=8 2>/dev/null
(cd /mnt; sha256sum given > given.sums); umount /mnt
/bin/registers 12 & REGISTERS=$!
/bin/linux-dm --kernel /guest/vmlinux --initrd /guest/initrd --disk /disk.img --script /guest/script --kill-disk 40 --reboots 1 ARGUMENTS
wait $REGISTERS
mount -o loop,ro -t ext2 /disk.img /mnt
cd /mnt; sha256sum -c made.sums; cd /; umount /mnt
/bin/linux-guest verify /disk.img BLOCKS
";

/// Then a short guest's devices are recorded, and the recording is played here, with the disk's image as it was before.
const RECORD: &str = "cp /disk.img /before.img
/bin/linux-dm --kernel /guest/vmlinux --initrd /guest/initrd --disk /disk.img --script /guest/recorded --record /tmp/recording ARGUMENTS
/bin/linux-replay /tmp/recording --disk /before.img
rm /before.img
";
/// What is typed at that guest.
const RECORDED: &[&str] = &[
    "mount -t ext2 /dev/vda /mnt; sha256sum /mnt/made; echo recorded >/mnt/recorded; umount /mnt",
    "head -c 64 /dev/hwrng | sha256sum",
    "dd if=/bin/busybox of=/dev/vda bs=2k count=20 seek=4096 conv=fsync",
    "poweroff -f",
];

/// And with a guest whose device model is killed in the midst of its disk's work.
const KILLS: &str = "DM='/bin/linux-dm --kernel /guest/vmlinux --initrd /guest/initrd --disk /disk.img --state /tmp/guest ARGUMENTS'
$DM --script /guest/before --kill-after 400 || [ $? -eq 137 ]
$DM --take-over --kill-after 400 || [ $? -eq 137 ]
$DM --take-over --script /guest/after
/bin/linux-guest verify /disk.img 200
";

/// Boots, and judges what was said.
pub(super) fn run(parts: &Parts, smp: u8, effort: Effort, arguments: &[String]) -> Result<()> {
    let arguments: Vec<String> = arguments.iter().map(|word| job::quoted(word)).collect();
    let modules = Modules::below(&parts.modules.join("../.."))?;
    let reboot = effort.lives.then_some(&REBOOT);
    let typed = |line: &&str| effort.fill(&format!("{PROMPT}\t{line}\n"));
    let script: String = reboot.into_iter().chain(SCRIPT).map(typed).collect();
    let recorded: String = RECORDED.iter().map(typed).collect();
    let kills = if effort.lives { KILLS } else { "" };
    let job = [JOB, RECORD, recording::TELL, kills].concat();
    let in_guest = program::package_binary(PACKAGE, "linux-guest")?;
    let mut boot = Boot::new(parts, smp)
        .memory(MEMORY)
        .features(FEATURES)
        .program("linux-dm", &program::package_binary(PACKAGE, "linux-dm")?)
        .program(
            "linux-replay",
            &program::package_binary(PACKAGE, "linux-replay")?,
        )
        .program("linux-guest", &in_guest)
        .program("registers", &program::example("xen-rig", "registers")?)
        .file("guest/vmlinux", std::fs::read(&parts.kernel)?)
        .file("guest/initrd", guest(parts, &modules, &in_guest)?)
        .file("guest/script", script.into_bytes())
        .file("guest/recorded", recorded.into_bytes())
        .file("guest/before", format!("{PROMPT}\t{BEFORE}\n").into_bytes())
        .file("guest/after", format!("{PROMPT}\t{AFTER}\n").into_bytes())
        .job(&effort.fill(&job).replace("ARGUMENTS", &arguments.join(" ")));
    for (name, contents) in numbered(modules.with_needed(DOM0_MODULES)?) {
        boot = boot.file(&format!("lib/dom0/{name}"), contents);
    }
    let log = boot.run(PATIENCE)?;
    job::tell(
        job::said(&log).filter(|line| !recording::is_told(line)),
        format_args!("linux: {}, {}", log.version, log.end),
    )?;
    log.succeeded().context("linux")?;
    if let Some(crash) = log.lines.iter().find(|line| super::suite::is_crash(line)) {
        bail!("linux: {crash}");
    }
    check(&log, effort)?;
    recording::play(&log)
}

/// Names that sort in the order of loading.
fn numbered(modules: Vec<(String, Vec<u8>)>) -> impl Iterator<Item = (String, Vec<u8>)> {
    let modules = (0..).zip(modules);
    modules.map(|(number, (name, contents)): (u32, _)| (format!("{number:02}-{name}.ko"), contents))
}

/// The guest's initial RAM disk.
fn guest(parts: &Parts, modules: &Modules, program: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "lib", "mnt", "proc", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.file(
        "bin/busybox",
        &std::fs::read(parts.root.join("bin/busybox"))?,
    );
    archive.file("bin/linux-guest", &std::fs::read(program)?);
    for (name, contents) in numbered(modules.with_needed(GUEST_MODULES)?) {
        archive.file(&format!("lib/{name}"), &contents);
    }
    archive.file("init", GUEST_INIT.as_bytes());
    Ok(archive.finish())
}

/// What is said in every run.
const ALWAYS: &[&str] = &[
    "guest: Linux ",
    "guest: given: OK",
    "guest: written",
    "guest: execute: came back ",
    "linux-dm: rescued: ",
    "made: OK",
    "Shutdown(PowerOff)",
    "linux-dm: recorded: ",
    " answers are equal",
    "registers: 0 times lost",
];
/// And where guests have several lives.
const LIVES: &[&str] = &[
    "Shutdown(Reboot)",
    "linux-dm: domain 2 after",
    "linux-dm: dies",
    "linux-dm: takes over domain 4",
    "guest: blocks: 200 writes of ",
    "blocks: 200 writes are in the image",
];

/// Whether all that was to be shown was shown.
fn check(log: &Log, effort: Effort) -> Result<()> {
    let said = |what: &str| log.lines.iter().find(|line| line.contains(what));
    // The other guest's number is another one.
    let blocks = |what: &str| {
        let lines = log.lines.iter().filter(|line| line.contains(what));
        let mut numbers = lines.filter_map(|line| number_before(line, " writes"));
        numbers.find(|number| *number == effort.blocks)
    };
    let lives: &[&str] = if effort.lives { LIVES } else { &[] };
    for what in ALWAYS.iter().chain(lives) {
        said(what).with_context(|| format!("linux: {what:?} was not said"))?;
    }
    let disk = log
        .lines
        .iter()
        .filter(|line| line.contains("linux-dm: disk "));
    let deaths = disk.filter_map(|line| number_before(line, " restarts"));
    let interrupts = log.lines.iter().filter_map(|line| msix_count(line));
    for (what, least, shown) in [
        ("interrupts of the disk by MSI-X", 1, interrupts.max()),
        (
            "blocks written and read back by the guest",
            effort.blocks,
            blocks("guest: blocks: "),
        ),
        (
            "blocks found in the image",
            effort.blocks,
            blocks(" are in the image"),
        ),
        ("deaths of the disk's thread", effort.deaths, deaths.max()),
        (
            "writes trapped",
            effort.writes,
            said("guest: track: ").and_then(|line| number_before(line, " writes")),
        ),
        (
            "changes of what is tracked",
            effort.marks,
            said("guest: track: ").and_then(|line| number_before(line, " marks")),
        ),
    ] {
        let shown = shown.with_context(|| format!("linux: {what}: none was told"))?;
        println!("linux: {what}: {shown}");
        if shown < least {
            bail!("linux: {what}: {shown}, and {least} are promised");
        }
    }
    Ok(())
}

/// The number right before some words.
fn number_before(line: &str, words: &str) -> Option<u64> {
    let (before, _) = line.split_once(words)?;
    before.rsplit(' ').next()?.parse().ok()
}

/// What the guest's list of interrupts says of its disk's queue.
fn msix_count(line: &str) -> Option<u64> {
    let (_, list) = line.split_once("guest: ")?;
    if !(list.contains("PCI-MSI") && list.contains("virtio") && list.contains("req")) {
        return None;
    }
    let counts = list.split_whitespace().skip(1);
    let counts = counts.map_while(|word| word.parse::<u64>().ok());
    Some(counts.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a good run says.
    const SAID: &[&str] = &[
        "guest: Linux 6.1.0",
        "guest: given: OK",
        "guest: written",
        "guest:  25:        10          4   PCI-MSI-edge      virtio1-req.0",
        "guest: blocks: 100 writes of 51200 bytes, read back right",
        "guest: track: 1000 writes trapped, 50 marks and unmarks, all memory right",
        "guest: execute: came back from a tracked page after 0.1 s",
        "linux-dm: rescued: code at 0x7f0000000000, tracked gfn 0x1234",
        "linux-dm: Shutdown(Reboot) after 9.0 s",
        "linux-dm: domain 2 after 1.0 s",
        "linux-dm: dies",
        "linux-dm: takes over domain 4",
        "guest: blocks: 200 writes of 102400 bytes, read back right",
        "blocks: 200 writes are in the image",
        "linux-dm: Shutdown(PowerOff) after 9.0 s",
        "linux-dm: disk 200 requests, 200 interrupts, 5 restarts",
        "made: OK",
        "blocks: 100 writes are in the image",
        "linux-dm: recorded: 70000 bytes in /tmp/recording",
        "replay: 900 requests: 900 answers are equal, 400 of them values in slots",
        "registers: 0 times lost in 40000 rounds",
    ];

    #[test]
    fn every_promise_is_held_to() {
        let log = |lines: Vec<String>| Log::of(lines);
        let all = || SAID.iter().map(|line| (*line).to_owned());
        let all_of_it = Effort {
            lives: true,
            ..Effort::SHORT
        };
        check(&log(all().collect()), all_of_it).unwrap();
        for left_out in SAID {
            let lines = all().filter(|line| line != left_out).collect();
            assert!(check(&log(lines), all_of_it).is_err(), "{left_out}");
        }
        for (number, less) in [
            ("10          4", "0          0"),
            ("blocks: 100 writes of", "blocks: 99 writes of"),
            ("blocks: 100 writes are", "blocks: 99 writes are"),
            (" 5 restarts", " 4 restarts"),
            ("track: 1000", "track: 999"),
            (", 50 marks", ", 49 marks"),
        ] {
            let lines = all().map(|line| line.replace(number, less)).collect();
            assert!(check(&log(lines), all_of_it).is_err(), "{less}");
        }
    }

    #[test]
    fn interrupts_are_counted_where_the_disk_has_them() {
        let line = "guest:  25:        103          4   PCI-MSI-edge      virtio1-req.0";
        assert_eq!(msix_count(line), Some(107));
        for other in [
            "guest:  24:          0   PCI-MSI-edge      virtio1-config",
            "guest:  20:          7   IO-APIC  20-level      virtio0",
            " 25:   103   PCI-MSI-edge      virtio1-req.0",
        ] {
            assert_eq!(msix_count(other), None, "{other}");
        }
    }
}
