// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Marked pages that a server left behind: found one by one, because Xen keeps no list of them.

use ioreq_core::{Error, Gfn, GfnRange, Op, P2mType, Result, Transport};

use crate::hypervisor::XenHypervisor;

impl XenHypervisor {
    /// Which of `pages` are of the write-tracked type, as ranges in order. One hypercall a page (`HVMOP_get_mem_type`); frames
    /// that are no RAM are passed over.
    ///
    /// For a server that was [taken over](ioreq_core::server::Builder::take_over) without a list of its pages:
    /// [`adopt`](ioreq_core::claim::Tracker::adopt) what this finds.
    ///
    /// # Errors
    /// `NotPermitted` with a restricted handle: it takes an unrestricted one, opened by root in dom0.
    pub fn marked_pages(&self, pages: GfnRange) -> Result<Vec<GfnRange>> {
        let marked = |gfn: Gfn| match self.privcmd.mem_type(self.domid(), gfn) {
            Ok(ty) => Ok(u32::from(ty) == P2mType::IoreqServer.raw()),
            // Beyond the domain's memory.
            Err(libc::EINVAL | libc::ENOENT) => Ok(false),
            Err(errno) => Err(Error::from_errno(Op::GetMemType, errno)
                .domain(self.domid())
                .about(GfnRange::from(gfn))),
        };
        runs(pages, marked)
    }

    /// Makes marked pages ordinary RAM again whose owner was destroyed without giving the type up. No server can claim the type
    /// until all of them are, and a guest that writes one waits for ever: it goes on when this has reached that page. Gives
    /// the number of pages.
    ///
    /// *Not* while a server owns the type: its pages would be unmarked under it, which a guest in the middle of a write does not
    /// survive. Xen does not tell whether one does.
    ///
    /// # Errors
    /// As [`marked_pages`](Self::marked_pages), and as `set_mem_type`.
    pub fn repair_ownerless_pages(&self, pages: GfnRange) -> Result<u64> {
        let marked = self.marked_pages(pages)?;
        marked.iter().try_for_each(|run| {
            run.batches(1024)
                .try_for_each(|batch| self.dm.change_type(P2mType::RamRw, batch))
        })?;
        Ok(marked.iter().map(GfnRange::pages).sum())
    }
}

/// The runs of `pages` for which `is` says yes.
fn runs(pages: GfnRange, mut is: impl FnMut(Gfn) -> Result<bool>) -> Result<Vec<GfnRange>> {
    let mut found = Vec::new();
    let mut open: Option<GfnRange> = None;
    for gfn in pages.iter() {
        if is(gfn)? {
            let first = open.map_or(gfn.0, |run| run.first());
            open = Some(GfnRange::new(first, gfn.0)?);
        } else {
            found.extend(open.take());
        }
    }
    found.extend(open);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_marked_pages() {
        let of = |first, last, marked: &[u64]| {
            let pages = GfnRange::new(first, last).unwrap();
            let found = runs(pages, |gfn| Ok(marked.contains(&gfn.0))).unwrap();
            let ends = found.iter().map(|run| (run.first(), run.last()));
            ends.collect::<Vec<_>>()
        };
        assert_eq!(of(0, 9, &[]), []);
        assert_eq!(of(0, 9, &[0, 1, 3, 8, 9]), [(0, 1), (3, 3), (8, 9)]);
        assert_eq!(of(5, 5, &[5]), [(5, 5)]);
        assert_eq!(of(5, 6, &[4, 5, 6, 7]), [(5, 6)]);
    }
}
