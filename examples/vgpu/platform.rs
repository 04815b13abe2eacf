// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What differs between hypervisors: how the guest is reached, and how its drivers are run.

use std::error::Error;
use std::sync::Arc;

use ioreq::{GfnRange, Hypervisor};
use vgpu_guest::{Done, Task};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// A guest on some hypervisor.
pub(crate) trait Platform {
    type Hv: Hypervisor;

    /// The hypervisor's name and version.
    fn name(&self) -> String;

    fn hypervisor(&self) -> Arc<Self::Hv>;

    /// The guest's memory.
    fn memory(&self) -> Vec<GfnRange>;

    /// The fewest frames that a driver's arena has.
    fn arena(&self) -> u64;

    /// Has the first vCPU make a reserved address space of so many tables; its root.
    fn reserve(&self, pages: u64) -> Result<u64, Failure>;

    /// Has it end that.
    fn unreserve(&self, root: u64) -> Result<(), Failure>;

    /// Runs a driver on each vCPU to its end; `progress` is called now and then with the number of submissions so far.
    fn drive(&self, tasks: &[Task], progress: &dyn Fn(u64)) -> Result<Vec<Done>, Failure>;

    /// The length of a vCPU's ticks in seconds, where it is known.
    fn tick(&self) -> Option<f64>;

    /// Hypercalls that marked or unmarked pages, where they can be counted.
    fn mark_calls(&self) -> Option<u64>;

    /// What is wrong with the guest once its server is gone.
    fn left_behind(&self) -> Option<String>;
}
