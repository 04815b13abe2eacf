// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A block device (virtio 1.2, 5.2) on an image file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ioreq::hypervisor::Hypervisor;
use ioreq::replay::DeviceThread;
use ioreq::server::Dma;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::device::{Device, DeviceError, QueueSetup, Signal, Stopped};
use super::fuse::Fuse;
use super::low_byte;
use super::request::{BadRequest, Request};
use super::worker::{Backend, Worker, WorkerStats};

const SECTOR: u64 = 512;
/// Descriptors of the queue.
const QUEUE: u16 = 256;
/// The most parts of a request's data: the queue without header and status.
const SEGMENTS: u32 = QUEUE as u32 - 2;
/// Type, reserved, sector.
const HEADER: usize = 16;
/// How much is copied at once.
const PIECE: usize = 64 << 10;
/// `sizeof(struct virtio_blk_config)` up to where the features of this device go.
const CONFIG: usize = 64;

const OK: u8 = low_byte(VIRTIO_BLK_S_OK);
const FAILED: u8 = low_byte(VIRTIO_BLK_S_IOERR);
const UNSUPPORTED: u8 = low_byte(VIRTIO_BLK_S_UNSUPP);

/// A block device.
#[derive(Debug)]
pub struct Block<H: Hypervisor> {
    worker: Worker<H, Image>,
    config: [u8; CONFIG],
}

impl<H: Hypervisor> Block<H> {
    /// A disk of the file's whole sectors, served by a thread that is `thread` to a tape. `name` is what the guest sees as its serial number,
    /// cut to 20 bytes.
    ///
    /// # Errors
    /// When the file's length cannot be told, or there is no thread.
    pub fn new(
        name: &str,
        file: File,
        hypervisor: Arc<H>,
        dma: Dma<H>,
        thread: DeviceThread,
        fuse: Fuse,
    ) -> io::Result<Self> {
        let sectors = file.metadata()?.len() / SECTOR;
        let mut config = [0; CONFIG];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = config.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &sectors.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in serial.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let image = Image {
            file,
            sectors,
            serial,
            piece: vec![0; PIECE],
        };
        let name = format!("disk-{name}");
        let worker = Worker::new(&name, hypervisor, dma, thread, image, fuse)?;
        Ok(Block { worker, config })
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

impl<H: Hypervisor> Device for Block<H> {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE]
    }

    fn config(&self) -> &[u8] {
        &self.config
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

/// The file.
struct Image {
    file: File,
    sectors: u64,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    piece: Vec<u8>,
}

impl<H: Hypervisor> Backend<H> for Image {
    fn serve(&mut self, _: u16, request: &mut Request<'_, H>) -> u32 {
        // The last byte that the device may write is the status.
        let Some(room) = request.writable().checked_sub(1) else {
            tracing::debug!("a block request without a place for its status");
            return 0;
        };
        let (status, written) = match self.execute(request, room) {
            Ok(written) => (OK, written),
            Err(status) => (status, 0),
        };
        if request.write(room, &[status]).is_err() {
            return 0;
        }
        // What was written from the beginning on: a failed read wrote nothing that counts.
        match u32::try_from(written) {
            Ok(written) if written == u32::try_from(room).unwrap_or(0) => written + 1,
            _ => 1,
        }
    }
}

impl Image {
    /// How many bytes of data it wrote into guest memory, or the status of a failure.
    fn execute<H: Hypervisor>(
        &mut self,
        request: &mut Request<'_, H>,
        room: u64,
    ) -> Result<u64, u8> {
        let mut header = [0; HEADER];
        let bad = |_: BadRequest| FAILED;
        request.read(0, &mut header).map_err(bad)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => {
                let start = self.place(sector, room)?;
                self.read(request, start, room)
            }
            VIRTIO_BLK_T_OUT => {
                let len = request.readable() - HEADER as u64;
                let start = self.place(sector, len)?;
                self.write(request, start, len).map(|()| 0)
            }
            VIRTIO_BLK_T_FLUSH => match self.file.sync_data() {
                Ok(()) => Ok(0),
                Err(err) => Err(failed("flush", &err)),
            },
            VIRTIO_BLK_T_GET_ID => {
                let len = usize::try_from(room).unwrap_or(usize::MAX);
                let serial = self.serial.get(..len.min(self.serial.len()));
                let serial = serial.unwrap_or_default();
                request.write(0, serial).map_err(bad)?;
                Ok(serial.len() as u64)
            }
            _ => Err(UNSUPPORTED),
        }
    }

    /// Where in the file `len` bytes from `sector` on are, if they are whole sectors of it.
    fn place(&self, sector: u64, len: u64) -> Result<u64, u8> {
        let sectors = len / SECTOR;
        let end = sector.checked_add(sectors).ok_or(FAILED)?;
        if !len.is_multiple_of(SECTOR) || end > self.sectors {
            return Err(FAILED);
        }
        Ok(sector * SECTOR)
    }

    fn read<H: Hypervisor>(
        &mut self,
        request: &mut Request<'_, H>,
        start: u64,
        len: u64,
    ) -> Result<u64, u8> {
        for (offset, len) in pieces(len) {
            let piece = self.piece.get_mut(..len).ok_or(FAILED)?;
            let result = self.file.read_exact_at(piece, start + offset);
            result.map_err(|err| failed("read", &err))?;
            request.write(offset, piece).map_err(|_| FAILED)?;
            request.point();
        }
        Ok(len)
    }

    fn write<H: Hypervisor>(
        &mut self,
        request: &mut Request<'_, H>,
        start: u64,
        len: u64,
    ) -> Result<(), u8> {
        for (offset, len) in pieces(len) {
            let piece = self.piece.get_mut(..len).ok_or(FAILED)?;
            request
                .read(HEADER as u64 + offset, piece)
                .map_err(|_| FAILED)?;
            let (first, second) = piece.split_at(piece.len() / 2);
            let half = first.len() as u64;
            let result = self.file.write_all_at(first, start + offset);
            result.map_err(|err| failed("write", &err))?;
            // Here a write is torn, if the thread dies; whoever takes its place makes it whole.
            request.point();
            let result = self.file.write_all_at(second, start + offset + half);
            result.map_err(|err| failed("write", &err))?;
        }
        Ok(())
    }
}

/// `len` bytes in pieces: each one's offset and length.
fn pieces(len: u64) -> impl Iterator<Item = (u64, usize)> {
    let step = PIECE as u64;
    (0..len.div_ceil(step)).map(move |piece| {
        let offset = piece * step;
        let left = usize::try_from(len - offset).unwrap_or(PIECE);
        (offset, left.min(PIECE))
    })
}

fn failed(what: &str, err: &io::Error) -> u8 {
    tracing::warn!(%err, "the disk image: {what}");
    FAILED
}
