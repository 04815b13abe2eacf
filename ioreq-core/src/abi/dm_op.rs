// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device-model operations as bytes: `struct xen_dm_op` of `dm_op.h`, member by member of its union.
//!
//! 32 bytes: `op` u32, `pad` u32 (zero), 24 bytes of union. Each struct here is one member, with the C layout (pinned by
//! `tests/abi_headers.rs`) and the operation's number; whoever sends encodes it, whoever answers decodes it. Padding is
//! always zero: Xen refuses anything else.

use std::mem::{offset_of, size_of};

/// The bytes of `struct xen_dm_op`.
pub type DmOpBytes = [u8; 32];

/// Where the union starts in [`DmOpBytes`].
pub const BODY: usize = 8;

/// A device-model operation: one member of the union, and its number.
///
/// ```
/// use ioreq_core::abi::dm_op::{DmOp, SetMemType};
/// let op = SetMemType { nr: 2, mem_type: 4, first_pfn: 0x100, ..Default::default() };
/// let bytes = op.encode();
/// assert_eq!(bytes[..8], [12, 0, 0, 0, 0, 0, 0, 0]);
/// assert_eq!(SetMemType::decode(&bytes), op);
/// ```
pub trait DmOp: Sized {
    /// `XEN_DMOP_*`.
    const NUMBER: u32;

    /// The whole `struct xen_dm_op`.
    fn encode(&self) -> DmOpBytes;

    /// The member, whatever `bytes` says its number is.
    fn decode(bytes: &DmOpBytes) -> Self;
}

/// A field's bytes, in this machine's order: both ends of a hypercall are the same machine.
trait Field: Sized {
    fn put(&self, to: &mut [u8]);
    fn get(from: &[u8]) -> Self;
}

macro_rules! fields {
    ($($ty:ty),*) => {$(
        impl Field for $ty {
            fn put(&self, to: &mut [u8]) {
                to.copy_from_slice(&self.to_ne_bytes());
            }

            fn get(from: &[u8]) -> Self {
                from.try_into().map_or(0, <$ty>::from_ne_bytes)
            }
        }
    )*};
}

fields!(u8, u16, u32, u64);

impl<const N: usize> Field for [u8; N] {
    fn put(&self, to: &mut [u8]) {
        to.copy_from_slice(self);
    }

    fn get(from: &[u8]) -> Self {
        from.try_into().unwrap_or([0; N])
    }
}

macro_rules! op {
    ($(#[$doc:meta])* $name:ident = $number:literal {
        $($(#[$field_doc:meta])* $field:ident: $ty:ty,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        const _: () = assert!(size_of::<$name>() <= size_of::<DmOpBytes>() - BODY);

        impl DmOp for $name {
            const NUMBER: u32 = $number;

            fn encode(&self) -> DmOpBytes {
                let mut bytes = [0; _];
                Self::NUMBER.put(&mut bytes[..4]);
                $({
                    let at = BODY + offset_of!($name, $field);
                    self.$field.put(&mut bytes[at..at + size_of::<$ty>()]);
                })*
                bytes
            }

            fn decode(bytes: &DmOpBytes) -> Self {
                $name {
                    $($field: {
                        let at = BODY + offset_of!($name, $field);
                        Field::get(&bytes[at..at + size_of::<$ty>()])
                    },)*
                }
            }
        }
    };
}

op! {
    /// `XEN_DMOP_create_ioreq_server`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{CreateIoreqServer, DmOp};
    /// assert_eq!(CreateIoreqServer { handle_bufioreq: 2, ..Default::default() }.encode()[8], 2);
    /// ```
    CreateIoreqServer = 1 {
        /// `HVM_IOREQSRV_BUFIOREQ_*`
        handle_bufioreq: u8,
        /// Zero.
        pad: [u8; 3],
        /// Out: the server's id.
        id: u16,
    }
}

op! {
    /// `XEN_DMOP_get_ioreq_server_info`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, GetIoreqServerInfo, XEN_DMOP_NO_GFNS};
    /// let op = GetIoreqServerInfo { id: 3, flags: XEN_DMOP_NO_GFNS, ..Default::default() };
    /// assert_eq!(op.encode()[8..12], [3, 0, 1, 0]);
    /// ```
    GetIoreqServerInfo = 2 {
        /// The server.
        id: u16,
        /// [`XEN_DMOP_NO_GFNS`], or 0.
        flags: u16,
        /// Out: port of the buffered ring, guest side.
        bufioreq_port: u32,
        /// Out: frame of the ioreq page, in the legacy way.
        ioreq_gfn: u64,
        /// Out: frame of the buffered page, in the legacy way.
        bufioreq_gfn: u64,
    }
}

/// `XEN_DMOP_no_gfns`: do not put the server's pages into the guest's address space.
pub const XEN_DMOP_NO_GFNS: u16 = 1;

op! {
    /// `XEN_DMOP_map_io_range_to_ioreq_server`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, MapIoRange};
    /// let op = MapIoRange { id: 1, kind: 0, start: 0x70, end: 0x71, ..Default::default() };
    /// assert_eq!(op.encode()[16], 0x70);
    /// ```
    MapIoRange = 3 {
        /// The server.
        id: u16,
        /// Zero.
        pad: u16,
        /// `XEN_DMOP_IO_RANGE_*`
        kind: u32,
        /// First of the range.
        start: u64,
        /// Last of the range (inclusive).
        end: u64,
    }
}

op! {
    /// `XEN_DMOP_unmap_io_range_from_ioreq_server`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, UnmapIoRange};
    /// assert_eq!(UnmapIoRange { end: 7, ..Default::default() }.encode()[24], 7);
    /// ```
    UnmapIoRange = 4 {
        /// The server.
        id: u16,
        /// Zero.
        pad: u16,
        /// `XEN_DMOP_IO_RANGE_*`
        kind: u32,
        /// First of the range.
        start: u64,
        /// Last of the range (inclusive).
        end: u64,
    }
}

op! {
    /// `XEN_DMOP_set_ioreq_server_state`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, SetIoreqServerState};
    /// assert_eq!(SetIoreqServerState { id: 0, enabled: 1, pad: 0 }.encode()[10], 1);
    /// ```
    SetIoreqServerState = 5 {
        /// The server.
        id: u16,
        /// 0 or 1.
        enabled: u8,
        /// Zero.
        pad: u8,
    }
}

op! {
    /// `XEN_DMOP_destroy_ioreq_server`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DestroyIoreqServer, DmOp};
    /// assert_eq!(DestroyIoreqServer::NUMBER, 6);
    /// ```
    DestroyIoreqServer = 6 {
        /// The server.
        id: u16,
        /// Zero.
        pad: u16,
    }
}

op! {
    /// `XEN_DMOP_track_dirty_vram`; the second buffer gets a bit for each page.
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, TrackDirtyVram};
    /// assert_eq!(TrackDirtyVram { nr: 9, pad: 0, first_pfn: 1 }.encode()[16], 1);
    /// ```
    TrackDirtyVram = 7 {
        /// Number of pages.
        nr: u32,
        /// Zero.
        pad: u32,
        /// First frame.
        first_pfn: u64,
    }
}

op! {
    /// `XEN_DMOP_set_pci_intx_level`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, SetPciIntxLevel};
    /// let op = SetPciIntxLevel { device: 3, intx: 1, level: 1, ..Default::default() };
    /// assert_eq!(op.encode()[8..14], [0, 0, 0, 3, 1, 1]);
    /// ```
    SetPciIntxLevel = 8 {
        /// PCI segment; only 0 exists.
        domain: u16,
        /// PCI bus; only 0 exists.
        bus: u8,
        /// PCI device.
        device: u8,
        /// Pin: 0 is INTA#.
        intx: u8,
        /// 0 or 1.
        level: u8,
    }
}

op! {
    /// `XEN_DMOP_set_isa_irq_level`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, SetIsaIrqLevel};
    /// assert_eq!(SetIsaIrqLevel { isa_irq: 4, level: 1 }.encode()[8..10], [4, 1]);
    /// ```
    SetIsaIrqLevel = 9 {
        /// Line, 0–15.
        isa_irq: u8,
        /// 0 or 1.
        level: u8,
    }
}

op! {
    /// `XEN_DMOP_set_pci_link_route`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, SetPciLinkRoute};
    /// assert_eq!(SetPciLinkRoute { link: 3, isa_irq: 11 }.encode()[8..10], [3, 11]);
    /// ```
    SetPciLinkRoute = 10 {
        /// Link, 0–3.
        link: u8,
        /// ISA line, 1–15; 0 disconnects.
        isa_irq: u8,
    }
}

op! {
    /// `XEN_DMOP_modified_memory`; the second buffer holds [`ModifiedMemoryExtent`]s.
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, ModifiedMemory};
    /// assert_eq!(ModifiedMemory { nr_extents: 2, opaque: 0 }.encode()[8], 2);
    /// ```
    ModifiedMemory = 11 {
        /// Number of extents; out: 1 + the one that failed.
        nr_extents: u32,
        /// Zero; Xen's own.
        opaque: u32,
    }
}

/// `struct xen_dm_op_modified_memory_extent`: 16 bytes.
///
/// ```
/// use ioreq_core::abi::dm_op::ModifiedMemoryExtent;
/// let extent = ModifiedMemoryExtent { nr: 2, first_pfn: 0x100, ..Default::default() };
/// assert_eq!(extent.to_bytes()[9], 1);
/// assert_eq!(ModifiedMemoryExtent::from_bytes(&extent.to_bytes()), extent);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModifiedMemoryExtent {
    /// Number of pages.
    pub nr: u32,
    /// Zero.
    pub pad: u32,
    /// First frame.
    pub first_pfn: u64,
}

impl ModifiedMemoryExtent {
    /// The extent's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.nr.put(&mut bytes[..4]);
        self.pad.put(&mut bytes[4..8]);
        self.first_pfn.put(&mut bytes[8..]);
        bytes
    }

    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 16]) -> Self {
        ModifiedMemoryExtent {
            nr: Field::get(&bytes[..4]),
            pad: Field::get(&bytes[4..8]),
            first_pfn: Field::get(&bytes[8..]),
        }
    }
}

op! {
    /// `XEN_DMOP_set_mem_type`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, SetMemType};
    /// assert_eq!(SetMemType { nr: 1, mem_type: 4, pad: 0, first_pfn: 9 }.encode()[12], 4);
    /// ```
    SetMemType = 12 {
        /// Number of pages.
        nr: u32,
        /// `HVMMEM_*`
        mem_type: u16,
        /// Zero.
        pad: u16,
        /// First frame.
        first_pfn: u64,
    }
}

op! {
    /// `XEN_DMOP_inject_event`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, InjectEvent};
    /// let page_fault = InjectEvent { vector: 14, kind: 3, error_code: 2, cr2: 0x1000, ..Default::default() };
    /// assert_eq!(page_fault.encode()[12..14], [14, 3]);
    /// ```
    InjectEvent = 13 {
        /// The vCPU.
        vcpuid: u32,
        /// Interrupt vector.
        vector: u8,
        /// `XEN_DMOP_EVENT_*`
        kind: u8,
        /// Bytes of the instruction.
        insn_len: u8,
        /// Zero.
        pad0: u8,
        /// Error code; all ones for none.
        error_code: u32,
        /// Zero.
        pad1: u32,
        /// Faulting address of a page fault, pending debug bits of a debug exception.
        cr2: u64,
    }
}

op! {
    /// `XEN_DMOP_inject_msi`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, InjectMsi};
    /// assert_eq!(InjectMsi { data: 0x31, pad: 0, addr: 0xfee0_0000 }.encode()[8], 0x31);
    /// ```
    InjectMsi = 14 {
        /// Message data.
        data: u32,
        /// Zero.
        pad: u32,
        /// Message address.
        addr: u64,
    }
}

op! {
    /// `XEN_DMOP_map_mem_type_to_ioreq_server`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, MapMemType};
    /// assert_eq!(MapMemType { id: 0, kind: 4, flags: 2, opaque: 0 }.encode()[8..13], [0, 0, 4, 0, 2]);
    /// ```
    MapMemType = 15 {
        /// The server.
        id: u16,
        /// `HVMMEM_ioreq_server`
        kind: u16,
        /// `XEN_DMOP_IOREQ_MEM_ACCESS_WRITE` claims, 0 disclaims.
        flags: u32,
        /// Zero, or Xen claims nothing and says 0.
        opaque: u64,
    }
}

op! {
    /// `XEN_DMOP_remote_shutdown`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, RemoteShutdown};
    /// assert_eq!(RemoteShutdown { reason: 1 }.encode()[8], 1);
    /// ```
    RemoteShutdown = 16 {
        /// `SHUTDOWN_*`
        reason: u32,
    }
}

op! {
    /// `XEN_DMOP_relocate_memory`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, RelocateMemory};
    /// assert_eq!(RelocateMemory { size: 1, dst_gfn: 5, ..Default::default() }.encode()[24], 5);
    /// ```
    RelocateMemory = 17 {
        /// Number of frames.
        size: u32,
        /// Zero.
        pad: u32,
        /// From.
        src_gfn: u64,
        /// To.
        dst_gfn: u64,
    }
}

op! {
    /// `XEN_DMOP_pin_memory_cacheattr`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, PinMemoryCacheattr};
    /// assert_eq!(PinMemoryCacheattr { kind: 6, ..Default::default() }.encode()[24], 6);
    /// ```
    PinMemoryCacheattr = 18 {
        /// First frame.
        start: u64,
        /// Last frame (inclusive).
        end: u64,
        /// `XEN_DMOP_MEM_CACHEATTR_*`
        kind: u32,
        /// Zero.
        pad: u32,
    }
}

op! {
    /// `XEN_DMOP_set_irq_level` (Arm)
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, SetIrqLevel};
    /// assert_eq!(SetIrqLevel { irq: 33, level: 1, ..Default::default() }.encode()[12], 1);
    /// ```
    SetIrqLevel = 19 {
        /// SPI.
        irq: u32,
        /// 0 or 1.
        level: u8,
        /// Zero.
        pad: [u8; 3],
    }
}

op! {
    /// `XEN_DMOP_nr_vcpus`
    ///
    /// ```
    /// use ioreq_core::abi::dm_op::{DmOp, NrVcpus};
    /// assert_eq!(NrVcpus::default().encode()[0], 20);
    /// ```
    NrVcpus = 20 {
        /// Out: number of vCPUs.
        vcpus: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_zero_and_every_field_comes_back() {
        let op = InjectEvent {
            vcpuid: 0x0102_0304,
            vector: 5,
            kind: 6,
            insn_len: 7,
            pad0: 0,
            error_code: 0x1112_1314,
            pad1: 0,
            cr2: 0x2122_2324_2526_2728,
        };
        let bytes = op.encode();
        assert_eq!(bytes[4..8], [0; 4]);
        assert_eq!((bytes[15], &bytes[20..24]), (0, &[0; 4][..]));
        assert_eq!(InjectEvent::decode(&bytes), op);
    }

    /// Xen writes into the member; the number stays what it was.
    #[test]
    fn an_answer_is_decoded_from_the_union() {
        let mut bytes = CreateIoreqServer::default().encode();
        bytes[12..14].copy_from_slice(&0x0203_u16.to_ne_bytes());
        assert_eq!(CreateIoreqServer::decode(&bytes).id, 0x0203);
    }
}
