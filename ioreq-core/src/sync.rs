// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The atomics and locks that the request path uses, in one place, so that loom models, the audit build and the real
//! thing run the same source. Code on a request's way takes its atomics and locks from here and nowhere else.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, atomic};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, atomic};
