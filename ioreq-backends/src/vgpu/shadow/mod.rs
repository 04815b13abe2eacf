// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadows of a guest's GPU page tables.
//!
//! # How a shadow stays true
//! One [`Table`](table::Table) shadows one guest page while any root reaches it; it is that page's handler. A trapped write is
//! first stored in guest memory, then the shadow entry is made from what guest memory holds: the same steps again give the
//! same shadow, so it does not matter who takes them last.
//!
//! * A whole entry written to a *last-level* table that is live takes no lock: the page's order makes its writes one after
//!   the other, and the entry is one atomic store.
//! * Everything else (directories, half entries, tables that come and go) happens under the structure's lock.
//! * A new table is tracked before it is read. While it is being read it is not *live*: a write that traps meanwhile stores,
//!   then takes the lock, so it comes after the reading, and makes its entry again from memory.
//! * Half-written entries are made whole at a submission by a thread that does not hold the page's order. The table's
//!   writes take the lock until that is done: the note that there are such entries goes only after they were made.
//! * A table [out of sync](out_of_sync) is not tracked; it is read at submissions.
//! * A write whose table died meanwhile stores, then takes the lock and looks for the table that the page is *now*.
//!   The fence between the store and the look at the table's state pairs with the one between the change of state and the
//!   reading of the page: one of the two sides sees the other.
//!
//! # What a guest can do
//! Levels strictly descend and a page is a table of one level only, so tables that point at themselves, at their parents or
//! at each other's levels end at the scratch page: there are no cycles. Building and tearing down use work lists, no recursion,
//! and the number of tables has a bound; beyond it entries show the scratch page and are tried again at the next
//! submission.

mod build;
mod handler;
mod heat;
mod out_of_sync;
mod pending;
mod stats;
mod structure;
mod table;
mod tracking;
mod walk;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ioreq_core::claim::PageTracker;
use ioreq_core::{Error, ErrorKind, Gfn, GuestRam, Op};

use super::frames::{FrameMap, HostAddr};
use structure::Structure;

pub use out_of_sync::OutOfSync;
pub use stats::ShadowStats;
pub use walk::{Fault, Step, Target};

/// Where the shadow tables' own host addresses start: the upper half of the 46-bit space.
const TABLE_BASE: u64 = 1 << 45;
/// The page that stands in for everything that cannot be mapped.
const SCRATCH: HostAddr = HostAddr(TABLE_BASE - 4096);

/// Names one address space of a [`Shadow`].
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::vgpu::{LinearMap, Root, Shadow};
/// use ioreq_core::{Gfn, GuestMap, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// let ram = server.hypervisor().memory();
/// let frames = Arc::new(LinearMap::new(ram.clone(), 0x10_0000_0000));
/// let builder = Shadow::builder(Arc::new(claim.tracker("ppgtt")), ram, frames);
/// let shadow = builder.build()?;
///
/// let (first, second) = (shadow.create(Root::L4(Gfn(0x10)))?, shadow.create(Root::L4(Gfn(0x20)))?);
/// assert_ne!(first, second);
/// shadow.destroy(first)?;
/// assert!(shadow.destroy(first).is_err(), "it names nothing any more");
/// shadow.destroy(second)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(u64);

/// The root of an address space, as the guest gives it.
///
/// ```
/// use ioreq_backends::vgpu::Root;
/// use ioreq_core::Gfn;
/// assert_ne!(Root::L4(Gfn(1)), Root::L3([Some(Gfn(1)), None, None, None]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Root {
    /// 48-bit: the PML4's frame.
    L4(Gfn),
    /// 32-bit: up to four page directories of 1 GiB each.
    L3([Option<Gfn>; 4]),
}

impl Root {
    /// The frame of the first table.
    fn first(self) -> Option<Gfn> {
        match self {
            Root::L4(gfn) => Some(gfn),
            Root::L3([first, ..]) => first,
        }
    }
}

/// What tables need on the way of a trapped write; never locked.
struct Common {
    frames: Arc<dyn FrameMap>,
    policy: OutOfSync,
}

struct Inner {
    common: Arc<Common>,
    ram: Arc<dyn GuestRam>,
    tracker: Arc<dyn PageTracker>,
    most_tables: usize,
    most_roots: usize,
    structure: Mutex<Structure>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Structure> {
        self.structure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shadows of one guest's GPU page tables. A clone is another handle on the same.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::vgpu::{LinearMap, Root, Shadow};
/// use ioreq_core::{Gfn, GuestMap, claim::PageTracker, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let machine = Machine::new();
/// let domain = machine.create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// let tracker = Arc::new(claim.tracker("ppgtt"));
/// let ram = server.hypervisor().memory();
/// let frames = Arc::new(LinearMap::new(ram.clone(), 0x10_0000_0000));
/// let shadow = Shadow::builder(tracker.clone(), ram, frames).build()?;
///
/// let root = shadow.create(Root::L4(Gfn(0x10)))?; // an empty PML4 at frame 0x10: tracked from now on
/// assert_eq!(tracker.stats().writes, 0);
/// assert_eq!(shadow.stats().tables, 1);
/// shadow.destroy(root)?;
/// assert_eq!(shadow.stats().tables, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Shadow(Arc<Inner>);

/// Builds a [`Shadow`].
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::vgpu::{LinearMap, Root, Shadow};
/// use ioreq_core::{Gfn, GuestMap, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// let ram = server.hypervisor().memory();
/// let frames = Arc::new(LinearMap::new(ram.clone(), 0x10_0000_0000));
/// let builder = Shadow::builder(Arc::new(claim.tracker("ppgtt")), ram, frames);
/// let shadow = builder.most_tables(1000).most_roots(1).build()?;
///
/// let root = shadow.create(Root::L4(Gfn(0x10)))?;
/// assert!(shadow.create(Root::L4(Gfn(0x20))).is_err(), "one at a time");
/// shadow.destroy(root)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ShadowBuilder {
    tracker: Arc<dyn PageTracker>,
    ram: Arc<dyn GuestRam>,
    frames: Arc<dyn FrameMap>,
    most_tables: usize,
    most_roots: usize,
    policy: OutOfSync,
}

impl ShadowBuilder {
    /// The most tables at a time, 2^20 by default. An entry that would need one more shows the scratch page, is counted, and is
    /// tried again at submissions.
    #[must_use]
    pub fn most_tables(mut self, tables: usize) -> Self {
        self.most_tables = tables;
        self
    }

    /// The most address spaces at a time, 2^16 by default.
    #[must_use]
    pub fn most_roots(mut self, roots: usize) -> Self {
        self.most_roots = roots;
        self
    }

    /// What to do with last-level tables that are written again and again: nothing by default.
    #[must_use]
    pub fn out_of_sync(mut self, policy: OutOfSync) -> Self {
        self.policy = policy;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `InvalidArgument` for a bound of 0 tables, or more than 2^32 - 1, or of 0 address spaces.
    pub fn build(self) -> ioreq_core::Result<Shadow> {
        if self.most_tables == 0 || u32::try_from(self.most_tables).is_err() {
            let err = Error::new(Op::Configure, ErrorKind::InvalidArgument);
            return Err(err.about(format!(
                "{} shadow tables at most: 1 to 2^32 - 1",
                self.most_tables
            )));
        }
        if self.most_roots == 0 {
            let err = Error::new(Op::Configure, ErrorKind::InvalidArgument);
            return Err(err.about("0 address spaces at most: 1 or more"));
        }
        let (frames, policy) = (self.frames, self.policy);
        Ok(Shadow(Arc::new_cyclic(|inner: &Weak<Inner>| Inner {
            common: Arc::new(Common { frames, policy }),
            ram: self.ram,
            tracker: self.tracker,
            most_tables: self.most_tables,
            most_roots: self.most_roots,
            structure: Mutex::new(Structure::new(Weak::clone(inner))),
        })))
    }
}

impl fmt::Debug for ShadowBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShadowBuilder")
            .field("most_tables", &self.most_tables)
            .field("most_roots", &self.most_roots)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Shadow {
    /// Starts to build: tables are tracked by `tracker`, read from `ram`, and lead to what `frames` says.
    #[must_use]
    pub fn builder(
        tracker: Arc<dyn PageTracker>,
        ram: Arc<dyn GuestRam>,
        frames: Arc<dyn FrameMap>,
    ) -> ShadowBuilder {
        ShadowBuilder {
            tracker,
            ram,
            frames,
            most_tables: 1 << 20,
            most_roots: 1 << 16,
            policy: OutOfSync::default(),
        }
    }

    /// Shadows an address space, all of it that is there, from now on.
    ///
    /// # Errors
    /// `InvalidArgument` if a root frame is not guest memory or is a table of another level; `OutOfMemory` beyond the bound
    /// of tables or of address spaces.
    pub fn create(&self, root: Root) -> ioreq_core::Result<RootId> {
        self.0.create(root)
    }

    /// Ends an address space. Pages that no other root reaches are untracked soon.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such root.
    pub fn destroy(&self, id: RootId) -> ioreq_core::Result<()> {
        self.0.destroy(id)
    }

    /// The address space that was created from `root`, the newest if there are several.
    #[must_use]
    pub fn find(&self, root: Root) -> Option<RootId> {
        self.0.lock().find_root(root)
    }

    /// The 32-bit address space whose first directory is at `gfn`, the newest if there are several.
    #[must_use]
    pub fn find_l3(&self, gfn: Gfn) -> Option<(RootId, Root)> {
        self.0.lock().find_l3(gfn)
    }

    /// The roots of all address spaces, oldest first.
    #[must_use]
    pub fn roots(&self) -> Vec<Root> {
        let all = self.0.lock().all_roots();
        all.into_iter().map(|(_, root)| root).collect()
    }

    pub(super) fn destroy_all(&self) {
        let all = self.0.lock().all_roots();
        for (id, _) in all {
            // One that is gone by now is what is wanted.
            let _gone = self.destroy(id);
        }
    }

    /// To be called when the guest submits work of an address space, before the GPU looks: of the tables that it reaches, half-written
    /// entries, tables out of sync, and entries that could not be shadowed are made from guest memory. What other address
    /// spaces alone reach is left as it is: a guest may be in the middle of writing it.
    ///
    /// An address space that is gone has nothing to be made.
    pub fn submit(&self, root: RootId) {
        self.0.submit(root);
    }

    /// Where a GPU address leads, by the shadow alone.
    ///
    /// # Errors
    /// The [`Fault`] that the GPU would take.
    pub fn lookup(&self, root: RootId, addr: u64) -> Result<Target, Fault> {
        self.0.lookup(root, addr)
    }

    /// Every page that the shadow of `root` maps, in the order of GPU addresses: address and where it leads. For checks.
    #[must_use]
    pub fn mappings(&self, root: RootId) -> Vec<(u64, Target)> {
        self.0.mappings(root)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> ShadowStats {
        self.0.stats()
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("stats", &self.stats())
            .finish()
    }
}
