// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A whole device model for a Linux guest on the `ioreq` framework: everything that Xen does not emulate itself.
//!
//! | device | where | by |
//! | --- | --- | --- |
//! | [`Console`](console::Console) | ports 0x3f8 to 0x3ff, IRQ 4 | `vm-superio`'s 16550 |
//! | [`HostBridge`](host_bridge::HostBridge) | ports 0xcf8 to 0xcfb, 00:00.0 | `ioreq::backends::pci` |
//! | [`Power`](power::Power) | ports 0xb004 and 0xb005, 0xcf9 | the domain's shutdown |
//! | block device | 00:03.0, MSI-X | [`virtio`] |
//! | random numbers | a page of MMIO, a line | [`virtio`] |
//! | [`Watcher`](watcher::Watcher) | ports 0x520 to 0x52b | write tracking, `ioreq::backends::write_log` |
//! | [`Nobody`](nobody::Nobody) | everything else | an older server of the same domain |
//!
//! What the devices take in can be [recorded](replay), and played to the same devices on the model.
//!
//! The device model may die: what the guest made of the devices' registers is [kept](saved), and another process goes on.
//!
//! [`Board`](board::Board) puts them together on any hypervisor: the program runs them on a real Xen, the tests on the model.

pub mod board;
pub mod console;
pub mod host_bridge;
#[cfg(feature = "live")]
pub mod live;
pub mod metrics;
pub mod nobody;
pub mod power;
pub mod replay;
pub mod rescue;
pub mod saved;
pub mod virtio;
pub mod watcher;
