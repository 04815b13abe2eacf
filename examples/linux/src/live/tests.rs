// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The view, drawn into a terminal that is memory.

use std::sync::{Arc, Mutex};

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::server::IoreqServer;
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{PortRange, VcpuId};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;

struct Register(Mutex<u64>);

impl Handler for Register {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        (*self.0.lock().unwrap()).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        match value {
            0 => WriteOutcome::Refused("not that"),
            value => {
                *self.0.lock().unwrap() = value;
                WriteOutcome::Done
            }
        }
    }
}

fn server() -> (Domain, IoreqServer<SimHypervisor>) {
    let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
    let builder = IoreqServer::<SimHypervisor>::builder(Arc::new(domain.hypervisor()));
    let server = builder.sample_latency(1).build().unwrap();
    let range = PortRange::sized(0x500, 16).unwrap();
    server
        .route("register", range, Register(Mutex::new(1)))
        .unwrap();
    (domain, server)
}

/// What a terminal of that size shows.
fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let text = terminal.backend().to_string();
    text.lines()
        .map(|line| line.trim_matches('"').trim_end().to_owned())
        .collect()
}

fn shows(lines: &[String], words: &[&str]) -> bool {
    lines.iter().any(|line| {
        let mut rest = line.as_str();
        words.iter().all(|word| match rest.split_once(word) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    })
}

#[test]
fn counts_rates_routes_and_words_are_shown() {
    let (domain, server) = server();
    let mut view = View::default();
    assert!(shows(&drawn(&view, 80, 30), &["nothing is served yet"]));
    view.take(Duration::from_secs(10), vec![("devices", server.report())]);
    let lines = drawn(&view, 80, 30);
    assert!(
        shows(&lines, &["domain 1", "10 s", "vCPUs 0 1"]),
        "{lines:#?}"
    );
    assert!(
        shows(&lines, &["port read", "0", "-"]),
        "no rate yet: {lines:#?}"
    );
    assert!(shows(&lines, &["nothing is wrong"]));

    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        for _ in 0..100 {
            cpu.inb(0x500)?;
        }
        cpu.outb(0x500, 0)
    });
    guest.unwrap().join().unwrap();
    view.take(
        Duration::from_millis(10_500),
        vec![("devices", server.report())],
    );
    view.say("guest: \u{1b}[2Jhello");
    let lines = drawn(&view, 80, 30);
    assert!(
        shows(&lines, &["port read", "100", "200"]),
        "200 a second: {lines:#?}"
    );
    assert!(
        shows(&lines, &["devices: register", "100", "1", "202", "1"]),
        "{lines:#?}"
    );
    assert!(shows(&lines, &["refused 1"]), "{lines:#?}");
    assert!(!shows(&lines, &["nothing is wrong"]));
    assert!(shows(&lines, &["99 of 100 within", " us"]));
    assert!(shows(&lines, &["guest: [2Jhello"]), "no escape: {lines:#?}");
    running.stop().unwrap();
}

#[test]
fn a_vcpu_that_waits_is_marked() {
    let (domain, server) = server();
    let guest = domain.spawn(VcpuId(1), |cpu| cpu.inb(0x500)).unwrap();
    while server.report().waiting() == 0 {
        std::thread::yield_now();
    }
    let mut view = View::default();
    view.take(Duration::ZERO, vec![("devices", server.report())]);
    assert!(shows(&drawn(&view, 80, 30), &["vCPUs 0 1* "]));
    while !guest.is_finished() {
        server.poll().unwrap();
    }
    view.take(Duration::ZERO, vec![("devices", server.report())]);
    assert!(
        shows(&drawn(&view, 80, 30), &["vCPUs 0 1 "]),
        "and no time passed"
    );
}

#[test]
fn any_size_of_a_terminal_and_any_number_of_words_will_do() {
    let (_domain, server) = server();
    let mut view = View::default();
    view.take(Duration::ZERO, vec![("devices", server.report())]);
    for number in 0..2 * LINES {
        view.say(&format!("line {number}"));
    }
    assert_eq!(view.lines().count(), LINES);
    let last = format!("line {}", 2 * LINES - 1);
    assert!(shows(&drawn(&view, 80, 40), &[&last]), "the newest is seen");
    for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 100), (300, 4)] {
        drawn(&view, width, height);
    }
    // A domain without servers.
    view.take(Duration::ZERO, Vec::new());
    assert!(shows(&drawn(&view, 80, 30), &["domain -"]));
}
