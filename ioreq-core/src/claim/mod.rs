// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ownership of the write-tracking p2m type (`p2m_ioreq_server`), and what it allows: tracking guest pages.

mod error;
mod tracker;

pub use error::MarkError;
pub use tracker::{PageState, PageTracker};
