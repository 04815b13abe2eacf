// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests as they are, without an instruction that makes them: of a recording, or of a guest that plays with what it sends.

use std::sync::Arc;

use ioreq_core::ServerId;
use ioreq_core::abi::Ioreq;

use super::{Cpu, Emul, LatchState};
use crate::fate::CpuFault;
use crate::gate::Pass;
use crate::servers::Entry;

impl Cpu {
    /// Puts `request` into this vCPU's slot of that server, whatever ranges it has, and waits for the answer. Gives the slot's data then:
    /// the value of a read, and what it was otherwise. Port and state are the model's, everything else is as given.
    ///
    /// ```
    /// use ioreq_core::abi::{IOREQ_DIR_READ, IOREQ_TYPE_PIO, Ioreq};
    /// use ioreq_core::{VcpuId, server::IoreqServer};
    /// use ioreq_sim::{DomainConfig, Machine};
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let server = IoreqServer::builder(domain.hypervisor()).build()?;
    /// let id = server.id();
    /// let running = server.start()?;
    /// let read = Ioreq { addr: 0x500, count: 1, size: 2, kind: IOREQ_TYPE_PIO, flags: IOREQ_DIR_READ, ..Ioreq::default() };
    /// let guest = domain.spawn(VcpuId(0), move |cpu| cpu.request(id, &read))?;
    /// assert_eq!(guest.join()?, 0xffff); // nobody has the port
    /// running.stop()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `GeneralProtection` if there is no such server, or it is not enabled; `Stopped` when the domain ends.
    pub fn request(&mut self, server: ServerId, request: &Ioreq) -> Result<u64, CpuFault> {
        let mut sent = false;
        self.instruction(Pass::Run, request.addr, |cpu| {
            if sent {
                cpu.emu.latch.state = LatchState::Idle;
                return Ok(cpu.emu.latch.req.data);
            }
            let entry = cpu.server(server)?;
            cpu.send(entry, request)?;
            sent = true;
            cpu.emu.latch.req = *request;
            cpu.emu.latch.state = LatchState::Sent;
            Err(Emul::Retry)
        })
    }

    /// Posts `request` into that server's buffered ring, where nobody waits for it.
    ///
    /// ```
    /// use ioreq_core::abi::{IOREQ_TYPE_COPY, Ioreq};
    /// use ioreq_core::{BufIoreq, VcpuId, server::IoreqServer};
    /// use ioreq_sim::{DomainConfig, Machine};
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let server = IoreqServer::builder(domain.hypervisor()).buffered(BufIoreq::Atomic).build()?;
    /// let write = Ioreq { addr: 0xa_0000, data: 7, count: 1, size: 1, kind: IOREQ_TYPE_COPY, ..Ioreq::default() };
    /// domain.cpu(VcpuId(0))?.post(server.id(), &write)?;
    /// server.poll()?;
    /// assert_eq!(server.stats().buffered, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `GeneralProtection` if there is no such server, or no ring, or no room in it, or it is none that can be posted; `Stopped` when the
    /// domain ends.
    pub fn post(&mut self, server: ServerId, request: &Ioreq) -> Result<(), CpuFault> {
        self.instruction(Pass::Run, request.addr, |cpu| {
            let entry = cpu.server(server)?;
            match cpu.send_buffered(&entry, request) {
                true => Ok(()),
                false => Err(Emul::Unhandleable),
            }
        })
    }

    fn server(&mut self, server: ServerId) -> Result<Arc<Entry>, Emul> {
        let table = self.table.get(&self.domain.servers);
        let found = table
            .newest_first()
            .find(|entry| entry.enabled && entry.server.id == server);
        found.cloned().ok_or(Emul::Unhandleable)
    }
}
