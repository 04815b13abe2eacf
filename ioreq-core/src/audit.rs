// SPDX-License-Identifier: Apache-2.0 OR MIT

//! stub
pub(crate) fn open() {}
pub(crate) fn close() {}
