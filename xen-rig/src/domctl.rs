// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Control of domains (`domctl.h`): the few operations that test domains need. The interface is not stable across versions of
//! Xen; what is used here has the same layout in 4.17 and 4.20 but for the number in the header and one field.
//!
//! UNSAFETY: hypercalls on structures of this process.

use std::io;

use crate::hypercall::{DOMCTL, Privcmd};

/// `struct xen_domctl`: header and a union of 128 bytes.
#[repr(C)]
struct Domctl {
    cmd: u32,
    version: u32,
    domid: u16,
    pad: [u16; 3],
    body: [u8; 128],
}

const CREATE: u32 = 1;
const DESTROY: u32 = 2;
const PAUSE: u32 = 3;
const UNPAUSE: u32 = 4;
const GET_INFO: u32 = 5;
const SET_AFFINITY: u32 = 9;
const SHADOW_OP: u32 = 10;
const MAX_MEM: u32 = 11;
const MAX_VCPUS: u32 = 15;
const SET_HANDLE: u32 = 17;
const GET_CONTEXT: u32 = 33;
const SET_CONTEXT: u32 = 34;
const SET_PAGING_MEMPOOL: u32 = 86;

/// `XEN_DOMCTL_SHADOW_OP_OFF` and `…_ENABLE_LOGDIRTY`
const LOG_DIRTY: [u32; 2] = [0, 2];

/// `XEN_DOMCTL_SHADOW_OP_CLEAN`
const CLEAN: u32 = 11;

/// What kind of domain is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Hardware-assisted paging.
    pub hap: bool,
    /// Everything that Xen can emulate for a guest (0x3ff) instead of its local APICs alone.
    pub full: bool,
}

/// What has become of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It runs, or is paused.
    Alive,
    /// It shut down, with `SHUTDOWN_*`; 3 is a crash.
    Shutdown(u8),
    /// It is dying, or not there any more.
    Gone,
}

fn op(cmd: u32, domid: u16) -> Domctl {
    Domctl {
        cmd,
        version: 0,
        domid,
        pad: [0; 3],
        body: [0; 128],
    }
}

impl Domctl {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.body[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_le_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_le_bytes());
        self
    }

    fn get_u32(&self, at: usize) -> u32 {
        (0..4).fold(0, |word, byte| {
            word | u32::from(self.body[at + byte]) << (8 * byte)
        })
    }

    /// # Safety
    /// Addresses in the body point to memory of this process that the operation may read and write.
    unsafe fn call(&mut self, xen: &Privcmd) -> io::Result<u64> {
        // `XEN_DOMCTL_INTERFACE_VERSION`
        self.version = match xen.version()? {
            (4, 17) => 0x15,
            (4, 18 | 19) => 0x16,
            (4, 20) => 0x17,
            (major, minor) => {
                let what = format!("the domctl interface of Xen {major}.{minor} is not known here");
                return Err(io::Error::other(what));
            }
        };
        loop {
            // SAFETY: the structure of this hypercall; what its body points to is the caller's promise.
            match unsafe { xen.call(DOMCTL, &[&raw mut *self as u64]) } {
                Err(err) if err.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    /// The same for operations whose body holds no address.
    fn simple(&mut self, xen: &Privcmd) -> io::Result<u64> {
        // SAFETY: no address in the body.
        unsafe { self.call(xen) }
    }
}

/// Creates a domain, paused, without memory.
pub(crate) fn create(xen: &Privcmd, kind: Kind) -> io::Result<u16> {
    // ssidref @0, handle @4 (16 bytes), flags @20 (hvm 1, hap 2), iommu_opts @24, max_vcpus @28, max_evtchn_port @32,
    // max_grant_frames @36, max_maptrack_frames @40, grant_opts @44, vmtrace_size @48, cpupool_id @52, then of x86:
    // emulation_flags @56, misc_flags @60. 4.20 has altp2m_opts @48 and all that follows 4 bytes later.
    let arch = if xen.version()? >= (4, 20) { 60 } else { 56 };
    let flags = if kind.hap { 3 } else { 1 };
    let mut domctl = op(CREATE, 0)
        .u32(20, flags)
        .u32(28, kind.vcpus)
        .u32(32, u32::MAX)
        .u32(36, 4)
        .u32(40, 4)
        .u32(44, 1)
        .u32(arch, if kind.full { 0x3ff } else { 1 });
    domctl.simple(xen)?;
    Ok(domctl.domid)
}

pub(crate) fn destroy(xen: &Privcmd, domid: u16) -> io::Result<()> {
    op(DESTROY, domid).simple(xen).map(drop)
}

pub(crate) fn pause(xen: &Privcmd, domid: u16) -> io::Result<()> {
    op(PAUSE, domid).simple(xen).map(drop)
}

pub(crate) fn unpause(xen: &Privcmd, domid: u16) -> io::Result<()> {
    op(UNPAUSE, domid).simple(xen).map(drop)
}

/// What has become of the domain.
pub(crate) fn fate(xen: &Privcmd, domid: u16) -> io::Result<Fate> {
    let mut domctl = op(GET_INFO, domid);
    match domctl.simple(xen) {
        Err(err) if err.raw_os_error() == Some(libc::ESRCH) => return Ok(Fate::Gone),
        result => result?,
    };
    // The operation answers with the next domain where this one is gone. domain u16 @0, flags u32 @4.
    if domctl.get_u32(0) & 0xffff != u32::from(domid) {
        return Ok(Fate::Gone);
    }
    let flags = domctl.get_u32(4);
    Ok(match flags {
        _ if flags & 1 != 0 => Fate::Gone,
        _ if flags & 4 != 0 => Fate::Shutdown((flags >> 16 & 0xff) as u8),
        _ => Fate::Alive,
    })
}

/// Above every domid of a boot: Xen gives them out one after the other, and no boot of the rig makes as many.
const MOST: u16 = 4096;

/// The first domain from `domid` on that is there, dying or not.
pub(crate) fn next(xen: &Privcmd, domid: u16) -> io::Result<Option<u16>> {
    // Xen 4.17 answers with the next domain where one is missing, 4.20 with ESRCH.
    for domid in domid..MOST {
        let mut domctl = op(GET_INFO, domid);
        match domctl.simple(xen) {
            Err(err) if err.raw_os_error() == Some(libc::ESRCH) => {}
            Err(err) => return Err(err),
            Ok(_) => return Ok(u16::try_from(domctl.get_u32(0) & 0xffff).ok()),
        }
    }
    Ok(None)
}

/// Turns global log-dirty mode on or off.
pub(crate) fn log_dirty(xen: &Privcmd, domid: u16, on: bool) -> io::Result<()> {
    let mut domctl = op(SHADOW_OP, domid).u32(0, LOG_DIRTY[usize::from(on)]);
    domctl.simple(xen).map(drop)
}

/// Which of the first `pages` frames were written since the last look, in log-dirty mode.
pub(crate) fn dirty(xen: &Privcmd, domid: u16, pages: u64) -> io::Result<Vec<u64>> {
    // op u32 @0, bitmap u64 @16, its number of pages u64 @24
    let bytes = usize::try_from(pages.div_ceil(8)).map_err(io::Error::other)?;
    let mut bits = vec![0_u8; bytes];
    let mut domctl = op(SHADOW_OP, domid)
        .u32(0, CLEAN)
        .u64(16, bits.as_mut_ptr() as u64)
        .u64(24, pages);
    // SAFETY: the bitmap has a bit for each of the pages that are given.
    unsafe { domctl.call(xen) }?;
    let is = |gfn: &u64| {
        let byte = usize::try_from(gfn / 8).ok().and_then(|at| bits.get(at));
        byte.is_some_and(|byte| byte >> (gfn % 8) & 1 == 1)
    };
    Ok((0..pages).filter(is).collect())
}

pub(crate) fn max_vcpus(xen: &Privcmd, domid: u16, vcpus: u32) -> io::Result<()> {
    op(MAX_VCPUS, domid).u32(0, vcpus).simple(xen).map(drop)
}

pub(crate) fn max_mem(xen: &Privcmd, domid: u16, kib: u64) -> io::Result<()> {
    op(MAX_MEM, domid).u64(0, kib).simple(xen).map(drop)
}

/// Keeps a vCPU off processor 0, which is dom0's. A machine with one processor refuses.
pub(crate) fn keep_off_dom0(xen: &Privcmd, domid: u16, vcpu: u32) -> io::Result<()> {
    // vcpu u32 @0, flags u32 @4 (1 hard), bitmap u64 @8 and its number of bits u32 @16; the soft one @24, @32
    let (mut hard, mut soft) = ([0xfe_u8], [0_u8]);
    let mut domctl = op(SET_AFFINITY, domid)
        .u32(0, vcpu)
        .u32(4, 1)
        .u64(8, hard.as_mut_ptr() as u64)
        .u32(16, 8)
        .u64(24, soft.as_mut_ptr() as u64)
        .u32(32, 8);
    // SAFETY: bitmaps of a byte each, which the operation may write, too.
    unsafe { domctl.call(xen) }.map(drop)
}

/// Memory for the domain's p2m.
pub(crate) fn paging_mempool(xen: &Privcmd, domid: u16, bytes: u64) -> io::Result<()> {
    let mut domctl = op(SET_PAGING_MEMPOOL, domid).u64(0, bytes);
    domctl.simple(xen).map(drop)
}

/// The domain's HVM context.
pub(crate) fn context(xen: &Privcmd, domid: u16) -> io::Result<Vec<u8>> {
    // size u32 @0, buffer u64 @8; without a buffer it tells the size.
    let mut domctl = op(GET_CONTEXT, domid);
    domctl.simple(xen)?;
    let size = domctl.get_u32(0);
    let mut bytes = vec![0; size as usize];
    let mut domctl = op(GET_CONTEXT, domid)
        .u32(0, size)
        .u64(8, bytes.as_mut_ptr() as u64);
    // SAFETY: the buffer has the size that is given.
    unsafe { domctl.call(xen) }?;
    bytes.truncate(domctl.get_u32(0) as usize);
    Ok(bytes)
}

/// Gives the domain the handle that a toolstack puts its UUID into.
pub(crate) fn set_handle(xen: &Privcmd, domid: u16, handle: [u8; 16]) -> io::Result<()> {
    let mut domctl = op(SET_HANDLE, domid);
    domctl.put(0, &handle);
    domctl.simple(xen).map(drop)
}

/// Loads an HVM context.
pub(crate) fn set_context(xen: &Privcmd, domid: u16, bytes: &mut [u8]) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut domctl = op(SET_CONTEXT, domid)
        .u32(0, size)
        .u64(8, bytes.as_mut_ptr() as u64);
    // SAFETY: the buffer has the size that is given.
    unsafe { domctl.call(xen) }.map(drop)
}
