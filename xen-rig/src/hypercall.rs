// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Hypercalls of dom0, through `/dev/xen/privcmd`.
//!
//! UNSAFETY: `ioctl` and `mmap` on the device, with structures that Xen or Linux reads and writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// `_IOC(NONE, 'P', number, size)`
pub(super) const fn ioc(number: u64, size: usize) -> u64 {
    (size as u64) << 16 | (b'P' as u64) << 8 | number
}

/// `struct privcmd_hypercall`
#[repr(C)]
struct HypercallArgs {
    op: u64,
    arg: [u64; 5],
}

/// `struct privcmd_dm_op_buf`
#[derive(Clone)]
#[repr(C)]
pub(super) struct DmOpBuffer {
    pub(super) address: u64,
    pub(super) size: u64,
}

/// `struct privcmd_dm_op`
#[repr(C)]
pub(super) struct DmOpArgs {
    pub(super) domid: u16,
    pub(super) count: u16,
    pub(super) buffers: u64,
}

/// `struct privcmd_mmapbatch_v2`
#[repr(C)]
pub(super) struct MapArgs {
    pub(super) count: u32,
    pub(super) domid: u16,
    pub(super) address: u64,
    pub(super) frames: u64,
    pub(super) errors: u64,
}

/// `__HYPERVISOR_memory_op`
pub(crate) const MEMORY_OP: u64 = 12;
/// `__HYPERVISOR_xen_version`
const XEN_VERSION: u64 = 17;
/// `__HYPERVISOR_event_channel_op`
pub(crate) const EVENT_CHANNEL_OP: u64 = 32;
/// `__HYPERVISOR_hvm_op`
pub(crate) const HVM_OP: u64 = 34;
/// `__HYPERVISOR_domctl`
pub(crate) const DOMCTL: u64 = 36;

/// A file of `/dev/xen/privcmd` with all rights.
#[derive(Debug)]
pub struct Privcmd(File);

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// The system's: mostly that this is no dom0, or not root.
    pub fn open() -> io::Result<Self> {
        // Xen reads and writes hypercall buffers by the process's page tables and does not wait for pages to be swapped in.
        // SAFETY: it takes no pointer.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open("/dev/xen/privcmd")?;
        Ok(Privcmd(file))
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// # Safety
    /// `args` points to what the request's number says, and all pointers in it are valid for what the callee does with them.
    pub(super) unsafe fn ioctl<T>(&self, request: u64, args: *mut T) -> io::Result<u64> {
        // SAFETY: the caller's promise; the file is open as long as `self`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, args) };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// A hypercall whose arguments are numbers.
    ///
    /// # Safety
    /// Arguments that are addresses point to memory of this process that the hypercall may read and write.
    pub(crate) unsafe fn call(&self, op: u64, arguments: &[u64]) -> io::Result<u64> {
        let mut arg = [0; 5];
        for (to, from) in arg.iter_mut().zip(arguments) {
            *to = *from;
        }
        let mut args = HypercallArgs { op, arg };
        let request = ioc(0, size_of::<HypercallArgs>());
        // SAFETY: the structure is the one of this request; what its arguments point to is the caller's promise.
        unsafe { self.ioctl(request, &raw mut args) }
    }

    /// The running hypervisor's version, major and minor.
    ///
    /// # Errors
    /// Xen's.
    pub fn version(&self) -> io::Result<(u16, u16)> {
        // SAFETY: XENVER_version (0) takes no argument.
        let version = unsafe { self.call(XEN_VERSION, &[0, 0]) }?;
        let half = |value: u64| u16::try_from(value & 0xffff).unwrap_or_default();
        Ok((half(version >> 16), half(version)))
    }

    /// A DMOP by its bytes, on any domain. The second buffer is passed if it is not empty.
    ///
    /// # Errors
    /// Xen's, or the driver's.
    pub fn dm_op(&self, domid: u16, op: &mut [u8], second: &mut [u8]) -> io::Result<()> {
        let buffer = |bytes: &mut [u8]| DmOpBuffer {
            address: bytes.as_mut_ptr() as u64,
            size: bytes.len() as u64,
        };
        let mut buffers = [buffer(op), buffer(second)];
        let mut args = DmOpArgs {
            domid,
            count: if second.is_empty() { 1 } else { 2 },
            buffers: buffers.as_mut_ptr() as u64,
        };
        let request = ioc(5, size_of::<DmOpArgs>());
        // SAFETY: the structure of this request; its buffers are slices of ours, given with their lengths.
        unsafe { self.ioctl(request, &raw mut args) }.map(drop)
    }

    /// Maps guest frames into this process, one after the other.
    pub(crate) fn map(&self, domid: u16, frames: &[u64]) -> io::Result<Mapping> {
        let size = frames.len() * 4096;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.0.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(start) = NonNull::new(address.cast()) else {
            return Err(io::Error::other("mapped at 0"));
        };
        // From here on dropping it unmaps.
        let mapping = Mapping { start, size };
        let mut errors = vec![0_i32; frames.len()];
        let mut args = MapArgs {
            count: u32::try_from(frames.len()).map_err(io::Error::other)?,
            domid,
            address: address as u64,
            frames: frames.as_ptr() as u64,
            errors: errors.as_mut_ptr() as u64,
        };
        let request = ioc(4, size_of::<MapArgs>());
        // SAFETY: the structure of this request; address and arrays have `count` pages and entries.
        unsafe { self.ioctl(request, &raw mut args) }?;
        match errors.iter().find(|error| **error != 0) {
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Ok(mapping),
        }
    }
}

/// Guest frames mapped into this process. Volatile access only: the guest works on them, too.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: plain memory that lives as long as the value; all access is volatile, of single words.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn at(&self, offset: usize) -> *mut u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.size);
        // SAFETY: within the mapping, by the check above.
        unsafe { self.start.add(offset).as_ptr().cast() }
    }

    /// The aligned word at a byte offset.
    pub(crate) fn read(&self, offset: usize) -> u64 {
        // SAFETY: `at` gives an aligned address within the mapping.
        unsafe { self.at(offset).read_volatile() }
    }

    /// Stores the aligned word at a byte offset.
    pub(crate) fn write(&self, offset: usize, value: u64) {
        // SAFETY: `at` gives an aligned address within the mapping.
        unsafe { self.at(offset).write_volatile(value) }
    }

    /// Stores bytes from an aligned offset on.
    pub(crate) fn put(&self, offset: usize, bytes: &[u8]) {
        for (at, chunk) in (offset..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write(at, u64::from_le_bytes(word));
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
        debug_assert_eq!(result, 0);
    }
}
