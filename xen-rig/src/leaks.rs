// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What tests left behind in Xen: domains, alive or kept as zombies by somebody's mapping, with their servers and marked pages, and
//! event channels of dom0's that lead to another domain.
//!
//! UNSAFETY: hypercalls on structures of this process.

use std::fmt;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::domctl::{self, Fate};
use crate::hypercall::{EVENT_CHANNEL_OP, MEMORY_OP, Privcmd};
use crate::memory;

/// How long a domain that was destroyed may take to go.
const GOING: Duration = Duration::from_secs(5);
/// `MAX_NR_IOREQ_SERVERS`: ids are below.
const SERVERS: u16 = 8;
/// `HVMMEM_ioreq_server`
const MARKED: u16 = 4;
/// `DOMID_SELF`
const SELF: u16 = 0x7ff0;
/// `XENMEM_maximum_gpfn`
const MAXIMUM_GPFN: u64 = 14;
/// `EVTCHNOP_status`
const STATUS: u64 = 5;
/// `EVTCHNSTAT_unbound` and `EVTCHNSTAT_interdomain`
const UNBOUND: u32 = 1;
const INTERDOMAIN: u32 = 2;

/// `struct evtchn_status`
#[repr(C)]
struct PortStatus {
    domid: u16,
    port: u32,
    status: u32,
    vcpu: u32,
    /// The other domain, for ports that have one.
    remote: u16,
    remote_port: u32,
}

/// Something that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leak {
    /// A domain besides dom0.
    Domain {
        /// Its id.
        domid: u16,
        /// It was destroyed, but somebody has a page of its mapped.
        zombie: bool,
    },
    /// An ioreq server.
    Server {
        /// Its domain.
        domid: u16,
        /// Its id.
        id: u16,
    },
    /// Pages of the type ioreq_server.
    Marked {
        /// Their domain.
        domid: u16,
        /// The first of them.
        first: u64,
        /// How many.
        pages: u64,
    },
    /// A port of dom0's that leads, or led, to another domain.
    Port {
        /// The port.
        port: u32,
        /// Where to.
        domid: u16,
        /// Whether the other end is open.
        bound: bool,
    },
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leak::Domain {
                domid,
                zombie: true,
            } => {
                write!(
                    f,
                    "domain {domid}, which was destroyed: somebody has a page of its mapped"
                )
            }
            Leak::Domain { domid, .. } => write!(f, "domain {domid}"),
            Leak::Server { domid, id } => write!(f, "ioreq server {id} of domain {domid}"),
            Leak::Marked {
                domid,
                first,
                pages,
            } => write!(
                f,
                "{pages} marked pages of domain {domid}, the first {first:#x}"
            ),
            Leak::Port { port, domid, bound } => {
                let end = if *bound { "" } else { ", whose end is closed" };
                write!(f, "dom0's event channel {port} to domain {domid}{end}")
            }
        }
    }
}

/// What there is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaks {
    /// What should not be there.
    pub left: Vec<Leak>,
    /// Ports of dom0's own that were looked at.
    pub ports: u32,
}

impl Leaks {
    /// Looks. Domains that were destroyed are given a moment to go.
    ///
    /// # Errors
    /// Xen's.
    pub fn look(xen: &Privcmd) -> io::Result<Self> {
        let started = Instant::now();
        loop {
            let leaks = Self::now(xen)?;
            let going = |leak: &Leak| matches!(leak, Leak::Domain { zombie: true, .. });
            if !leaks.left.iter().any(going) || started.elapsed() > GOING {
                return Ok(leaks);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What there is of one domain, where others go on. A domain that was destroyed is given a moment to go.
    ///
    /// # Errors
    /// Xen's.
    pub fn of(xen: &Privcmd, domid: u16) -> io::Result<Self> {
        let started = Instant::now();
        loop {
            let mut leaks = Leaks::default();
            if domctl::next(xen, domid)? == Some(domid) {
                leaks.domain(xen, domid)?;
            }
            leaks.ports(xen)?;
            let of_it = |leak: &Leak| match leak {
                Leak::Domain { .. } | Leak::Server { .. } | Leak::Marked { .. } => true,
                Leak::Port { domid: other, .. } => *other == domid,
            };
            leaks.left.retain(of_it);
            let going = |leak: &Leak| matches!(leak, Leak::Domain { zombie: true, .. });
            if !leaks.left.iter().any(going) || started.elapsed() > GOING {
                return Ok(leaks);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn now(xen: &Privcmd) -> io::Result<Self> {
        let mut leaks = Leaks::default();
        let mut from = 1;
        while let Some(domid) = domctl::next(xen, from)? {
            from = domid + 1;
            leaks.domain(xen, domid)?;
        }
        leaks.ports(xen)?;
        Ok(leaks)
    }

    fn domain(&mut self, xen: &Privcmd, domid: u16) -> io::Result<()> {
        let zombie = domctl::fate(xen, domid)? == Fate::Gone;
        self.left.push(Leak::Domain { domid, zombie });
        if zombie {
            return Ok(());
        }
        for id in 0..SERVERS {
            // get_ioreq_server_info: op u32 @0, pad u32 @4; id u16 @8, flags u16 @10 (1: no gfns), and what it tells
            let mut op = [0; 40];
            op[0] = 2;
            op[8..10].copy_from_slice(&id.to_le_bytes());
            op[10] = 1;
            if xen.dm_op(domid, &mut op, &mut []).is_ok() {
                self.left.push(Leak::Server { domid, id });
            }
        }
        let marked = |gfn: &u64| memory::mem_type(xen, domid, *gfn).is_ok_and(|ty| ty == MARKED);
        let marked: Vec<u64> = (0..=maximum_gfn(xen, domid)?).filter(marked).collect();
        if let Some(first) = marked.first() {
            self.left.push(Leak::Marked {
                domid,
                first: *first,
                pages: marked.len() as u64,
            });
        }
        Ok(())
    }

    fn ports(&mut self, xen: &Privcmd) -> io::Result<()> {
        for port in 1.. {
            let mut status = PortStatus {
                domid: SELF,
                port,
                status: 0,
                vcpu: 0,
                remote: 0,
                remote_port: 0,
            };
            // SAFETY: the structure of this operation.
            let asked = unsafe { xen.call(EVENT_CHANNEL_OP, &[STATUS, &raw mut status as u64]) };
            match asked {
                // Beyond the last one.
                Err(err) if err.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                result => result?,
            };
            self.ports = port;
            let to = status.remote;
            if [UNBOUND, INTERDOMAIN].contains(&status.status) && to != 0 && to != SELF {
                self.left.push(Leak::Port {
                    port,
                    domid: to,
                    bound: status.status == INTERDOMAIN,
                });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.left.is_empty() {
            return write!(
                f,
                "nothing is left: no domain, and none of dom0's {} event channels leads to one",
                self.ports
            );
        }
        let all: Vec<String> = self.left.iter().map(Leak::to_string).collect();
        write!(f, "left: {}", all.join("; "))
    }
}

/// The highest frame of a domain.
fn maximum_gfn(xen: &Privcmd, domid: u16) -> io::Result<u64> {
    let mut domid = domid;
    // SAFETY: the operation takes the address of a domain id.
    unsafe { xen.call(MEMORY_OP, &[MAXIMUM_GPFN, &raw mut domid as u64]) }
}
