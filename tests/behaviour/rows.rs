// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rows of `docs/xen-behaviour.toml`, and that they are what the suite tests.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::rig::{Ability, Version};

pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/xen-behaviour.toml");

/// One behaviour.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) action: String,
    expect: Option<String>,
    expect_4_17: Option<String>,
    expect_4_20: Option<String>,
    pub(crate) source: String,
    /// What a rig must be able to do for this row.
    #[serde(default)]
    pub(crate) needs: Vec<Ability>,
    pub(crate) boot: Option<Boot>,
    /// Why the model cannot show it.
    pub(crate) untested: Option<String>,
    /// Of a row that is `untested`: the rig's program that sees it on a real Xen.
    pub(crate) seen_by: Option<String>,
    /// Of one that no program sees there: why.
    pub(crate) unseen: Option<String>,
}

/// What a row ends, or needs, on a real machine. Such rows run apart from the others, where nothing may end and one processor makes
/// all steady.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Boot {
    /// Xen crashes the domain: in a boot with others of the kind.
    Crash,
    /// Nothing, but it shows only while the guest runs beside dom0: in that boot, too.
    TwoProcessors,
    /// Xen panics: in a boot of its own.
    Panic,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    row: Vec<Row>,
}

impl Row {
    /// What must happen on a version.
    pub(crate) fn expect(&self, version: Version) -> &str {
        let special = match version {
            Version::V4_17 => &self.expect_4_17,
            Version::V4_20 => &self.expect_4_20,
        };
        let expect = special.as_ref().or(self.expect.as_ref());
        expect.map_or("", String::as_str)
    }

    /// What is wrong with the row itself.
    fn flaws(&self) -> Vec<String> {
        let mut flaws: Vec<&str> = Vec::new();
        let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.id.is_empty() || !self.id.chars().all(kebab) || !self.id.contains('-') {
            flaws.push("id is not a group and a name in kebab-case");
        }
        let texts = [
            Some(&self.action),
            Some(&self.source),
            self.untested.as_ref(),
            self.seen_by.as_ref(),
            self.unseen.as_ref(),
        ];
        if texts.into_iter().flatten().any(|t| t.trim().is_empty()) {
            flaws.push("an empty text");
        }
        let same = self.expect.is_some();
        let differing = self.expect_4_17.is_some() && self.expect_4_20.is_some();
        let any = self.expect_4_17.is_some() || self.expect_4_20.is_some();
        if same == any || any != differing {
            flaws.push("give either expect, or both expect_4_17 and expect_4_20");
        }
        let elsewhere = usize::from(self.seen_by.is_some()) + usize::from(self.unseen.is_some());
        if elsewhere != usize::from(self.untested.is_some()) {
            flaws.push("`untested`, and no row else, comes with one of `seen_by` and `unseen`");
        }
        flaws.iter().map(|f| format!("{}: {f}", self.id)).collect()
    }
}

/// Reads the file.
pub(crate) fn read() -> Result<Vec<Row>, String> {
    // Built in: a real machine under test has no checkout.
    let text = include_str!("../../docs/xen-behaviour.toml");
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    Ok(file.row)
}

/// Every row has a test or says why not, every test has a row, and the rows are well-formed.
pub(crate) fn check(rows: &[Row], tests: &[String]) -> Result<(), String> {
    let mut wrong: Vec<String> = rows.iter().flat_map(Row::flaws).collect();
    let mut ids = BTreeSet::new();
    for row in rows {
        if !ids.insert(row.id.as_str()) {
            wrong.push(format!("{}: two rows have this id", row.id));
        }
        let has_test = tests.contains(&row.id);
        match &row.untested {
            None if !has_test => wrong.push(format!("{}: a row without a test", row.id)),
            Some(_) if has_test => wrong.push(format!("{}: has a test; drop `untested`", row.id)),
            _ => {}
        }
    }
    let mut seen = BTreeSet::new();
    for test in tests {
        if !ids.contains(test.as_str()) {
            wrong.push(format!("{test}: a test without a row"));
        }
        if !seen.insert(test) {
            wrong.push(format!("{test}: two tests have this name"));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}
