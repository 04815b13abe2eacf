// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The protocol against a world that tests describe look by look.

use super::*;
use crate::error::{Error, Op};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A world where tests say what the slots hold at each look, and that records what was done.
#[derive(Default)]
struct World {
    leaving: RefCell<BTreeSet<u64>>,
    parked: RefCell<BTreeSet<u64>>,
    held: RefCell<BTreeSet<u64>>,
    /// What each following look sees; an empty slot page when used up.
    looks: RefCell<VecDeque<Vec<Look>>>,
    marked: RefCell<BTreeSet<u64>>,
    graces: RefCell<u32>,
    type_calls: RefCell<u32>,
    fail_grace: RefCell<Option<i32>>,
    not_ram: BTreeSet<u64>,
    /// Pages whose type cannot be changed now.
    no_memory: RefCell<BTreeSet<u64>>,
}

impl World {
    fn of(pages: GfnRange) -> Self {
        let all: BTreeSet<u64> = (pages.first()..=pages.last()).collect();
        World {
            leaving: all.clone().into(),
            marked: all.into(),
            ..World::default()
        }
    }

    fn sees(self, looks: impl IntoIterator<Item = Vec<Look>>) -> Self {
        self.looks.borrow_mut().extend(looks);
        self
    }
}

impl UnmarkEnv for World {
    fn park(&self, gfn: Gfn) -> bool {
        let free = !self.held.borrow().contains(&gfn.0);
        free && self.parked.borrow_mut().insert(gfn.0)
    }
    fn unpark(&self, gfn: Gfn) {
        assert!(
            self.parked.borrow_mut().remove(&gfn.0),
            "{gfn} was not parked"
        );
    }
    fn is_leaving(&self, gfn: Gfn) -> bool {
        self.leaving.borrow().contains(&gfn.0)
    }
    fn look(&self, seen: &mut dyn FnMut(Look)) {
        self.looks
            .borrow_mut()
            .pop_front()
            .unwrap_or_default()
            .into_iter()
            .for_each(seen);
    }
    fn grace(&self) -> Result<()> {
        *self.graces.borrow_mut() += 1;
        match *self.fail_grace.borrow() {
            Some(errno) => Err(Error::from_errno(Op::SetServerState, errno)),
            None => Ok(()),
        }
    }
    fn set_type(&self, ty: P2mType, pages: GfnRange) -> Result<()> {
        *self.type_calls.borrow_mut() += 1;
        let mut marked = self.marked.borrow_mut();
        for gfn in pages.iter() {
            if self.not_ram.contains(&gfn.0) {
                return Err(Error::from_errno(Op::SetMemType, libc::EINVAL));
            }
            if self.no_memory.borrow().contains(&gfn.0) {
                return Err(Error::from_errno(Op::SetMemType, libc::ENOMEM));
            }
            if ty == P2mType::RamRw {
                assert!(
                    self.parked.borrow().contains(&gfn.0),
                    "{gfn} changed while served"
                );
                marked.remove(&gfn.0);
            } else {
                marked.insert(gfn.0);
            }
        }
        Ok(())
    }
    fn forget(&self, pages: GfnRange) {
        for gfn in pages.iter() {
            let left = self.leaving.borrow_mut().remove(&gfn.0);
            assert!(left, "{gfn} is not leaving, or left before");
            self.parked.borrow_mut().remove(&gfn.0);
        }
    }
}

fn pages(first: u64, len: u64) -> GfnRange {
    GfnRange::sized(first, len).unwrap()
}

/// Steps until idle; returns how many steps waited.
fn settle(unmarker: &mut Unmarker, world: &World) -> u32 {
    let mut waits = 0;
    for _ in 0..100_000 {
        match unmarker.step(world) {
            Step::Idle => return waits,
            Step::Waiting => waits += 1,
            Step::Progress => {}
        }
    }
    panic!("never idle");
}

#[test]
fn quiet_pages_cost_one_grace_and_one_call_a_run() {
    let world = World::of(pages(0x100, 300));
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(0x100, 300));
    assert_eq!(settle(&mut unmarker, &world), 0);
    assert_eq!(unmarker.unmarked(), 300);
    assert!(world.marked.borrow().is_empty() && world.parked.borrow().is_empty());
    assert_eq!((*world.graces.borrow(), *world.type_calls.borrow()), (1, 1));
}

#[test]
fn an_unconsumed_answer_is_waited_for() {
    let answered = vec![Look::Answered(Gfn(5))];
    let world = World::of(pages(5, 1)).sees([answered.clone(), answered.clone(), answered]);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 1));
    for _ in 0..3 {
        assert_eq!(unmarker.step(&world), Step::Waiting);
        assert_eq!(*world.graces.borrow(), 0, "the type may not change yet");
    }
    assert_eq!(unmarker.step(&world), Step::Progress);
    assert_eq!(unmarker.unmarked(), 1);
}

#[test]
fn a_waiting_request_is_answered_while_its_page_is_marked() {
    let world = World::of(pages(5, 2)).sees([vec![Look::Waiting(Gfn(5))]]);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 2));
    assert_eq!(unmarker.step(&world), Step::Progress);
    assert!(
        !world.parked.borrow().contains(&5),
        "its request can be served now"
    );
    assert_eq!(
        *world.marked.borrow(),
        BTreeSet::from([5]),
        "the other page is done"
    );
    settle(&mut unmarker, &world);
    assert_eq!(unmarker.unmarked(), 2);
}

#[test]
fn a_page_in_service_is_waited_for_although_another_one_leaves_the_batch() {
    for busy in [Look::Serving(Gfn(6)), Look::Answered(Gfn(6))] {
        let world = World::of(pages(5, 3)).sees([vec![Look::Waiting(Gfn(5)), busy]]);
        let mut unmarker = Unmarker::default();
        unmarker.push(pages(5, 3));
        assert_eq!(unmarker.step(&world), Step::Waiting);
        assert_eq!(*world.graces.borrow(), 0, "6 is not at rest");
        assert_eq!(*world.parked.borrow(), BTreeSet::from([6, 7]));
        settle(&mut unmarker, &world);
        assert_eq!(unmarker.unmarked(), 3);
    }
}

#[test]
fn a_request_after_the_grace_period_keeps_its_page_marked() {
    let world = World::of(pages(5, 1)).sees([vec![], vec![Look::Waiting(Gfn(5))]]);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 1));
    unmarker.step(&world);
    assert_eq!(*world.type_calls.borrow(), 0);
    assert!(world.parked.borrow().is_empty());
}

#[test]
fn a_trap_just_before_the_change_gets_its_mark_back() {
    for late in [Look::Waiting(Gfn(6)), Look::Serving(Gfn(6))] {
        let world = World::of(pages(5, 3)).sees([vec![], vec![], vec![late]]);
        let mut unmarker = Unmarker::default();
        unmarker.push(pages(5, 3));
        unmarker.step(&world);
        assert_eq!(
            *world.marked.borrow(),
            BTreeSet::from([6]),
            "marked when it is answered"
        );
        assert!(world.is_leaving(Gfn(6)) && world.parked.borrow().is_empty());
        settle(&mut unmarker, &world);
        assert_eq!(unmarker.unmarked(), 3);
    }
}

#[test]
fn pages_that_are_written_while_they_leave_are_counted_once_they_are_unmarked() {
    let of = |looks: &[&[Look]]| {
        let looks: Vec<Vec<Look>> = looks.iter().map(|look| look.to_vec()).collect();
        let world = World::of(pages(5, 2)).sees(looks);
        let mut unmarker = Unmarker::default();
        unmarker.push(pages(5, 2));
        settle(&mut unmarker, &world);
        (unmarker.unmarked(), unmarker.contended())
    };
    let five = Gfn(5);
    assert_eq!(of(&[]), (2, 0));
    for look in [
        Look::Waiting(five),
        Look::Serving(five),
        Look::Answered(five),
    ] {
        assert_eq!(of(&[&[look], &[look]]), (2, 1), "{look:?}");
    }
    // Seen after the grace period, and after the change.
    assert_eq!(of(&[&[], &[Look::Waiting(five)]]), (2, 1));
    assert_eq!(of(&[&[], &[], &[Look::Waiting(five)]]), (2, 1));
    assert_eq!(of(&[&[Look::Waiting(Gfn(9))]]), (2, 0), "another page's");
    // Nothing is in flight now, but was: that is no reason to wait.
    assert_eq!(of(&[&[Look::Late(five), Look::Late(Gfn(9))]]), (2, 1));
    // One that is wanted again is not unmarked.
    let world = World::of(pages(5, 1)).sees([vec![Look::Answered(five)]]);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 1));
    unmarker.step(&world);
    world.leaving.borrow_mut().remove(&5);
    unmarker.cancel(five, &world);
    settle(&mut unmarker, &world);
    assert_eq!((unmarker.unmarked(), unmarker.contended()), (0, 0));
}

#[test]
fn a_page_whose_order_is_held_waits() {
    let world = World::of(pages(5, 1));
    world.held.borrow_mut().insert(5);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 1));
    assert_eq!(unmarker.step(&world), Step::Waiting);
    world.held.borrow_mut().clear();
    settle(&mut unmarker, &world);
    assert_eq!(unmarker.unmarked(), 1);
}

#[test]
fn a_tight_writer_is_given_up_on_and_the_rest_goes_through() {
    let busy = vec![Look::Answered(Gfn(5))];
    let world = World::of(pages(5, 2)).sees(std::iter::repeat_n(busy, 1_000_000));
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 2));
    let waits = settle(&mut unmarker, &world);
    assert_eq!(waits, PATIENCE * ATTEMPTS);
    assert_eq!(unmarker.unmarked(), 1);
    assert_eq!(unmarker.stubborn(), [pages(5, 1)]);
    assert!(world.marked.borrow().contains(&5) && world.is_leaving(Gfn(5)));
    assert!(world.parked.borrow().is_empty(), "its writes are served");
    world.looks.borrow_mut().clear();
    unmarker.retry_stubborn();
    settle(&mut unmarker, &world);
    assert_eq!((unmarker.unmarked(), unmarker.stubborn().len()), (2, 0));
    assert_eq!(unmarker.contended(), 1, "however long it took");
}

#[test]
fn a_page_taken_back_leaves_batch_and_queue() {
    let world = World::of(pages(5, 2)).sees([vec![Look::Answered(Gfn(5))]]);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 2));
    assert_eq!(unmarker.step(&world), Step::Waiting);
    world.leaving.borrow_mut().remove(&5);
    unmarker.cancel(Gfn(5), &world);
    assert!(!world.parked.borrow().contains(&5));
    settle(&mut unmarker, &world);
    assert_eq!(*world.marked.borrow(), BTreeSet::from([5]));
    unmarker.push(pages(5, 1));
    settle(&mut unmarker, &world);
    assert!(
        world.marked.borrow().contains(&5),
        "in the queue, but not leaving"
    );
}

#[test]
fn a_page_that_is_no_ram_does_not_hold_up_its_neighbours() {
    let mut world = World::of(pages(5, 3));
    world.not_ram.insert(6);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 3));
    settle(&mut unmarker, &world);
    assert_eq!(*world.marked.borrow(), BTreeSet::from([6]));
    assert!(
        world.leaving.borrow().is_empty(),
        "all three have lost their routes"
    );
}

#[test]
fn a_page_whose_mark_stays_keeps_its_route_and_is_tried_again() {
    let world = World::of(pages(5, 3));
    world.no_memory.borrow_mut().insert(6);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 3));
    assert_eq!(unmarker.step(&world), Step::Progress);
    assert_eq!(*world.marked.borrow(), BTreeSet::from([6]));
    assert!(world.is_leaving(Gfn(6)), "its writes have to be answered");
    assert!(world.parked.borrow().is_empty());
    assert_eq!(unmarker.unmarked(), 2);
    world.no_memory.borrow_mut().clear();
    settle(&mut unmarker, &world);
    assert!(world.marked.borrow().is_empty());
    assert_eq!(unmarker.unmarked(), 3);
}

#[test]
fn a_refused_grace_period_leaves_everything_marked_and_served() {
    let world = World::of(pages(5, 3));
    *world.fail_grace.borrow_mut() = Some(libc::EAGAIN);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 3));
    settle(&mut unmarker, &world);
    assert_eq!(world.marked.borrow().len(), 3);
    assert!(world.parked.borrow().is_empty());
    assert_eq!(unmarker.stubborn().len(), 3);
    assert_eq!(unmarker.refused(), 1);
    unmarker.retry_stubborn();
    settle(&mut unmarker, &world);
    assert_eq!(unmarker.refused(), 2, "who waits for the pages sees it");
    *world.fail_grace.borrow_mut() = Some(libc::ESRCH);
    unmarker.retry_stubborn();
    settle(&mut unmarker, &world);
    assert!(
        world.leaving.borrow().is_empty(),
        "a domain that is gone has no pages"
    );
}

#[test]
fn a_refusal_does_not_make_forget_that_the_guest_wrote() {
    let world = World::of(pages(5, 2)).sees([vec![Look::Late(Gfn(5))]]);
    *world.fail_grace.borrow_mut() = Some(libc::EAGAIN);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(5, 2));
    settle(&mut unmarker, &world);
    assert_eq!((unmarker.unmarked(), unmarker.contended()), (0, 0));
    *world.fail_grace.borrow_mut() = None;
    unmarker.retry_stubborn();
    settle(&mut unmarker, &world);
    assert_eq!((unmarker.unmarked(), unmarker.contended()), (2, 1));
}

#[test]
fn batches_are_bounded_and_runs_are_cut_at_gaps() {
    let world = World::of(pages(0, 3 * BATCH));
    world.leaving.borrow_mut().remove(&10);
    let mut unmarker = Unmarker::default();
    unmarker.push(pages(0, 3 * BATCH));
    settle(&mut unmarker, &world);
    assert_eq!(unmarker.unmarked(), 3 * BATCH - 1);
    assert_eq!((*world.graces.borrow(), *world.type_calls.borrow()), (3, 4));
    assert_eq!(*world.marked.borrow(), BTreeSet::from([10]));
}
