// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One boot: QEMU, Xen, dom0, a job in it, and what the serial line says.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::parts::Parts;
use super::program;
use super::turns;

/// What dom0 does: `/job` is the boot's own script, `leaks` says what it left behind.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
insmod /lib/xen-privcmd.ko; insmod /lib/xen-evtchn.ko
H=/sys/hypervisor
echo \"RIG: Xen $(cat $H/version/major).$(cat $H/version/minor)$(cat $H/version/extra)\"
sh /job; S=$?; /bin/leaks; echo \"RIG: end $S\"
poweroff -f
";

/// Without `sched_ratelimit_us=0` about 1000 requests a second are the most; a deep idle state is slow to leave. Without `eager-fpu`, which
/// `no-xen` turns off, a process of dom0 has another domain's vector registers now and then (in QEMU 7.2; see the program `registers`).
const XEN_OPTIONS: &str = "console=com1 com1=115200,8n1 loglvl=info guest_loglvl=all dom0_mem=512M,max:512M \
    dom0_max_vcpus=1 dom0_vcpus_pin sched_ratelimit_us=0 cpuidle=0 spec-ctrl=no-xen,eager-fpu";
/// A scheduler that looks at a vCPU which has its processor to itself once a second; the default one does every 10 ms at least.
const PATIENT_SCHEDULER: &str = " sched=credit sched_credit_tslice_ms=1000";
const DOM0_OPTIONS: &str = "console=hvc0 quiet panic=1";
/// QEMU's own CPU model hangs Xen; `monitor` makes it panic when idle, the other two break a PV dom0 in QEMU 7.2.
const CPU: &str = "EPYC,-monitor,-smap,-smep";

/// What the machine's time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's.
    Host,
    /// 8 ns an instruction, and no time is spent idle: how busy the host is does not show, nor what a cache or a TLB costs. For one
    /// processor.
    Instructions,
}

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The job ended with this exit status.
    Done(i32),
    /// Xen panicked, with the line that says so.
    XenPanic(String),
    /// Nothing was said for too long.
    Silence,
    /// The machine stopped before the job ended.
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Done(status) => write!(f, "the job ended with {status}"),
            End::XenPanic(line) => write!(f, "Xen panicked: {line}"),
            End::Silence => write!(f, "nothing was said for too long"),
            End::Stopped => write!(f, "the machine stopped before the job ended"),
        }
    }
}

/// What a boot said.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) end: End,
    /// The hypervisor's version, as it tells it.
    pub(crate) version: String,
    pub(crate) lines: Vec<String>,
    /// What the job left behind in Xen, and whether anybody could tell.
    leaks: Vec<String>,
    clean: bool,
    /// Where all of it is kept.
    pub(crate) path: PathBuf,
}

/// A boot that is being put together.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    parts: &'a Parts,
    smp: u8,
    clock: Clock,
    /// Of the machine, in MiB.
    memory: u32,
    /// Of Xen, beside [`XEN_OPTIONS`].
    options: &'static str,
    programs: Vec<(String, PathBuf)>,
    files: Vec<(String, Vec<u8>)>,
    /// Features of the processor, beside [`CPU`]'s.
    features: &'static str,
    job: String,
}

impl<'a> Boot<'a> {
    pub(crate) fn new(parts: &'a Parts, smp: u8) -> Self {
        Boot {
            parts,
            smp,
            clock: Clock::Host,
            memory: 1536,
            options: "",
            programs: Vec::new(),
            files: Vec::new(),
            features: "",
            job: "true".into(),
        }
    }

    /// With this clock.
    pub(crate) fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// With so many MiB of memory.
    pub(crate) fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// With a scheduler that leaves a vCPU alone for long if nobody else wants its processor.
    pub(crate) fn patient_scheduler(mut self) -> Self {
        self.options = PATIENT_SCHEDULER;
        self
    }

    /// With a program as `/bin/NAME`.
    pub(crate) fn program(mut self, name: &str, path: &Path) -> Self {
        self.programs.push((name.into(), path.into()));
        self
    }

    /// With a file, by its path without the leading `/`; its folder is one of those that the initramfs has.
    pub(crate) fn file(mut self, name: &str, contents: Vec<u8>) -> Self {
        self.files.push((name.into(), contents));
        self
    }

    /// Changes features of the processor: `,-NAME` and the like.
    pub(crate) fn features(mut self, features: &'static str) -> Self {
        self.features = features;
        self
    }

    /// What dom0 runs: a shell script.
    pub(crate) fn job(mut self, script: &str) -> Self {
        self.job = script.into();
        self
    }

    fn initramfs(&self) -> Result<PathBuf> {
        let mut archive = Archive::default();
        for folder in [
            "bin", "dev", "guest", "lib", "lib/dom0", "mnt", "proc", "sys", "tmp",
        ] {
            archive.folder(folder);
        }
        let mut add = |name: &str, path: &Path| -> Result<()> {
            let contents = fs::read(path).with_context(|| format!("{}", path.display()))?;
            archive.file(name, &contents);
            Ok(())
        };
        add("bin/busybox", &self.parts.root.join("bin/busybox"))?;
        for module in ["xen-privcmd.ko", "xen-evtchn.ko"] {
            add(&format!("lib/{module}"), &self.parts.modules.join(module))?;
        }
        add("bin/leaks", &program::example("xen-rig", "leaks")?)?;
        for (name, path) in &self.programs {
            add(&format!("bin/{name}"), path)?;
        }
        for (name, contents) in &self.files {
            archive.file(name, contents);
        }
        archive.file("init", INIT.as_bytes());
        archive.file("job", format!("{}\n", self.job).as_bytes());
        let path = self.parts.folder.join("initramfs.cpio");
        fs::write(&path, archive.finish())?;
        Ok(path)
    }

    fn qemu(&self) -> Result<Command> {
        let root = &self.parts.root;
        let initramfs = self.initramfs()?;
        let modules = format!(
            "{} {DOM0_OPTIONS},{}",
            self.parts.kernel.display(),
            initramfs.display()
        );
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|folder| root.join(folder).display().to_string())
            .join(":");
        let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", libraries);
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(root.join(folder));
        }
        command
            .args(["-M", "pc", "-cpu", &format!("{CPU}{}", self.features)])
            .args(match self.clock {
                Clock::Host => ["-accel", "tcg,thread=multi"].as_slice(),
                Clock::Instructions => &[
                    "-accel",
                    "tcg,thread=single",
                    "-icount",
                    "shift=3,sleep=off",
                ],
            })
            .args(["-smp", &self.smp.to_string()])
            .args(["-m", &self.memory.to_string()])
            .args(["-nodefaults", "-no-user-config", "-nic", "none"])
            .args(["-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.parts.xen)
            .args(["-append", &format!("{XEN_OPTIONS}{}", self.options)])
            .args(["-initrd", &modules]);
        Ok(command)
    }

    /// Boots when it is its turn, runs the job, and listens until the machine stops, or says nothing for `patience`. Whoever calls
    /// asks [`Log::succeeded`], or looks at the end and [`Log::leak`] himself.
    pub(crate) fn run(&self, patience: Duration) -> Result<Log> {
        let mut command = self.qemu()?;
        // Programs are built by now.
        let _turn = turns::wait_for(self.smp);
        command.args(["-monitor", "none", "-serial", "stdio"]);
        let path = self.parts.log();
        let mut file = File::create(&path)?;
        // QEMU tells of the processor's features that it does not emulate.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file.try_clone()?);
        let mut child = command.spawn().context("QEMU could not be started")?;
        let out = child.stdout.take().context("no output of QEMU")?;
        let (send, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).replace('\r', "");
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut log = Log {
            end: End::Stopped,
            version: "Xen did not say its version".into(),
            lines: Vec::new(),
            leaks: Vec::new(),
            clean: false,
            path,
        };
        loop {
            match lines.recv_timeout(patience) {
                Ok(line) => {
                    writeln!(file, "{line}")?;
                    log.hear(&line);
                    if matches!(log.end, End::XenPanic(_)) {
                        // It would print its registers, and wait for ever.
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    log.end = End::Silence;
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let _stopped_already = child.kill();
        child.wait()?;
        drop(lines);
        let _ended = reader.join();
        println!("{}: {}", log.version, log.left());
        Ok(log)
    }

    /// Boots with this terminal as dom0's.
    pub(crate) fn interactive(&self) -> Result<()> {
        let status = self.qemu()?.args(["-serial", "mon:stdio"]).status()?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}

impl Log {
    /// Whether the job ended well and left nothing behind.
    ///
    /// # Errors
    /// How it ended, or what is left.
    pub(crate) fn succeeded(&self) -> Result<()> {
        if self.end != End::Done(0) {
            bail!("{}; the log: {}", self.end, self.path.display());
        }
        self.leak().map_or(Ok(()), |leak| bail!("{leak}"))
    }

    /// What a job that ended left behind.
    pub(crate) fn leak(&self) -> Option<String> {
        let ended = matches!(self.end, End::Done(_));
        (ended && (!self.clean || !self.leaks.is_empty())).then(|| self.left())
    }

    fn left(&self) -> String {
        match &self.leaks[..] {
            [] if self.clean => "nothing is left behind".into(),
            [] => "nobody looked for what is left behind".into(),
            leaks => format!("LEFT BEHIND: {}", leaks.join("; ")),
        }
    }

    fn hear(&mut self, line: &str) {
        if let Some(version) = line.strip_prefix("RIG: Xen ") {
            self.version = format!("Xen {version}");
        } else if let Some(status) = line.strip_prefix("RIG: end ") {
            self.end = End::Done(status.trim().parse().unwrap_or(-1));
        } else if let Some((_, left)) = line.split_once("RIG: leak") {
            self.leaks.push(left.trim().into());
        } else if line.contains("RIG: clean ") {
            self.clean = true;
        } else if line.contains("Panic on CPU") || line.contains("Xen BUG at") {
            self.end = End::XenPanic(line.trim().into());
        }
        self.lines.push(line.into());
    }
}

#[cfg(test)]
impl Log {
    /// A log of these lines, of a job that ended.
    pub(crate) fn of(lines: Vec<String>) -> Self {
        let mut log = Log {
            end: End::Stopped,
            version: String::new(),
            lines: Vec::new(),
            leaks: Vec::new(),
            clean: false,
            path: "log".into(),
        };
        for line in lines {
            log.hear(&line);
        }
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[&str]) -> Log {
        Log::of(lines.iter().map(|line| (*line).to_owned()).collect())
    }

    #[test]
    fn a_job_that_leaves_something_behind_does_not_succeed() {
        log(&["RIG: clean nothing", "RIG: end 0"])
            .succeeded()
            .unwrap();
        for lines in [
            &["RIG: end 0"][..],
            &[
                "RIG: clean nothing",
                "(XEN) xRIG: leak left: domain 1",
                "RIG: end 0",
            ],
            &[
                "RIG: leak left: domain 1",
                "RIG: clean nothing",
                "RIG: end 0",
            ],
        ] {
            let log = log(lines);
            assert!(log.leak().is_some(), "{lines:?}");
            assert!(log.succeeded().is_err(), "{lines:?}");
        }
        let ended = log(&["RIG: clean nothing", "RIG: end 1"]);
        assert!(ended.leak().is_none() && ended.succeeded().is_err());
    }

    #[test]
    fn a_boot_that_did_not_come_to_its_end_has_no_leaks_to_tell_of() {
        let panicked = log(&["(XEN) Panic on CPU 0:"]);
        assert!(panicked.leak().is_none() && panicked.succeeded().is_err());
    }
}
