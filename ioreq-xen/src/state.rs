// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What has become of a domain, by `XEN_DOMCTL_getdomaininfo`.

use ioreq_core::{DomId, DomainState, Error, ErrorKind, Op, Result, ShutdownReason};

use crate::abi::{XEN_DOMINF_DYING, XEN_DOMINF_SHUTDOWN, XEN_DOMINF_SHUTDOWN_SHIFT};
use crate::sys::{DomainInfo, Privcmd};

pub(crate) fn of(privcmd: &Privcmd, domid: DomId) -> Result<DomainState> {
    match privcmd.domain_info(domid) {
        Ok(info) => Ok(state(info, domid)),
        Err(libc::ESRCH) => Ok(DomainState::Gone),
        Err(errno) => Err(Error::from_errno(Op::DomainState, errno).domain(domid)),
    }
}

/// The domain's handle, in hexadecimal: its UUID where a toolstack made it.
pub(crate) fn identity(privcmd: &Privcmd, domid: DomId) -> Result<String> {
    let error = |errno| Error::from_errno(Op::DomainState, errno).domain(domid);
    let info = privcmd.domain_info(domid).map_err(error)?;
    if info.domid != domid {
        return Err(error(libc::ESRCH));
    }
    handle_text(info.handle).ok_or_else(|| {
        Error::new(Op::DomainState, ErrorKind::NotSupported)
            .domain(domid)
            .about("the domain was made without a UUID: say what tells it from others (the builder's identity)")
    })
}

/// None for a domain that was given no handle: zeros tell no domain from another.
fn handle_text(handle: [u8; 16]) -> Option<String> {
    (handle != [0; 16]).then(|| handle.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn state(info: DomainInfo, domid: DomId) -> DomainState {
    // Asked for a domain that is not there, Xen tells of the next one.
    if info.domid != domid || info.flags & XEN_DOMINF_DYING != 0 {
        return DomainState::Gone;
    }
    if info.flags & XEN_DOMINF_SHUTDOWN == 0 {
        return DomainState::Running;
    }
    let [reason, ..] = (info.flags >> XEN_DOMINF_SHUTDOWN_SHIFT).to_le_bytes();
    DomainState::Shutdown(ShutdownReason::from_raw(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(flags: u32) -> DomainState {
        let info = DomainInfo {
            domid: DomId(3),
            flags,
            handle: [0; 16],
        };
        state(info, DomId(3))
    }

    #[test]
    fn flags_say_what_became_of_it() {
        assert_eq!(flags(0), DomainState::Running);
        assert_eq!(flags(1 << 3), DomainState::Running, "paused");
        let crash = DomainState::Shutdown(ShutdownReason::Crash);
        assert_eq!(flags(1 << 2 | 3 << 16), crash);
        assert_eq!(flags(1 << 2 | 3 << 16 | 0xff << 24), crash, "8 bits");
        assert_eq!(flags(1 << 2 | 1), DomainState::Gone, "dying");
    }

    #[test]
    fn no_handle_is_no_identity() {
        assert_eq!(handle_text([0; 16]), None);
        let mut handle = [0; 16];
        handle[15] = 0x1a;
        let text = "0000000000000000000000000000001a";
        assert_eq!(handle_text(handle).as_deref(), Some(text));
    }

    #[test]
    fn the_next_domain_is_not_ours() {
        let info = DomainInfo {
            domid: DomId(4),
            flags: 0,
            handle: [0; 16],
        };
        assert_eq!(state(info, DomId(3)), DomainState::Gone);
    }
}
