//! The disk of one run: the tests of the drivers and a cluster with the libraries that they need, Firecracker, the demo
//! image, and the tools of this machine that the tests call.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::find_tool;

/// Size of the disk: the programs, and what tests write. It has holes where nothing is.
pub(super) const DISK_BYTES: u64 = 6 << 30;

/// Tools of this machine that the tests call; everything else is busybox.
const TOOLS: &[&str] = &["ip", "nft", "unshare", "mkfs.ext4"];

/// What a run needs.
pub(super) struct Parts<'a> {
    /// The program of the drivers' tests.
    pub(super) tests: &'a Path,
    /// The `lightbyte` program.
    pub(super) lightbyte: &'a Path,
    pub(super) etcd: &'a Path,
    pub(super) firecracker: &'a Path,
    pub(super) jailer: Option<&'a Path>,
    /// The demo image's directory.
    pub(super) image: &'a Path,
    /// The directory of Debian's image, if it was made.
    pub(super) debian: Option<&'a Path>,
    /// Which tests, as a regular expression.
    pub(super) filter: &'a str,
}

/// Makes the disk in `work`, and gives its file.
pub(super) fn make(parts: &Parts<'_>, work: &Path) -> Result<PathBuf> {
    let tree = work.join("tree");
    let place = |name: &str| tree.join(name);
    put(parts.tests, &place("drivers"))?;
    let mut programs = vec![parts.tests.to_owned()];
    for (program, name) in [(parts.lightbyte, "bin/lightbyte"), (parts.etcd, "bin/etcd")] {
        put(program, &place(name))?;
        programs.push(program.to_owned());
    }
    put(parts.firecracker, &place("bin/firecracker"))?;
    if let Some(jailer) = parts.jailer {
        put(jailer, &place("bin/jailer"))?;
    }
    let images = [("image", Some(parts.image)), ("debian", parts.debian)];
    for (to, image) in images.into_iter().filter_map(|(to, image)| Some((to, image?))) {
        for name in ["manifest.json", "vmlinux", "initramfs.cpio", "root.ext4"] {
            put(&image.join(name), &place(&format!("{to}/{name}")))?;
        }
    }
    for tool in TOOLS {
        let path = find_tool(tool).with_context(|| format!("find `{tool}`; run cargo xtask setup"))?;
        put(&path, &place(&format!("tools/{tool}")))?;
        programs.push(path);
    }
    for library in libraries(&programs)? {
        put(&library, &place("root").join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    let script = format!("FILTER='{}'\n{}", parts.filter, include_str!("run.sh"));
    for (name, text) in [("run.sh", script.as_str()), ("cluster.sh", include_str!("cluster.sh"))] {
        fs::write(place(name), text).context("write what the host is to do")?;
    }
    let disk = work.join("disk");
    fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).context("make the disk")?;
    let mut command = Command::new("mke2fs");
    // Quick and small: nothing on it outlives the run.
    command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"]);
    command.arg(&tree).arg(&disk).env("PATH", path_with_sbin());
    process::output(&mut command).context("fill the disk")?;
    fs::remove_dir_all(&tree).context("remove what the disk was made from")?;
    Ok(disk)
}

/// `mke2fs` is not in everybody's `PATH`.
fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Links a file where that is possible, and copies it elsewhere.
fn put(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("take {}", from.display());
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(failed)?;
    }
    // A link to a link would lead nowhere on the disk.
    let from = fs::canonicalize(from).with_context(failed)?;
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).with_context(failed)?;
    }
    Ok(())
}

/// The shared libraries of programs, as the dynamic linker finds them here.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let mut command = Command::new("ldd");
        command.arg(program);
        let text = process::output(&mut command)?;
        found.extend(text.lines().filter_map(library));
        if text.contains("not found") {
            bail!("`{}` lacks a library on this machine:\n{text}", program.display());
        }
    }
    Ok(found)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_once("=>").map_or(line, |(_, path)| path).split_whitespace().next()?;
    path.starts_with('/').then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ldd_name_libraries() {
        let table = [
            ("\tlinux-vdso.so.1 (0x00007ffc)", None),
            (
                "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)",
                Some("/lib/x86_64-linux-gnu/libc.so.6"),
            ),
            ("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)", Some("/lib64/ld-linux-x86-64.so.2")),
            ("\tstatically linked", None),
            ("\tlibx.so => not found", None),
            ("", None),
        ];
        for (line, expected) in table {
            assert_eq!(library(line), expected.map(PathBuf::from), "{line}");
        }
    }
}
