// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guide says of Xen has a row of the behaviour table, by its name.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::run::root;

/// Checks that what looks like a row's name is one.
pub(super) fn check(text: &str) -> Result<()> {
    let path = root().join("docs/xen-behaviour.toml");
    let table = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let table: toml::Table = toml::from_str(&table)?;
    let rows = table["row"].as_array().context("no rows")?;
    let ids: BTreeSet<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    let unknown = unknown(text, &ids);
    if unknown.is_empty() {
        return Ok(());
    }
    bail!("no rows of the behaviour table: {}", unknown.join(", "));
}

/// Words in code style, outside of blocks, that begin as rows do and are none.
fn unknown<'a>(text: &'a str, ids: &BTreeSet<&str>) -> Vec<&'a str> {
    let families: BTreeSet<&str> = ids.iter().filter_map(|id| id.split('-').next()).collect();
    let prose = text.split("\n```").step_by(2);
    let words = prose.flat_map(|prose| prose.split('`').skip(1).step_by(2));
    words
        .filter(|word| {
            let family = word.split_once('-').map(|(family, _)| family);
            family.is_some_and(|family| families.contains(family)) && !ids.contains(word)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_no_row_are_found() {
        let ids = BTreeSet::from(["range-limit", "slot-busy"]);
        let text = "`range-limit`, `range-none`, `Range`, `xen-rig`\n\n```sh\n`range-x`\n```\n\n`slot-free`";
        assert_eq!(unknown(text, &ids), ["range-none", "slot-free"]);
    }
}
