// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Opening the devices, with errors that say what to do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use ioreq_core::{Error, Op, Result};

/// Opens a device for reading and writing, close-on-exec, with more flags.
pub(super) fn device(path: &str, module: &str, flags: i32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|err| {
            Error::from_io(Op::Open, &err).about(format!(
                "{path} (in dom0 or a stub domain, with the module {module}, as root)"
            ))
        })
}
