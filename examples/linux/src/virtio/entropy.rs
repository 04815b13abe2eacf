// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A source of random numbers (virtio 1.2, 5.4).

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use ioreq::hypervisor::Hypervisor;
use ioreq::replay::DeviceThread;
use ioreq::server::Dma;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::{Device, DeviceError, QueueSetup, Signal, Stopped};
use super::fuse::Fuse;
use super::request::Request;
use super::worker::{Backend, Worker, WorkerStats};

const QUEUE: u16 = 64;
/// The most bytes of one request; a driver asks again.
const MOST: usize = 4096;

/// A source of random numbers: the kernel's of the machine that this runs on.
#[derive(Debug)]
pub struct Entropy<H: Hypervisor> {
    worker: Worker<H, Source>,
}

impl<H: Hypervisor> Entropy<H> {
    /// One that reads `/dev/urandom`, in a thread that is `thread` to a tape.
    ///
    /// # Errors
    /// When that is not there, or no thread.
    pub fn new(hypervisor: Arc<H>, dma: Dma<H>, thread: DeviceThread) -> io::Result<Self> {
        let source = Source(File::open("/dev/urandom")?);
        let worker = Worker::new("entropy", hypervisor, dma, thread, source, Fuse::never())?;
        Ok(Entropy { worker })
    }

    /// Its thread looks whether there is something to do, as if the driver had told it.
    pub fn wake(&self) {
        self.worker.notify();
    }

    /// What its thread has done.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.worker.stats()
    }
}

impl<H: Hypervisor> Device for Entropy<H> {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn start(
        &self,
        queues: &[QueueSetup],
        signal: Arc<dyn Signal>,
        resumed: bool,
    ) -> Result<(), DeviceError> {
        self.worker.start(queues, signal, resumed)
    }

    fn notify(&self, _: u16) {
        self.worker.notify();
    }

    fn stop(&self, stopped: Stopped) {
        self.worker.stop(stopped);
    }
}

struct Source(File);

impl<H: Hypervisor> Backend<H> for Source {
    fn serve(&mut self, _: u16, request: &mut Request<'_, H>) -> u32 {
        let wanted = usize::try_from(request.writable()).unwrap_or(MOST);
        let mut bytes = [0; MOST];
        let part = bytes.get_mut(..wanted.min(MOST)).unwrap_or_default();
        let mut read = Ok(());
        request.take_in(part, |part| read = self.0.read_exact(part));
        if let Err(err) = read {
            tracing::warn!(%err, "no random numbers");
            return 0;
        }
        match request.write(0, part) {
            Ok(()) => u32::try_from(part.len()).unwrap_or(0),
            Err(_) => 0,
        }
    }
}
