// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Modules of the one kernel that there is, with what they need. Its package has no list of that: a machine that installs it makes one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All modules of a kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// The modules below `folder`.
    pub(crate) fn below(folder: &Path) -> Result<Self> {
        let mut modules = Modules {
            files: BTreeMap::new(),
        };
        modules.find(folder)?;
        Ok(modules)
    }

    fn find(&mut self, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                self.find(&path)?;
            } else if path.extension().is_some_and(|ending| ending == "ko") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                self.files.insert(of_kernel(&name), path);
            }
        }
        Ok(())
    }

    /// These modules and all that they need, in an order in which they can be loaded: names and contents. What is not a module is
    /// taken for a part of the kernel.
    pub(crate) fn with_needed(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = Vec::new();
        for name in names {
            self.add(name, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(&self, name: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let Some(path) = self.files.get(name) else {
            return Ok(());
        };
        if loaded.iter().any(|(other, _)| other == name) {
            return Ok(());
        }
        let contents = fs::read(path).with_context(|| format!("{}", path.display()))?;
        for needed in needs(&contents) {
            self.add(&needed, loaded)?;
        }
        loaded.push((name.to_owned(), contents));
        Ok(())
    }
}

/// The name as the kernel has it.
fn of_kernel(name: &str) -> String {
    name.replace('-', "_")
}

/// What a module says that it needs: `depends=` in its section of information, which ends with a zero.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|part| part == KEY);
    let rest = at.and_then(|at| module.get(at + KEY.len()..));
    let list = rest.and_then(|rest| rest.split(|byte| *byte == 0).next());
    let list = String::from_utf8_lossy(list.unwrap_or_default());
    let names = list.split(',').filter(|name| !name.is_empty());
    names.map(of_kernel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let module = |path: &str, needs: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("ELF\0license=GPL\0depends={needs}\0name=x\0")).unwrap();
        };
        module("block/disk.ko", "ring,in-kernel,base");
        module("ring.ko", "base");
        module("x/base.ko", "");
        module("other-one.ko", "ring");
        let modules = Modules::below(folder.path()).unwrap();
        let names = |names: &[&str]| -> Vec<String> {
            let loaded = modules.with_needed(names).unwrap();
            loaded.into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&["disk"]), ["base", "ring", "disk"]);
        assert_eq!(
            names(&["other_one", "disk"]),
            ["base", "ring", "other_one", "disk"]
        );
        assert_eq!(names(&["in_kernel"]), [""; 0]);
    }

    #[test]
    fn a_module_that_says_nothing_needs_nothing() {
        for bytes in [&b""[..], b"\0depends=", b"\0depends=\0", b"xdepends=a\0"] {
            assert!(needs(bytes).is_empty(), "{bytes:?}");
        }
        assert_eq!(needs(b"\0depends=a-b,c"), ["a_b", "c"]);
    }
}
