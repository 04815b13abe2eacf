// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `replay TARGET PATH…`: runs files, or all files of folders, through a target. For findings, and for coverage.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().unwrap_or_default();
    let Some(target) = ioreq_fuzz::target(&name.to_string_lossy()) else {
        let names: Vec<_> = ioreq_fuzz::TARGETS.iter().map(|t| t.name).collect();
        eprintln!("usage: replay {} PATH…", names.join("|"));
        return ExitCode::FAILURE;
    };
    let mut count = 0;
    for path in args.map(PathBuf::from) {
        for file in files(&path) {
            match std::fs::read(&file) {
                Ok(data) => (target.run)(&data),
                Err(err) => {
                    eprintln!("{}: {err}", file.display());
                    return ExitCode::FAILURE;
                }
            }
            count += 1;
        }
    }
    println!("{}: {count} inputs, no finding", target.name);
    if count == 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The file itself, or a folder's.
fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return vec![path.to_owned()];
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}
