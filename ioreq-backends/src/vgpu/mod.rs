// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A mediated GPU's page tables: shadows of the guest's per-process GPU page tables (gen8 PPGTT), kept true by write tracking.
//!
//! The device must never see guest frame numbers. So the mediator keeps a *shadow* of every table with host addresses in it,
//! and gives the GPU the shadow. Every page that is a table right now is tracked; each trapped write changes one shadow entry.
//!
//! * [`Shadow`] is the set of shadows of one guest. It tracks pages through a [`PageTracker`] and translates frames through
//!   a [`FrameMap`].
//! * [`Pvinfo`] is i915's para-virtual front end: the guest writes root pointers and a notification, and a shadow is made.
//! * [`Engine`] is a small GPU *of our own, not Intel's*, that copies and fills through the shadow: it shows that the shadow
//!   is right by moving the guest's bytes with it.
//!
//! [`PageTracker`]: ioreq_core::claim::PageTracker

mod engine;
mod entry;
mod frames;
mod pvinfo;
mod saved;
mod shadow;

pub use engine::{Engine, EngineStats, Status, regs};
pub use entry::{Entry, Kind, Level, PageSize};
pub use frames::{FrameMap, HostAddr, HostMemory, LinearMap};
pub use pvinfo::{Notify, Pvinfo, PvinfoStats};
pub use saved::SavedPvinfo;
pub use shadow::{
    Fault, OutOfSync, Root, RootId, Shadow, ShadowBuilder, ShadowStats, Step, Target,
};
