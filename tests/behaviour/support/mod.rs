// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests share: where things are, a server served by hand, waiting, expectations.

mod expect;
pub(crate) mod layout;
mod page;
mod serve;
mod unmark;

pub(crate) use expect::{refused, refused_raw, shown, until};
pub(crate) use page::Page;
pub(crate) use serve::{Answer, Server, drive, run, run_with};
pub(crate) use unmark::{Unmarked, safe_unmark};
