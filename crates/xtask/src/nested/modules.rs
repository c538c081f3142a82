//! Which modules the emulated host's kernel needs, with those that they need, in an order in which they load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// KVM for AMD CPUs, taps, bridges and their rules, and the disk. The kernel has ext4 in itself.
const WANTED: &[&str] = &[
    "irqbypass",
    "kvm",
    "kvm-amd",
    "tun",
    "bridge",
    "nf_tables",
    "nft_meta_bridge",
    "virtio_pci",
    "virtio_blk",
];

/// Most folders within each other.
const DEPTH_MAX: usize = 12;

/// The modules in `directory` that are wanted, each after those that it needs.
pub(super) fn find(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = BTreeMap::new();
    collect(directory, DEPTH_MAX, &mut all)?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &all, &mut order).with_context(|| format!("find the kernel's module {name}"))?;
    }
    Ok(order)
}

fn collect(directory: &Path, depth: usize, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, all)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".ko")) {
            all.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(name: &str, all: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    let path = all.get(&name.replace('-', "_")).context("it is not there")?;
    if order.contains(path) {
        return Ok(());
    }
    let module = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    for needed in needed_by(&module) {
        add(&needed, all, order).with_context(|| format!("find its {needed}"))?;
    }
    order.push(path.clone());
    Ok(())
}

/// The `depends=` of a module's own description.
fn needed_by(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(place) = module.windows(MARK.len()).position(|window| window == MARK) else { return Vec::new() };
    let rest = &module[place + MARK.len()..];
    let text =
        String::from_utf8_lossy(&rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(0)]).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let table: [(&[u8], &[&str]); 4] = [
            (b"x\0license=GPL\0depends=stp,llc\0name=bridge\0", &["stp", "llc"]),
            (b"\0depends=\0", &[]),
            (b"no description", &[]),
            (b"\0depends=cut", &[]),
        ];
        for (module, expected) in table {
            assert_eq!(needed_by(module), expected);
        }
    }
}
