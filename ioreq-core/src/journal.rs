// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a server tells of its work, for whoever wants to do it again elsewhere: each request as it was in its slot, what handlers read of
//! guest memory while it was served, and its answer.
//!
//! A server without a journal pays nothing for this (it is one of the reasons for the way of the few:
//! [`Builder::journal`](crate::server::Builder::journal)). The crate `ioreq-replay` has a journal that writes a file, and one that
//! compares.

use vm_memory::GuestAddress;

use crate::abi::Ioreq;
use crate::ids::VcpuId;
use crate::memory::{GuestRam, RamError, Width};

/// What is about to be served.
///
/// ```
/// use ioreq_core::{abi::Ioreq, VcpuId, journal::Served};
/// let raw = Ioreq::default();
/// assert!(matches!(Served::Request(VcpuId(0), &raw), Served::Request(_, raw) if raw.addr == 0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served<'a> {
    /// A vCPU's request, as it was in its slot, unchecked.
    Request(VcpuId, &'a Ioreq),
    /// One of the buffered ring, as the same request in a slot would be. Nobody waits for it.
    Posted(&'a Ioreq),
    /// The rest of a vCPU's request that had to wait.
    Again(VcpuId),
}

/// What became of it.
///
/// ```
/// use ioreq_core::journal::End;
/// assert_ne!(End::Answered(Some(u64::MAX)), End::Refused);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It is answered; with the value, if it is a read whose value goes into the slot.
    Answered(Option<u64>),
    /// It makes no sense, and is answered as nobody's.
    Refused,
    /// It waits: for a handler's [completion](crate::handler::Completion), or for a page that is being unmarked.
    Waits,
}

/// Is told what a server does, by the threads that do it.
///
/// [`begin`](Self::begin) and [`end`](Self::end) are called in pairs, by one thread, and between them that thread calls nothing else of
/// a journal but [`read`](Self::read), [`wrote`](Self::wrote), and [`answer`](Self::answer) where a handler completes another request.
/// `begin` may wait, so that requests are served one after the other, in the order in which they are told; of the framework nothing is locked
/// then, but the buffered ring while one of its requests is served. [`answer`](Self::answer) may wait for what is between `begin` and `end`,
/// and for nothing else: the deferral is locked.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::journal::{End, Journal, Served};
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// /// Remembers the answers.
/// #[derive(Default)]
/// struct Answers(Mutex<Vec<End>>);
/// impl Journal for Answers {
///     fn begin(&self, _: Served<'_>) {}
///     fn end(&self, end: End) {
///         self.0.lock().unwrap().push(end);
///     }
///     fn answer(&self, _: VcpuId, _: Option<u64>) {}
/// }
///
/// struct Seven;
/// impl Handler for Seven {
///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome { 7.into() }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome { WriteOutcome::Done }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let answers = Arc::new(Answers::default());
/// let server = IoreqServer::builder(domain.hypervisor()).journal(answers.clone()).build()?;
/// server.route("seven", PortRange::new(0x500, 0x503)?, Seven)?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| {
///     cpu.outl(0x500, 1)?;
///     cpu.inl(0x500)
/// })?;
/// assert_eq!(guest.join()?, 7);
/// running.stop()?;
/// assert_eq!(*answers.0.lock().unwrap(), [End::Answered(None), End::Answered(Some(7))]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Journal: Send + Sync + 'static {
    /// Is served now.
    fn begin(&self, served: Served<'_>);

    /// Guest memory is read for it, by the framework or by a handler: into `buf`, which `memory` fills. May fill it itself instead.
    ///
    /// # Errors
    /// As `memory`.
    fn read(
        &self,
        _addr: GuestAddress,
        buf: &mut [u8],
        memory: &mut dyn FnMut(&mut [u8]) -> Result<(), RamError>,
    ) -> Result<(), RamError> {
        memory(buf)
    }

    /// These bytes were stored into guest memory for it.
    fn wrote(&self, _addr: GuestAddress, _bytes: &[u8]) {}

    /// Is served so far: told before the vCPU has the answer.
    fn end(&self, end: End);

    /// A request that waited is about to be answered, by whatever thread; with the value, if it is a read.
    fn answer(&self, vcpu: VcpuId, value: Option<u64>);
}

/// Guest memory of a request of which a journal is told.
pub(crate) struct JournaledRam<'a> {
    journal: Option<&'a dyn Journal>,
    ram: &'a dyn GuestRam,
}

impl<'a> JournaledRam<'a> {
    pub(crate) fn new(journal: Option<&'a dyn Journal>, ram: &'a dyn GuestRam) -> Self {
        JournaledRam { journal, ram }
    }

    /// The memory itself where nobody is told.
    pub(crate) fn ram(&self) -> &dyn GuestRam {
        match self.journal {
            Some(_) => self,
            None => self.ram,
        }
    }

    fn told(
        &self,
        addr: GuestAddress,
        bytes: &[u8],
        result: Result<(), RamError>,
    ) -> Result<(), RamError> {
        if let (Some(journal), Ok(())) = (self.journal, &result) {
            journal.wrote(addr, bytes);
        }
        result
    }
}

impl GuestRam for JournaledRam<'_> {
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), RamError> {
        match self.journal {
            Some(journal) => journal.read(addr, buf, &mut |buf| self.ram.read(addr, buf)),
            None => self.ram.read(addr, buf),
        }
    }

    fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), RamError> {
        self.told(addr, buf, self.ram.write(addr, buf))
    }

    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
        let Some(journal) = self.journal else {
            return self.ram.load(addr, width);
        };
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..width.size()).unwrap_or_default();
        journal.read(addr, part, &mut |part| {
            // One load, as without a journal.
            let value = self.ram.load(addr, width)?.to_le_bytes();
            part.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            Ok(())
        })?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..width.size()).unwrap_or_default();
        self.told(addr, part, self.ram.store(addr, width, value))
    }
}
