// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Somebody at the console who waits for texts, and types.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use linux_dm::board::Failure;
use linux_dm::console::Console;

use crate::screen::Voice;

/// How long the guest may take to read what is typed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is waited for, and typed then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Script {
    steps: VecDeque<(String, String)>,
}

impl Script {
    /// A file of lines: a text, a tabulator, what is typed.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        Self::parse(&text).map_err(|line| {
            let what = format!("{}: no tabulator in {line:?}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let steps = text.lines().map(|line| {
            let step = line.split_once('\t').ok_or_else(|| line.to_owned())?;
            Ok((step.0.to_owned(), format!("{}\n", step.1)))
        });
        let steps: Result<_, String> = steps.collect();
        Ok(Script { steps: steps? })
    }

    /// An error if something that was to be waited for never came.
    pub(crate) fn is_played(&self) -> Result<(), Failure> {
        match self.steps.front() {
            None => Ok(()),
            Some((text, _)) => Err(format!("the guest never printed {text:?}").into()),
        }
    }

    /// Where the console prints, and who listens there.
    pub(crate) fn play(self, quiet: bool, voice: Voice) -> (Line, Listener) {
        let (send, heard) = channel();
        let listener = Listener {
            heard,
            script: self,
            quiet,
            voice,
        };
        (Line(send), listener)
    }
}

/// Hands on what the guest prints, without waiting.
#[derive(Debug, Clone)]
pub(crate) struct Line(Sender<Vec<u8>>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _nobody_may_listen_any_more = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hears what the guest prints.
#[derive(Debug)]
pub(crate) struct Listener {
    heard: Receiver<Vec<u8>>,
    script: Script,
    quiet: bool,
    voice: Voice,
}

impl Listener {
    /// Listens until the console is gone; what of the script is left then.
    pub(crate) fn listen(mut self, console: &Weak<Console>) -> Result<Script, String> {
        let began = Instant::now();
        let mut line = String::new();
        while let Ok(bytes) = self.heard.recv() {
            for byte in bytes {
                match byte {
                    b'\n' => {
                        if !self.quiet {
                            self.voice.say(format_args!("guest: {line}"));
                        }
                        line.clear();
                    }
                    b'\r' | 0 => {}
                    byte => line.push(char::from(byte)),
                }
            }
            let expected = self.script.steps.front();
            if expected.is_some_and(|(text, _)| line.ends_with(text.as_str()))
                && let Some((_, answer)) = self.script.steps.pop_front()
                && let Some(console) = console.upgrade()
            {
                let after = began.elapsed().as_secs_f32();
                let typed = answer.trim_end();
                self.voice
                    .say(format_args!("linux-dm: after {after:.1} s: {typed}"));
                let typed = console.type_in(answer.as_bytes(), PATIENCE);
                if typed < answer.len() {
                    return Err(format!("the guest read {typed} bytes of {answer:?}"));
                }
            }
        }
        Ok(self.script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_lines_of_two_parts() {
        let script = Script::parse("login: \troot\n# \techo\ta b\n").unwrap();
        let steps = [("login: ", "root\n"), ("# ", "echo\ta b\n")];
        let steps = steps.map(|(text, answer)| (text.to_owned(), answer.to_owned()));
        assert_eq!(script.steps, steps);
        assert!(script.is_played().is_err());
        assert_eq!(Script::parse("").unwrap(), Script::default());
        assert!(Script::default().is_played().is_ok());
        assert_eq!(Script::parse("a\tb\nc").unwrap_err(), "c");
    }
}
