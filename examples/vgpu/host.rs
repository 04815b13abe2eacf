// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The GPU's view of the guest: where its frames are on the host, and the engine, which has the shadow judged at every submission.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioreq::backends::vgpu::{Engine, FrameMap, HostAddr, LinearMap, Root, Shadow};
use ioreq::hypervisor::Interrupts;
use ioreq::{Gfn, GfnRange, GuestRam};
use vgpu_guest::layout::{APIC, VECTOR};

use super::checker::{Page, Tally, walk, walk_directories};

/// How far host addresses are from guest addresses.
const DISTANCE: u64 = 0x10_0000_0000;

/// The engine, which compares the shadow with the guest's own tables at every submission.
pub(crate) fn engine(
    shadow: &Shadow,
    ram: &Arc<dyn GuestRam>,
    tally: &Arc<Tally>,
    interrupts: Arc<dyn Interrupts>,
) -> ioreq::Result<Arc<Engine>> {
    let (watched, tally, guest) = (shadow.clone(), Arc::clone(tally), Arc::clone(ram));
    let host = LinearMap::new(Arc::clone(ram), DISTANCE);
    let engine = Engine::new(shadow.clone(), Arc::new(host), Arc::clone(ram))
        .interrupt(interrupts, APIC, VECTOR.into())
        .observer(move |id, root| {
            let expected = match root {
                Root::L4(pml4) => walk(&*guest, pml4.0 << 12),
                Root::L3(directories) => {
                    tally.narrow.fetch_add(1, Ordering::Relaxed);
                    let at = directories.map(|gfn| gfn.map_or(0, |gfn| gfn.0 << 12));
                    walk_directories(&*guest, at)
                }
            };
            let shown: Vec<Page> = watched
                .mappings(id)
                .into_iter()
                .map(|(gpu, to)| Page {
                    gpu,
                    guest: if to.scratch {
                        u64::MAX
                    } else {
                        to.host.0 - DISTANCE
                    },
                    bytes: to.size.bytes(),
                    writable: to.writable,
                })
                .collect();
            tally.compare(&expected, &shown);
        });
    Ok(Arc::new(engine.start()?))
}

/// The guest's frames at a fixed distance on the host. By the list of what is memory: asking for a page of each 2 MiB would map the
/// whole aperture, of which little is used.
pub(crate) struct Frames(pub(crate) Vec<GfnRange>);

impl FrameMap for Frames {
    fn translate(&self, first: Gfn, frames: u64) -> Option<HostAddr> {
        let last = Gfn(first.0.checked_add(frames.checked_sub(1)?)?);
        let inside = |part: &GfnRange| part.contains(first) && part.contains(last);
        let at = first.start()?.0.checked_add(DISTANCE).map(HostAddr);
        at.filter(|_| self.0.iter().any(inside))
    }
}
