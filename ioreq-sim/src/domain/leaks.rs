// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What device models left behind.

use ioreq_core::ServerId;

use super::DomainInner;

/// What Xen still keeps for a domain's servers: after a clean stop, nothing.
///
/// ```
/// use ioreq_core::{BufIoreq, Transport};
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// assert!(domain.leaks().is_clean());
/// let id = domain.hypervisor().create_server(BufIoreq::Off)?;
/// assert_eq!(domain.leaks().servers, [id]);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeakReport {
    /// Servers that exist.
    pub servers: Vec<ServerId>,
    /// The owner of the memory type ioreq_server.
    pub claim: Option<ServerId>,
    /// Pages of that type.
    pub marked_pages: u64,
    /// Event channels that are bound.
    pub bound_ports: usize,
}

impl LeakReport {
    pub(super) fn of(domain: &DomainInner) -> Self {
        let table = domain.servers.current();
        LeakReport {
            servers: table
                .entries
                .iter()
                .flatten()
                .map(|e| e.server.id)
                .collect(),
            claim: table.owner.as_ref().map(|o| o.server.id),
            marked_pages: domain.p2m.outstanding(),
            bound_ports: domain.bound_ports(),
        }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == LeakReport::default()
    }
}
