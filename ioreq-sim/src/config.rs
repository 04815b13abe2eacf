// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a domain is made of.

use ioreq_core::abi::IOREQ_SLOTS;
use ioreq_core::{Error, ErrorKind, GfnRange, Op, Result};

/// How a vCPU thread waits for its answer.
///
/// ```
/// use ioreq_sim::VcpuWait;
/// assert_eq!(VcpuWait::default(), VcpuWait::Adaptive { spins: 2000 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuWait {
    /// Spins, for benchmarks with a CPU for each vCPU and each worker. Gives way after a long while all the same.
    Spin,
    /// Spins this many times, then sleeps.
    Adaptive {
        /// Turns of the spin loop.
        spins: u32,
    },
    /// Sleeps at once, as a vCPU that Xen deschedules.
    Sleep,
}

impl Default for VcpuWait {
    fn default() -> Self {
        VcpuWait::Adaptive { spins: 2000 }
    }
}

/// The most frames a domain's memory may span: 2^36 of them, 2^48 bytes.
const MAX_GFN: u64 = (1 << 36) - 1;

/// A domain to be: vCPUs, memory, options. Bad values are refused by
/// [`Machine::create_domain`](crate::Machine::create_domain).
///
/// ```
/// use ioreq_core::GfnRange;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let machine = Machine::new();
/// let config = DomainConfig::new(2).memory(GfnRange::sized(0, 4096)?); // 16 MiB
/// let domain = machine.create_domain(config)?;
/// assert_eq!(domain.vcpus(), 2);
/// assert!(machine.create_domain(DomainConfig::new(129)).is_err()); // one ioreq page holds 128 slots
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct DomainConfig {
    pub(crate) vcpus: u32,
    pub(crate) regions: Vec<GfnRange>,
    pub(crate) hap: bool,
    pub(crate) vga: bool,
    pub(crate) wait: VcpuWait,
}

impl DomainConfig {
    /// A domain of `vcpus` vCPUs (1 to 128) with hardware-assisted paging, without emulated VGA, and with 16 MiB of
    /// memory from frame 0 unless [`memory`](Self::memory) says otherwise.
    #[must_use]
    pub fn new(vcpus: u32) -> Self {
        DomainConfig {
            vcpus,
            regions: Vec::new(),
            hap: true,
            vga: false,
            wait: VcpuWait::default(),
        }
    }

    /// Adds memory. Regions may come in any order, but may not overlap; what lies between them is a hole (MMIO).
    ///
    /// Memory costs host memory only where it is touched, so a large guest is cheap.
    #[must_use]
    pub fn memory(mut self, frames: GfnRange) -> Self {
        self.regions.push(frames);
        self
    }

    /// With (`true`, the default) or without hardware-assisted paging. Without it nobody can claim a memory type.
    #[must_use]
    pub fn hap(mut self, hap: bool) -> Self {
        self.hap = hap;
        self
    }

    /// With emulated VGA (the emulation flags of a full HVM guest): single writes to 0xa0000–0xbffff go through the buffered
    /// ring of the server that has that range. Leave a hole there in the memory.
    #[must_use]
    pub fn vga(mut self, vga: bool) -> Self {
        self.vga = vga;
        self
    }

    /// How vCPU threads wait.
    #[must_use]
    pub fn wait(mut self, wait: VcpuWait) -> Self {
        self.wait = wait;
        self
    }

    /// The same, checked and with its memory in order.
    pub(crate) fn checked(mut self) -> Result<Self> {
        if self.vcpus == 0 || self.vcpus as usize > IOREQ_SLOTS {
            return Err(bad(format!(
                "{} vCPUs: a domain has 1 to {IOREQ_SLOTS}",
                self.vcpus
            )));
        }
        if self.regions.is_empty() {
            self.regions.push(GfnRange::sized(0, 4096)?);
        }
        self.regions.sort_unstable_by_key(GfnRange::first);
        for pair in self.regions.windows(2) {
            if let [low, high] = pair
                && low.overlaps(high)
            {
                return Err(bad(format!("memory {low} overlaps memory {high}")));
            }
        }
        if let Some(high) = self.regions.iter().find(|r| r.last() > MAX_GFN) {
            return Err(bad(format!("memory {high} ends beyond gfn {MAX_GFN:#x}")));
        }
        Ok(self)
    }
}

fn bad(what: String) -> Error {
    Error::new(Op::Configure, ErrorKind::InvalidArgument).about(what)
}
