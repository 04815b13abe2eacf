// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every public type has an example: read off the pages that rustdoc wrote, since they show just what users can reach,
//! whatever macro or re-export it comes from. That the examples run is what `cargo test` sees to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::{files, root};

/// The published crates, as rustdoc names their folders.
const CRATES: &[&str] = &["ioreq_core", "ioreq_sim", "ioreq_backends", "ioreq_xen"];

/// The crate whose examples need a real Xen: they are compiled, not run.
const NEEDS_XEN: &str = "ioreq-xen";

/// Pages of items that are types, by the start of their name.
const TYPES: &[&str] = &["struct.", "enum.", "union.", "trait."];

/// What a page says that only leads to where an item is re-exported.
const REDIRECTION: &str = "http-equiv=\"refresh\"";

/// Where the text about an item ends and its parts begin.
const PARTS: &[&str] = &[
    "id=\"fields\"",
    "id=\"variants\"",
    "id=\"implementations\"",
    "id=\"required-associated-types\"",
    "id=\"required-methods\"",
    "id=\"provided-methods\"",
    "id=\"implementors\"",
    "id=\"trait-implementations\"",
];

/// Removes pages of an earlier run: what is gone from the source must not be judged.
pub(crate) fn forget() -> Result<()> {
    for name in CRATES {
        let folder = root().join("target/doc").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        }
    }
    Ok(())
}

/// Checks the pages that `cargo doc` has just written, and the source for examples that would not run.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let mut types = 0;
    for name in CRATES {
        let folder = root().join("target/doc").join(name);
        for page in pages(&folder)? {
            let text = fs::read_to_string(&page)?;
            if text.contains(REDIRECTION) {
                continue;
            }
            types += 1;
            if !has_example(&text) {
                let shown = page
                    .strip_prefix(root().join("target/doc"))
                    .unwrap_or(&page);
                wrong.push(format!("{}: no example", shown.display()));
            }
        }
    }
    if types == 0 {
        bail!("rustdoc wrote no page of a type");
    }
    for path in files(".", ".rs")? {
        let name = path.strip_prefix(root()).unwrap_or(&path).to_owned();
        wrong.extend(not_run(&name, &fs::read_to_string(&path)?));
    }
    if wrong.is_empty() {
        println!("{types} public types have an example");
        return Ok(());
    }
    bail!("{} complaints:\n  {}", wrong.len(), wrong.join("\n  "));
}

/// All pages of types under a folder of rustdoc's.
fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            found.extend(pages(&path)?);
        } else if TYPES.iter().any(|kind| name.starts_with(kind)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn has_example(page: &str) -> bool {
    let Some(start) = page.find("top-doc") else {
        return false;
    };
    let about = &page[start..];
    let end = PARTS
        .iter()
        .filter_map(|part| about.find(part))
        .min()
        .unwrap_or(about.len());
    about[..end].contains("rust-example-rendered")
}

/// Examples that are marked so that they do not run.
fn not_run(path: &Path, text: &str) -> Vec<String> {
    let allowed = path.starts_with(NEEDS_XEN);
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| {
            let line = line.trim_start();
            let fence = ["/// ```", "//! ```"]
                .iter()
                .find_map(|start| line.strip_prefix(start));
            fence.is_some_and(|flags| {
                flags
                    .split(',')
                    .any(|flag| flag == "ignore" || (flag == "no_run" && !allowed))
            })
        })
        .map(|(number, _)| format!("{}:{number}: an example that is not run", path.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_counts_where_it_is_about_the_type() {
        let example = "<pre class=\"rust rust-example-rendered\">";
        let methods = "<h2 id=\"implementations\">";
        assert!(has_example(&format!("top-doc {example} {methods}")));
        assert!(!has_example(&format!("top-doc {methods} {example}")));
        assert!(!has_example(example));
    }

    #[test]
    fn only_the_xen_backend_may_have_examples_that_do_not_run() {
        let text = "/// ```no_run\n/// x();\n/// ```\n";
        assert_eq!(not_run(Path::new("ioreq-core/src/a.rs"), text).len(), 1);
        assert_eq!(not_run(Path::new("ioreq-xen/src/a.rs"), text).len(), 0);
        let ignored = "//! ```rust,ignore\n";
        assert_eq!(not_run(Path::new("ioreq-xen/src/a.rs"), ignored).len(), 1);
        assert_eq!(
            not_run(Path::new("src/a.rs"), "/// ```\n/// ```text\n").len(),
            0
        );
    }
}
