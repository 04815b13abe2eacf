// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The terminal: what is said is printed, or shown in the view while there is one.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ioreq::stats::Report;
use linux_dm::live::View;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};

/// How often the view is drawn.
const BEAT: Duration = Duration::from_millis(500);

/// Says what happens. Clones say it at the same place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Voice(Arc<Mutex<Option<View>>>);

impl Voice {
    fn view(&self) -> MutexGuard<'_, Option<View>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn say(&self, line: impl fmt::Display) {
        match &mut *self.view() {
            Some(view) => view.say(&line.to_string()),
            None => println!("{line}"),
        }
    }
}

/// The view on the terminal. Dropped, it gives the terminal back, and prints the last of what was said.
#[derive(Debug)]
pub(crate) struct Screen {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Screen {
    /// Shows it, and what is said by `voice`, until `q` is pressed: then what is said is printed again.
    ///
    /// # Errors
    /// When there is no terminal, or no thread.
    pub(crate) fn show(
        voice: &Voice,
        reports: impl Fn() -> Vec<(&'static str, Report)> + Send + 'static,
    ) -> io::Result<Self> {
        let mut terminal = ratatui::try_init()?;
        *voice.view() = Some(View::default());
        let (over, ends) = channel();
        let voice = voice.clone();
        let thread = thread::Builder::new().name("screen".into());
        let thread = thread.spawn(move || {
            let began = Instant::now();
            let shown = loop {
                let reports = reports();
                let drawn = match &mut *voice.view() {
                    Some(view) => {
                        view.take(began.elapsed(), reports);
                        terminal.draw(|frame| view.draw(frame)).map(|_| ())
                    }
                    None => break Ok(()),
                };
                match drawn.and_then(|()| is_quit(&ends)) {
                    Ok(false) => {}
                    Ok(true) => break Ok(()),
                    Err(err) => break Err(err),
                }
            };
            ratatui::restore();
            if let Some(view) = voice.view().take() {
                view.lines().for_each(|line| println!("{line}"));
            }
            if let Err(err) = shown {
                println!("linux-dm: the terminal: {err}");
            }
        })?;
        Ok(Screen {
            over: Some(over),
            thread: Some(thread),
        })
    }
}

/// Waits for a beat, or until the view is to end; whether it is.
fn is_quit(ends: &Receiver<()>) -> io::Result<bool> {
    let until = Instant::now() + BEAT;
    loop {
        if ends.try_recv() == Err(TryRecvError::Disconnected) {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        if event::poll(left.min(BEAT / 10))?
            && let Event::Key(key) = event::read()?
            && ends_it(key)
        {
            return Ok(true);
        }
    }
}

/// `q`, and what interrupts a program elsewhere: the terminal does not do that itself now.
fn ends_it(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.code == KeyCode::Char('q') || control && key.code == KeyCode::Char('c')
}

impl Drop for Screen {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            let _a_panic_has_been_printed = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_shown_while_there_is_a_view() {
        let voice = Voice::default();
        voice.say("printed");
        *voice.view() = Some(View::default());
        voice.clone().say(format_args!("shown {}", 1));
        let view = voice.view().take().unwrap();
        assert!(view.lines().eq(["shown 1"]));
    }

    #[test]
    fn q_and_an_interrupt_end_it() {
        let key = |code, modifiers| ends_it(KeyEvent::new(KeyCode::Char(code), modifiers));
        assert!(key('q', KeyModifiers::NONE) && key('c', KeyModifiers::CONTROL));
        assert!(!key('c', KeyModifiers::NONE) && !key('x', KeyModifiers::CONTROL));
    }
}
