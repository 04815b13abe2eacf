// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The write log on the embedded model: several vCPUs write the same pages, and the log agrees with memory.

use std::collections::BTreeMap;

use ioreq_backends::write_log::WriteLog;
use ioreq_core::claim::PageTracker;
use ioreq_core::handler::WriteSource;
use ioreq_core::server::IoreqServer;
use ioreq_core::{GfnRange, GuestMap, GuestRam, VcpuId, Width};
use ioreq_sim::{DomainConfig, Machine};
use vm_memory::GuestAddress;

const VCPUS: u32 = 3;
const FIRST: u64 = 0x100;
const PAGES: u64 = 4;
const WRITES: u64 = 400;

#[test]
fn replaying_the_log_gives_what_memory_holds() {
    let domain = Machine::new()
        .create_domain(DomainConfig::new(VCPUS))
        .unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("log");
    let pages = GfnRange::sized(FIRST, PAGES).unwrap();
    let (log, mut reader) = WriteLog::new(1 << 16).unwrap();
    log.track(&tracker, pages).unwrap();
    let running = server.start().unwrap();
    let vcpus: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let program = move |cpu: &mut ioreq_sim::Cpu| {
                for turn in 0..WRITES {
                    // Few places, so that all vCPUs write the same ones.
                    let place = turn % (PAGES * 3);
                    let addr = (FIRST + place % PAGES) * 4096 + place / PAGES * 6;
                    cpu.store64(addr, u64::from(vcpu) << 32 | turn)?;
                }
                Ok(())
            };
            domain.spawn(VcpuId(vcpu), program).unwrap()
        })
        .collect();
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
    tracker.untrack(pages).unwrap();
    drop(claim);
    running.stop().unwrap();

    let mut replayed: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last_turn = vec![None; VCPUS as usize];
    let mut count = 0;
    for record in reader.drain() {
        count += 1;
        assert_eq!(
            (record.width, record.source),
            (Width::B8, WriteSource::Trapped)
        );
        let next = next.entry(record.gfn.0).or_default();
        assert_eq!(record.sequence, *next, "{record}");
        *next += 1;
        // A vCPU's next write traps after its last one was answered: in the order of the program.
        let turn = &mut last_turn[record.vcpu.0 as usize];
        let written = record.value & 0xffff_ffff;
        assert_eq!(record.value >> 32, u64::from(record.vcpu.0));
        assert!(turn.is_none_or(|last| last + 1 == written), "{record}");
        *turn = Some(written);
        let page = replayed
            .entry(record.gfn.0)
            .or_insert_with(|| vec![0; 4096]);
        let offset = usize::from(record.offset);
        page[offset..offset + 8].copy_from_slice(&record.value.to_le_bytes());
    }
    assert_eq!((count, reader.lost()), (u64::from(VCPUS) * WRITES, 0));
    let memory = domain.hypervisor().memory();
    for gfn in pages.iter() {
        let mut page = vec![0; 4096];
        let start: GuestAddress = gfn.start().unwrap();
        GuestRam::read(&*memory, start, &mut page).unwrap();
        assert!(replayed.get(&gfn.0) == Some(&page), "{gfn} differs");
    }
    drop(log);
    server.destroy().unwrap();
}
