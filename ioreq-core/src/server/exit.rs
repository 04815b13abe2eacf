// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why serving ended.

use crate::hypervisor::ShutdownReason;

/// Why a server's service ended.
///
/// ```
/// use ioreq_core::{ShutdownReason, server::Exit};
/// assert_ne!(Exit::Stopped, Exit::Shutdown(ShutdownReason::PowerOff));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It was told to stop.
    Stopped,
    /// The domain does not exist any more. A rebooted guest has a new domid, and needs a new server.
    DomainGone,
    /// The guest shut down, with its reason; the domain still exists.
    Shutdown(ShutdownReason),
    /// Another process serves this server now.
    TakenOver,
    /// A worker could not go on: its event channels fail.
    Failed(crate::Error),
}
