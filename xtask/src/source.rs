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
    wrong
}

/// Tests reach into shared pages as the hypervisor does; the rule is about what is shipped.
fn is_test(path: &Path) -> bool {
    path.components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
        || path
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
    fn left_overs_are_found() {
        assert_eq!(of(&format!("{SPDX}\nfn f() {{ {}) }}\n", LEFT_OVERS[0])), 1);
    }
}
