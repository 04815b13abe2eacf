// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dispatch, for people: `cargo bench --bench dispatch [-- FILTER]`. Criterion shows how figures change from run to run;
//! the comparison with peers, for the record, is `cargo xtask bench`.

#[path = "../support/mod.rs"]
mod support;

use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use criterion::{Throughput, measurement::WallTime};

use support::contender::{Contender, check, serve_checked};
use support::layout::Layout;
use support::ours::{BarePages, Pages, Ports, Ranges};
use support::peers::{
    Direct, MutexVmDevice, Papaya, RwHash, RwTree, RwVmDevice, VmDevice, VmDevicePorts,
    VmDeviceTree, io_manager,
};
use support::walk::{Pattern, Walk};

/// Writes between two checks of the answers.
const WRITES: u32 = 4096;

fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    contender: &dyn Contender,
    layout: Layout,
) {
    check(name, contender, layout);
    group.throughput(Throughput::Elements(WRITES.into()));
    for pattern in [
        Pattern::Hot,
        Pattern::Sequential,
        Pattern::Random,
        Pattern::Chained,
    ] {
        let id = BenchmarkId::new(name, pattern.name());
        group.bench_function(id, |bencher| {
            let mut walk = Walk::new(layout, pattern, 0);
            serve_checked(contender, &mut walk, WRITES);
            bencher.iter_custom(|batches| {
                let started = Instant::now();
                for _ in 0..batches {
                    contender.serve(&mut walk, WRITES);
                }
                started.elapsed()
            });
            serve_checked(contender, &mut walk, WRITES);
        });
    }
}

fn ports(criterion: &mut Criterion) {
    for count in [8, 256] {
        let layout = Layout::ports(count);
        let mut group = criterion.benchmark_group(format!("ports/{count}"));
        bench(&mut group, "ours", &Ports::new(layout), layout);
        bench(&mut group, "vm-device", &VmDevicePorts::new(layout), layout);
    }
}

fn ranges(criterion: &mut Criterion) {
    for count in [8, 256, 8192] {
        for (name, layout) in [
            ("aligned", Layout::aligned(count)),
            ("small", Layout::small(count)),
        ] {
            let mut group = criterion.benchmark_group(format!("ranges-{name}/{count}"));
            bench(&mut group, "ours", &Ranges::new(layout), layout);
            bench(&mut group, "direct", &Direct::new(layout), layout);
            let bare = VmDevice(io_manager(layout));
            bench(&mut group, "vm-device", &bare, layout);
            let locked = RwVmDevice(RwLock::new(io_manager(layout)));
            bench(&mut group, "vm-device-rwlock", &locked, layout);
            let locked = MutexVmDevice(Mutex::new(io_manager(layout)));
            bench(&mut group, "vm-device-mutex", &locked, layout);
            bench(&mut group, "rwlock-btree", &RwTree::new(layout), layout);
        }
    }
}

fn pages(criterion: &mut Criterion) {
    for count in [256, 8192, 1_000_000] {
        for (name, devices) in [("few", 8), ("each", count)] {
            let layout = Layout::pages(count, devices);
            let mut group = criterion.benchmark_group(format!("pages-{name}/{count}"));
            let pages = Arc::new(Pages::new(layout));
            bench(&mut group, "ours", &pages, layout);
            bench(&mut group, "ours-bare", &BarePages(pages), layout);
            bench(&mut group, "direct", &Direct::new(layout), layout);
            let tree = VmDeviceTree::new(layout);
            bench(&mut group, "vm-device-tree", &tree, layout);
            bench(&mut group, "rwlock-hash", &RwHash::new(layout), layout);
            bench(&mut group, "papaya", &Papaya::new(layout), layout);
        }
    }
}

criterion_group!(benches, ports, ranges, pages);
criterion_main!(benches);
