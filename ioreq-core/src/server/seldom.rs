// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What seldom becomes of an access: nobody's address, a refusal, a panic, a page on its way out. Counted, and logged within
//! limits, as a guest can cause all of it.
//!
//! Out of line, and with what they need as single arguments: a [`Bus`](super::bus::Bus) that was handed to them would have to be
//! in memory on the way of every request.

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::bus::{Place, with_handler};
use super::core::Core;
use super::panics::is_broken;
use crate::dispatch::{Counted, Page, PageRoute, Route};
use crate::handler::{Access, Context, HandlerRef, TypedHandler, WriteSource};
use crate::hypervisor::Hypervisor;
use crate::ids::Gfn;
use crate::memory::Width;
use crate::stats::{RouteCounters, WorkerCounters};
use crate::sync::atomic::{Ordering, fence};

impl<H: Hypervisor> Core<H> {
    /// A read that no route takes: all-ones.
    #[cold]
    #[inline(never)]
    pub(super) fn unclaimed_read(
        &self,
        cx: &Context<'_>,
        counters: &WorkerCounters,
        place: Place,
        width: Width,
    ) -> u64 {
        counters.unclaimed.bump();
        if self.log_limit.allow() {
            tracing::debug!(domid = %cx.domid(), vcpu = %cx.vcpu(), ?place, ?width, "read of no route");
        }
        width.all_ones()
    }

    /// A write that no route takes: one to guest memory is the last of a page that is not tracked any more, and is the guest's
    /// own; others are dropped.
    #[cold]
    #[inline(never)]
    pub(super) fn unclaimed_write(
        &self,
        cx: &Context<'_>,
        counters: &WorkerCounters,
        place: Place,
        width: Width,
        value: u64,
    ) {
        if let Place::Mmio(addr) = place
            && cx.ram().store(GuestAddress(addr), width, value).is_ok()
        {
            counters.stale_writes.bump();
            return;
        }
        counters.unclaimed.bump();
        if self.log_limit.allow() {
            tracing::debug!(domid = %cx.domid(), vcpu = %cx.vcpu(), ?place, ?width, "write to no route");
        }
    }

    /// An access that its handler does not serve.
    #[cold]
    #[inline(never)]
    pub(super) fn refused(
        &self,
        cx: &Context<'_>,
        counters: &WorkerCounters,
        (route, of_route): (&Route, Option<&RouteCounters>),
        why: &str,
        access: Access,
    ) {
        match is_broken(why) {
            true => counters.unclaimed.bump(),
            false => counters.refused.bump(),
        }
        if let Some(counters) = of_route {
            counters.refused.bump();
        }
        if self.log_limit.allow() {
            tracing::debug!(domid = %cx.domid(), vcpu = %cx.vcpu(), route = %route.name, ?access, why, "refused");
        }
    }

    /// An access whose handler panicked.
    #[cold]
    #[inline(never)]
    pub(super) fn panicked(
        &self,
        cx: &Context<'_>,
        counters: &WorkerCounters,
        name: &str,
        of_route: Option<&RouteCounters>,
    ) {
        counters.panics.bump();
        if let Some(counters) = of_route {
            counters.panics.bump();
        }
        if self.log_limit.allow() {
            tracing::error!(domid = %cx.domid(), vcpu = %cx.vcpu(), handler = name, "a handler panicked");
        }
    }

    /// A page whose own handler panicked: by policy that is not called again. (What pages share sees to it itself: see
    /// [`panics`](super::panics).) The page's order is held, so no other write is served meanwhile.
    #[cold]
    #[inline(never)]
    pub(super) fn break_page(&self, gfn: Gfn, handler: HandlerRef<'_>) {
        let Some(now) = self.pages.route_of(gfn) else {
            return;
        };
        // None, if the page shares it; another's, if it was replaced meanwhile: that one is whole.
        let own = now
            .handler()
            .filter(|own| std::ptr::addr_eq(Arc::as_ptr(own), handler.get()));
        let Some(broken) = own.and_then(|own| self.panics.broken_page(&now.tracker.name, own))
        else {
            return;
        };
        let broken = Counted::new(PageRoute {
            handler: Some(TypedHandler::new(broken)),
            leaving: false,
            fallback: now.fallback,
            tracker: Arc::clone(&now.tracker),
        });
        if let Err(err) = self.pages.replace_if(gfn, &now, &broken) {
            tracing::error!(%err, "a broken page keeps its handler");
        }
    }

    /// A write to a page that is on its way out: applied as written. Gives the page's route and handler if it was taken back
    /// meanwhile.
    #[cold]
    #[inline(never)]
    pub(super) fn write_leaving<'g>(
        &self,
        cx: &Context<'_>,
        counters: &WorkerCounters,
        page: &Page<'g, PageRoute>,
        (addr, width, value): (u64, Width, u64),
        source: WriteSource,
    ) -> Option<(&'g PageRoute, HandlerRef<'g>)> {
        let addr = GuestAddress(addr);
        if cx.ram().store(addr, width, value).is_err() {
            counters.data_faults.bump();
        }
        if source == WriteSource::Trapped
            && let Some(state) = self.vcpus.of(cx.vcpu().0 as usize)
        {
            state.note_late(Gfn::of(addr));
        }
        // SeqCst: our store, then the look at the route; pairs with the fence in `Ledger::track`. A page that was leaving and
        // was taken back meanwhile may have been read before our store: its handler is told after all.
        fence(Ordering::SeqCst);
        with_handler(page.lead())
    }
}
