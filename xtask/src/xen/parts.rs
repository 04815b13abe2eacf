// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a boot is made of: QEMU, the hypervisor, dom0's kernel and its modules, busybox.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::release::{BASE, Release};
use crate::run::root;

/// All that a boot needs, unpacked. Made once for each version; `target/xen` may be removed at any time.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) release: Release,
    /// Of this version alone: where boots keep what they say.
    pub(crate) folder: PathBuf,
    /// Where packages are unpacked.
    pub(crate) root: PathBuf,
    /// The hypervisor, as QEMU's `-kernel` takes it.
    pub(crate) xen: PathBuf,
    /// dom0's kernel, unpacked: that saves dom0 the time.
    pub(crate) kernel: PathBuf,
    /// Folder of dom0's Xen drivers.
    pub(crate) modules: PathBuf,
    /// Name and version of the hypervisor's package.
    pub(crate) package: String,
}

impl Parts {
    /// What the last boot said, and what the one under way says.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("last.log")
    }

    /// The parts, fetched if they are not there yet.
    pub(crate) fn ready(release: Release) -> Result<Self> {
        let base = root().join("target/xen");
        let folder = base.join(release.name());
        let versions = folder.join("versions");
        let unpacked = base.join("root");
        if !versions.exists() {
            fetch(release, &base, &folder)
                .with_context(|| format!("what Xen {} needs could not be had", release.name()))?;
        }
        let kernel = base.join("vmlinux");
        let package =
            fs::read_to_string(&versions).with_context(|| format!("{}", versions.display()))?;
        Ok(Parts {
            release,
            xen: folder.join("xen"),
            folder,
            modules: modules(&unpacked)?,
            root: unpacked,
            kernel,
            package: package.lines().next().unwrap_or_default().to_owned(),
        })
    }
}

/// The folder of the one kernel's Xen drivers.
fn modules(root: &Path) -> Result<PathBuf> {
    let folder = root.join("lib/modules");
    let entry = fs::read_dir(&folder)
        .with_context(|| format!("{}", folder.display()))?
        .next()
        .context("no modules")??;
    Ok(entry.path().join("kernel/drivers/xen"))
}

fn fetch(release: Release, base: &Path, folder: &Path) -> Result<()> {
    println!(
        "fetching what Xen {} needs into {}",
        release.name(),
        base.display()
    );
    fs::create_dir_all(folder)?;
    let unpacked = base.join("root");
    let common = base.join("versions");
    let apt = Apt::of(BASE, &base.join("apt").join(BASE))?;
    if !common.exists() {
        let kernel = apt.kernel()?;
        let mut packages = apt.with_dependencies("qemu-system-x86")?;
        packages.extend([kernel.clone(), "busybox-static".to_owned()]);
        let names = apt.unpack(&packages, &unpacked)?;
        let image = kernel.replace("linux-image-", "boot/vmlinuz-");
        let image = fs::read(unpacked.join(&image)).with_context(|| image.clone())?;
        fs::write(base.join("vmlinux"), vmlinux(&image)?)?;
        fs::write(&common, names.join("\n") + "\n")?;
    }
    let of_xen = if release.suite() == BASE {
        apt
    } else {
        Apt::of(release.suite(), &base.join("apt").join(release.suite()))?
    };
    let own = folder.join("root");
    let names = of_xen.unpack(&[release.package()], &own)?;
    let image = fs::File::open(own.join(release.image())).with_context(|| release.image())?;
    let mut elf = Vec::new();
    flate2::read::GzDecoder::new(image).read_to_end(&mut elf)?;
    fs::write(folder.join("xen"), elf)?;
    // Last: it says that all is there.
    fs::write(
        folder.join("versions"),
        names.join("\n") + "\n" + &fs::read_to_string(&common)?,
    )?;
    Ok(())
}

/// The kernel proper out of a bzImage (the boot protocol's `payload_offset` and `payload_length`).
fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("too short for a kernel")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let start = (setup + 1) * 512 + word(0x248)?;
    let payload = image
        .get(start..start + word(0x24c)?)
        .context("the payload is not in the file")?;
    let mut kernel = Vec::new();
    if payload.starts_with(b"\xfd7zXZ\0") {
        // The payload ends with the kernel's size, which is no part of the stream.
        liblzma::read::XzDecoder::new(payload).read_to_end(&mut kernel)?;
    } else if payload.starts_with(b"\x1f\x8b") {
        flate2::read::GzDecoder::new(payload).read_to_end(&mut kernel)?;
    } else {
        bail!("a kernel that is packed in a way that is not known here");
    }
    if !kernel.starts_with(b"\x7fELF") {
        bail!("no ELF file in the kernel image");
    }
    Ok(kernel)
}
