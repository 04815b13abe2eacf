// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The target `pci`, as a libFuzzer program.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ioreq_fuzz::pci::run(data));
