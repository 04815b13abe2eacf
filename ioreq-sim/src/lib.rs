// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A strict in-process model of Xen, as far as an ioreq server can see it, to develop and test device models on.
//!
//! A [`Machine`] is one hypervisor, a [`Domain`] a guest on it, a [`SimHypervisor`] one device-model process's handle on that
//! guest: it implements the traits of [`ioreq_core::hypervisor`], so whatever is built on those runs here as on Xen.
//! A [`Cpu`] executes guest instructions; [`Domain::spawn`] runs a guest program on a vCPU's thread. Slots and rings are real
//! shared memory with real atomics, event channels are eventfds, guest memory is `vm-memory` memory.
//!
//! The model does not forgive: the errno of each misuse is Xen's, an answer without a notification is never seen, an illegal
//! state in a slot crashes the domain, a server that never acquired its ioreq page panics the hypervisor, and a page
//! that changes its type while a write to it is not yet executed again leaves an answer behind that crashes the guest later.
//!
//! # A device by hand
//!
//! ```
//! use ioreq_core::slot::Slots;
//! use ioreq_core::{BufIoreq, EventChannels, PortRange, Transport, VcpuId};
//! use ioreq_sim::{DomainConfig, Machine};
//!
//! let machine = Machine::new();
//! let domain = machine.create_domain(DomainConfig::new(1))?;
//!
//! // The device model, in the safe order: create, acquire, enable, bind, then ranges.
//! let hv = domain.hypervisor();
//! let id = hv.create_server(BufIoreq::Off)?;
//! let slots = Slots::new(hv.ioreq_page(id)?, hv.vcpus()?)?;
//! hv.set_server_state(id, true)?;
//! let slot = slots.get(VcpuId(0)).unwrap();
//! let events = hv.open_events()?;
//! let port = events.bind(slot.vp_eport())?;
//! hv.map_range(id, PortRange::new(0x500, 0x503)?.into())?;
//!
//! // The guest.
//! let guest = domain.spawn(VcpuId(0), |cpu| {
//!     cpu.outl(0x500, 0xcafe)?;
//!     cpu.inl(0x500)
//! })?;
//!
//! // Serve both requests: the write, then the read.
//! let mut seen = Vec::new();
//! while seen.len() < 2 {
//!     let Some(taken) = slot.take() else {
//!         std::thread::yield_now(); // a real one sleeps on its file descriptor
//!         continue;
//!     };
//!     seen.push(taken.raw().data);
//!     let _answered = taken.answer(Some(0x1234));
//!     events.notify(port)?; // without it the vCPU never looks
//! }
//! assert_eq!(seen[0], 0xcafe);
//! assert_eq!(guest.join(), Ok(0x1234));
//!
//! // Nothing stays behind.
//! events.unbind(port)?;
//! hv.destroy_server(id)?;
//! assert!(domain.leaks().is_clean());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Schedules, faults, hostility
//!
//! Left alone, vCPU threads run freely: for stress and benchmarks ([`VcpuWait`] says how they wait). A [`Schedule`] runs guest
//! programs and a device model one step at a time in an order that a seed decides, so that a failure can be replayed.
//! [`Faults`] loses, doubles and delays events and lets hypercalls fail half-way; [`Hostile`] rewrites the shared pages;
//! [`SimHypervisor::kill`] is `kill -9`. [`Domain::leaks`] tells what was left behind.
//!
//! # Versions
//!
//! [`XenVersion`] chooses between behaviours that differ. Test on [all of them](XenVersion::ALL).
//!
//! # What the model does not model
//!
//! * Paging, segments, privilege, instruction decoding, time: a guest address is a guest-physical address, an instruction is a
//!   method of [`Cpu`].
//! * Interrupt delivery: injections are logged and queued for [`Cpu::wait_interrupt`]. There is no APIC, no vector priority; an
//!   event of `inject_event` is pending until the program takes it.
//! * Other users of guest memory: PV back ends, grants, page sharing. A page that is given back does not come again. Guest writes
//!   are recorded for video memory (`track_dirty_vram`), not in log-dirty mode: of that only its refusals and `modified_memory`
//!   are there.
//! * The legacy way of mapping ioreq pages at guest frames, but for the errors it leads to.
//! * Arm. IOMMUs. Nested virtualisation. `relocate_memory`.
//! * More exclusion than on Xen is given in one place: all faults hold the p2m lock one by one on Xen, here they only exclude
//!   `set_mem_type`, not each other.

mod config;
mod counts;
mod cpu;
mod dmop_bytes;
mod domain;
mod evtchn;
mod fate;
mod faults;
mod gate;
mod hostile;
mod hypervisor;
mod interrupts;
mod machine;
mod memory;
mod p2m;
mod process;
mod raw;
mod schedule;
mod servers;
mod vcpu;
mod version;

pub use config::{DomainConfig, VcpuWait};
pub use counts::Counts;
pub use cpu::Cpu;
pub use domain::{Domain, GfnArg, LeakReport, SimMemory};
pub use evtchn::SimEvents;
pub use fate::{CpuFault, CrashReason, StopReason, StuckReason, VcpuExit};
pub use faults::Faults;
pub use hostile::{Hostile, HostileRing, HostileSlots};
pub use hypervisor::SimHypervisor;
pub use interrupts::Injected;
pub use machine::{Machine, MachineBuilder};
pub use raw::RawDmop;
pub use schedule::{Place, Schedule, ScheduleReport};
pub use servers::pages::RawSlot;
pub use vcpu::VcpuThread;
pub use version::XenVersion;
