// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The list of capabilities (from 0x40 on) and of extended capabilities (from 0x100 on).

use std::ops::Range;

use ioreq_core::{Result, Width};

use super::config::{CONVENTIONAL, ConfigSpace, EXTENDED, bad};
use super::header::{CAPABILITIES, HEADER_END, Header};

pub(super) const ID_VENDOR: u8 = 0x09;
pub(super) const ID_MSI: u8 = 0x05;
pub(super) const ID_MSIX: u8 = 0x11;

/// A capability: its id, and the bytes after the two of every capability (id, next).
///
/// ```
/// use ioreq_backends::pci::Capability;
/// // Power management, version 3: the guest may write the power state (PMCSR bits 1:0) and clear PME status (bit 15).
/// let power = Capability::new(0x01, [0x03, 0x00, 0x08, 0x00, 0x00, 0x00])
///     .writable([0, 0, 0x03, 0x00])
///     .clearable([0, 0, 0x00, 0x80]);
/// # let _ = power;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Capability {
    id: u8,
    body: Vec<u8>,
    writable: Vec<u8>,
    clearable: Vec<u8>,
}

impl Capability {
    /// A capability that the guest can only read.
    pub fn new(id: u8, body: impl Into<Vec<u8>>) -> Self {
        Capability {
            id,
            body: body.into(),
            writable: Vec::new(),
            clearable: Vec::new(),
        }
    }

    /// A vendor-specific capability (id 0x09): its length goes before `body`.
    pub fn vendor(body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        // A body too long for its length byte does not fit configuration space either, which is found when it is placed.
        let len = u8::try_from(body.len() + 3).unwrap_or(u8::MAX);
        let mut bytes = vec![len];
        bytes.extend_from_slice(body);
        Self::new(ID_VENDOR, bytes)
    }

    /// The bits of the body that the guest can write. A mask shorter than the body ends in zeros.
    pub fn writable(mut self, mask: impl Into<Vec<u8>>) -> Self {
        self.writable = mask.into();
        self
    }

    /// The bits of the body that the guest clears by writing 1.
    pub fn clearable(mut self, mask: impl Into<Vec<u8>>) -> Self {
        self.clearable = mask.into();
        self
    }

    /// Whether a device may add it. MSI and MSI-X come with the function's interrupts.
    pub(super) fn check(&self) -> Result<()> {
        if matches!(self.id, ID_MSI | ID_MSIX) {
            return Err(bad(format!(
                "capability {:#04x}: MSI and MSI-X are set by the function's signals",
                self.id
            )));
        }
        if self.id == 0 {
            return Err(bad("capability 0x00: the null capability has no use".into()));
        }
        check_masks(
            &format!("capability {:#04x}", self.id),
            &self.body,
            &self.writable,
            &self.clearable,
        )
    }
}

/// An extended capability: its id, version, and the bytes after the four of every one.
///
/// ```
/// use ioreq_backends::pci::ExtendedCapability;
/// // Device serial number.
/// let serial = ExtendedCapability::new(0x0003, 1, 0x0123_4567_89ab_cdef_u64.to_le_bytes());
/// # let _ = serial;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ExtendedCapability {
    id: u16,
    version: u8,
    body: Vec<u8>,
    writable: Vec<u8>,
    clearable: Vec<u8>,
}

impl ExtendedCapability {
    /// An extended capability that the guest can only read. The version has 4 bits.
    pub fn new(id: u16, version: u8, body: impl Into<Vec<u8>>) -> Self {
        ExtendedCapability {
            id,
            version,
            body: body.into(),
            writable: Vec::new(),
            clearable: Vec::new(),
        }
    }

    /// The bits of the body that the guest can write. A mask shorter than the body ends in zeros.
    pub fn writable(mut self, mask: impl Into<Vec<u8>>) -> Self {
        self.writable = mask.into();
        self
    }

    /// The bits of the body that the guest clears by writing 1.
    pub fn clearable(mut self, mask: impl Into<Vec<u8>>) -> Self {
        self.clearable = mask.into();
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.id == 0 || self.version > 0xf {
            return Err(bad(format!(
                "extended capability {:#06x} version {}: the id is not 0, the version below 16",
                self.id, self.version
            )));
        }
        check_masks(
            &format!("extended capability {:#06x}", self.id),
            &self.body,
            &self.writable,
            &self.clearable,
        )
    }
}

fn check_masks(what: &str, body: &[u8], writable: &[u8], clearable: &[u8]) -> Result<()> {
    let longest = writable.len().max(clearable.len());
    if longest > body.len() {
        return Err(bad(format!(
            "{what}: a mask of {longest} bytes for a body of {}",
            body.len()
        )));
    }
    if writable.iter().zip(clearable).any(|(w, c)| w & c != 0) {
        return Err(bad(format!(
            "{what}: a bit is both writable and clearable: choose one"
        )));
    }
    Ok(())
}

/// Places capabilities one after the other, and links them.
#[derive(Debug)]
pub(super) struct Placer {
    next: usize,
    /// The byte that points to the next capability.
    link: Option<usize>,
    next_extended: usize,
    last_extended: Option<usize>,
}

impl Placer {
    pub(super) fn new() -> Self {
        Placer {
            next: HEADER_END,
            link: None,
            next_extended: CONVENTIONAL,
            last_extended: None,
        }
    }

    /// Places one; returns where its body is.
    pub(super) fn place(
        &mut self,
        config: &mut ConfigSpace,
        capability: &Capability,
    ) -> Result<Range<usize>> {
        let (at, body) = (self.next, self.next + 2);
        let end = body + capability.body.len();
        let pointer = u8::try_from(at).ok().filter(|_| end <= CONVENTIONAL);
        let Some(pointer) = pointer else {
            return Err(bad(format!(
                "capability {:#04x} of {} bytes does not fit: {:#x} bytes are left for capabilities",
                capability.id,
                2 + capability.body.len(),
                CONVENTIONAL.saturating_sub(at)
            )));
        };
        config.define(at, &[capability.id, 0], &[], &[]);
        config.define(
            body,
            &capability.body,
            &capability.writable,
            &capability.clearable,
        );
        match self.link {
            None => Header::define_capabilities(config, pointer),
            Some(link) => config.define(link, &[pointer], &[], &[]),
        }
        self.link = Some(at + 1);
        self.next = end.next_multiple_of(4);
        Ok(body..end)
    }

    /// Places an extended one; returns where its body is.
    pub(super) fn place_extended(
        &mut self,
        config: &mut ConfigSpace,
        capability: &ExtendedCapability,
    ) -> Result<Range<usize>> {
        let (at, body) = (self.next_extended, self.next_extended + 4);
        let end = body + capability.body.len();
        if end > EXTENDED || config.len() < EXTENDED {
            return Err(bad(format!(
                "extended capability {:#06x} of {} bytes does not fit: {:#x} bytes are left",
                capability.id,
                4 + capability.body.len(),
                config.len().saturating_sub(at)
            )));
        }
        let head = u32::from(capability.id) | u32::from(capability.version) << 16;
        config.define(at, &head.to_le_bytes(), &[], &[]);
        config.define(
            body,
            &capability.body,
            &capability.writable,
            &capability.clearable,
        );
        if let Some(last) = self.last_extended {
            let pointer = u32::try_from(at).unwrap_or(0);
            let head = config.get32(last) | pointer << 20;
            config.define(last, &head.to_le_bytes(), &[], &[]);
        }
        self.last_extended = Some(at);
        self.next_extended = end.next_multiple_of(4);
        Ok(body..end)
    }
}

/// Where the first capability with this id is.
pub(super) fn find(config: &ConfigSpace, id: u8) -> Option<u16> {
    let mut at = config.get(CAPABILITIES, Width::B1);
    // 4 bytes each, so no list is longer; and this one is ours, without a loop.
    for _ in 0..CONVENTIONAL / 4 {
        let place = usize::try_from(at).ok().filter(|at| *at != 0)?;
        let [found, next] = config.get16(place).to_le_bytes();
        if found == id {
            return u16::try_from(at).ok();
        }
        at = next.into();
    }
    None
}
