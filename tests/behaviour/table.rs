// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rows as a table for people: what Xen does, and whether the model does it too.

use std::fmt::Write as _;
use std::{fs, io};

use crate::rig::Version;
use crate::rows::{Boot, Row};

pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/behaviour-table.md");

const HEAD: &str = "\
# What Xen does that an ioreq server can see

Written by the behaviour suite from `xen-behaviour.toml`; do not edit. To write it anew:
`BEHAVIOUR_WRITE_TABLE=1 cargo test --test behaviour`.

The Xen columns say what that version does (recorded; the file names each row's source). *Same* in a model column: the row's
test passes on `ioreq-sim` of that version. *Not modelled*: see the reasons below the table. † the row ends the domain or the
hypervisor, so on a real machine it runs apart from the others.

| id | action | Xen 4.17 | Xen 4.20 | model 4.17 | model 4.20 |
| --- | --- | --- | --- | --- | --- |
";

/// A text that fits a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn render(rows: &[Row]) -> String {
    let mut text = String::from(HEAD);
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
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| `{}`{own} | {} | {} | {} | {model} | {model} |",
            row.id,
            cell(&row.action),
            cell(old),
            cell(new),
        );
    }
    text.push_str("\n## Not modelled\n\n");
    for row in rows {
        if let Some(reason) = &row.untested {
            let _ = writeln!(text, "* `{}`: {reason}", row.id);
        }
    }
    text
}

/// Writes the table.
pub(crate) fn write(rows: &[Row]) -> io::Result<()> {
    fs::write(PATH, render(rows))
}

/// Whether the checked-in table is what the rows say.
pub(crate) fn check(rows: &[Row]) -> Result<(), String> {
    let there = fs::read_to_string(PATH).map_err(|e| format!("{PATH}: {e}"))?;
    if there == render(rows) {
        Ok(())
    } else {
        Err(format!(
            "{PATH} is not what the rows say: BEHAVIOUR_WRITE_TABLE=1 cargo test --test behaviour"
        ))
    }
}
