// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Taking the mark off a page: what goes wrong, and the way that does not.

use ioreq_core::{VcpuId, Width};

use crate::rig::{Domain, End, GuestOp, IOREQ_SERVER, Options, Outcome, RAM_RW, Rig, Run, Version};
use crate::support::layout::{MMIO, PLAIN, PORT, TRACKED, VGA, addr, mmio, ports};
use crate::support::{Answer, Server, Unmarked, drive, run, safe_unmark, shown, until};

const WIDTH: Width = Width::B4;
const IN: GuestOp = GuestOp::read_port(PORT, WIDTH);
const BURST: u32 = 64;

fn word(i: u64) -> u64 {
    addr(TRACKED, 4 * i)
}

fn write(value: u64) -> GuestOp {
    GuestOp::store(word(0), WIDTH, value)
}

fn burst(value: u64) -> GuestOp {
    GuestOp::rep_stos(word(0), WIDTH, value, BURST)
}

fn claimed<R: Rig>(rig: &R) -> (R::Domain, Server<R::Domain>) {
    let domain = rig.domain(Options::default());
    let server = Server::up_claimed(&domain);
    server.map(ports(0x500, 0x5ff));
    server.mark(TRACKED);
    (domain, server)
}

/// Where the guest says that it is past the replay, and where it is told to go on. In one program, so that the vCPU never
/// sleeps in between: a latched answer is gone as soon as Xen's scheduler has had a look at the vCPU.
const THERE: u64 = PLAIN;
const GO: u64 = PLAIN + 0x100;

/// `op` traps, the page becomes ram_rw, the server answers in its way; the guest is past `op` and waits to do `next`.
fn replayed<D: Domain>(
    domain: &D,
    server: &mut Server<D>,
    op: GuestOp,
    answer: Answer,
    next: Option<GuestOp>,
) -> D::Run {
    let there = GuestOp::store(THERE, WIDTH, 1);
    let wait = GuestOp::Await { addr: GO, value: 1 };
    let mut ops = vec![op, there, wait];
    ops.extend(next);
    let guest = domain.start(VcpuId(0), &ops);
    server.wait_ready(0);
    server.unmark(TRACKED);
    server.serve(0, answer);
    until("the guest to be past the replay", || {
        server.load(THERE, WIDTH) == 1
    });
    server.seen.clear();
    guest
}

/// Lets the guest do what is next, and serves it.
fn go_on<D: Domain>(guest: D::Run, server: &mut Server<D>, answer: Answer) -> Outcome {
    server.poke(GO, WIDTH, 1);
    drive(&guest, &mut [server], |_| answer);
    guest.join()
}

pub(crate) fn unmark_replay_store<R: Rig>(rig: &R) {
    for (answer, held) in [(Answer::Drop, 0), (Answer::Data(0x99), 0x99)] {
        let (domain, mut server) = claimed(rig);
        let guest = replayed(&domain, &mut server, write(0x11), answer, None);
        let expected = match rig.version() {
            Version::V4_17 => held,
            Version::V4_20 => 0x11,
        };
        assert_eq!(server.load(word(0), WIDTH), expected, "{answer:?}");
        go_on(guest, &mut server, Answer::Apply).back();
    }
}

/// After a replay that left its answer behind, the vCPU stores `value` to the same place, which is tracked again: how many
/// requests come of it.
fn same_place_again<R: Rig>(rig: &R, value: u64) -> usize {
    let (domain, mut server) = claimed(rig);
    let guest = replayed(
        &domain,
        &mut server,
        write(0x11),
        Answer::Drop,
        Some(write(value)),
    );
    server.poke(word(0), WIDTH, 0);
    server.mark(TRACKED);
    go_on(guest, &mut server, Answer::Drop).back();
    let sent = server.take_seen().len();
    assert_eq!(server.load(word(0), WIDTH), 0, "nobody stored it");
    // The latched answer is used up: another I/O is nothing special any more.
    run(&domain, &[IN], &mut [&mut server]).back();
    assert_eq!(server.take_seen().len(), 1);
    sent
}

fn same_place<R: Rig>(rig: &R, value: u64) {
    match rig.version() {
        Version::V4_17 => assert_eq!(same_place_again(rig, value), 1),
        Version::V4_20 => shown(rig, "swallowed", || match same_place_again(rig, value) {
            0 => Ok(()),
            sent => Err(sent),
        }),
    }
}

pub(crate) fn unmark_replay_identical<R: Rig>(rig: &R) {
    same_place(rig, 0x11);
}

pub(crate) fn unmark_replay_other_data<R: Rig>(rig: &R) {
    same_place(rig, 0x12);
}

/// After a replay that left its answer behind, the vCPU does `op`.
fn next_io<R: Rig>(rig: &R, op: GuestOp) -> (Outcome, usize) {
    let (domain, mut server) = claimed(rig);
    let guest = replayed(&domain, &mut server, write(0x11), Answer::Drop, Some(op));
    server.mark(TRACKED);
    let outcome = go_on(guest, &mut server, Answer::Apply);
    (outcome, server.take_seen().len())
}

pub(crate) fn unmark_replay_next_io<R: Rig>(rig: &R) {
    let elsewhere = GuestOp::store(word(1), WIDTH, 0x11);
    let narrower = GuestOp::store(word(0), Width::B2, 0x11);
    for op in [IN, elsewhere, narrower] {
        match rig.version() {
            Version::V4_17 => {
                let (outcome, sent) = next_io(rig, op);
                outcome.back();
                assert_eq!(sent, 1);
            }
            Version::V4_20 => shown(rig, "a domain crash", || next_io(rig, op).0.crash()),
        }
    }
}

pub(crate) fn unmark_replay_rep<R: Rig>(rig: &R) {
    shown(rig, "a domain crash", || {
        let (domain, mut server) = claimed(rig);
        let guest = replayed(&domain, &mut server, burst(0x22), Answer::Drop, Some(IN));
        for i in 0..u64::from(BURST) {
            assert_eq!(server.load(word(i), WIDTH), 0x22, "element {i}");
        }
        go_on(guest, &mut server, Answer::Apply).crash()
    });
}

/// A small generator of numbers, so that a failure can be seen again.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (self.0 >> 16) % bound
    }
}

/// Serves `count` requests of vCPU 0, or fewer if the guest comes back; as it is from then on.
fn serve_some<D: Domain>(guest: &D::Run, server: &mut Server<D>, count: u32) {
    for _ in 0..count {
        until("a request", || server.is_ready(0) || guest.is_back());
        if server.serve(0, Answer::Apply).is_none() {
            return;
        }
    }
}

pub(crate) fn unmark_trap_visible<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    let mut numbers = Numbers(7);
    for round in 1..=50 {
        // Plain stores, one after the other: any of them may be on its way.
        let ops: Vec<_> = (0..BURST)
            .map(|i| GuestOp::store(word(u64::from(i)), WIDTH, round))
            .collect();
        let guest = domain.start(VcpuId(0), &ops);
        serve_some(&guest, &mut server, numbers.below(BURST));
        loop {
            server.grace();
            if server.serve(0, Answer::Apply).is_some() {
                continue;
            }
            server.unmark(TRACKED);
            if !server.is_ready(0) {
                break;
            }
            // It trapped under the old type, and is visible by now.
            server.mark(TRACKED);
            server.serve(0, Answer::Apply);
        }
        // Nothing more may come: whatever was not READY goes to RAM.
        server.seen.clear();
        drive(&guest, &mut [&mut server], |_| Answer::Apply);
        guest.join().back();
        assert_eq!(server.take_seen(), [], "a trap that was not visible");
        for i in 0..u64::from(BURST) {
            assert_eq!(server.load(word(i), WIDTH), round, "element {i}");
        }
        server.mark(TRACKED);
    }
}

/// Stores and bursts, and after each answer `unmark`, which takes the mark off if no request is waiting, and says whether it did:
/// the type could catch the vCPU between an answer and its re-execution.
fn unmarked_between<R: Rig>(rig: &R, unmark: impl Fn(&R::Domain, &Server<R::Domain>) -> bool) {
    let (domain, mut server) = claimed(rig);
    for round in 1..=60 {
        let stores = 20 * round..20 * round + 20;
        let (ops, last): (Vec<_>, _) = if round % 2 == 0 {
            (vec![burst(round), IN], round)
        } else {
            (
                stores.clone().map(write).chain([IN]).collect(),
                stores.end - 1,
            )
        };
        let guest = domain.start(VcpuId(0), &ops);
        for _ in 0..20 {
            until("a request", || server.is_ready(0) || guest.is_back());
            if server.serve(0, Answer::Apply).is_none() {
                break;
            }
            server.answers_seen();
            if unmark(&domain, &server) {
                break;
            }
        }
        drive(&guest, &mut [&mut server], |_| Answer::Apply);
        guest.join().back();
        assert_eq!(server.load(word(0), WIDTH), last, "round {round}");
        if domain.mem_type(TRACKED) == RAM_RW {
            server.mark(TRACKED);
        }
    }
}

pub(crate) fn unmark_grace_period<R: Rig>(rig: &R) {
    unmarked_between(rig, |_, server| {
        server.grace();
        // Without a trap of the next store in the slot, nobody is between answer and re-execution now.
        if server.is_ready(0) {
            return false;
        }
        server.unmark(TRACKED);
        let slipped_in = server.is_ready(0);
        if slipped_in {
            // It trapped between the look and the change.
            server.mark(TRACKED);
        }
        !slipped_in
    });
}

pub(crate) fn unmark_grace_keeps<R: Rig>(rig: &R) {
    let options = Options {
        vcpus: 2,
        ..Options::full()
    };
    let domain = rig.domain(options);
    let mut server = Server::up_with_ring(&domain);
    server.map(ports(0x500, 0x5ff));
    server.map(mmio(MMIO, 0x1000));
    server.map(mmio(VGA, 0x2_0000));
    let store = GuestOp::store(VGA, WIDTH, 1);
    run(&domain, &[store], &mut []).back();
    let guest = domain.start(VcpuId(0), &[IN]);
    let before = server.wait_ready(0);
    let eports = [0, 1].map(|vcpu| server.page().vp_eport(vcpu));
    for _ in 0..3 {
        server.enable();
    }
    assert_eq!(server.raw(0), before);
    assert_eq!([0, 1].map(|vcpu| server.page().vp_eport(vcpu)), eports);
    assert_eq!(server.ring().pointers(), (0, 1));
    server.serve(0, Answer::Data(0x66));
    assert_eq!(guest.join().value(), 0x66);
    let load = GuestOp::load(MMIO, WIDTH);
    run(&domain, &[load], &mut [&mut server]).back();
}

pub(crate) fn unmark_naive<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    let mut numbers = Numbers(12345);
    for value in 1..=200 {
        let guest = domain.start(VcpuId(0), &[burst(value), IN]);
        serve_some(&guest, &mut server, 1 + numbers.below(BURST - 1));
        // The last one is answered; its vCPU did not re-execute it yet, or has it, as it happens.
        server.unmark(TRACKED);
        drive(&guest, &mut [&mut server], |_| Answer::Apply);
        let end = guest.join().end;
        if matches!(end, End::Crashed(_)) {
            return;
        }
        assert_eq!(end, End::Back);
        server.mark(TRACKED);
    }
    panic!("200 bursts, and no crash");
}

pub(crate) fn unmark_safe<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    let mut numbers = Numbers(12345);
    let plain = crate::support::layout::PLAIN;
    for value in 1..=200 {
        // Stores of one value, and copies of a pattern, in turn.
        let op = if value % 2 == 0 {
            burst(value)
        } else {
            for i in 0..u64::from(BURST) {
                server.poke(plain + 4 * i, WIDTH, value);
            }
            GuestOp::rep_movs(plain, word(0), WIDTH, BURST)
        };
        let guest = domain.start(VcpuId(0), &[op, IN]);
        serve_some(&guest, &mut server, numbers.below(BURST + 16));
        let unmarked = safe_unmark(&mut server, TRACKED);
        drive(&guest, &mut [&mut server], |_| Answer::Apply);
        guest.join().back();
        for i in 0..u64::from(BURST) {
            assert_eq!(
                server.load(word(i), WIDTH),
                value,
                "burst {value}, element {i}"
            );
        }
        if matches!(unmarked, Unmarked::Done(_)) {
            assert_eq!(domain.mem_type(TRACKED), RAM_RW);
            server.mark(TRACKED);
        }
        server.seen.clear();
    }
}

pub(crate) fn unmark_bounded<R: Rig>(rig: &R) {
    let (domain, mut server) = claimed(rig);
    let guest = domain.start(VcpuId(0), &[burst(1), burst(2), burst(3), burst(4), IN]);
    serve_some(&guest, &mut server, 3);
    let unmarked = safe_unmark(&mut server, TRACKED);
    let expected = match unmarked {
        Unmarked::Done(_) => RAM_RW,
        Unmarked::Deferred => IOREQ_SERVER,
    };
    assert_eq!(domain.mem_type(TRACKED), expected);
    drive(&guest, &mut [&mut server], |_| Answer::Apply);
    guest.join().back();
    for i in 0..u64::from(BURST) {
        assert_eq!(server.load(word(i), WIDTH), 4);
    }
    if unmarked == Unmarked::Deferred {
        // The page is quiet now.
        assert_eq!(safe_unmark(&mut server, TRACKED), Unmarked::Done(1));
    }
    server.mark(TRACKED);
    assert_eq!(safe_unmark(&mut server, TRACKED), Unmarked::Done(1));
}

pub(crate) fn unmark_paused<R: Rig>(rig: &R) {
    unmarked_between(rig, |domain, server| {
        domain.pause();
        // Nothing slips in now.
        let quiet = !server.is_ready(0);
        if quiet {
            server.unmark(TRACKED);
        }
        domain.unpause();
        quiet
    });
}
