// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Expectations and waiting.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::{Errno, Rig};

/// How long something that must happen may take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `condition`.
///
/// # Panics
/// With `what`, if it does not come true.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    for turn in 0_u32.. {
        if condition() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        if turn < 50 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Tries until `attempt` shows `what`, as often as the rig needs. For what Xen remembers of a vCPU only until its scheduler has had
/// a look at it, which may come in between.
///
/// # Panics
/// If no attempt shows it.
#[track_caller]
pub(crate) fn shown<R: Rig, T: Debug>(rig: &R, what: &str, attempt: impl Fn() -> Result<(), T>) {
    let mut last = None;
    for _ in 0..rig.attempts() {
        match attempt() {
            Ok(()) => return,
            Err(other) => last = Some(other),
        }
    }
    panic!(
        "{what}: never in {} attempts; the last: {last:?}",
        rig.attempts()
    );
}

/// The typed operation must fail with `errno`.
#[track_caller]
pub(crate) fn refused<T: Debug>(result: ioreq_core::Result<T>, errno: Errno) {
    match result {
        Ok(value) => panic!("expected {}, got {value:?}", name(errno)),
        Err(err) => assert_eq!(
            err.errno().map(name),
            Some(name(errno)),
            "expected {}, got: {err}",
            name(errno)
        ),
    }
}

/// The operation by number must fail with `errno`.
#[track_caller]
pub(crate) fn refused_raw<T: Debug>(result: Result<T, Errno>, errno: Errno) {
    match result {
        Ok(value) => panic!("expected {}, got {value:?}", name(errno)),
        Err(got) => assert_eq!(name(got), name(errno)),
    }
}

fn name(errno: Errno) -> String {
    match errno {
        libc::EPERM => "EPERM".into(),
        libc::ENOENT => "ENOENT".into(),
        libc::ESRCH => "ESRCH".into(),
        libc::ENOMEM => "ENOMEM".into(),
        libc::EBUSY => "EBUSY".into(),
        libc::EEXIST => "EEXIST".into(),
        libc::EINVAL => "EINVAL".into(),
        libc::EFBIG => "EFBIG".into(),
        libc::ENOSPC => "ENOSPC".into(),
        libc::EOPNOTSUPP => "EOPNOTSUPP".into(),
        other => format!("errno {other}"),
    }
}
