// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Registers of a channel: byte offsets within its 64 bytes. All are written with their own width; reads give them back.

/// u64: the root pointer (guest-physical address of the PML4) of the address space to use; bit 0 set for the first of
/// the four directories of a 32-bit one.
pub const ROOT: u64 = 0x00;
/// u64: GPU address to copy from.
pub const SOURCE: u64 = 0x08;
/// u64: GPU address to copy or fill to.
pub const TARGET: u64 = 0x10;
/// u32: bytes.
pub const LENGTH: u64 = 0x18;
/// u32: the byte (bits 7:0) to fill with.
pub const VALUE: u64 = 0x1c;
/// u64: guest-physical address where the fence is written when the command is done; 0 for none.
pub const FENCE_ADDR: u64 = 0x20;
/// u64: what is written there.
pub const FENCE: u64 = 0x28;
/// u32, read-only: [`Status`](super::Status) of the last command.
pub const STATUS: u64 = 0x30;
/// u32: writing it starts a command: 1 copies, 2 fills.
pub const DOORBELL: u64 = 0x38;
/// Bytes of a channel.
pub const CHANNEL: u64 = 64;
/// Channels of the page.
pub const CHANNELS: u64 = 64;
/// Doorbell value: copy.
pub const COPY: u32 = 1;
/// Doorbell value: fill.
pub const FILL: u32 = 2;
