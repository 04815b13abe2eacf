// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a request costs between READY seen and RESP_READY stored: nothing that need not be. Needs the feature `audit`.
#![cfg(feature = "audit")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ioreq::audit::{CountingAllocator, report, reset};
use ioreq::claim::PageTracker;
use ioreq::handler::{
    Access, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome, WriteOutcome,
};
use ioreq::server::{IoreqServer, Workers};
use ioreq::sim::{Cpu, CpuFault, DomainConfig, Machine};
use ioreq::{GfnRange, MmioRange, PortRange, VcpuId};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

struct Nothing;

impl Handler for Nothing {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        ReadOutcome::Value(0)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

impl PageHandler for Nothing {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// Runs a program on each of two vCPUs with a worker each, and reports on the workers.
fn audited(
    watched: bool,
    vcpus: [u32; 2],
    program: fn(&mut Cpu, u64) -> Result<(), CpuFault>,
) -> Vec<ioreq::audit::ThreadReport> {
    let domain = Machine::new().create_domain(DomainConfig::new(3)).unwrap();
    let mut server = IoreqServer::builder(domain.hypervisor()).workers(Workers::PerVcpu);
    if watched {
        server = server.handler_budget(Duration::from_secs(600));
    }
    let server = server.build().unwrap();
    server
        .route(
            "mmio",
            MmioRange::sized(0xe000_0000, 0x1000).unwrap(),
            Nothing,
        )
        .unwrap();
    server
        .route("ports", PortRange::sized(0x100, 8).unwrap(), Nothing)
        .unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    tracker
        .track(GfnRange::sized(0x100, 0x400).unwrap(), Arc::new(Nothing))
        .unwrap();
    reset();
    let running = server.start().unwrap();
    let guests = [0, 1].map(|guest: usize| {
        let vcpu = vcpus[guest];
        domain
            .spawn(VcpuId(vcpu), move |cpu| program(cpu, guest as u64))
            .unwrap()
    });
    for guest in guests {
        guest.join().unwrap();
    }
    running.stop().unwrap();
    report()
}

#[test]
fn a_request_takes_no_lock_allocates_nothing_and_has_one_read_modify_write() {
    for watched in [false, true] {
        let reports = audited(watched, [0, 2], |cpu, vcpu| {
            for round in 0..500 {
                cpu.store64(((0x100 + vcpu * 0x200) << 12) + round % 512 * 8, round)?;
                cpu.store32(0xe000_0000, 1)?;
                cpu.load32(0xe000_0004)?;
                cpu.outb(0x100, 1)?;
                cpu.inb(0x101)?;
            }
            Ok(())
        });
        let requests: u64 = reports.iter().map(|report| report.requests).sum();
        assert_eq!(requests, 2 * 5 * 500, "every request was audited");
        for report in &reports {
            assert_eq!(
                (report.most_locks, report.most_allocations),
                (0, 0),
                "{report:?}"
            );
            assert_eq!(report.most_rmws, 1, "the order of a page, and nothing else");
            assert_eq!(report.most_fences, 0);
        }
    }
}

/// Cache lines that both of two workers stored to, while their vCPUs wrote disjoint pages.
fn common_lines(watched: bool, vcpus: [u32; 2]) -> Vec<usize> {
    let reports = audited(watched, vcpus, |cpu, guest| {
        (0..500).try_for_each(|round| {
            cpu.store64(((0x100 + guest * 0x200) << 12) + round % 512 * 8, round)
        })
    });
    // The third worker has nothing to do, and no request of its own.
    let busy: Vec<&BTreeSet<usize>> = reports
        .iter()
        .filter(|report| report.requests > 0)
        .map(|report| &report.stored_lines)
        .collect();
    let [first, second] = busy[..] else {
        panic!("{} workers", busy.len())
    };
    first.intersection(second).copied().collect()
}

#[test]
fn two_workers_on_disjoint_pages_store_to_no_common_cache_line() {
    for watched in [false, true] {
        assert_eq!(
            common_lines(watched, [0, 2]),
            Vec::<usize>::new(),
            "both store to these"
        );
    }
}

/// Xen puts two slots into a cache line. That the audit sees it shows that it sees stores to slots at all.
#[test]
fn neighbouring_vcpus_share_the_line_of_their_slots_and_no_other() {
    assert_eq!(common_lines(false, [0, 1]).len(), 1);
}
