// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Saved state and take-over records as another machine, or a broken disk, may give them: they are taken as a whole or refused
//! as a whole, and the device works on.

mod devices;
mod edit;
mod record;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq_core::server::{IoreqServer, SavedServer};
use ioreq_core::snapshot::{MutSnapshot, SavedState, Snapshot, Versioned};
use ioreq_core::{BufIoreq, Gfn, GfnRange, IoRange, MmioRange, PortRange, Sbdf, Width};
use ioreq_sim::{DomainConfig, Machine};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::script::Script;
use edit::edit;

/// One input.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let script = &mut script;
    match script.below(8) {
        0 => bank(script),
        1 => log(script),
        2 | 3 => function(script),
        4 => pvinfo(script),
        5 => server(script),
        6 => record::read(script),
        _ => record::take_over(script),
    }
}

/// A state that was written, changed on its way, and read. None if that is refused.
fn received<S>(state: S, script: &mut Script) -> Option<S>
where
    S: SavedState + Serialize + DeserializeOwned + Clone + PartialEq + Debug,
{
    let text = serde_json::to_string(&Versioned(state.clone())).expect("plain data");
    let edited = edit(text.clone(), script);
    let read = serde_json::from_slice::<Versioned<S>>(&edited);
    if edited == text.as_bytes() {
        assert_eq!(read.as_ref().ok(), Some(&Versioned(state)), "unchanged");
    }
    let Versioned(read) = match read {
        Ok(read) => read,
        Err(err) => {
            assert!(!err.to_string().is_empty());
            return None;
        }
    };
    let again = serde_json::to_string(&Versioned(read.clone())).expect("plain data");
    let again = serde_json::from_str::<Versioned<S>>(&again).expect("what was written is read");
    assert_eq!(again.0, read);
    Some(read)
}

fn bank(script: &mut Script) {
    let (from, mut to) = (devices::bank(script), devices::bank(script));
    let Some(state) = received(MutSnapshot::save(&from), script) else {
        return;
    };
    let before = MutSnapshot::save(&to);
    match MutSnapshot::restore(&mut to, state.clone()) {
        Ok(()) => assert_eq!(MutSnapshot::save(&to), state),
        Err(err) => {
            assert_eq!(err.kind(), "register bank");
            assert_eq!(MutSnapshot::save(&to), before, "{err}");
        }
    }
}

fn log(script: &mut Script) {
    let (from, to) = (devices::log(), devices::log());
    let Some(state) = received(from.save(), script) else {
        return;
    };
    let before = to.save();
    match to.restore(state.clone()) {
        Ok(()) => assert_eq!(to.save(), state),
        Err(err) => assert_eq!(to.save(), before, "{err}"),
    }
}

fn function(script: &mut Script) {
    let (from, to) = (devices::function(script), devices::function(script));
    let Some(state) = received(from.save(), script) else {
        return;
    };
    let before = to.save();
    let read_only = |function: &ioreq_backends::pci::PciFunction| {
        [0, 8, 0x2c, 0x34].map(|at| function.register(at, Width::B4))
    };
    let header = read_only(&to);
    match to.restore(state) {
        Ok(()) => {
            let after = to.save();
            to.restore(after.clone()).expect("its own");
            assert_eq!(to.save(), after, "the same again");
        }
        Err(err) => assert_eq!(to.save(), before, "{err}"),
    }
    assert_eq!(read_only(&to), header, "read-only");
    for _ in 0..4 {
        let (at, width) = (script.below(0x110), script.width());
        let read = devices::access(&*to, at, width, None);
        assert_eq!(read.is_some(), at + width.bytes() <= 0x100);
        devices::access(&*to, at, width, Some(u64::MAX));
    }
    assert_eq!(read_only(&to), header, "read-only");
}

fn pvinfo(script: &mut Script) {
    let ((from, _), (to, shadow)) = (devices::pvinfo(script), devices::pvinfo(script));
    for _ in 0..script.below(3) {
        let at = script.one_of(&[0x818, 0x838, 0x840, 0x828, 0x10]);
        devices::access(&from, at, script.width(), Some(script.edgy()));
    }
    let Some(state) = received(from.save(), script) else {
        return;
    };
    let before = to.save();
    match to.restore(state.clone()) {
        Ok(()) => assert_eq!(to.save(), state),
        Err(err) => {
            let unchanged = to.save() == before;
            assert!(unchanged || shadow.roots().is_empty(), "{err}");
        }
    }
    assert_eq!(
        devices::access(&to, 0, Width::B8, None),
        devices::access(&from, 0, Width::B8, None)
    );
    assert!(shadow.roots().len() <= 4);
}

struct Zero;

impl Handler for Zero {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        0.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

fn server(script: &mut Script) {
    let machine = Machine::new();
    let make = |ring: bool| {
        let ram = GfnRange::sized(0, 8).expect("some pages");
        let config = DomainConfig::new(1).memory(ram);
        let domain = machine.create_domain(config).expect("a domain");
        IoreqServer::builder(domain.hypervisor())
            .buffered(if ring {
                BufIoreq::Atomic
            } else {
                BufIoreq::Off
            })
            .last_gfn(Gfn(15))
            .build()
            .expect("a server")
    };
    let (from, to) = (make(script.take()), make(script.take()));
    let added = script.take::<u8>();
    let ranges = [
        PortRange::new(0x500, 0x503).map(IoRange::from),
        MmioRange::sized(0xe000_0000, 0x1000).map(IoRange::from),
        MmioRange::new(u64::MAX - 7, u64::MAX).map(IoRange::from),
        Ok(Sbdf::from_bits(0x28).into()),
    ];
    for (bit, range) in ranges.into_iter().enumerate() {
        if added >> bit & 1 != 0 {
            from.route("zero", range.expect("in order"), Zero)
                .expect("free");
        }
    }
    let claim = (added & 16 != 0).then(|| from.claim_mem_type().expect("free"));
    if let Some(claim) = &claim {
        use ioreq_core::claim::PageTracker;
        use ioreq_core::handler::{PageHandler, PageOutcome, PageWrite};
        struct Pass;
        impl PageHandler for Pass {
            fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
                PageOutcome::Apply
            }
        }
        let pages = GfnRange::sized(2, 3).expect("three pages");
        claim
            .tracker("pages")
            .track(pages, Arc::new(Pass))
            .expect("plain memory");
    }
    let bound = Duration::from_secs(60);
    let saved = from.quiesce(bound).expect("nothing is under way").save();
    let Some(state) = received::<SavedServer>(saved, script) else {
        return;
    };
    let names: Vec<String> = state.trackers().map(str::to_owned).collect();
    for name in &names {
        assert!(state.pages(name).all(|pages| pages.first() <= pages.last()));
    }
    let wanted: Vec<_> = state
        .routes()
        .map(|(name, range)| (name.to_owned(), range))
        .collect();
    let restored = state.restore_routes(&to, |_, _| Some(Arc::new(Zero)));
    to.poll().expect("not in a handler");
    let there = to.quiesce(bound).expect("nothing is under way").save();
    let there: Vec<_> = there
        .routes()
        .map(|(name, range)| (name.to_owned(), range))
        .collect();
    match restored {
        Ok(ids) => {
            assert_eq!(ids.len(), wanted.len());
            assert_eq!(there, wanted);
        }
        Err(err) => {
            assert!(there.len() <= wanted.len(), "{err}");
            assert_eq!(there[..], wanted[..there.len()], "those before the bad one");
        }
    }
}
