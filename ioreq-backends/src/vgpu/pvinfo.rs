// SPDX-License-Identifier: Apache-2.0 OR MIT

//! i915's para-virtual interface (PVINFO): one 4 KiB page at offset 0x78000 of BAR 0. Names and offsets as in the driver's
//! `i915_pvinfo.h`.

use std::ops::Range;

use ioreq_core::Gfn;
use ioreq_core::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};

use super::shadow::{Root, Shadow};

/// Bytes of the page.
const PAGE: usize = 4096;
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

/// What a PVINFO page was told.
///
/// ```
/// assert_eq!(ioreq_backends::vgpu::PvinfoStats::default().unknown, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PvinfoStats {
    /// Address spaces created.
    pub created: u64,
    /// Address spaces destroyed.
    pub destroyed: u64,
    /// Execlist contexts created or destroyed: noted, nothing more.
    pub contexts: u64,
    /// Notifications of no known code.
    pub unknown: u64,
    /// Notifications that could not be followed: a root that is no guest memory, or is none.
    pub failed: u64,
}

/// The PVINFO page: the guest writes root pointers, then a notification that creates or destroys their shadow.
///
/// Put it into a `Mutex` and route 4 KiB of MMIO to it. Registers can be read and written with 1 to 8 bytes, aligned or not;
/// a notification is given once the last of its four bytes is written, so that a store in parts gives one, not several.
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
    page: Box<[u8; PAGE]>,
    stats: PvinfoStats,
}

impl Pvinfo {
    /// The page of the vGPU `vgt_id`, with 256 MiB of mappable and 1 GiB of other aperture and 16 fences on offer.
    #[must_use]
    pub fn new(shadow: Shadow, vgt_id: u32) -> Self {
        let mut pvinfo = Pvinfo {
            shadow,
            page: Box::new([0; PAGE]),
            stats: PvinfoStats::default(),
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

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> PvinfoStats {
        self.stats
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

    pub(super) fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &*self.page
    }

    pub(super) fn set_bytes(&mut self, bytes: &[u8]) {
        self.put(0, bytes);
    }

    /// Whether the guest may write a byte of the page.
    pub(super) fn writable(at: usize) -> bool {
        (OFF_DISPLAY_READY..OFF_DISPLAY_READY + 4).contains(&at)
            || (OFF_G2V_NOTIFY..OFF_G2V_NOTIFY + 4).contains(&at)
            || (OFF_PDP..OFF_PDP + 32).contains(&at)
            || (OFF_CONTEXT_DESCRIPTOR..END_CONTEXT_DESCRIPTOR).contains(&at)
    }

    fn roots(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|n| self.get(OFF_PDP + 8 * n, 8))
    }

    fn notify(&mut self) -> Result<(), &'static str> {
        #[allow(clippy::cast_possible_truncation, reason = "four bytes")]
        let raw = self.get(OFF_G2V_NOTIFY, 4) as u32;
        let pdp = self.roots();
        // Root pointers count as present when they are not zero.
        let frames = pdp.map(|pointer| (pointer != 0).then_some(Gfn(pointer >> 12)));
        let l4 = frames[0].map(Root::L4);
        let l3 = (frames != [None; 4]).then_some(Root::L3(frames));
        let done = match Notify::from_raw(raw) {
            Some(Notify::CreateL3) => self.create(l3),
            Some(Notify::DestroyL3) => self.destroy(l3),
            Some(Notify::CreateL4) => self.create(l4),
            Some(Notify::DestroyL4) => self.destroy(l4),
            // Contexts have no state here beyond their page tables.
            Some(Notify::CreateContext | Notify::DestroyContext) => {
                self.stats.contexts += 1;
                Ok(())
            }
            None => {
                self.stats.unknown += 1;
                return Err("unknown notification");
            }
        };
        self.stats.failed += u64::from(done.is_err());
        done
    }

    fn create(&mut self, root: Option<Root>) -> Result<(), &'static str> {
        let created = self.shadow.create(root.ok_or("no root pointer")?);
        created.map_err(|_| "the root cannot be shadowed")?;
        self.stats.created += 1;
        Ok(())
    }

    fn destroy(&mut self, root: Option<Root>) -> Result<(), &'static str> {
        let id = root.and_then(|root| self.shadow.find(root));
        let destroyed = id.is_some_and(|id| self.shadow.destroy(id).is_ok());
        self.stats.destroyed += u64::from(destroyed);
        destroyed
            .then_some(())
            .ok_or("no address space of that root")
    }
}

impl MutHandler for Pvinfo {
    fn read(&mut self, _: &Context<'_>, access: Access) -> ReadOutcome {
        match bytes_of(access) {
            Some(bytes) => self.get(bytes.start, bytes.len()).into(),
            None => ReadOutcome::Refused("beyond the PVINFO page"),
        }
    }

    fn write(&mut self, _: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        let Some(bytes) = bytes_of(access) else {
            return WriteOutcome::Refused("beyond the PVINFO page");
        };
        let mut written = false;
        for (at, byte) in bytes.clone().zip(value.to_le_bytes()) {
            if Self::writable(at) {
                self.put(at, &[byte]);
                written = true;
            }
        }
        if !written {
            return WriteOutcome::Refused("a read-only PVINFO register");
        }
        if bytes.contains(&(OFF_G2V_NOTIFY + 3))
            && let Err(why) = self.notify()
        {
            return WriteOutcome::Refused(why);
        }
        WriteOutcome::Done
    }
}

/// The bytes of the page that an access is for.
fn bytes_of(access: Access) -> Option<Range<usize>> {
    let start = usize::try_from(access.offset).ok()?;
    let end = start.checked_add(access.width.size())?;
    (end <= PAGE).then_some(start..end)
}
