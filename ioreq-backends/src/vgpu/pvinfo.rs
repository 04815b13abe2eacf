// SPDX-License-Identifier: Apache-2.0 OR MIT

//! i915's para-virtual interface (PVINFO): one 4 KiB page at offset 0x78000 of BAR 0. Names and offsets as in the driver's
//! `i915_pvinfo.h`.

use std::sync::atomic::{AtomicU64, Ordering};

use ioreq_core::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};
use ioreq_core::{Gfn, Width};

use super::shadow::{Root, Shadow};

const MAGIC: u64 = 0x4776_5447_7654_4776;
const VERSION_MAJOR: u16 = 1;
const VERSION_MINOR: u16 = 0;
/// vgt_caps bit 2: full 48-bit PPGTT; bit 4: huge GTT entries.
const CAPS: u32 = 1 << 2 | 1 << 4;

const OFF_MAGIC: usize = 0x000;
const OFF_VERSION_MAJOR: usize = 0x008;
const OFF_VERSION_MINOR: usize = 0x00a;
const OFF_VGT_ID: usize = 0x00c;
const OFF_VGT_CAPS: usize = 0x010;
const OFF_AVAIL_RS: usize = 0x040;
const OFF_DISPLAY_READY: usize = 0x804;
const OFF_G2V_NOTIFY: usize = 0x818;
const OFF_PDP: usize = 0x838;
const OFF_CONTEXT_DESCRIPTOR: usize = 0x858;
const END_CONTEXT_DESCRIPTOR: usize = 0x860;

/// What the guest tells the mediator (`g2v_notify`).
///
/// ```
/// use ioreq_backends::vgpu::Notify;
/// assert_eq!(Notify::from_raw(4), Some(Notify::CreateL4));
/// assert_eq!(Notify::from_raw(99), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notify {
    /// `VGT_G2V_PPGTT_L3_PAGE_TABLE_CREATE`, 2
    CreateL3,
    /// `VGT_G2V_PPGTT_L3_PAGE_TABLE_DESTROY`, 3
    DestroyL3,
    /// `VGT_G2V_PPGTT_L4_PAGE_TABLE_CREATE`, 4
    CreateL4,
    /// `VGT_G2V_PPGTT_L4_PAGE_TABLE_DESTROY`, 5
    DestroyL4,
    /// `VGT_G2V_EXECLIST_CONTEXT_CREATE`, 6
    CreateContext,
    /// `VGT_G2V_EXECLIST_CONTEXT_DESTROY`, 7
    DestroyContext,
}

impl Notify {
    /// From the register's value.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            2 => Notify::CreateL3,
            3 => Notify::DestroyL3,
            4 => Notify::CreateL4,
            5 => Notify::DestroyL4,
            6 => Notify::CreateContext,
            7 => Notify::DestroyContext,
            _ => return None,
        })
    }
}

/// The PVINFO page: the guest writes root pointers, then a notification that creates or destroys their shadow.
///
/// Put it into a `Mutex` and route 4 KiB of MMIO to it. Registers can be read and written with 1 to 8 bytes, aligned or not.
///
/// ```
/// use std::sync::Mutex;
/// use ioreq_backends::vgpu::{Pvinfo, Shadow};
/// use ioreq_core::handler::Handler;
/// fn front_end(shadow: &Shadow) -> impl Handler {
///     Mutex::new(Pvinfo::new(shadow.clone(), 1))
/// }
/// ```
#[derive(Debug)]
pub struct Pvinfo {
    shadow: Shadow,
    page: Box<[u8; 4096]>,
    /// Notifications that named no code, or failed.
    refused: AtomicU64,
}

impl Pvinfo {
    /// The page of the vGPU `vgt_id`, with 256 MiB of mappable and 1 GiB of other aperture and 16 fences on offer.
    #[must_use]
    pub fn new(shadow: Shadow, vgt_id: u32) -> Self {
        let mut pvinfo = Pvinfo {
            shadow,
            page: Box::new([0; 4096]),
            refused: AtomicU64::new(0),
        };
        pvinfo.put(OFF_MAGIC, &MAGIC.to_le_bytes());
        pvinfo.put(OFF_VERSION_MAJOR, &VERSION_MAJOR.to_le_bytes());
        pvinfo.put(OFF_VERSION_MINOR, &VERSION_MINOR.to_le_bytes());
        pvinfo.put(OFF_VGT_ID, &vgt_id.to_le_bytes());
        pvinfo.put(OFF_VGT_CAPS, &CAPS.to_le_bytes());
        // mappable {base, size}, nonmappable {base, size}, fences
        let available: [u32; 5] = [0, 256 << 20, 256 << 20, 1 << 30, 16];
        for (number, value) in available.into_iter().enumerate() {
            pvinfo.put(OFF_AVAIL_RS + 4 * number, &value.to_le_bytes());
        }
        pvinfo
    }

    /// Notifications that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        // Relaxed: a counter.
        self.refused.load(Ordering::Relaxed)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(field) = self.page.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    fn get(&self, at: usize, len: usize) -> u64 {
        let bytes = self
            .page
            .get(at..at.saturating_add(len))
            .unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Whether the guest may write a byte of the page.
    fn writable(at: usize) -> bool {
        (OFF_DISPLAY_READY..OFF_DISPLAY_READY + 4).contains(&at)
            || (OFF_G2V_NOTIFY..OFF_G2V_NOTIFY + 4).contains(&at)
            || (OFF_PDP..OFF_PDP + 32).contains(&at)
            || (OFF_CONTEXT_DESCRIPTOR..END_CONTEXT_DESCRIPTOR).contains(&at)
    }

    fn roots(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|n| self.get(OFF_PDP + 8 * n, 8))
    }

    fn notify(&self, raw: u32) -> Result<(), &'static str> {
        let pdp = self.roots();
        let frame = |pointer: u64| Gfn(pointer >> 12);
        let l4 = Root::L4(frame(pdp[0]));
        // Root pointers count as present when they are not zero.
        let l3 = Root::L3(pdp.map(|pointer| (pointer != 0).then(|| frame(pointer))));
        let (root, create) = match Notify::from_raw(raw) {
            Some(Notify::CreateL3) => (l3, true),
            Some(Notify::DestroyL3) => (l3, false),
            Some(Notify::CreateL4) => (l4, true),
            Some(Notify::DestroyL4) => (l4, false),
            // Contexts have no state here beyond their page tables.
            Some(Notify::CreateContext | Notify::DestroyContext) => return Ok(()),
            None => return Err("unknown notification"),
        };
        if create {
            self.shadow
                .create(root)
                .map(drop)
                .map_err(|_| "the root cannot be shadowed")
        } else {
            let id = self
                .shadow
                .find(root)
                .ok_or("no address space of that root")?;
            self.shadow
                .destroy(id)
                .map_err(|_| "no address space of that root")
        }
    }
}

impl MutHandler for Pvinfo {
    fn read(&mut self, _: &Context<'_>, access: Access) -> ReadOutcome {
        match usize::try_from(access.offset) {
            Ok(at) if at + access.width.size() <= self.page.len() => {
                self.get(at, access.width.size()).into()
            }
            _ => ReadOutcome::Refused("beyond the PVINFO page"),
        }
    }

    fn write(&mut self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let Ok(at) = usize::try_from(access.offset) else {
            return WriteOutcome::Refused("beyond the PVINFO page");
        };
        let bytes = value.to_le_bytes();
        let mut written = false;
        for (at, byte) in (at..).zip(bytes.into_iter().take(access.width.size())) {
            if Self::writable(at) {
                self.put(at, &[byte]);
                written = true;
            }
        }
        if !written {
            return WriteOutcome::Refused("a read-only PVINFO register");
        }
        if at == OFF_G2V_NOTIFY && access.width >= Width::B4 {
            #[allow(clippy::cast_possible_truncation, reason = "the register has 32 bits")]
            let raw = value as u32;
            if let Err(why) = self.notify(raw) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return WriteOutcome::Refused(why);
            }
        }
        WriteOutcome::Done
    }
}
