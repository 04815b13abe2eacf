// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rules of the source that no lint knows.

use std::path::Path;

use anyhow::{Result, bail};

use crate::run::{files, root};

const SPDX: &str = "// SPDX-License-Identifier: Apache-2.0 OR MIT";
/// Left-overs that must not be committed. (Split here, so that this file does not find itself.)
const LEFT_OVERS: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
];

/// Checks every Rust file of the repository.
pub(crate) fn check() -> Result<()> {
    let root = root();
    let mut wrong = Vec::new();
    let files = files(".", ".rs")?;
    if files.is_empty() {
        bail!("no source files found: is this a git checkout?");
    }
    for path in &files {
        let text = std::fs::read_to_string(path)?;
        let name = path.strip_prefix(&root).unwrap_or(path);
        wrong.extend(complaints(name, &text));
    }
    if wrong.is_empty() {
        println!("{} files keep the rules", files.len());
        return Ok(());
    }
    bail!("{} complaints:\n  {}", wrong.len(), wrong.join("\n  "));
}

fn complaints(path: &Path, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.lines().next() != Some(SPDX) {
        wrong.push(format!(
            "{}: the first line is not `{SPDX}`",
            path.display()
        ));
    }
    let declared = text.lines().any(|line| line.starts_with("//! UNSAFETY: "));
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        if !declared && !is_test(path) && uses_unsafe(code) {
            wrong.push(format!(
                "{}:{number}: unsafe in a file whose module doc has no `//! UNSAFETY: why`",
                path.display()
            ));
        }
        if let Some(left) = LEFT_OVERS.iter().find(|left| code.contains(**left)) {
            wrong.push(format!("{}:{number}: {left}…) left over", path.display()));
        }
    }
    if is_shipped(path) && unwraps_a_lock(text) {
        wrong.push(format!(
            "{}: a lock is unwrapped: one that a panic poisoned would stop the server (`PoisonError::into_inner`)",
            path.display()
        ));
    }
    wrong
}

/// Of the crates that a device model is made of.
fn is_shipped(path: &Path) -> bool {
    let crates = [
        "ioreq-core/src",
        "ioreq-xen/src",
        "ioreq-backends/src",
        "ioreq-replay/src",
    ];
    crates.iter().any(|name| path.starts_with(name)) && !is_test(path)
}

/// Whether the code before its tests takes a lock as if no holder had ever panicked.
fn unwraps_a_lock(text: &str) -> bool {
    let shipped = text.lines().take_while(|line| {
        !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test")
    });
    let code: String = shipped
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| line.chars().filter(|c| !c.is_whitespace()))
        .collect();
    let takes = [".lock()", ".try_lock()", ".read()", ".write()"];
    let hopes = [".unwrap()", ".expect("];
    takes.iter().any(|take| {
        hopes
            .iter()
            .any(|hope| code.contains(&format!("{take}{hope}")))
    })
}

/// Tests reach into shared pages as the hypervisor does; the rule is about what is shipped.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| {
        ["tests", "benches", "model"]
            .iter()
            .any(|dir| part.as_os_str() == *dir)
    }) || path
        .file_name()
        .is_some_and(|name| name == "tests.rs" || name == "model.rs")
}

/// The word, split so that this file does not find itself.
const UNSAFE: &str = concat!("un", "safe");

fn uses_unsafe(code: &str) -> bool {
    let follows = |rest: &str| {
        ["{", "fn", "impl", "trait", "extern"]
            .iter()
            .any(|next| rest.trim_start().starts_with(next))
    };
    code.match_indices(UNSAFE)
        .any(|(at, word)| follows(&code[at + word.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> usize {
        complaints(Path::new("src/x.rs"), text).len()
    }

    #[test]
    fn the_licence_line_comes_first() {
        assert_eq!(of(&format!("{SPDX}\nfn f() {{}}\n")), 0);
        assert_eq!(of(&format!("\n{SPDX}\n")), 1);
        assert_eq!(of(""), 1);
    }

    #[test]
    fn unsafe_needs_a_declaration_and_comments_do_not_count() {
        let code = format!("fn f() {{ {UNSAFE} {{}} }}");
        assert_eq!(of(&format!("{SPDX}\n{code}\n")), 1);
        assert_eq!(of(&format!("{SPDX}\n//! UNSAFETY: why\n{code}\n")), 0);
        assert_eq!(of(&format!("{SPDX}\n// an {UNSAFE} fn would not do\n")), 0);
        assert_eq!(of(&format!("{SPDX}\nfn {UNSAFE}_free() {{}}\n")), 0);
    }

    #[test]
    fn locks_are_taken_whoever_panicked() {
        let at = |path: &str, code: &str| {
            complaints(Path::new(path), &format!("{SPDX}\n{code}\n")).len()
        };
        let bad = "fn f() {\n    x\n        .lock()\n        .unwrap();\n}";
        assert_eq!(at("ioreq-core/src/x.rs", bad), 1);
        assert_eq!(
            at(
                "ioreq-core/src/x.rs",
                &bad.replace("unwrap", "unwrap_or_else")
            ),
            0
        );
        assert_eq!(
            at("ioreq-core/src/x.rs", &format!("#[cfg(test)]\n{bad}")),
            0
        );
        assert_eq!(at("ioreq-core/src/x.rs", "/// x.lock().unwrap()"), 0);
        assert_eq!(at("ioreq-core/tests/x.rs", bad), 0);
        assert_eq!(at("ioreq-core/src/server/model/x.rs", bad), 0);
    }

    #[test]
    fn left_overs_are_found() {
        assert_eq!(of(&format!("{SPDX}\nfn f() {{ {}) }}\n", LEFT_OVERS[0])), 1);
    }
}
