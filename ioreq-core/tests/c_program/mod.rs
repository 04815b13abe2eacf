// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a C program that prints `name value` lines: what the compiler makes of the installed headers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// Compiles (with more `options`) and runs `source`, which needs the headers of Xen or Linux that `package` brings.
pub(crate) fn run(
    name: &str,
    source: &str,
    options: &[&str],
    package: &str,
) -> BTreeMap<String, u64> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = dir.join(format!("{name}.c"));
    let binary = dir.join(name);
    std::fs::write(&file, source).expect("the target directory is writable");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiled = Command::new(&compiler)
        .arg("-Wall")
        .args(options)
        .arg("-o")
        .args([&binary, &file])
        .output()
        .unwrap_or_else(|err| {
            panic!("no C compiler `{compiler}` ({err}): apt-get install gcc libc6-dev, or set CC")
        });
    let stderr = String::from_utf8_lossy(&compiled.stderr);
    assert!(
        !stderr.contains("xen/"),
        "headers are missing: apt-get install {package}\n{stderr}"
    );
    assert!(
        compiled.status.success() && stderr.is_empty(),
        "{compiler} did not take the program (apt-get install libc6-dev?)\n{stderr}"
    );
    let run = Command::new(&binary).output().expect("just compiled");
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout)
        .expect("the program prints ASCII")
        .lines()
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("name value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}
