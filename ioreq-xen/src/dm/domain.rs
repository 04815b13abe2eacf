// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The domain as a whole.

use ioreq_core::abi::dm_op::{NrVcpus, RemoteShutdown};
use ioreq_core::{Op, Result, ShutdownReason};

use super::DeviceModel;

impl DeviceModel {
    /// `XEN_DMOP_nr_vcpus`: how many vCPUs the domain may have.
    ///
    /// # Errors
    /// `NotSupported` where Xen lacks it.
    pub fn vcpus(&self) -> Result<u32> {
        self.call(Op::VcpuCount, &NrVcpus::default())
            .map(|op| op.vcpus)
    }

    /// `XEN_DMOP_remote_shutdown`: shuts the domain down as if it had asked for it.
    ///
    /// # Errors
    /// As the hypervisor says.
    pub fn remote_shutdown(&self, reason: ShutdownReason) -> Result<()> {
        let op = RemoteShutdown {
            reason: reason.raw().into(),
        };
        self.call(Op::RemoteShutdown, &op).map(drop)
    }
}
