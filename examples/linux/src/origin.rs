// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where a guest comes from, and what is kept for a process after this one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ioreq::hypervisor::Hypervisor;
use ioreq::snapshot::{SavedState, Versioned};
use linux_dm::board::{Board, Failure, Servers};
use linux_dm::saved::SavedBoard;
use serde::{Deserialize, Serialize};

use crate::screen::Voice;

/// What another process needs beside the servers' records.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) domid: u16,
    /// What tells the domain from one that gets its id later.
    pub(crate) identity: String,
    pub(crate) board: SavedBoard,
}

impl SavedState for Life {
    const KIND: &'static str = "Linux guest";
    const VERSION: u32 = 1;
}

/// Where a guest comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It is booted, and dies with this process.
    Alone,
    /// It is booted, and another process can go on with it: by files whose names begin with this. The string is its identity.
    Kept(PathBuf, String),
    /// Another process has died.
    TakenOver(Box<Life>, PathBuf),
}

impl Origin {
    pub(crate) fn kept(path: &Path) -> Self {
        Origin::Kept(path.into(), format!("{:016x}", fastrand::u64(..)))
    }

    pub(crate) fn taken_over(path: &Path) -> Result<Self, Failure> {
        let file = file(path);
        let text = fs::read_to_string(&file).map_err(|err| format!("{}: {err}", file.display()))?;
        let Versioned(life) = serde_json::from_str(&text)?;
        Ok(Origin::TakenOver(Box::new(life), path.into()))
    }

    pub(crate) fn servers(&self) -> Servers {
        match self {
            Origin::Alone => Servers::Unrecorded,
            Origin::Kept(path, identity) => Servers::Recorded(path.clone(), identity.clone()),
            Origin::TakenOver(life, path) => {
                Servers::TakenOver(path.clone(), life.identity.clone())
            }
        }
    }

    /// Keeps the board's state from now on.
    pub(crate) fn keep<H: Hypervisor>(&self, domid: u16, board: &Board<H>, voice: &Voice) {
        let (path, identity) = match self {
            Origin::Alone => return,
            Origin::Kept(path, identity) => (file(path), identity.clone()),
            Origin::TakenOver(life, path) => (file(path), life.identity.clone()),
        };
        let voice = voice.clone();
        board.keep(move |board| {
            let life = Life {
                domid,
                identity: identity.clone(),
                board: board.clone(),
            };
            if let Err(err) = write(&path, life) {
                let file = path.display();
                voice.say(format_args!("linux-dm: {file} could not be written: {err}"));
            }
        });
    }
}

fn file(path: &Path) -> PathBuf {
    path.with_extension("board")
}

/// All of it or nothing: a reader finds the old file or the new one.
fn write(path: &Path, life: Life) -> io::Result<()> {
    let new = path.with_extension("board-new");
    fs::write(&new, serde_json::to_vec(&Versioned(life))?)?;
    fs::rename(new, path)
}
