// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The board's devices on the model: the same code that a real guest has, and a guest's drivers for it.

mod block;
mod board;
mod replay;
mod restored;
mod support;
