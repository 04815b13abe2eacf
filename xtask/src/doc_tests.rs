// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that documents name exist: a promise whose test is gone is no promise.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run::root;

/// Documents whose claims have tests. Those that do not exist are not looked for.
const DOCUMENTS: &[&str] = &["docs/reliability.md", "docs/security.md"];

/// Where checks are functions that a program or a table calls, not `#[test]`s.
const CALLED: &[&str] = &["xen-rig/examples/", "tests/behaviour/"];

pub(crate) fn check() -> Result<()> {
    let root = root();
    let (mut wrong, mut named) = (Vec::new(), 0);
    for document in DOCUMENTS {
        let path = root.join(document);
        if !path.exists() {
            println!("{document}: there is none");
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let tests = named_in(&text);
        if tests.is_empty() {
            wrong.push(format!("{document} names no test"));
        }
        named += tests.len();
        let missing = tests.iter().filter(|test| !exists(&root, test));
        wrong.extend(missing.map(|(file, name)| format!("{document}: no test {file}::{name}")));
    }
    if wrong.is_empty() {
        println!("{named} tests that documents name exist");
        return Ok(());
    }
    bail!("{} complaints:\n  {}", wrong.len(), wrong.join("\n  "));
}

/// Every `file.rs::name` in backticks.
fn named_in(text: &str) -> Vec<(&str, &str)> {
    let quoted = text
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted
        .filter_map(|code| {
            code.split_once(".rs::")
                .map(|(file, name)| (&code[..file.len() + 3], name))
        })
        .collect()
}

fn exists(root: &Path, (file, name): &(&str, &str)) -> bool {
    let called = CALLED.iter().any(|folder| file.starts_with(folder));
    fs::read_to_string(root.join(file)).is_ok_and(|text| is_test(&text, name, called))
}

/// Whether `text` has the function, marked as a test unless it is `called`.
fn is_test(text: &str, name: &str, called: bool) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let heads = [format!("fn {name}("), format!("fn {name}<")];
    let defined = |line: &str| {
        let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
        heads.iter().any(|head| line.starts_with(head))
    };
    let marked = |at: usize| {
        let above = lines.iter().take(at).rev();
        let mut above = above.take_while(|line| line.starts_with('#') || line.starts_with("//"));
        above.any(|line| *line == "#[test]")
    };
    (0..lines.len()).any(|at| defined(lines[at]) && (called || marked(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_backticks() {
        let text = "| `a/b.rs::x_y`, `c.rs::z` | `Type::method` and d.rs::no | `e.rs` |\n";
        assert_eq!(named_in(text), [("a/b.rs", "x_y"), ("c.rs", "z")]);
    }

    #[test]
    fn only_a_whole_name_of_a_test_counts() {
        let text = "/// It holds.\n#[test]\n// So.\nfn it_holds() {}\nfn helper() {}\n    #[test]\n    fn inside() {}\n";
        assert!(is_test(text, "it_holds", false) && is_test(text, "inside", false));
        assert!(!is_test(text, "it_hold", false) && !is_test(text, "holds", false));
        assert!(!is_test(text, "helper", false), "no test");
        assert!(is_test(text, "helper", true));
        assert!(is_test("pub(crate) fn row<R: Rig>(rig: &R) {", "row", true));
    }
}
