// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where things are in the guest: the same on both hypervisors.

/// Guest-physical address of the PVINFO page: offset 0x78000 of a BAR at 0xe000_0000.
pub const PVINFO: u64 = 0xe007_8000;
/// Guest-physical address of the engine's page.
pub const ENGINE: u64 = 0xe008_0000;
/// First frame of the 1 GiB aperture.
pub const APERTURE: u64 = 1 << 20;
/// Frames of the aperture.
pub const APERTURE_FRAMES: u64 = 1 << 18;
/// First frame of the reservation: behind the aperture.
pub const RESERVED: u64 = APERTURE + APERTURE_FRAMES;
/// First frame of the drivers' arenas: behind any reservation, beyond 4 GiB, so that both halves of an entry matter.
pub const ARENAS: u64 = 1 << 22;

/// The guest's lock around PVINFO's registers, and after it what it protects besides them.
pub const LOCK: u64 = 0x8_0000;
/// u64: contexts alive now, of all drivers.
pub const ALIVE: u64 = LOCK + 8;
/// u64: the most there were.
pub const MOST_ALIVE: u64 = LOCK + 16;
/// The page where two drivers meet, and those of the next pairs behind it: room for 8 pairs.
pub const MEETINGS: u64 = 0x8_1000;
/// The first vCPU's control block (see [`control`](crate::control)); room for 16.
pub const CONTROL: u64 = 0x9_0000;
/// All of these are below this frame, which the model's guest has as memory, and nothing tracks.
pub const LOW_FRAMES: u64 = 0x1000;

/// The vector of the engine's interrupt.
pub const VECTOR: u8 = 0x41;
/// The address that the engine's interrupt is sent to: the first vCPU's local APIC.
pub const APIC: u64 = 0xfee0_0000;

/// The most drivers.
pub const MOST_VCPUS: u32 = 16;
/// Frames of a context's slice of the aperture.
pub(crate) const SLICE: u64 = 64;
/// Slices of one driver: 16 drivers with 256 fill the 1 GiB.
pub(crate) const SLICES: u64 = 256;
