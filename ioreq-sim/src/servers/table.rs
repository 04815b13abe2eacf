// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The table of a domain's servers as vCPUs see it: a snapshot each vCPU keeps and renews when its version is old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::ranges::RangeSet;
use super::{MAX_SERVERS, Server};

/// A server with what of it changes.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) server: Arc<Server>,
    pub(crate) enabled: bool,
    /// By `XEN_DMOP_IO_RANGE_*`.
    pub(crate) ranges: [Arc<RangeSet>; 3],
}

impl Entry {
    pub(crate) fn contains(&self, kind: u32, first: u64, last: u64) -> bool {
        self.ranges
            .get(kind as usize)
            .is_some_and(|r| r.contains(first, last))
    }
}

/// A domain's servers.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerTable {
    pub(crate) entries: [Option<Arc<Entry>>; MAX_SERVERS],
    /// Owner of the memory type ioreq_server.
    pub(crate) owner: Option<Arc<Entry>>,
}

impl ServerTable {
    pub(crate) fn get(&self, id: u16) -> Option<&Arc<Entry>> {
        self.entries.get(usize::from(id))?.as_ref()
    }

    /// Changes one entry. The owner is the same server, so it changes along.
    pub(crate) fn change(&mut self, id: u16, change: impl FnOnce(&mut Entry)) {
        let Some(Some(slot)) = self.entries.get_mut(usize::from(id)) else {
            return;
        };
        let mut entry = (**slot).clone();
        change(&mut entry);
        *slot = Arc::new(entry);
        if let Some(owner) = &mut self.owner
            && Arc::ptr_eq(&owner.server, &slot.server)
        {
            *owner = Arc::clone(slot);
        }
    }

    /// Newest first: the order in which Xen asks them.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().rev().flatten()
    }
}

/// The current table and its version.
#[derive(Debug, Default)]
pub(crate) struct Published {
    version: AtomicU64,
    current: Mutex<Arc<ServerTable>>,
}

impl Published {
    /// The current table.
    pub(crate) fn current(&self) -> Arc<ServerTable> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a changed table. Callers hold the domain's control lock.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut ServerTable) -> T) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = (**current).clone();
        let result = change(&mut table);
        *current = Arc::new(table);
        // Release: pairs with `CachedTable::get`; the lock already orders the table itself.
        self.version.fetch_add(1, Ordering::Release);
        result
    }
}

/// One vCPU's copy.
///
/// Its entries have reference counts of their own, so that a vCPU that notes whom it sent a request to writes no cache
/// line that another vCPU writes.
#[derive(Debug, Default)]
pub(crate) struct CachedTable {
    version: Option<u64>,
    table: ServerTable,
}

impl CachedTable {
    /// The table, as new as anything published before the call.
    pub(crate) fn get(&mut self, published: &Published) -> &ServerTable {
        // Acquire: pairs with `update`: whoever returned from a hypercall before this access is seen by it.
        let version = published.version.load(Ordering::Acquire);
        if self.version != Some(version) {
            self.renew(published, version);
        }
        &self.table
    }

    #[cold]
    fn renew(&mut self, published: &Published, version: u64) {
        let own = |entry: &Arc<Entry>| Arc::new((**entry).clone());
        let shared = published.current();
        self.table = ServerTable {
            entries: std::array::from_fn(|i| shared.entries[i].as_ref().map(own)),
            owner: shared.owner.as_ref().map(own),
        };
        // A table newer than its version is renewed once more than needed, never once less.
        self.version = Some(version);
    }
}
