// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The README's device is the example, and the example runs.

use std::process::Command;

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let readme = include_str!("../README.md");
    let example = include_str!("../examples/hello_mmio.rs");
    let code = example
        .split_once("served for a guest of the embedded model.\n\n")
        .unwrap()
        .1;
    assert!(
        readme.contains(code),
        "README.md and examples/hello_mmio.rs differ"
    );
}

#[test]
fn the_example_runs() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--example", "hello_mmio"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "the guest read 42\n"
    );
}
