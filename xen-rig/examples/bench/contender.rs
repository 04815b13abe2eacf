// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The two that are compared, as processes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use xen_rig::{Calls, Guest};

use crate::Failure;
use crate::load::GFN;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    C,
    Ours,
}

/// What a server offers the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Offer {
    /// Ports and MMIO, of which each stack has its own.
    Devices,
    /// The tracked page and the VGA window, which one server at a time can have.
    Single,
}

/// What a contender says: names and numbers.
pub(crate) type Said = BTreeMap<String, f64>;

impl Stack {
    pub(crate) const BOTH: [Stack; 2] = [Stack::C, Stack::Ours];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Stack::C => "c",
            Stack::Ours => "ours",
        }
    }

    /// Where its ports are. Each stack has some of its own, so that both are there at once.
    pub(crate) fn port(self) -> u16 {
        match self {
            Stack::C => 0x600,
            Stack::Ours => 0x700,
        }
    }

    /// Where its MMIO is.
    pub(crate) fn mmio(self) -> u64 {
        match self {
            Stack::C => 0xe000_0000,
            Stack::Ours => 0xe001_0000,
        }
    }

    /// Starts its server, and waits until it is ready. Ours polls for up to `polling`; none: as it does by itself.
    pub(crate) fn serve(self, guest: &Guest, polling: Option<Duration>) -> Result<Server, Failure> {
        let numbers = match (self, polling) {
            (Stack::C, _) => vec![self.port().into(), self.mmio(), GFN],
            (Stack::Ours, None) => vec![],
            (Stack::Ours, Some(longest)) => vec![u64::try_from(longest.as_micros())?],
        };
        self.start("serve", guest, &numbers)
    }

    /// Starts its process that marks and unmarks `pages` pages, one [`step`](Server::step) each.
    pub(crate) fn mark(
        self,
        guest: &Guest,
        (first, pages): (u64, u64),
        batch: u64,
    ) -> Result<Server, Failure> {
        self.start("mark", guest, &[first, pages, batch])
    }

    fn start(self, role: &str, guest: &Guest, numbers: &[u64]) -> Result<Server, Failure> {
        let mut command = match self {
            Stack::C => Command::new("/bin/cserver"),
            Stack::Ours => Command::new(std::env::current_exe()?),
        };
        let mut child = command
            .args([role, &guest.domid().to_string()])
            .args(numbers.iter().map(u64::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut server = Server {
            child,
            input: Some(input),
            output: BufReader::new(output),
        };
        match server.line()?.as_str() {
            "ready" => Ok(server),
            other => Err(format!("{}: {other:?}", self.name()).into()),
        }
    }
}

/// A contender's process.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it take its next step, and waits for what it says of it.
    pub(crate) fn step(&mut self) -> Result<Said, Failure> {
        said(&self.ask("\n")?)
    }

    fn ask(&mut self, line: &str) -> std::io::Result<String> {
        if let Some(input) = &mut self.input {
            input.write_all(line.as_bytes())?;
        }
        self.line()
    }

    /// Has it offer something, or take it away.
    pub(crate) fn offer(&mut self, what: Offer, on: bool) -> Result<(), Failure> {
        let wanted = f64::from(u8::from(on));
        let line = match what {
            Offer::Devices => "d\n",
            Offer::Single => "s\n",
        };
        match said(&self.ask(line)?)?.get("on") {
            Some(now) if *now == wanted => Ok(()),
            other => Err(format!("{what:?}: {other:?}, not {wanted}").into()),
        }
    }

    /// The same; the system calls of the step.
    pub(crate) fn traced_step(&mut self) -> Result<Vec<Calls>, Failure> {
        let (pid, through) = (self.pid(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let step = scope.spawn(|| {
                let line = self.ask("\n");
                // Release: pairs with the Acquire load below.
                through.store(true, Ordering::Release);
                line
            });
            // Acquire: pairs with the Release store above.
            let calls = xen_rig::count_calls(pid, || Ok(through.load(Ordering::Acquire)));
            let line = step.join().map_err(|_| "a thread panicked")?;
            said(&line?)?;
            Ok(calls?)
        })
    }

    /// Ends it; what it says of what it did.
    pub(crate) fn end(mut self) -> Result<Said, Failure> {
        drop(self.input.take());
        let line = self.line()?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("a contender ends with {status}").into());
        }
        said(&line)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After an error only: `end` has waited for it.
        if self.input.take().is_some() {
            let _killed = self.child.kill();
            let _waited = self.child.wait();
        }
    }
}

fn said(line: &str) -> Result<Said, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut said = Said::new();
    for pair in words.chunks(2) {
        let [name, number] = pair else {
            return Err(format!("a contender says {line:?}").into());
        };
        said.insert((*name).to_owned(), number.parse()?);
    }
    Ok(said)
}
