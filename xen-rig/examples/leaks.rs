// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Says what is left in Xen of domains, servers, marked pages and event channels: the last thing in every boot of the rig.

use xen_rig::{Leaks, Privcmd};

fn main() -> std::io::Result<()> {
    let leaks = Leaks::look(&Privcmd::open()?)?;
    let word = if leaks.left.is_empty() {
        "clean"
    } else {
        "leak"
    };
    println!("RIG: {word} {leaks}");
    Ok(())
}
