// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What runs in the guest to try the device model hard. Part of it also runs in dom0, to see from outside what the guest did.
//!
//! * `linux-guest write DEVICE COUNT`: random writes to a block device, each followed by fsync, and all of it read back.
//! * `linux-guest track DEVICE WRITES MARKS`: a job in memory that is write-tracked meanwhile, page by page, on and off.
//! * `linux-guest execute`: executes from a tracked page.
//! * `linux-guest verify IMAGE COUNT`: whether an image holds what those writes leave.

mod blocks;
mod execute;
mod memory;
mod ports;
mod track;

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("linux-guest: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String, Box<dyn Error>> {
    match words {
        ["write", device, count] => blocks::write(device, count.parse()?),
        ["track", device, writes, marks] => track::track(device, writes.parse()?, marks.parse()?),
        ["execute"] => execute::execute(),
        ["verify", image, count] => blocks::verify(image, count.parse()?),
        _ => Err("see the program's documentation".into()),
    }
}
