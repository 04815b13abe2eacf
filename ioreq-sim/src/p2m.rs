// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The physical-to-machine map: a type for every frame.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ioreq_core::{Gfn, GfnRange, P2mType};

use crate::memory::Mapping;

/// A frame's type as its byte: zero, what fresh memory holds, is ordinary RAM.
const RAM_RW: u8 = 0;
const RAM_RO: u8 = 1;
const MMIO_DM: u8 = 2;
const IOREQ_SERVER: u8 = 4;
/// Ordinary RAM whose next store by the guest is logged (`p2m_ram_logdirty`).
const RAM_LOGGED: u8 = 8;
/// Given back by the guest: nothing is populated any more.
const HOLE: u8 = 0xff;

fn code(ty: P2mType) -> u8 {
    match ty {
        P2mType::RamRw => RAM_RW,
        P2mType::RamRo => RAM_RO,
        P2mType::MmioDm => MMIO_DM,
        P2mType::IoreqServer => IOREQ_SERVER,
    }
}

fn decode(byte: u8) -> Option<P2mType> {
    match byte {
        RAM_RO => Some(P2mType::RamRo),
        MMIO_DM => Some(P2mType::MmioDm),
        IOREQ_SERVER => Some(P2mType::IoreqServer),
        HOLE => None,
        _ => Some(P2mType::RamRw),
    }
}

/// Types by frame. Changes are made under the p2m lock ([`Hold::lock_p2m`](crate::gate::Hold::lock_p2m)).
#[derive(Debug)]
pub(crate) struct P2m {
    regions: Vec<(GfnRange, Mapping)>,
    /// Frames of type ioreq_server (`p2m->ioreq.entry_count`).
    outstanding: AtomicU64,
}

impl P2m {
    pub(crate) fn new(regions: &[GfnRange]) -> io::Result<Self> {
        let regions = regions
            .iter()
            .map(|&r| Mapping::new(r.pages()).map(|m| (r, m)))
            .collect::<io::Result<_>>()?;
        Ok(P2m {
            regions,
            outstanding: AtomicU64::new(0),
        })
    }

    fn cell(&self, gfn: u64) -> Option<&AtomicU8> {
        // One after the other: there are two or three, and each access of the guest comes here some times.
        let (range, types) = self.regions.iter().find(|(r, _)| gfn <= r.last())?;
        let at = gfn.checked_sub(range.first())?;
        types.bytes().get(usize::try_from(at).ok()?)
    }

    /// The frame's type; `None` where nothing is populated, which the guest accesses as MMIO.
    pub(crate) fn lookup(&self, gfn: Gfn) -> Option<P2mType> {
        // Relaxed: the p2m lock orders changes against faults; a re-execution may see either type, as on Xen.
        self.cell(gfn.0)
            .and_then(|c| decode(c.load(Ordering::Relaxed)))
    }

    /// The type that a store meets, and whether the frame's stores are logged.
    pub(crate) fn store_type(&self, addr: u64) -> (P2mType, bool) {
        // Relaxed: see `lookup`.
        let byte = self.cell(addr >> 12).map(|c| c.load(Ordering::Relaxed));
        let ty = byte.and_then(decode).unwrap_or(P2mType::MmioDm);
        (ty, byte == Some(RAM_LOGGED))
    }

    /// Whether the frame's next store is logged.
    pub(crate) fn is_logged(&self, gfn: Gfn) -> bool {
        self.store_type(gfn.0 << 12).1
    }

    /// From here on the next store to the frame is logged, or no more. Ordinary RAM only; whether it was that.
    pub(crate) fn log(&self, gfn: u64, on: bool) -> bool {
        let (from, to) = if on {
            (RAM_RW, RAM_LOGGED)
        } else {
            (RAM_LOGGED, RAM_RW)
        };
        // Relaxed: see `lookup`. An exchange, as a guest's store takes the mark off without the p2m lock.
        self.cell(gfn).is_some_and(|c| {
            c.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Takes the frame away (`guest_physmap_remove_page`). The caller holds the p2m lock.
    pub(crate) fn remove(&self, gfn: Gfn) {
        // Relaxed: see `lookup`.
        let old = self.cell(gfn.0).map(|c| c.swap(HOLE, Ordering::Relaxed));
        if old == Some(IOREQ_SERVER) {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The type that an access meets.
    pub(crate) fn access_type(&self, addr: u64) -> P2mType {
        self.lookup(Gfn(addr >> 12)).unwrap_or(P2mType::MmioDm)
    }

    /// The highest populated frame.
    pub(crate) fn max_gfn(&self) -> u64 {
        self.regions.last().map_or(0, |(r, _)| r.last())
    }

    /// Frames of type ioreq_server.
    pub(crate) fn outstanding(&self) -> u64 {
        // Relaxed: a number of its own; it is exact to whoever holds the p2m lock.
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Changes one frame's type if Xen allows the change (`allow_p2m_type_change`). With `log_dirty` ordinary RAM is of
    /// another type to Xen, from which nothing can become ioreq_server.
    pub(crate) fn change(&self, gfn: u64, new: P2mType, log_dirty: bool) -> Result<(), i32> {
        // Relaxed, here and below: see `lookup`; the caller holds the p2m lock.
        let found = self.cell(gfn).and_then(|cell| {
            let byte = cell.load(Ordering::Relaxed);
            decode(byte).map(|old| (cell, old, log_dirty || byte == RAM_LOGGED))
        });
        let Some((cell, old, logged)) = found else {
            return if new == P2mType::MmioDm {
                Ok(())
            } else {
                Err(libc::EINVAL)
            };
        };
        let allowed = match (old, new) {
            (P2mType::RamRw, P2mType::IoreqServer) => !logged,
            (_, P2mType::IoreqServer) => false,
            (P2mType::IoreqServer, new) => new == P2mType::RamRw,
            (P2mType::MmioDm, new) => new == P2mType::MmioDm,
            _ => true,
        };
        if !allowed {
            return Err(libc::EINVAL);
        }
        cell.store(code(new), Ordering::Relaxed);
        if new == P2mType::IoreqServer {
            self.outstanding.fetch_add(1, Ordering::Relaxed);
        } else if old == P2mType::IoreqServer {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Turns every ioreq_server frame back to ordinary RAM (`p2m_finish_type_change` after a disclaim).
    pub(crate) fn reset_all(&self) {
        if self.outstanding() == 0 {
            return;
        }
        for (_, types) in &self.regions {
            for cell in types.bytes() {
                if cell.load(Ordering::Relaxed) == IOREQ_SERVER {
                    cell.store(RAM_RW, Ordering::Relaxed);
                }
            }
        }
        self.outstanding.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p2m() -> P2m {
        P2m::new(&[
            GfnRange::sized(0, 0x10).unwrap(),
            GfnRange::sized(0x100, 0x10).unwrap(),
        ])
        .unwrap()
    }

    #[test]
    fn holes_are_not_populated_and_read_as_mmio() {
        let p2m = p2m();
        assert_eq!(p2m.lookup(Gfn(0xf)), Some(P2mType::RamRw));
        for gfn in [0x10, 0xff, 0x110, u64::MAX] {
            assert_eq!(p2m.lookup(Gfn(gfn)), None, "{gfn:#x}");
        }
        assert_eq!(p2m.access_type(0x10_000), P2mType::MmioDm);
        assert_eq!(p2m.max_gfn(), 0x10f);
    }

    #[test]
    fn only_the_changes_that_xen_allows() {
        use P2mType::{IoreqServer, MmioDm, RamRo, RamRw};
        let table = [
            (RamRw, [true, true, true, true]),
            (RamRo, [true, true, true, false]),
            (MmioDm, [false, false, true, false]),
            (IoreqServer, [true, false, false, false]),
        ];
        for (old, allowed) in table {
            for (new, ok) in [RamRw, RamRo, MmioDm, IoreqServer].into_iter().zip(allowed) {
                let p2m = p2m();
                p2m.change(1, old, false).unwrap();
                assert_eq!(p2m.change(1, new, false).is_ok(), ok, "{old:?} -> {new:?}");
            }
        }
    }

    #[test]
    fn log_dirty_keeps_pages_from_becoming_tracked() {
        let p2m = p2m();
        assert_eq!(p2m.change(1, P2mType::IoreqServer, true), Err(libc::EINVAL));
        p2m.change(1, P2mType::RamRo, true).unwrap();
    }

    #[test]
    fn a_logged_page_is_ram_that_cannot_become_tracked() {
        let p2m = p2m();
        assert!(p2m.log(1, true) && p2m.is_logged(Gfn(1)));
        assert!(!p2m.log(1, true), "logged already");
        assert_eq!(p2m.lookup(Gfn(1)), Some(P2mType::RamRw));
        assert_eq!(
            p2m.change(1, P2mType::IoreqServer, false),
            Err(libc::EINVAL)
        );
        assert!(p2m.log(1, false) && !p2m.is_logged(Gfn(1)));
        p2m.change(1, P2mType::IoreqServer, false).unwrap();
        assert!(!p2m.log(1, true), "ordinary RAM only");
    }

    #[test]
    fn a_page_given_back_is_a_hole_and_not_outstanding() {
        let p2m = p2m();
        p2m.change(1, P2mType::IoreqServer, false).unwrap();
        p2m.remove(Gfn(1));
        assert_eq!((p2m.outstanding(), p2m.lookup(Gfn(1))), (0, None));
        assert_eq!(p2m.access_type(0x1000), P2mType::MmioDm);
        assert_eq!(p2m.change(1, P2mType::RamRw, false), Err(libc::EINVAL));
        p2m.change(1, P2mType::MmioDm, false).unwrap();
        p2m.remove(Gfn(0x50));
        assert_eq!(p2m.outstanding(), 0);
    }

    #[test]
    fn outstanding_pages_are_counted_and_reset() {
        let p2m = p2m();
        for gfn in [1, 2, 0x101] {
            p2m.change(gfn, P2mType::IoreqServer, false).unwrap();
        }
        assert_eq!(
            p2m.change(1, P2mType::IoreqServer, false),
            Err(libc::EINVAL)
        );
        p2m.change(2, P2mType::RamRw, false).unwrap();
        assert_eq!(p2m.outstanding(), 2);
        p2m.reset_all();
        assert_eq!(p2m.outstanding(), 0);
        assert_eq!(p2m.lookup(Gfn(0x101)), Some(P2mType::RamRw));
    }
}
