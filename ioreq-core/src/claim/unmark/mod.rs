// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Unmarking pages safely: the protocol, as a machine that takes one bounded step at a time and never waits.
//!
//! A trapped write is *in flight* from its trap until the vCPU has re-executed the instruction, not until it is answered:
//! on re-execution Xen looks at the page's type again, and a page that became `ram_rw` meanwhile costs the guest its life.
//! What a device model can build on: when `set_mem_type` returns, every trap under the old type is visible in its slot; and
//! enabling an enabled server pauses and unpauses the domain, so that no vCPU is in the middle of a re-execution when it
//! returns (a *grace period*). For a batch of pages:
//!
//! 1. **Park**: from now on workers take requests for these pages, but leave them unanswered.
//! 2. **Drain**: until no slot holds an answer for one of them that the vCPU has not consumed, nor a request that is being
//!    served. Pages with a request waiting leave the batch: they are answered while still marked, and tried again later.
//! 3. **Grace period**. Then look again: pages with a new request leave the batch.
//! 4. **Change the type** of what is left. Look once more: a request that trapped just before the change is answered with the
//!    page marked again.
//! 5. **Forget** the rest: their routes go.
//!
//! A page that never comes to rest stays marked, its writes applied as written, and is reported as deferred.

use std::collections::{BTreeMap, VecDeque};

use crate::error::{ErrorKind, Result};
use crate::hypervisor::P2mType;
use crate::ids::Gfn;
use crate::range::GfnRange;

/// Steps that a batch waits for slots to drain before the pages in the way leave it.
const PATIENCE: u32 = if cfg!(loom) { 2 } else { 64 };
/// Batches that a page may be in before it counts as deferred.
const ATTEMPTS: u32 = if cfg!(loom) { 2 } else { 64 };
/// Pages in a batch.
const BATCH: u64 = 1024;

/// What a vCPU's slot says about a tracked page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// A write to the page that nobody has begun to serve: READY, or taken and parked.
    Waiting(Gfn),
    /// A write to the page that is being served.
    Serving(Gfn),
    /// An answer that the vCPU has not consumed.
    Answered(Gfn),
    /// Nothing is in flight, but since the page started to leave a write to it has been.
    Late(Gfn),
}

/// What the protocol needs of the world.
pub(crate) trait UnmarkEnv {
    /// Makes workers hold back requests for the page; false while its order is held.
    fn park(&self, gfn: Gfn) -> bool;
    /// Ends that; parked requests are served again soon.
    fn unpark(&self, gfn: Gfn);
    /// Whether the page is still to be unmarked: it may have been taken back.
    fn is_leaving(&self, gfn: Gfn) -> bool;
    /// Looks at every vCPU's slot.
    fn look(&self, seen: &mut dyn FnMut(Look));
    /// Pauses and unpauses the domain.
    fn grace(&self) -> Result<()>;
    /// Changes page types.
    fn set_type(&self, ty: P2mType, pages: GfnRange) -> Result<()>;
    /// Removes the pages' routes, then ends parking.
    fn forget(&self, pages: GfnRange);
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing to do.
    Idle,
    /// Something was done, or given up for now; there may be more.
    Progress,
    /// Slots have to drain first: let vCPUs and workers run, then step again.
    Waiting,
}

#[derive(Debug, Clone, Copy)]
struct Work {
    pages: GfnRange,
    attempts: u32,
    /// The guest wrote to it after it had started to leave.
    contended: bool,
}

impl Work {
    fn new(pages: GfnRange) -> Self {
        Work {
            pages,
            attempts: 0,
            contended: false,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Member {
    attempts: u32,
    parked: bool,
    contended: bool,
}

#[derive(Debug, Default)]
struct Batch {
    pages: BTreeMap<u64, Member>,
    rounds: u32,
}

/// Pages on their way out.
#[derive(Debug, Default)]
pub(crate) struct Unmarker {
    queue: VecDeque<Work>,
    /// Pages in it.
    queued: u64,
    /// Past the bound of attempts: asked for again by [`Self::retry_stubborn`].
    stubborn: Vec<Work>,
    batch: Option<Batch>,
    unmarked: u64,
    contended: u64,
    /// Batches that the hypervisor let nobody go on with.
    refused: u64,
}

impl Unmarker {
    /// Queues pages.
    pub(crate) fn push(&mut self, pages: GfnRange) {
        self.queue(Work::new(pages));
    }

    fn queue(&mut self, work: Work) {
        self.queued += work.pages.pages();
        self.queue.push_back(work);
    }

    /// Whether what is queued fills a batch.
    pub(crate) fn is_enough(&self) -> bool {
        self.queued >= BATCH
    }

    /// Whether pages wait to be in a batch that is not full, all of them for the first time: others have waited already.
    pub(crate) fn may_gather(&self) -> bool {
        let fresh = |work: &Work| work.attempts == 0;
        self.batch.is_none()
            && !self.queue.is_empty()
            && !self.is_enough()
            && self.queue.iter().all(fresh)
    }

    /// The page is wanted again: it leaves the batch, if it is in it. (In the queue it is passed over, because it is not
    /// leaving any more.)
    pub(crate) fn cancel(&mut self, gfn: Gfn, env: &impl UnmarkEnv) {
        let Some(batch) = &mut self.batch else { return };
        if batch
            .pages
            .remove(&gfn.0)
            .is_some_and(|member| member.parked)
        {
            env.unpark(gfn);
        }
    }

    /// Pages unmarked so far.
    pub(crate) fn unmarked(&self) -> u64 {
        self.unmarked
    }

    /// Of the pages unmarked so far, those that the guest wrote to after they had started to leave.
    pub(crate) fn contended(&self) -> u64 {
        self.contended
    }

    /// Batches that ended with the hypervisor's refusal: to try them again at once is in vain.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Pages that did not come to rest within the bound, and are still marked.
    pub(crate) fn stubborn(&self) -> Vec<GfnRange> {
        self.stubborn.iter().map(|work| work.pages).collect()
    }

    /// Gives stubborn pages another chance.
    pub(crate) fn retry_stubborn(&mut self) {
        for work in std::mem::take(&mut self.stubborn) {
            self.queue(Work {
                attempts: 0,
                ..work
            });
        }
    }

    /// One bounded step. Never waits for a vCPU or a worker.
    pub(crate) fn step(&mut self, env: &impl UnmarkEnv) -> Step {
        let mut batch = match self.batch.take().or_else(|| self.form(env)) {
            Some(batch) => batch,
            None => return Step::Idle,
        };
        park(&mut batch, env);
        let busy = self.drain(&mut batch, env);
        if !busy.is_empty() {
            batch.rounds += 1;
            if batch.rounds <= PATIENCE {
                self.batch = Some(batch);
                return Step::Waiting;
            }
            for gfn in busy {
                self.put_back(&mut batch, gfn, env);
            }
        }
        if batch.pages.is_empty() {
            return Step::Progress;
        }
        if let Err(err) = env.grace() {
            return self.give_up(batch, err.kind(), env);
        }
        // Whoever trapped since is unanswered, because its page is parked.
        for gfn in requests(&batch, env) {
            contend(&mut batch, gfn);
            self.put_back(&mut batch, gfn, env);
        }
        self.change(batch, env)
    }

    /// A batch from the queue, of pages that still are to go.
    fn form(&mut self, env: &impl UnmarkEnv) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut room = BATCH;
        while room > 0 {
            let Some(work) = self.queue.pop_front() else {
                break;
            };
            let mut parts = work.pages.batches(room);
            let Some(now) = parts.next() else { break };
            if now.last() < work.pages.last()
                && let Ok(rest) = GfnRange::new(now.last() + 1, work.pages.last())
            {
                self.queue.push_front(Work {
                    pages: rest,
                    ..work
                });
            }
            room -= now.pages();
            self.queued -= now.pages();
            let member = Member {
                attempts: work.attempts,
                parked: false,
                contended: work.contended,
            };
            let leaving = now.iter().filter(|gfn| env.is_leaving(*gfn));
            batch.pages.extend(leaving.map(|gfn| (gfn.0, member)));
        }
        (!batch.pages.is_empty()).then_some(batch)
    }

    /// Looks at the slots: pages with a waiting request leave the batch, pages in service are returned.
    fn drain(&mut self, batch: &mut Batch, env: &impl UnmarkEnv) -> Vec<Gfn> {
        let mut busy: Vec<Gfn> = batch
            .pages
            .iter()
            .filter(|(_, m)| !m.parked)
            .map(|(gfn, _)| Gfn(*gfn))
            .collect();
        let mut waiting = Vec::new();
        env.look(&mut |look| match look {
            Look::Waiting(gfn) => waiting.push(gfn),
            Look::Late(gfn) => contend(batch, gfn),
            Look::Serving(gfn) | Look::Answered(gfn) => {
                if let Some(member) = batch.pages.get_mut(&gfn.0) {
                    member.contended = true;
                    busy.push(gfn);
                }
            }
        });
        for gfn in waiting {
            contend(batch, gfn);
            self.put_back(batch, gfn, env);
            busy.retain(|other| *other != gfn);
        }
        busy
    }

    /// The page is not at rest: it leaves the batch, its requests are answered, and it is tried again.
    fn put_back(&mut self, batch: &mut Batch, gfn: Gfn, env: &impl UnmarkEnv) {
        let Some(member) = batch.pages.remove(&gfn.0) else {
            return;
        };
        if member.parked {
            env.unpark(gfn);
        }
        let again = Work {
            pages: gfn.into(),
            attempts: member.attempts + 1,
            contended: member.contended,
        };
        if again.attempts < ATTEMPTS {
            self.queue(again);
        } else {
            self.stubborn.push(again);
        }
    }

    /// Steps 4 and 5 of the protocol.
    fn change(&mut self, mut batch: Batch, env: &impl UnmarkEnv) -> Step {
        for run in runs(&batch) {
            let Err(err) = env.set_type(P2mType::RamRw, run) else {
                continue;
            };
            if err.kind() == ErrorKind::DomainGone {
                return self.give_up(batch, err.kind(), env);
            }
            // One bad page fails the whole call: ask one by one.
            for gfn in run.iter() {
                match env.set_type(P2mType::RamRw, gfn.into()) {
                    Ok(()) => {}
                    // Not RAM (any more), so not marked either.
                    Err(err) if matches!(err.kind(), ErrorKind::WrongState) => {}
                    Err(_) => self.put_back(&mut batch, gfn, env),
                }
            }
        }
        for gfn in requests(&batch, env) {
            // It trapped before the change and will look at the type when it is answered. If the mark cannot be put back, the
            // answer is a risk to the guest, but no answer is a certain loss.
            let _marked = env.set_type(P2mType::IoreqServer, gfn.into());
            contend(&mut batch, gfn);
            self.put_back(&mut batch, gfn, env);
        }
        for run in runs(&batch) {
            env.forget(run);
            self.unmarked += run.pages();
        }
        let contended = batch.pages.values().filter(|member| member.contended);
        self.contended += contended.count() as u64;
        Step::Progress
    }

    /// The hypervisor refuses to go on: for a domain that is gone nothing is left to do; else the pages wait as stubborn.
    fn give_up(&mut self, batch: Batch, kind: ErrorKind, env: &impl UnmarkEnv) -> Step {
        self.refused += 1;
        if kind == ErrorKind::DomainGone {
            runs(&batch).into_iter().for_each(|run| env.forget(run));
            return Step::Progress;
        }
        for (gfn, member) in batch.pages {
            let gfn = Gfn(gfn);
            if member.parked {
                env.unpark(gfn);
            }
            self.stubborn.push(Work {
                contended: member.contended,
                ..Work::new(gfn.into())
            });
        }
        Step::Progress
    }
}

/// The guest writes to the page although it leaves.
fn contend(batch: &mut Batch, gfn: Gfn) {
    if let Some(member) = batch.pages.get_mut(&gfn.0) {
        member.contended = true;
    }
}

fn park(batch: &mut Batch, env: &impl UnmarkEnv) {
    for (gfn, member) in &mut batch.pages {
        member.parked = member.parked || env.park(Gfn(*gfn));
    }
}

/// The batch's pages that a slot holds an unanswered request for. Parked pages get no answers, so whatever is there waits.
fn requests(batch: &Batch, env: &impl UnmarkEnv) -> Vec<Gfn> {
    let mut found = Vec::new();
    env.look(&mut |look| {
        if let Look::Waiting(gfn) | Look::Serving(gfn) = look
            && batch.pages.contains_key(&gfn.0)
            && !found.contains(&gfn)
        {
            found.push(gfn);
        }
    });
    found
}

/// The batch as ranges, for as few hypercalls as possible.
fn runs(batch: &Batch) -> Vec<GfnRange> {
    let mut runs: Vec<GfnRange> = Vec::new();
    for gfn in batch.pages.keys() {
        let longer = runs.last().and_then(|run| {
            (run.last() + 1 == *gfn)
                .then(|| GfnRange::new(run.first(), *gfn).ok())
                .flatten()
        });
        match (longer, runs.last_mut()) {
            (Some(longer), Some(last)) => *last = longer,
            _ => runs.push(Gfn(*gfn).into()),
        }
    }
    runs
}

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
