// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guide's listings: which file each is, chapter by chapter.
//!
//! A listing is a fenced block after a line that is nothing but its file's name, bold and as code. Blocks without one are commands
//! for a shell, or text.

use std::path::{Component, Path};

use anyhow::{Context, Result, bail};

/// What a chapter adds to the crate, or puts in place of earlier files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chapter {
    pub(super) title: String,
    /// Names below the crate's folder, and contents.
    pub(super) files: Vec<(String, String)>,
}

/// The chapters that have listings.
///
/// # Errors
/// Rust or TOML that is no file, a name that leads out of the crate, a block without an end.
pub(super) fn chapters(text: &str) -> Result<Vec<Chapter>> {
    let mut chapters = Vec::new();
    let mut name: Option<&str> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            chapters.push(Chapter {
                title: title.to_owned(),
                files: Vec::new(),
            });
        } else if let Some(language) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if !text.contains(&(block.join("\n") + "\n```")) {
                bail!("the block after {line:?} has no end");
            }
            match (name.take(), chapters.last_mut()) {
                (Some(name), Some(chapter)) => {
                    let contents = block.join("\n") + "\n";
                    chapter.files.push((name.to_owned(), contents));
                }
                _ if language.starts_with("rust") || language.starts_with("toml") => {
                    bail!(
                        "a listing of {language} that begins {:?} is no file",
                        block.first()
                    );
                }
                _ => {}
            }
        } else if let Some(named) = named(line) {
            if !inside(named) {
                bail!("{named} is no file of the crate");
            }
            name = Some(named);
        } else if !line.trim().is_empty()
            && let Some(name) = name
        {
            bail!("no listing follows the name {name}");
        }
    }
    chapters.retain(|chapter: &Chapter| !chapter.files.is_empty());
    chapters.first().context("no chapter has a listing")?;
    Ok(chapters)
}

/// The name in a line that is nothing else.
fn named(line: &str) -> Option<&str> {
    let name = line.strip_prefix("**`")?.strip_suffix("`**")?;
    (!name.contains('`')).then_some(name)
}

fn inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\nText.\n\n## 1. One\n\n**`a/b.rs`**\n\n```rust,ignore\nfn f() {}\n\nfn g() {}\n```\n\n\
        ```sh\ncargo test\n```\n\n## 2. Two\n\nNothing.\n\n## 3. Three\n\n**`Cargo.toml`**\n```toml\n[package]\n```\n";

    #[test]
    fn listings_are_files_by_chapter() {
        let chapters = chapters(TEXT).unwrap();
        let titles: Vec<&str> = chapters.iter().map(|chapter| &*chapter.title).collect();
        assert_eq!(titles, ["1. One", "3. Three"]);
        let file = |name: &str, contents: &str| vec![(name.to_owned(), contents.to_owned())];
        assert_eq!(
            chapters[0].files,
            file("a/b.rs", "fn f() {}\n\nfn g() {}\n")
        );
        assert_eq!(chapters[1].files, file("Cargo.toml", "[package]\n"));
    }

    #[test]
    fn what_is_no_listing_of_a_file_is_refused() {
        for (from, to) in [
            ("**`a/b.rs`**\n\n", ""),
            ("**`Cargo.toml`**", "Cargo.toml:"),
            ("a/b.rs", "../b.rs"),
            ("a/b.rs", "/b.rs"),
            ("**`a/b.rs`**\n\n", "**`a/b.rs`**\n\nText.\n\n"),
            ("[package]\n```\n", "[package]\n"),
        ] {
            let bad = TEXT.replacen(from, to, 1);
            assert!(bad != TEXT && chapters(&bad).is_err(), "{from:?} to {to:?}");
        }
        assert!(chapters("# Title\n\n## 1. One\n").is_err());
    }
}
