// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every seed of every target still runs without a finding. Needs neither libFuzzer nor a nightly compiler.

use std::path::Path;

#[test]
fn every_seed_passes() {
    for target in ioreq_fuzz::TARGETS {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(target.name);
        let mut count = 0;
        for entry in std::fs::read_dir(&seeds).expect("each target has seeds") {
            let path = entry.expect("a folder can be read").path();
            let data = std::fs::read(&path).expect("a seed can be read");
            println!("{}", path.display());
            (target.run)(&data);
            count += 1;
        }
        assert!(count > 0, "{} has no seeds", target.name);
    }
}
