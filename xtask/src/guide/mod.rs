// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask guide`: what the guide's reader does. Its listings become a crate outside the workspace, which sees nothing of it but
//! the packages of the published crates; after each chapter it is built, linted and tested.

mod crates;
mod listings;
mod rows;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;

use crate::run::{cargo, root, succeed};
use crate::xen::{self, Release};
use listings::Chapter;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Then serves a domain of this version of Xen with it.
    #[arg(long = "xen", value_enum)]
    release: Option<Release>,
}

/// The guide, and the name of its crate.
const GUIDE: &str = "docs/guide.md";
const NAME: &str = "pagesum";

pub(crate) fn run(args: &Args) -> Result<()> {
    follow(args.release)
}

/// For `cargo xtask test`: on the Xen that is had everywhere, too.
pub(crate) fn check() -> Result<()> {
    follow(Some(Release::V4_17))
}

/// Does what the guide says, to its end where a Xen is asked for.
fn follow(release: Option<Release>) -> Result<()> {
    let text = fs::read_to_string(root().join(GUIDE)).context(GUIDE)?;
    let chapters = listings::chapters(&text).context(GUIDE)?;
    rows::check(&text).context(GUIDE)?;
    // One for all, so that dependencies are built once.
    let target = root().join("target/guide");
    let folder = tempfile::tempdir()?;
    let published = crates::package(&target, folder.path())?;
    let patches: String = published
        .iter()
        .map(|package| {
            let path = package.unpacked(folder.path());
            format!("{} = {{ path = {path:?} }}\n", package.name)
        })
        .collect();
    let reader = folder.path().join(NAME);
    fs::create_dir_all(&reader)?;
    let result = read(&chapters, &reader, &patches, &target).and_then(|()| match release {
        Some(release) => xen::guide(release, &reader, NAME, &target),
        None => Ok(()),
    });
    let names = published.iter().map(|package| package.name.as_str());
    let tests = chapters.iter().flat_map(|chapter| &chapter.files);
    let tests = tests.filter_map(|(file, _)| file.strip_prefix("tests/")?.strip_suffix(".rs"));
    let names: Vec<&str> = names.chain(tests).chain([NAME]).collect();
    result.and(tidy(&target, &names))
}

/// Removes what was built of these. The next time their sources lie elsewhere, so it would pile up; cargo's own `clean` leaves it.
fn tidy(target: &Path, names: &[&str]) -> Result<()> {
    for folder in ["deps", ".fingerprint"] {
        let folder = xen::in_target(target).join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().replace('_', "-");
            let file = file.strip_prefix("lib").unwrap_or(&file);
            // The name, and a hash.
            let known = file
                .rsplit_once('-')
                .is_some_and(|(name, _)| names.contains(&name));
            match known {
                true if entry.path().is_dir() => fs::remove_dir_all(entry.path())?,
                true => fs::remove_file(entry.path())?,
                false => {}
            }
        }
    }
    Ok(())
}

/// Does what the chapters say in the folder `reader`.
fn read(chapters: &[Chapter], reader: &Path, patches: &str, target: &Path) -> Result<()> {
    // The versions that the checks know; what the guide needs beside them is added.
    fs::copy(root().join("Cargo.lock"), reader.join("Cargo.lock"))?;
    for chapter in chapters {
        println!("{GUIDE}: {}", chapter.title);
        for (name, contents) in &chapter.files {
            let path = reader.join(name);
            fs::create_dir_all(path.parent().unwrap_or(reader))?;
            let mut contents = contents.clone();
            if name == "Cargo.toml" {
                // Until they are published.
                contents += &format!("\n[patch.crates-io]\n{patches}");
            }
            fs::write(path, contents)?;
        }
        step(reader, target)
            .with_context(|| format!("{GUIDE}, after chapter {:?}", chapter.title))?;
    }
    Ok(())
}

/// What a reader does after a chapter.
fn step(reader: &Path, target: &Path) -> Result<()> {
    let lint = ["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"];
    succeed(&mut in_crate(reader, target, &["fmt", "--check"]))?;
    succeed(&mut in_crate(reader, target, &lint))?;
    succeed(&mut in_crate(reader, target, &["test", "--quiet"]))
}

/// A cargo command in the reader's crate. All is built as dom0 gets it, so nothing is built twice.
fn in_crate(reader: &Path, target: &Path, args: &[&str]) -> Command {
    let mut command = cargo(reader, args);
    xen::static_build(&mut command, target).env("CARGO_INCREMENTAL", "0");
    command
}
