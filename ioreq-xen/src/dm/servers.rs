// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of ioreq servers, and their ranges.

use ioreq_core::abi::dm_op::{
    CreateIoreqServer, DestroyIoreqServer, GetIoreqServerInfo, MapIoRange, SetIoreqServerState,
    UnmapIoRange, XEN_DMOP_NO_GFNS,
};
use ioreq_core::abi::{XEN_DMOP_IO_RANGE_MEMORY, XEN_DMOP_IO_RANGE_PCI, XEN_DMOP_IO_RANGE_PORT};
use ioreq_core::{BufIoreq, EvtchnPort, IoRange, Op, Result, ServerId, ServerInfo};

use super::DeviceModel;

impl DeviceModel {
    /// `XEN_DMOP_create_ioreq_server`: a new server, disabled.
    ///
    /// # Errors
    /// `TooManyServers` (ENOSPC) beyond 8, `DomainGone`, `NotPermitted`.
    pub fn create_server(&self, bufioreq: BufIoreq) -> Result<ServerId> {
        let op = CreateIoreqServer {
            handle_bufioreq: bufioreq.raw(),
            ..CreateIoreqServer::default()
        };
        self.call(Op::CreateServer, &op).map(|op| ServerId(op.id))
    }

    /// `XEN_DMOP_get_ioreq_server_info`, with the no_gfns flag: the pages are acquired, not put into the guest.
    ///
    /// # Errors
    /// `NoSuchServer`.
    pub fn server_info(&self, id: ServerId) -> Result<ServerInfo> {
        let op = GetIoreqServerInfo {
            id: id.0,
            flags: XEN_DMOP_NO_GFNS,
            ..GetIoreqServerInfo::default()
        };
        let op = self
            .call(Op::ServerInfo, &op)
            .map_err(|err| err.server(id))?;
        Ok(ServerInfo {
            bufioreq_port: (op.bufioreq_port != 0).then_some(EvtchnPort(op.bufioreq_port)),
        })
    }

    /// `XEN_DMOP_map_io_range_to_ioreq_server`.
    ///
    /// # Errors
    /// `RangeExists` (EEXIST), `TooManyRanges` (ENOMEM; 256 disjoint ranges a type), `NoSuchServer`.
    pub fn map_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        let (kind, start, end) = numbers(range);
        let op = MapIoRange {
            id: id.0,
            pad: 0,
            kind,
            start,
            end,
        };
        self.call(Op::MapRange, &op)
            .map(drop)
            .map_err(|err| err.server(id).about(range))
    }

    /// `XEN_DMOP_unmap_io_range_from_ioreq_server`.
    ///
    /// # Errors
    /// `NoSuchRange` (ENOENT) if it is not wholly mapped (Xen says the same of an unknown server), `TooManyRanges` if cutting
    /// it out needs one range more than there may be.
    pub fn unmap_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        let (kind, start, end) = numbers(range);
        let op = UnmapIoRange {
            id: id.0,
            pad: 0,
            kind,
            start,
            end,
        };
        self.call(Op::UnmapRange, &op)
            .map(drop)
            .map_err(|err| err.server(id).about(range))
    }

    /// `XEN_DMOP_set_ioreq_server_state`. Enabling an enabled server pauses and unpauses the domain, no more.
    ///
    /// # Errors
    /// `NoSuchServer`.
    pub fn set_server_state(&self, id: ServerId, enabled: bool) -> Result<()> {
        let op = SetIoreqServerState {
            id: id.0,
            enabled: enabled.into(),
            pad: 0,
        };
        self.call(Op::SetServerState, &op)
            .map(drop)
            .map_err(|err| err.server(id))
    }

    /// `XEN_DMOP_destroy_ioreq_server`. Does not disclaim: the owner's pages stay behind, stuck.
    ///
    /// # Errors
    /// `NoSuchServer`.
    pub fn destroy_server(&self, id: ServerId) -> Result<()> {
        let op = DestroyIoreqServer { id: id.0, pad: 0 };
        self.call(Op::DestroyServer, &op)
            .map(drop)
            .map_err(|err| err.server(id))
    }
}

/// The operation's type and ends of a range.
fn numbers(range: IoRange) -> (u32, u64, u64) {
    match range {
        IoRange::Port(range) => (
            XEN_DMOP_IO_RANGE_PORT,
            range.first().into(),
            range.last().into(),
        ),
        IoRange::Mmio(range) => (XEN_DMOP_IO_RANGE_MEMORY, range.first(), range.last()),
        IoRange::Pci(sbdf) => (
            XEN_DMOP_IO_RANGE_PCI,
            sbdf.bits().into(),
            sbdf.bits().into(),
        ),
    }
}
