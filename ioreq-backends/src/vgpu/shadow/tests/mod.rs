// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadows against a small guest.

mod limits;
mod oracle;
mod out_of_sync;
mod spaces;
mod tracking;
mod world;
mod writes;
