// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The example `write_watch` runs, and prints every write in its page's order.

use std::collections::BTreeMap;
use std::process::Command;

#[test]
fn the_example_prints_every_write_in_order() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--example", "write_watch"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // "v0 Trapped gfn 0x100+0x000 #0: 8 bytes 0x0000000000000064"
    let mut next: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(" Trapped ")) {
        let (page, rest) = line.split_once('+').unwrap();
        let page = page.rsplit(' ').next().unwrap();
        let number = rest.split_once('#').unwrap().1;
        let number: u64 = number.split_once(':').unwrap().0.parse().unwrap();
        let next = next.entry(page).or_default();
        assert_eq!(number, *next, "{line}");
        *next += 1;
    }
    assert_eq!(next, BTreeMap::from([("0x100", 8), ("0x101", 16)]));
    let last = text.lines().last();
    assert_eq!(last, Some("the guest's sum is 828; 24 writes seen, 0 lost"));
}
