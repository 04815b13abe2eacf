// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest of the main job: a GPU driver that drives page tables and the test engine hard, and checks the bytes that come back.
//!
//! One source for both hypervisors. The driver is generic over [`Vcpu`], what it needs of the vCPU that it runs on, and uses no
//! `std`: the example `vgpu` runs it on the model's vCPUs, and the program of this package ([`control`] says how it is
//! told what to do) runs it bare on the vCPUs of a real domain.
//!
//! For the workspace's own use.

#![no_std]

extern crate alloc;

mod arena;
mod common;
mod context;
pub mod control;
mod driver;
pub mod layout;
mod meeting;
mod pen;
pub mod reserve;
mod roots;
mod shared;
mod submission;
mod task;
mod vcpu;

pub use driver::run;
pub use task::{Done, Task};
pub use vcpu::Vcpu;
