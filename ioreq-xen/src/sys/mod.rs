// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The system calls: each file holds one kind of kernel object, and the unsafe code that goes with it.

mod evtchn;
mod hypercall;
mod offload;
mod open;
mod place;
mod privcmd;

pub(crate) use evtchn::{DOMID_SELF, Evtchn};
pub(crate) use hypercall::DomainInfo;
pub(crate) use place::{Place, Reservation};
pub(crate) use privcmd::AcquiredPage;
pub use privcmd::Privcmd;

/// An errno of Xen or the kernel.
pub(crate) type Errno = i32;

/// The calling thread's last errno.
fn last_errno() -> Errno {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// Calls until no signal is in the way. The call returns -1 for an error, as libc's do.
fn retry(mut call: impl FnMut() -> libc::c_int) -> Result<libc::c_int, Errno> {
    loop {
        let result = call();
        if result != -1 {
            return Ok(result);
        }
        match last_errno() {
            libc::EINTR => {}
            errno => return Err(errno),
        }
    }
}
