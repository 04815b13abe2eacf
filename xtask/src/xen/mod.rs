// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask xen`: a real Xen in QEMU, in ten seconds, for the suite and for people. Nothing is installed on this machine: all
//! that is needed is unpacked under `target/xen`.

pub(crate) mod apt;
mod bench;
mod boot;
mod cpio;
mod guide;
mod job;
mod linux;
mod modules;
mod parts;
mod program;
mod record;
mod recording;
mod release;
mod soak;
mod suite;
mod turns;

pub(crate) use guide::guide;
pub(crate) use program::{in_target, lint_guest, static_build};
pub(crate) use release::Release;
pub(crate) use soak::soak;

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args as ClapArgs, Subcommand};

use boot::Boot;
use parts::Parts;

use crate::main_job;

/// Of the machine, if nobody says otherwise: the steadiest.
const PROCESSORS: u8 = 1;
/// What the backend is tested with, in one boot.
const BACKEND: &[&str] = &["smoke", "backend", "linux", "migrate", "kills"];

#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots and checks that test domains can be made and execute instructions.
    Smoke(Common),
    /// Tests the Xen backend: restricted handles, mappings, servers whose process is killed.
    Backend(Common),
    /// Runs the behaviour suite.
    Test {
        #[command(flatten)]
        common: Common,
        /// Only rows whose id contains this.
        filter: Option<String>,
        /// Puts the results on record instead of comparing them with those that are.
        #[arg(long, conflicts_with = "filter")]
        record: bool,
    },
    /// Runs an example in dom0, against a domain with its guest's program.
    Run(Run),
    /// Compares the framework with a C server on libxen*: a table, and target/xen-bench.json.
    Bench(bench::Args),
    /// Boots to a shell in dom0, with the rig's programs in /bin.
    Shell(Common),
}

#[derive(ClapArgs)]
struct Run {
    /// Which example.
    #[arg(long)]
    example: String,
    /// The version of Xen.
    #[arg(long = "xen", value_enum, default_value = "4.17")]
    release: Release,
    /// Virtual processors of the machine. [default: 2, one for dom0 and one for the domain; 1 for linux]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    smp: Option<u8>,
    /// vCPUs of the domain (of linux: an argument of its own).
    #[arg(long, default_value_t = job::VCPUS, value_parser = clap::value_parser!(u64).range(1..=16))]
    vcpus: u64,
    /// Fails unless the report (`-- --json`) shows what is promised of the main job.
    #[arg(long)]
    bars: bool,
    /// Of linux: as little as `cargo xtask test` has it do.
    #[arg(long)]
    short: bool,
    /// The example's arguments.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(ClapArgs)]
struct Common {
    /// The version of Xen.
    #[arg(long = "xen", value_enum, default_value = "4.17")]
    release: Release,
    /// Virtual processors of the machine.
    #[arg(long, default_value_t = PROCESSORS, value_parser = clap::value_parser!(u8).range(1..=8))]
    smp: u8,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Smoke(common) => programs(&Parts::ready(common.release)?, common.smp, &["smoke"]),
        Command::Backend(common) => programs(&Parts::ready(common.release)?, common.smp, BACKEND),
        Command::Test {
            common,
            filter,
            record,
        } => {
            let parts = Parts::ready(common.release)?;
            println!("{}", parts.package);
            suite::run(&parts, common.smp, filter.as_deref(), *record)
        }
        Command::Run(run) => {
            let parts = Parts::ready(run.release)?;
            if run.example == "linux" {
                let smp = run.smp.unwrap_or(linux::PROCESSORS);
                let effort = match run.short {
                    true => linux::Effort::SHORT,
                    false => linux::Effort::FULL,
                };
                return linux::run(&parts, smp, effort, &run.arguments);
            }
            let smp = run.smp.unwrap_or(job::PROCESSORS);
            let log = job::run(&parts, smp, &run.example, run.vcpus, &run.arguments)?;
            match run.bars {
                true => main_job::check_on_xen(job::said(&log)),
                false => Ok(()),
            }
        }
        Command::Bench(args) => bench::run(args),
        Command::Shell(common) => shell(common),
    }
}

/// The suite and the backend's tests, for `cargo xtask test`.
pub(crate) fn check() -> Result<()> {
    // While packages come. Whoever needs a program asks for it again, and is told if it cannot be built.
    let build = || -> Result<()> {
        program::behaviour()?;
        let mut names = BACKEND.iter();
        names.try_for_each(|name| program::example("xen-rig", name).map(drop))
    };
    thread::scope(|scope| {
        scope.spawn(build);
        on_each_version(|parts| {
            suite::run(parts, PROCESSORS, None, false)?;
            programs(parts, PROCESSORS, BACKEND)
        })
    })
}

/// The main job and the Linux guest, for `cargo xtask test`.
pub(crate) fn check_guests() -> Result<()> {
    on_each_version(|parts| {
        let json = ["--json".to_owned()];
        let log = job::run(parts, job::PROCESSORS, "vgpu", job::VCPUS, &json)?;
        main_job::check_on_xen(job::said(&log))?;
        linux::run(parts, linux::PROCESSORS, linux::Effort::SHORT, &[])
    })
}

/// On the versions beside each other, as far as there are processors.
fn on_each_version(check: impl Fn(&Parts) -> Result<()> + Sync) -> Result<()> {
    let first = Parts::ready(Release::V4_17)?;
    let second = match Parts::ready(Release::V4_20) {
        Ok(parts) => parts,
        Err(why) => {
            println!("NOT RUN 4.20: {why:#}");
            let record = suite::on_record(Release::V4_20)?;
            println!("on record is {record}");
            return check(&first);
        }
    };
    thread::scope(|scope| {
        let beside = scope.spawn(|| check(&second).context("Xen 4.20"));
        let first = check(&first).context("Xen 4.17");
        let second = beside.join().map_err(|_| anyhow!("Xen 4.20: a panic"))?;
        match (first, second) {
            (Err(first), Err(second)) => bail!("{first:#}; {second:#}"),
            (first, second) => first.and(second),
        }
    })
}

/// Boots, and runs some of the rig's programs to their ends.
fn programs(parts: &Parts, smp: u8, names: &[&str]) -> Result<()> {
    let mut boot = Boot::new(parts, smp);
    for name in names {
        boot = boot.program(name, &program::example("xen-rig", name)?);
    }
    let job = names.iter().map(|name| format!("/bin/{name}"));
    let job: Vec<String> = job.collect();
    let log = boot.job(&job.join(" && ")).run(Duration::from_secs(120))?;
    let names = names.join(", ");
    println!("{names}: {}, {}", log.version, log.end);
    let Err(why) = log.succeeded() else {
        return Ok(());
    };
    let said = log.lines.iter().filter(|line| !line.starts_with("(XEN)"));
    let said: Vec<&str> = said.map(String::as_str).collect();
    let last = said.len().saturating_sub(30);
    bail!(
        "{names}: {why}\n  {}\nthe log: {}",
        said[last..].join("\n  "),
        log.path.display()
    );
}

fn shell(common: &Common) -> Result<()> {
    let parts = Parts::ready(common.release)?;
    let program = program::example("xen-rig", "smoke")?;
    Boot::new(&parts, common.smp)
        .program("smoke", &program)
        .job("echo; echo 'dom0 of a real Xen; ^A x ends it'; exec setsid cttyhack sh")
        .interactive()
}
