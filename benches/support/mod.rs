// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the benchmarks share: where ranges lie, in which order they are written to, who answers, and the contenders.

pub(crate) mod contender;
pub(crate) mod device;
pub(crate) mod layout;
pub(crate) mod ours;
pub(crate) mod peers;
pub(crate) mod walk;
