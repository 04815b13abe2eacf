// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the behaviour suite found on each real Xen, on record: `docs/real-xen/VERSION.toml`. A run that finds something else fails,
//! and `docs/behaviour-table.md` has it as columns.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::release::Release;
use super::suite::Fared;
use crate::run::root;

const HEAD: &str = "\
# SPDX-License-Identifier: Apache-2.0 OR MIT

# What the behaviour suite found on a real Xen. Written by `cargo xtask xen test --record`; do not edit.
# passed: as its row in xen-behaviour.toml says. lacking: the machine of the rig lacks what the row `needs`.
";

/// One version's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The hypervisor's own.
    version: String,
    rows: BTreeMap<String, Found>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Passed,
    Lacking,
}

fn path(release: Release) -> PathBuf {
    root().join(format!("docs/real-xen/{}.toml", release.name()))
}

impl Record {
    /// Of results none of which failed: nothing else goes on record.
    pub(super) fn new(version: &str, results: &BTreeMap<String, Fared>) -> Self {
        let rows = results.iter().filter_map(|(id, fared)| {
            let found = match fared {
                Fared::Passed => Found::Passed,
                Fared::Lacking => Found::Lacking,
                Fared::Failed(_) => return None,
            };
            Some((id.clone(), found))
        });
        Record {
            version: version.to_owned(),
            rows: rows.collect(),
        }
    }

    pub(super) fn read(release: Release) -> Result<Self> {
        let path = path(release);
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{}", path.display()))
    }

    pub(super) fn write(&self, release: Release) -> Result<()> {
        let mut text = format!("{HEAD}\nversion = {:?}\n\n[rows]\n", self.version);
        for (id, found) in &self.rows {
            let found = match found {
                Found::Passed => "passed",
                Found::Lacking => "lacking",
            };
            writeln!(text, "{id} = \"{found}\"")?;
        }
        let path = path(release);
        let folder = path.parent().context("a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
        println!("on record: {}", path.display());
        println!("now: BEHAVIOUR_WRITE_TABLE=1 cargo test --test behaviour");
        Ok(())
    }

    /// Fails if what was found now differs from what is on `record`. Rows that were not run now are none of its business.
    pub(super) fn compare(&self, record: &Record) -> Result<()> {
        if self.version != record.version {
            // Debian updates its packages: that alone is no fault, and the results are compared all the same.
            println!("on record is {}, this is {}", record.version, self.version);
        }
        let differ = self.rows.iter().filter_map(|(id, found)| {
            let before = record.rows.get(id);
            (before != Some(found)).then(|| match before {
                Some(before) => format!("{id}: {found:?}, on record {before:?}"),
                None => format!("{id}: {found:?}, not on record"),
            })
        });
        let differ: Vec<String> = differ.collect();
        if differ.is_empty() {
            return Ok(());
        }
        bail!(
            "not what is on record (if that is right: cargo xtask xen test --record):\n  {}",
            differ.join("\n  ")
        )
    }

    /// Fails unless the record has every row of `ids`, and no other.
    pub(super) fn check_complete<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut left = self.rows.clone();
        let missing: Vec<&str> = ids.filter(|id| left.remove(*id).is_none()).collect();
        if missing.is_empty() && left.is_empty() {
            return Ok(());
        }
        bail!(
            "the record of {} lacks {missing:?} and has {:?} too many",
            self.version,
            left.keys()
        )
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.rows.values().filter(|found| **found == Found::Passed);
        let (passed, all) = (passed.count(), self.rows.len());
        write!(f, "{}: {passed} of {all} rows passed", self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rows: &[(&str, Fared)]) -> Record {
        let results = rows.iter().map(|(id, fared)| ((*id).into(), fared.clone()));
        Record::new("Xen 4.17.7", &results.collect())
    }

    #[test]
    fn what_differs_from_the_record_is_told() {
        let on_record = record(&[("a-b", Fared::Passed), ("c-d", Fared::Lacking)]);
        let some = record(&[("a-b", Fared::Passed)]);
        some.compare(&on_record).unwrap();
        for (now, told) in [
            (record(&[("a-b", Fared::Lacking)]), "a-b: Lacking"),
            (record(&[("c-d", Fared::Passed)]), "c-d: Passed"),
            (record(&[("e-f", Fared::Passed)]), "not on record"),
        ] {
            let err = now.compare(&on_record).unwrap_err().to_string();
            assert!(err.contains(told), "{err}");
        }
        assert_eq!(on_record.to_string(), "Xen 4.17.7: 1 of 2 rows passed");
    }

    #[test]
    fn a_record_has_every_row_and_no_other() {
        let failed = ("g-h", Fared::Failed("why".into()));
        let record = record(&[("a-b", Fared::Passed), ("c-d", Fared::Lacking), failed]);
        record.check_complete(["a-b", "c-d"].into_iter()).unwrap();
        assert!(record.check_complete(["a-b"].into_iter()).is_err());
        let more = ["a-b", "c-d", "g-h"];
        assert!(record.check_complete(more.into_iter()).is_err());
    }
}
