// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rows as a table for people: what Xen does, whether the model does it, and whether a real one was seen to do it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::{fs, io};

use serde::Deserialize;

use crate::rig::{Ability, Version};
use crate::rows::{Boot, Row};

pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/behaviour-table.md");

const HEAD: &str = "\
# What Xen does that an ioreq server can see

Written by the behaviour suite from `xen-behaviour.toml` and `real-xen/*.toml`; do not edit. To write it anew:
`BEHAVIOUR_WRITE_TABLE=1 cargo test --test behaviour`.

The Xen columns say what that version does (the file names each row's source). *Same*: the row's test passes, on `ioreq-sim` of
that version or on the real Xen (`cargo xtask xen test`, which fails if a result is not the one on record here). *By*: not a row's
test, but that program sees it on the real Xen. All else has its reason below the table. † the row ends the domain or the
hypervisor, so on a real machine it runs apart from the others.

";

/// `docs/real-xen/*.toml`: what a run of this suite found.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: String,
    rows: BTreeMap<String, Found>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Passed,
    Lacking,
}

impl Record {
    fn read(version: &str) -> Result<Self, String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/real-xen");
        let path = format!("{folder}/{version}.toml");
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        toml::from_str(&text).map_err(|e| format!("{path}: {e}"))
    }

    fn cell(&self, row: &Row) -> Result<String, String> {
        if let Some(program) = &row.seen_by {
            return Ok(format!("by `{program}`"));
        }
        if row.untested.is_some() {
            return Ok("not tested".into());
        }
        match self.rows.get(&row.id) {
            Some(Found::Passed) => Ok("same".into()),
            Some(Found::Lacking) => Ok("not possible".into()),
            None => Err(format!(
                "{}: no result of {} on record: cargo xtask xen test --record",
                row.id, self.version
            )),
        }
    }
}

/// Why the rig cannot show a row.
fn lack(ability: Ability) -> &'static str {
    match ability {
        Ability::NoHap => {
            "a domain without HAP needs a Xen built with shadow paging, and Debian's is not"
        }
        Ability::EventOverflow => {
            "Linux makes a handle's ring as large as the number of its ports, and a port is in it once: it does not overflow"
        }
        Ability::TwoLooks => {
            "Xen must look at a slot at two moments that nobody outside of it controls"
        }
        Ability::StubDomain => "the rig's device models all run in dom0",
    }
}

/// A text that fits a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn render(rows: &[Row]) -> Result<String, String> {
    let records = [Record::read("4.17")?, Record::read("4.20")?];
    let mut text = String::from(HEAD);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "| id | action | Xen 4.17 | Xen 4.20 | model 4.17 | model 4.20 | real {} | real {} |",
        records[0].version, records[1].version
    );
    text.push_str("| --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for row in rows {
        let model = if row.untested.is_some() {
            "not modelled"
        } else {
            "same"
        };
        let own = if matches!(row.boot, Some(Boot::Crash | Boot::Panic)) {
            " †"
        } else {
            ""
        };
        let old = row.expect(Version::V4_17);
        let new = row.expect(Version::V4_20);
        let new = if new == old { "as 4.17" } else { new };
        let _ = writeln!(
            text,
            "| `{}`{own} | {} | {} | {} | {model} | {model} | {} | {} |",
            row.id,
            cell(&row.action),
            cell(old),
            cell(new),
            records[0].cell(row)?,
            records[1].cell(row)?,
        );
    }
    text.push_str("\n## Not possible on the rig\n\n");
    for row in rows {
        for ability in &row.needs {
            let _ = writeln!(text, "* `{}`: {}", row.id, lack(*ability));
        }
    }
    text.push_str("\n## Not modelled\n\n");
    for row in rows {
        if let Some(reason) = &row.untested {
            let _ = writeln!(text, "* `{}`: {reason}", row.id);
        }
    }
    text.push_str("\n## Neither modelled nor tested on the rig\n\n");
    for row in rows {
        if let Some(reason) = &row.unseen {
            let _ = writeln!(text, "* `{}`: {reason}", row.id);
        }
    }
    Ok(text)
}

/// Writes the table.
pub(crate) fn write(rows: &[Row]) -> io::Result<()> {
    fs::write(PATH, render(rows).map_err(io::Error::other)?)
}

/// Whether the checked-in table is what the rows say.
pub(crate) fn check(rows: &[Row]) -> Result<(), String> {
    let there = fs::read_to_string(PATH).map_err(|e| format!("{PATH}: {e}"))?;
    if there == render(rows)? {
        Ok(())
    } else {
        Err(format!(
            "{PATH} is not what the rows say: BEHAVIOUR_WRITE_TABLE=1 cargo test --test behaviour"
        ))
    }
}
