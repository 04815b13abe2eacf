// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ready-made device backends for the `ioreq` framework.
//!
//! * [`vgpu`]: shadow page tables of a mediated GPU.

pub mod vgpu;
