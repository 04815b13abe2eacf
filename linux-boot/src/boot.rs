// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel and what it is told, put into memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult, load_cmdline};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::acpi::Devices;
use crate::layout::{
    ACPI, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_SIZE, HIGH, IO_APIC, LOCAL_APIC, LOW_END,
};
use crate::{acpi, tables};

/// Kinds of memory in the map that the kernel is given.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// `XLF_KERNEL_64`: the kernel has the 64-bit entry, 0x200 bytes after its first.
const HAS_64_BIT_ENTRY: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// A boot loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;
/// What the RAM disk's start is a multiple of.
const RAM_DISK_ALIGN: u64 = 2 << 20;

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("{0} could not be read")]
    Read(&'static str, #[source] std::io::Error),
    /// The kernel is neither an ELF file nor a bzImage, or does not fit.
    #[error("the kernel could not be loaded")]
    Kernel(#[source] linux_loader::loader::Error),
    /// An old or a 32-bit kernel.
    #[error("the kernel has no 64-bit entry: build it with CONFIG_EFI_STUB or CONFIG_X86_64")]
    No64BitEntry,
    /// The command line is too long, or has characters that it must not have.
    #[error("the command line could not be taken")]
    CommandLine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The RAM disk lies over the kernel.
    #[error(
        "{needed:#x} bytes of kernel and RAM disk do not fit into the guest's memory: give it more"
    )]
    TooLarge {
        /// How many bytes they take.
        needed: u64,
    },
    /// The memory is not as [`layout::frames`](crate::layout::frames) has it.
    #[error("guest memory could not be written")]
    Memory(#[from] GuestMemoryError),
    /// The boot parameters could not be written.
    #[error("the boot parameters could not be written")]
    Parameters(#[source] linux_loader::configurator::Error),
}

/// What to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// An ELF file (vmlinux) or a bzImage. The second unpacks itself, which takes long in software emulation.
    pub kernel: File,
    /// The initial RAM disk.
    pub ram_disk: Option<File>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Memory of the guest in MiB.
    pub mib: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// What the tables say is there.
    pub devices: &'a Devices,
}

/// What was loaded, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// The kernel's 64-bit entry.
    pub entry: u64,
    /// The first byte after the kernel, its zeros included.
    pub kernel_end: u64,
    /// Where the RAM disk is, and its length.
    pub ram_disk: (u64, u64),
}

impl Boot<'_> {
    /// Puts everything into new memory, which is zeros.
    ///
    /// # Errors
    /// See [`LoadError`]; the memory may be partly written then.
    pub fn load(mut self, memory: &impl GuestMemoryBackend) -> Result<Loaded, LoadError> {
        let (kernel, entry) = self.load_kernel(memory)?;
        let ram_disk = self.load_ram_disk(memory, kernel.kernel_end)?;
        self.load_command_line(memory)?;
        for (at, table) in acpi::tables(self.vcpus, self.devices) {
            memory.write_slice(&table, GuestAddress(at))?;
        }
        tables::write(memory)?;
        let loaded = Loaded {
            entry,
            kernel_end: kernel.kernel_end,
            ram_disk,
        };
        let parameters = self.parameters(&loaded, kernel.setup_header);
        let parameters = BootParams::new(&parameters, GuestAddress(BOOT_PARAMS));
        LinuxBootConfigurator::write_bootparams(&parameters, memory)
            .map_err(LoadError::Parameters)?;
        Ok(loaded)
    }

    /// By the first bytes of the file: what was loaded, and the 64-bit entry.
    fn load_kernel(
        &mut self,
        memory: &impl GuestMemoryBackend,
    ) -> Result<(KernelLoaderResult, u64), LoadError> {
        let failed = |err| LoadError::Read("the kernel", err);
        let high = Some(GuestAddress(HIGH));
        let mut magic = [0; 4];
        self.kernel.read_exact(&mut magic).map_err(failed)?;
        self.kernel.rewind().map_err(failed)?;
        if magic == *b"\x7fELF" {
            let loaded = Elf::load(memory, None, &mut self.kernel, high);
            let loaded = loaded.map_err(LoadError::Kernel)?;
            let entry = loaded.kernel_load.0;
            return Ok((loaded, entry));
        }
        let loaded = BzImage::load(memory, None, &mut self.kernel, high);
        let mut loaded = loaded.map_err(LoadError::Kernel)?;
        let header = loaded.setup_header.unwrap_or_default();
        if header.xloadflags & HAS_64_BIT_ENTRY == 0 {
            return Err(LoadError::No64BitEntry);
        }
        // It unpacks itself from there on.
        let end = loaded.kernel_load.0 + u64::from(header.init_size);
        loaded.kernel_end = loaded.kernel_end.max(end);
        let entry = loaded.kernel_load.0 + ENTRY_64;
        Ok((loaded, entry))
    }

    /// As high as it goes.
    fn load_ram_disk(
        &mut self,
        memory: &impl GuestMemoryBackend,
        kernel_end: u64,
    ) -> Result<(u64, u64), LoadError> {
        let Some(file) = &mut self.ram_disk else {
            return Ok((0, 0));
        };
        let failed = |err| LoadError::Read("the RAM disk", err);
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let start = (self.mib << 20).saturating_sub(len) / RAM_DISK_ALIGN * RAM_DISK_ALIGN;
        if start < kernel_end {
            let needed = kernel_end.saturating_add(len);
            return Err(LoadError::TooLarge { needed });
        }
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        memory.read_exact_volatile_from(GuestAddress(start), file, bytes)?;
        Ok((start, len))
    }

    fn load_command_line(&self, memory: &impl GuestMemoryBackend) -> Result<(), LoadError> {
        let failed = |err| LoadError::CommandLine(Box::new(err));
        let mut line = Cmdline::new(COMMAND_LINE_SIZE).map_err(failed)?;
        line.insert_str(self.command_line).map_err(failed)?;
        load_cmdline(memory, GuestAddress(COMMAND_LINE), &line)
            .map_err(|err| LoadError::CommandLine(Box::new(err)))
    }

    /// The zero page: for an ELF file with what a boot loader would find in a bzImage's header.
    fn parameters(&self, loaded: &Loaded, header: Option<setup_header>) -> boot_params {
        let mut hdr = header.unwrap_or(setup_header {
            boot_flag: 0xaa55,
            header: 0x5372_6448,
            version: 0x020f,
            loadflags: 1,
            kernel_alignment: 0x100_0000,
            initrd_addr_max: 0x7fff_ffff,
            ..setup_header::default()
        });
        let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        hdr.type_of_loader = UNKNOWN_LOADER;
        hdr.ramdisk_image = low(loaded.ram_disk.0);
        hdr.ramdisk_size = low(loaded.ram_disk.1);
        hdr.cmd_line_ptr = low(COMMAND_LINE);
        hdr.cmdline_size = low(COMMAND_LINE_SIZE as u64 - 1);
        let mut parameters = boot_params {
            acpi_rsdp_addr: ACPI.start,
            hdr,
            ..boot_params::default()
        };
        let map = memory_map(self.mib);
        parameters.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
        for (entry, place) in map.into_iter().zip(&mut parameters.e820_table) {
            *place = entry;
        }
        parameters
    }
}

/// The map of memory ("e820").
fn memory_map(mib: u64) -> Vec<boot_e820_entry> {
    let entry = |addr: u64, end: u64, kind| boot_e820_entry {
        addr,
        size: end - addr,
        r#type: kind,
    };
    vec![
        entry(0, LOW_END, RAM),
        entry(LOW_END, 0xa_0000, RESERVED),
        entry(ACPI.start, ACPI.end, RESERVED),
        entry(HIGH, mib << 20, RAM),
        entry(IO_APIC.into(), u64::from(IO_APIC) + 0x1000, RESERVED),
        entry(LOCAL_APIC.into(), u64::from(LOCAL_APIC) + 0x1000, RESERVED),
    ]
}

#[cfg(test)]
mod tests;
