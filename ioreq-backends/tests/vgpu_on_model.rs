// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadows under a guest on the embedded model, by the framework's own tracking: in the end the shadow is what the guest wrote, pages
//! that are no tables any more are the guest's again, and nothing is left behind.

mod vgpu_rig;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ioreq_backends::vgpu::{OutOfSync, Root, RootId};
use ioreq_core::claim::{PageState, PageTracker};
use ioreq_core::{Gfn, P2mType, VcpuId};
use ioreq_sim::{Cpu, CpuFault, VcpuThread, XenVersion};
use vgpu_rig::Rig;

const VERSIONS: [XenVersion; 2] = [XenVersion::V4_17, XenVersion::V4_20];

fn policies() -> [OutOfSync; 2] {
    [
        OutOfSync::off(),
        OutOfSync::after(NonZeroU32::new(8).unwrap()),
    ]
}

/// PML4 0x10, PDP 0x11, PD 0x12, PT 0x13.
fn space(rig: &Rig) -> RootId {
    for (table, entry) in [(0x10, 0x11_003), (0x11, 0x12_003), (0x12, 0x13_003)] {
        rig.entry(table, 0, entry);
    }
    rig.shadow.create(Root::L4(Gfn(0x10))).unwrap()
}

fn spawn<T: Send + 'static>(
    rig: &Rig,
    vcpu: u32,
    program: impl FnOnce(&mut Cpu) -> Result<T, CpuFault> + Send + 'static,
) -> VcpuThread<T> {
    rig.domain.spawn(VcpuId(vcpu), program).unwrap()
}

/// Every entry of the page table 0x13 is shown as it is, at the address of directory entry `index`.
fn check(rig: &Rig, root: RootId, index: u64) {
    for n in 0..512 {
        let entry = rig.word(0x13_000 + n * 8);
        let expected = (entry & 1 != 0).then_some(entry & 0x3fff_ffff_f000);
        assert_eq!(
            rig.leads_to(root, index << 21 | n << 12),
            expected,
            "entry {n}"
        );
    }
}

/// Ends the address space; what is left of the rig is clean.
fn end(rig: Rig, root: RootId) {
    rig.shadow.destroy(root).unwrap();
    let report = rig.claim.settle(Duration::from_secs(10)).unwrap();
    assert!(report.deferred.is_empty());
    assert_eq!(rig.claim.marked_pages(), 0);
    assert_eq!(rig.domain.crash_reason(), None);
    drop(rig.claim);
    rig.server.destroy().unwrap();
    let leaks = rig.domain.leaks();
    assert!(leaks.is_clean(), "{leaks:?}");
}

#[test]
fn two_vcpus_write_one_table_while_a_third_unlinks_and_links_it() {
    for (version, policy) in VERSIONS.into_iter().zip(policies()) {
        let rig = Rig::with(version, 3, policy);
        let root = space(&rig);
        let running = rig.server.start().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..2_u64)
            .map(|vcpu| {
                let program = move |cpu: &mut Cpu| {
                    for round in 0..1500_u64 {
                        // The same few entries, whole and in halves; the last round's value stays.
                        let (at, frame) = (0x13_000 + round % 16 * 8, 0x100 + round % 50 + vcpu);
                        if (round + vcpu) % 3 == 0 {
                            cpu.store32(at + 4, 0)?;
                            cpu.store32(at, u32::try_from(frame << 12 | 3).unwrap())?;
                        } else {
                            cpu.store64(at, frame << 12 | 1)?;
                        }
                    }
                    Ok(())
                };
                spawn(&rig, u32::try_from(vcpu).unwrap(), program)
            })
            .collect();
        let (shadow, ended) = (rig.shadow.clone(), Arc::clone(&stop));
        let mover = spawn(&rig, 2, move |cpu| {
            let mut moves = 0_u64;
            while !ended.load(Ordering::Relaxed) || moves < 20 {
                cpu.store64(0x12_000, 0)?;
                cpu.store64(0x12_008 + moves % 3 * 8, 0x13_003)?;
                shadow.submit(root);
                cpu.store64(0x12_008 + moves % 3 * 8, 0)?;
                cpu.store64(0x12_000, 0x13_003)?;
                moves += 1;
            }
            Ok(moves)
        });
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(mover.join().unwrap() >= 20);
        rig.shadow.submit(root);
        check(&rig, root, 0);
        running.stop().unwrap();
        end(rig, root);
    }
}

#[test]
fn a_table_written_before_every_submission_stops_trapping() {
    for version in VERSIONS {
        let rig = Rig::with(version, 1, policies()[1]);
        let root = space(&rig);
        let running = rig.server.start().unwrap();
        let burst = |round: u64| {
            let program = move |cpu: &mut Cpu| {
                (0..512)
                    .try_for_each(|n| cpu.store64(0x13_000 + n * 8, (0x100 + round + n) << 12 | 1))
            };
            spawn(&rig, 0, program).join().unwrap();
            rig.shadow.submit(root);
            check(&rig, root, 0);
        };
        burst(0);
        burst(1);
        assert_eq!(rig.shadow.stats().out_of_sync, 1);
        rig.claim.settle(Duration::from_secs(10)).unwrap();
        assert_eq!(rig.tracker.state(Gfn(0x13)), PageState::Untracked);
        let before = rig.server.stats().page_writes;
        (2..12).for_each(burst);
        assert_eq!(
            rig.server.stats().page_writes,
            before,
            "not one write trapped"
        );
        let stats = rig.shadow.stats();
        assert_eq!((stats.traps_avoided, stats.protected_again), (9 * 512, 0));
        // At rest it is tracked again, and the next write traps.
        (0..4).for_each(|_| rig.shadow.submit(root));
        assert_eq!(rig.domain.mem_type(Gfn(0x13)), Some(P2mType::IoreqServer));
        spawn(&rig, 0, |cpu| cpu.store64(0x13_000, 0x77_001))
            .join()
            .unwrap();
        assert_eq!(rig.server.stats().page_writes, before + 1);
        check(&rig, root, 0);
        running.stop().unwrap();
        end(rig, root);
    }
}

/// Submissions come while two vCPUs write, so that the table leaves, and is taken back, in the middle of their bursts.
#[test]
fn a_table_leaves_and_comes_back_under_two_writers() {
    for version in VERSIONS {
        let rig = Rig::with(version, 2, policies()[1]);
        let root = space(&rig);
        let running = rig.server.start().unwrap();
        let (written, paused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (pause, stop) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let writers: Vec<_> = (0..2_u64)
            .map(|vcpu| {
                let (written, paused) = (Arc::clone(&written), Arc::clone(&paused));
                let (pause, stop) = (Arc::clone(&pause), Arc::clone(&stop));
                let program = move |cpu: &mut Cpu| {
                    let mut round = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        if pause.load(Ordering::SeqCst) {
                            paused.fetch_add(1, Ordering::SeqCst);
                            while pause.load(Ordering::SeqCst) {
                                std::thread::yield_now();
                            }
                            paused.fetch_sub(1, Ordering::SeqCst);
                        }
                        // Some entries of its own, some that both write.
                        let index = if round.is_multiple_of(3) {
                            500
                        } else {
                            vcpu * 256
                        } + round % 7;
                        let entry = (0x100 + round % 90) << 12 | 1 | vcpu << 1;
                        cpu.store64(0x13_000 + index * 8, entry)?;
                        round += 1;
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                };
                spawn(&rig, u32::try_from(vcpu).unwrap(), program)
            })
            .collect();
        for _ in 0..12 {
            for _ in 0..10 {
                let before = written.load(Ordering::Relaxed);
                while written.load(Ordering::Relaxed) < before + 32 {
                    std::thread::yield_now();
                }
                rig.shadow.submit(root);
            }
            pause.store(true, Ordering::SeqCst);
            while paused.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            for _ in 0..5 {
                rig.shadow.submit(root);
                check(&rig, root, 0);
            }
            assert_eq!(
                rig.shadow.stats().out_of_sync_now,
                0,
                "at rest it is tracked"
            );
            pause.store(false, Ordering::SeqCst);
            while paused.load(Ordering::SeqCst) > 0 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        rig.shadow.submit(root);
        check(&rig, root, 0);
        let stats = rig.shadow.stats();
        assert!(stats.out_of_sync >= 2, "{stats:?}");
        running.stop().unwrap();
        end(rig, root);
    }
}

#[test]
fn a_table_page_is_the_guests_own_again_and_may_be_a_table_once_more() {
    for (version, policy) in VERSIONS.into_iter().zip(policies()) {
        let rig = Rig::with(version, 1, policy);
        let root = space(&rig);
        let running = rig.server.start().unwrap();
        for round in 0..30_u64 {
            let program = move |cpu: &mut Cpu| {
                cpu.store64(0x12_000, 0)?; // the table goes
                for n in 0..64 {
                    cpu.store64(0x13_000 + n * 8, u64::MAX - round)?; // and is data at once
                    assert_eq!(cpu.load64(0x13_000 + n * 8)?, u64::MAX - round);
                }
                (0..64).try_for_each(|n| cpu.store64(0x13_000 + n * 8, 0))?;
                cpu.store64(0x12_000, 0x13_003)?; // and a table
                (0..16)
                    .try_for_each(|n| cpu.store64(0x13_000 + n * 8, (0x100 + round + n) << 12 | 3))
            };
            spawn(&rig, 0, program).join().unwrap();
            if round % 3 == 0 {
                rig.claim.settle(Duration::from_secs(10)).unwrap();
            }
            rig.shadow.submit(root);
            check(&rig, root, 0);
        }
        spawn(&rig, 0, |cpu| cpu.store64(0x12_000, 0))
            .join()
            .unwrap();
        rig.claim.settle(Duration::from_secs(10)).unwrap();
        assert_eq!(rig.domain.mem_type(Gfn(0x13)), Some(P2mType::RamRw));
        assert_eq!(rig.shadow.stats().tables_freed, 31);
        running.stop().unwrap();
        end(rig, root);
    }
}
