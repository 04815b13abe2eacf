// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The consumer of the buffered ring.
//!
//! The ring holds posted writes, which nobody waits for. Xen fills it (`ioreq_send_buffered`, one sender at a time, under
//! its lock); this side takes entries at `read_pointer`. Both pointers count entries, an entry's place is its pointer modulo
//! 511, and they are equal when the ring is empty.
//!
//! In the ATOMIC mode, the only one offered, Xen also *rewinds*: while `read_pointer` is 511 or more it takes the same multiple
//! of 511 off both pointers, by one 64-bit compare-and-exchange. The places stay, the numbers do not. So this side
//!
//! * looks at both pointers by one 64-bit load (a rewind between two loads would look like an overrun),
//! * remembers no pointer from one entry to the next,
//! * moves `read_pointer` by an atomic add, which a rewind cannot swallow.
//!
//! An entry is given up *after* it was handled: whoever finds the ring empty knows that everything that was in it has been
//! done. That is what keeps the order when the ring is full: Xen then sends the next write by the vCPU's slot, and a worker
//! looks at the ring before it serves any slot.
//!
//! | store | order | is read by | order |
//! | --- | --- | --- | --- |
//! | entry, `write_pointer` | `smp_wmb` of Xen's `ioreq_send_buffered` | [`Consumer::drain`], [`BufferedRing::is_empty`] | Acquire |
//! | `read_pointer` | Release | Xen's test for a full ring; [`BufferedRing::is_empty`] of another worker | Acquire |
//!
//! The pointers are hostile until checked: nonsense is a [`RingAnomaly`], and costs what is in the ring.

mod anomaly;
mod consumer;
mod memory;
mod page;

pub use anomaly::RingAnomaly;
pub use consumer::{BufferedRing, Consumer, Drained};
pub use memory::{EntryIndex, Pointers, RingMemory};
pub use page::BufferedPage;
